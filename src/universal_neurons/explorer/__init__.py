"""How does a reader look around in a study?  Pages with their data, on disk or served.

site_files  the files of a site that a server gives
server      the server as an application: whom it answers, and what
own_text    a text of the reader's own: what the neurons of a study's models do on it
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.explorer.own_text import TextReader
    from universal_neurons.explorer.server import SiteApp
    from universal_neurons.explorer.site_files import SiteFiles
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "site_files": ["SiteFiles"],
            "server": ["SiteApp"],
            "own_text": ["TextReader"],
        },
    )
