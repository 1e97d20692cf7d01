"""What did training change?  A base and its fine-tune, whose units correspond by index, unit by unit.

settings        DiffConfig: a study's settings, the null, the second text, from where on a change counts
correspondence  do two models' units correspond by index; tokens that one has besides
inputs          the models and texts of a diff, with everything decided
paired_firing   how often each unit fires in either model, and in both
selves          each unit and itself on held-out rows: alike, shifted, re-scaled
weight_changes  its weights before and after, and where its effects on the logits went
places          where units went to, by the best matches each way: moved, split, merged
kinds           the kind of change, by rules with their error rates
nulls           how unusual a change is among those of other fine-tunes
changes         the tables
effect_units    the units that changed most, and others to hold them against
effects         losses with these units ablated, and patched from the other model
effect_tables   what they cost and carry, with intervals
effect_stage    the stage of effects, and what it will take
finished        Diff: what run_diff leaves, and the words in its tables
run             run_diff
estimate        what a diff will take, before it starts
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.diff.effects import effects_seconds, passes_of
    from universal_neurons.diff.estimate import DiffEstimate, diff_estimate_view, estimate_diff
    from universal_neurons.diff.finished import CHANGED, FIRST, OTHERS, SECOND, STUDY, Diff
    from universal_neurons.diff.kinds import KINDS
    from universal_neurons.diff.nulls import MEASURES
    from universal_neurons.diff.run import run_diff
    from universal_neurons.diff.settings import NOT_OF_DIFF, DiffConfig, make_diff_config
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "settings": ["DiffConfig", "NOT_OF_DIFF", "make_diff_config"],
            "effects": ["effects_seconds", "passes_of"],
            "estimate": ["DiffEstimate", "diff_estimate_view", "estimate_diff"],
            "kinds": ["KINDS"],
            "nulls": ["MEASURES"],
            "finished": ["CHANGED", "Diff", "FIRST", "OTHERS", "SECOND", "STUDY"],
            "run": ["run_diff"],
        },
    )
