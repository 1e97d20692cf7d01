"""Which neuron of another model is most like this one, and how far is that more than chance?

correlation  co-moments to correlations, matches and the layer profile
baselines    rotated, Gaussian and permutation baselines; excess correlation, error rates
candidates   what a sketch proposes, their exact correlations, certificates
comparison   one model's neurons against all others', from a pass's statistics, in pieces
pieces       the pieces of every pair, until they make a whole
convergence  the answer so far, at log-spaced numbers of tokens
heldout      the match's correlation on held-out rows, with intervals
selection    the universal neurons, or the top 1 % where none is
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.matching.candidates import (
        CANDIDATES_LEAST,
        MEAN,
        Candidates,
        exact_matches,
        how_many,
        least_best,
        pairs_of,
    )
    from universal_neurons.matching.comparison import Comparison, Evidence, Piece, groups_of
    from universal_neurons.matching.convergence import DRAWS, convergence_table, reading_points
    from universal_neurons.matching.correlation import BINS, PANEL_ELEMENTS, layer_profile
    from universal_neurons.matching.heldout import HeldOut, PairedMoments, corr_interval, excess_interval
    from universal_neurons.matching.pieces import WHOLE, Finding, Findings, Place, Scope
    from universal_neurons.matching.selection import singled_out
else:
    __getattr__, __dir__ = face(
        __name__,
        {
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
            "pieces": ["Finding", "Findings", "Place", "Scope", "WHOLE"],
            "convergence": ["DRAWS", "convergence_table", "reading_points"],
            "heldout": ["HeldOut", "PairedMoments", "corr_interval", "excess_interval"],
            "selection": ["singled_out"],
        },
    )
