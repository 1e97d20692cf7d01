"""What lies in a folder?  Written whole or not at all, read with nothing taken on trust.

manifest     study.json, dynamics.json, diff.json: what must stand in them
leftovers    what a killed writer may leave in a folder
rewriting    tables of a finished study replaced by others, all at once
former_names columns that earlier versions named otherwise
results      a finished folder, read: every table once, checked against its hash
neuron       one neuron of a finished study, by its name
snapshots    plain tensors in generations, whole or not at all; when one is due
of_label     the neurons that a label explains best
store        a finished study, read: Store
writer       the one writer of a study's folder: StoreWriter
sketch_file  the file of a portable sketch
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.storage.former_names import by_present_names
    from universal_neurons.storage.leftovers import ANSWERS
    from universal_neurons.storage.manifest import (
        MANIFEST,
        SKETCH,
        Facts,
        FinishedDiff,
        FinishedDynamics,
        is_ours,
        products_line,
        read_manifest,
    )
    from universal_neurons.storage.neuron import Neuron, parse_neuron
    from universal_neurons.storage.results import Results
    from universal_neurons.storage.sketch_file import (
        CODES,
        STATISTICS,
        FileInParts,
        KeptSums,
        SketchFile,
        require_free,
        require_one_text,
        scratch_folder,
        scratch_of,
        sum_rows,
        tensors_of,
    )
    from universal_neurons.storage.snapshots import KEPT, PART_BYTES, Generations, Pace
    from universal_neurons.storage.store import Store
    from universal_neurons.storage.writer import StoreWriter
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "former_names": ["by_present_names"],
            "leftovers": ["ANSWERS"],
            "manifest": [
                "Facts",
                "FinishedDiff",
                "FinishedDynamics",
                "MANIFEST",
                "SKETCH",
                "is_ours",
                "products_line",
                "read_manifest",
            ],
            "neuron": ["Neuron", "parse_neuron"],
            "results": ["Results"],
            "snapshots": ["Generations", "KEPT", "PART_BYTES", "Pace"],
            "store": ["Store"],
            "writer": ["StoreWriter"],
            "sketch_file": [
                "CODES",
                "FileInParts",
                "KeptSums",
                "STATISTICS",
                "SketchFile",
                "require_free",
                "require_one_text",
                "scratch_folder",
                "scratch_of",
                "sum_rows",
                "tensors_of",
            ],
        },
    )
