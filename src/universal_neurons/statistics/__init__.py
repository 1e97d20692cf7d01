"""What is added up over the text?  One small class per statistic: update, merge, result.

contract        what every accumulator does; Extremes
keys            what a block is named by
container       the statistics of a pass, by key
products        products of two blocks: in float32, or by a processor's units for small numbers
comoments       cross products of two models' neurons, and within each layer of one
sparse_codes    blocks in which most units are inactive: their few active ones
sparse_products cross products of such blocks
moments         moments, histograms, sums of squares, means by token and by position
bands           the bands that examples are of, and how much text one shows
examples        where a neuron fires: its highest activations and some of a few bands below; a gated one's lowest too
sinks           where the residual stream's norm stands out
signed_sums     a sketch's sums
certainty       how far a sketch may be off, upper bounds of every ρ, the bias of its maxima
neuron_columns  weight and activation columns of the neuron table, duplicates
ranked          percentiles within the layer of the metrics of Fig 3
jackknife       how sure an estimate is: stretches of text left out one at a time
"""

from typing import TYPE_CHECKING

from universal_neurons.faces import face

if TYPE_CHECKING:
    from universal_neurons.statistics.bands import AFTER, BANDS, BEFORE, BOTTOM, QUANTILES, WINDOW
    from universal_neurons.statistics.certainty import (
        CANDIDATES_SEEN,
        LIMIT,
        Certainty,
        ShardEnergies,
        quantile_of,
        winners_curse,
    )
    from universal_neurons.statistics.comoments import (
        TILE_ROWS,
        CoMoments,
        CrossMoments,
        LayerCovariance,
        LayerMoments,
        Rows,
        ShuffledCoMoments,
        add_product_of_blocks,
    )
    from universal_neurons.statistics.container import Kind, Statistics
    from universal_neurons.statistics.contract import (
        Accumulator,
        Batch,
        Block,
        Extremes,
        Recipe,
        first_non_finite,
        seed_of,
    )
    from universal_neurons.statistics.examples import Examples, TopExamples
    from universal_neurons.statistics.jackknife import Jackknifed
    from universal_neurons.statistics.keys import (
        BY_POSITION,
        BY_PREVIOUS,
        BY_ROW,
        BY_TOKEN,
        BY_WORD,
        LABELS,
        Key,
        Named,
        What,
    )
    from universal_neurons.statistics.moments import (
        FLOAT_BINS,
        GroupedSums,
        GroupMeans,
        Histogram,
        Moments,
        Spread,
        SumSquares,
        deterministic,
    )
    from universal_neurons.statistics.neuron_columns import (
        PANEL_ELEMENTS,
        activation_statistics,
        cosine,
        decoder_statistics,
        duplicates,
        orientation_of,
        unit,
        vocabulary_moments,
        weight_statistics,
    )
    from universal_neurons.statistics.products import (
        PACKED_BYTES,
        PRODUCT_BYTES,
        add_product,
        round_to_scales,
        units_for,
    )
    from universal_neurons.statistics.ranked import RANKED, percentiles
    from universal_neurons.statistics.signed_sums import (
        ShardSketch,
        SignedSums,
        Signs,
        round_to,
        sums_block,
    )
    from universal_neurons.statistics.sinks import SinkPositions, at_sinks
    from universal_neurons.statistics.sparse_codes import CODES_BYTES, sparse_rows
    from universal_neurons.statistics.sparse_products import SPARSE_PRODUCT_BYTES, OuterProducts, add_sparse_product
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "contract": ["Accumulator", "Batch", "Block", "Extremes", "Recipe", "first_non_finite", "seed_of"],
            "keys": ["BY_POSITION", "BY_PREVIOUS", "BY_ROW", "BY_TOKEN", "BY_WORD", "Key", "LABELS", "Named", "What"],
            "container": ["Kind", "Statistics"],
            "comoments": [
                "CoMoments",
                "CrossMoments",
                "LayerCovariance",
                "LayerMoments",
                "Rows",
                "ShuffledCoMoments",
                "TILE_ROWS",
                "add_product_of_blocks",
            ],
            "products": [
                "PACKED_BYTES",
                "PRODUCT_BYTES",
                "add_product",
                "round_to_scales",
                "units_for",
            ],
            "moments": [
                "FLOAT_BINS",
                "GroupMeans",
                "GroupedSums",
                "Histogram",
                "Moments",
                "Spread",
                "SumSquares",
                "deterministic",
            ],
            "jackknife": ["Jackknifed"],
            "bands": ["AFTER", "BANDS", "BEFORE", "BOTTOM", "QUANTILES", "WINDOW"],
            "examples": ["Examples", "TopExamples"],
            "sinks": ["SinkPositions", "at_sinks"],
            "signed_sums": ["ShardSketch", "SignedSums", "Signs", "round_to", "sums_block"],
            "sparse_codes": ["CODES_BYTES", "sparse_rows"],
            "sparse_products": ["SPARSE_PRODUCT_BYTES", "OuterProducts", "add_sparse_product"],
            "certainty": [
                "CANDIDATES_SEEN",
                "Certainty",
                "LIMIT",
                "ShardEnergies",
                "quantile_of",
                "winners_curse",
            ],
            "ranked": ["RANKED", "percentiles"],
            "neuron_columns": [
                "PANEL_ELEMENTS",
                "activation_statistics",
                "decoder_statistics",
                "cosine",
                "duplicates",
                "orientation_of",
                "unit",
                "vocabulary_moments",
                "weight_statistics",
            ],
        },
    )
