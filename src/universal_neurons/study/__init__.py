"""What happens between a `StudyConfig` and a store?  The stages of a study, and what it takes.

resolve          what `auto` means here: devices, stages, models
inputs           a study whose inputs are all there
estimate         memory, time and disk before it starts
measured         how fast this machine is
sparse_seconds   what products of sparse blocks take of the time of dense ones
role_seconds     how long weight statistics and roles take
product_units    by which units of a CPU products are made, and how exact they are then
memory           what a study takes in memory, and in how many passes it therefore makes the co-moments
check            would these models work together
fit              how well tokenizers fit: the table `spans` as rows of text
shown            the neurons that figures show, and what the held-out pass keeps of them
tables           what was found, as tables
example_tables   where neurons fire, alone and with their matches beside them
counts           counts beside what chance gives: over thresholds, of anchors and mutual cliques
one_to_one_tables  units matched one to one, and what that is worth beside chance
similarity_rows  on how many rows layers are compared, and how many are held at once
layer_similarity  the stage similarity: every two layers, on these rows
label_counts     how often every label holds, and what is said of those that hardly do
family_tables    from the labels' sums to families and their tables
outcome          what the passes have brought so far
screen           from findings with candidates to exact ones, for all pairs of a screened search
panel_pass       a pass that makes some panels of the co-moments
candidates_pass  the last pass of a screened search
masked_sinks     those of all rows, found before the passes to be left out of them
sinks            positions where the residual stream's norm stands out, and their tokens
detail           held-out rows, read once more with the matches that were chosen
run_passes       the passes over the rows that choose, resumed from their snapshots
untrained        the untrained null: the passes again with networks that learned nothing
stages           weights, labels, passes, comparison, held-out pass, tables
run              run_study; resumes
sketch_maker     make_sketch: a model and a corpus to a portable sketch
read_again       a finished study's models and text, read again
explain_settings  whom `explain` asks, about which units
explained_batches  units explained and scored, so many at a time as memory holds
explaining       explain: sentences of units, and their scores on held-out text
roles_again      study_roles: the roles of a finished study
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.study.check import check_models, estimate_loaded, estimate_study, estimate_view
    from universal_neurons.study.estimate import Estimate, resident_bytes
    from universal_neurons.study.explain_settings import KINDS
    from universal_neurons.study.explaining import explain
    from universal_neurons.study.fit import FIT_FACTS, fit_rows
    from universal_neurons.study.inputs import Study
    from universal_neurons.study.measured import fewest_seconds, gemm_rate, measured_ids
    from universal_neurons.study.memory import weight_bytes
    from universal_neurons.study.resolve import (
        decide,
        require_neurons,
        require_no_masked_sinks,
        require_same_tokenizer,
        run_folder,
    )
    from universal_neurons.study.roles_again import settings_of_roles, study_roles
    from universal_neurons.study.run import run_study
    from universal_neurons.study.shown import DUPLICATES, PER_FAMILY, ranking, same_label
    from universal_neurons.study.sketch_maker import make_sketch
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "resolve": [
                "decide",
                "require_neurons",
                "require_no_masked_sinks",
                "require_same_tokenizer",
                "run_folder",
            ],
            "explain_settings": ["KINDS"],
            "explaining": ["explain"],
            "inputs": ["Study"],
            "check": ["check_models", "estimate_loaded", "estimate_study", "estimate_view"],
            "fit": ["FIT_FACTS", "fit_rows"],
            "estimate": ["Estimate", "resident_bytes"],
            "measured": ["fewest_seconds", "gemm_rate", "measured_ids"],
            "memory": ["weight_bytes"],
            "shown": ["DUPLICATES", "PER_FAMILY", "ranking", "same_label"],
            "run": ["run_study"],
            "sketch_maker": ["make_sketch"],
            "roles_again": ["settings_of_roles", "study_roles"],
        },
    )
