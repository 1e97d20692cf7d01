"""How does one look around in a study?  A site of pages and data, on disk or served.

site          studies to a folder that opens from disk: pages, scripts, data
studies       the studies of a site, their names in it
terms         every term in one sentence
study_file    what the study page says in words, its models, its settings
absent        why there is nothing to see
tables        small tables, whole, and counts of units
unit_files    the files of every unit, of 64 units each
unit_parts    what tables say of single units
unit_columns  the columns of all units
diff_files    what training changed: of all units, and in words
explained_units  what others than labels said of units, and what was scored
unit_rows     tables of units, read piece by piece
search_index  which units fire on a token
histograms    histograms of pre-activations, as a drawing needs them
csv_files     the table of all units as CSV
data_files    how data stand in a site: scripts, JSON, packed columns
serving       a site served from this machine to this machine
server        the server as an application: whom it answers, and what
site_files    the files of a site that a server gives
neuronpedia   a study as Neuronpedia's exports are laid out
dataset       a study as a dataset: tables as parquet, and a card
consistency_file  one-to-one matches and similarity of layers as one JSON file
new_folder    a folder that an export makes: whole or not at all
own_text      a text of the reader's own: what the neurons of a study's models do on it
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.explorer.consistency_file import Consistency, write_consistency
    from universal_neurons.explorer.dataset import write_dataset
    from universal_neurons.explorer.neuronpedia import write_neuronpedia
    from universal_neurons.explorer.own_text import TextReader
    from universal_neurons.explorer.server import SiteApp
    from universal_neurons.explorer.serving import page_of, serve
    from universal_neurons.explorer.site import STATIC, entries_of, require_site, write_site
    from universal_neurons.explorer.studies import open_results
    from universal_neurons.explorer.terms import TERMS
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "site": ["STATIC", "entries_of", "require_site", "write_site"],
            "studies": ["open_results"],
            "terms": ["TERMS"],
            "serving": ["page_of", "serve"],
            "server": ["SiteApp"],
            "own_text": ["TextReader"],
            "consistency_file": ["Consistency", "write_consistency"],
            "dataset": ["write_dataset"],
            "neuronpedia": ["write_neuronpedia"],
        },
    )
