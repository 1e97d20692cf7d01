"""How is the text read once for all?  Batches through models and labels into statistics, in panels and lanes.

prefetch  on a GPU, the next batch while the last is added up
one_pass  Pass: batches to sources and labels to accumulators
panels    which statistics are kept; co-moments cut into panels that fit in memory
lanes     what a worker needs of a pass, and a lane from its last snapshot to its end
cluster   lanes on a Ray cluster
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.passes.cluster import connected, run_lanes
    from universal_neurons.passes.lanes import LaneJob
    from universal_neurons.passes.one_pass import (
        Annotations,
        Pass,
        provisional_state,
        restore,
        sample,
        settle_from,
        state_of,
        under,
    )
    from universal_neurons.passes.panels import (
        Layout,
        Panel,
        blocks_of,
        cut,
        model_pairs,
        model_recipes,
        panel_recipes,
        signs_of,
    )
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "one_pass": [
                "Annotations",
                "Pass",
                "provisional_state",
                "restore",
                "sample",
                "settle_from",
                "state_of",
                "under",
            ],
            "panels": [
                "Layout",
                "Panel",
                "blocks_of",
                "cut",
                "model_pairs",
                "model_recipes",
                "panel_recipes",
                "signs_of",
            ],
            "lanes": ["LaneJob"],
            "cluster": ["connected", "run_lanes"],
        },
    )
