"""Which neuron of another model is most like this one, and how far is that more than chance?

correlation  co-moments to correlations, matches and the layer profile
baselines    rotated, Gaussian and permutation baselines; excess correlation, error rates
rotated_pairs  who is whose best match where one model's basis is random
candidates   what a sketch proposes, their exact correlations, certificates
comparison   one model's neurons against all others', from a pass's statistics, in pieces
pieces       the pieces of every pair, until they make a whole
convergence  the answer so far, at log-spaced numbers of tokens
heldout      the match's correlation on held-out rows
rotated_heldout  the baseline's rotated neurons on the same rows
intervals    how sure a match and an excess are
counterparts where a neuron fires on held-out rows, with its matches' activations there
ranks        ρ of the match's mid-ranks: how much of it is scale
within_tokens  ρ of the match within single tokens: how much of it is the vocabulary
significance p-values and false-discovery rates under untrained networks
thresholds   how many are universal at many thresholds, and how many by chance
anchors      neurons whose match is mutual in every model, and those of a random basis
one_to_one   the assignment of largest total ρ, each unit used once; PW-MCC of two decoders
similarity   of two layers as wholes: CKA, CCA, ridge R², calibrated by shifted rows
cliques      units of all models that are each other's best matches, and those of random bases
selection    the universal neurons, or the top 1 % where none is
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.matching.anchors import MutualPairs, mutual_pairs, rotated_mutual_pairs
    from universal_neurons.matching.baselines import ROTATIONS_BYTES, draws_within, rotation_bytes
    from universal_neurons.matching.candidates import (
        CANDIDATES_LEAST,
        MEAN,
        Candidates,
        exact_matches,
        how_many,
        least_best,
        pairs_of,
    )
    from universal_neurons.matching.cliques import Cliques, RandomBases, best_of, can_be_rotated, mutual_cliques
    from universal_neurons.matching.comparison import Comparison, Evidence, Piece, groups_of
    from universal_neurons.matching.convergence import DRAWS, convergence_table, reading_points
    from universal_neurons.matching.correlation import BINS, PANEL_ELEMENTS, layer_profile
    from universal_neurons.matching.counterparts import Counterparts, SideBySide
    from universal_neurons.matching.heldout import HeldOut, PairedMoments
    from universal_neurons.matching.intervals import (
        Estimate,
        baseline_estimate,
        corr_interval,
        excess_estimate,
        heldout_baseline,
        normalised_estimate,
    )
    from universal_neurons.matching.one_to_one import (
        DecoderCosines,
        OneToOne,
        Shared,
        assign,
        assignments,
        pw_mcc,
        rotated_assignments,
        shared,
    )
    from universal_neurons.matching.pieces import WHOLE, Finding, Findings, Place, Scope
    from universal_neurons.matching.ranks import CLASSES, RankMoments, RankTable
    from universal_neurons.matching.rotated_heldout import ROTATED_DRAWS, RotatedMoments
    from universal_neurons.matching.selection import singled_out
    from universal_neurons.matching.significance import discovery_rates, p_values
    from universal_neurons.matching.similarity import (
        MEASURES,
        RIDGE,
        VARIANCE,
        Layer,
        Similarity,
        drawn_shifts,
        n_products,
        similarity_of,
    )
    from universal_neurons.matching.thresholds import counts_above, null_counts, null_excess, thresholds_with
    from universal_neurons.matching.within_tokens import MOST_TOKENS, FrequentTokens, WithinTokens
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "anchors": ["MutualPairs", "mutual_pairs", "rotated_mutual_pairs"],
            "correlation": ["BINS", "PANEL_ELEMENTS", "layer_profile"],
            "candidates": [
                "CANDIDATES_LEAST",
                "Candidates",
                "MEAN",
                "exact_matches",
                "how_many",
                "least_best",
                "pairs_of",
            ],
            "comparison": ["Comparison", "Evidence", "Piece", "groups_of"],
            "one_to_one": [
                "DecoderCosines",
                "OneToOne",
                "Shared",
                "assign",
                "assignments",
                "pw_mcc",
                "rotated_assignments",
                "shared",
            ],
            "pieces": ["Finding", "Findings", "Place", "Scope", "WHOLE"],
            "convergence": ["DRAWS", "convergence_table", "reading_points"],
            "counterparts": ["Counterparts", "SideBySide"],
            "heldout": ["HeldOut", "PairedMoments"],
            "baselines": ["ROTATIONS_BYTES", "draws_within", "rotation_bytes"],
            "rotated_heldout": ["ROTATED_DRAWS", "RotatedMoments"],
            "intervals": [
                "Estimate",
                "baseline_estimate",
                "corr_interval",
                "excess_estimate",
                "heldout_baseline",
                "normalised_estimate",
            ],
            "ranks": ["CLASSES", "RankMoments", "RankTable"],
            "within_tokens": ["FrequentTokens", "MOST_TOKENS", "WithinTokens"],
            "similarity": [
                "Layer",
                "MEASURES",
                "RIDGE",
                "Similarity",
                "VARIANCE",
                "drawn_shifts",
                "n_products",
                "similarity_of",
            ],
            "significance": ["discovery_rates", "p_values"],
            "thresholds": ["counts_above", "null_counts", "null_excess", "thresholds_with"],
            "cliques": ["Cliques", "RandomBases", "best_of", "can_be_rotated", "mutual_cliques"],
            "selection": ["singled_out"],
        },
    )
