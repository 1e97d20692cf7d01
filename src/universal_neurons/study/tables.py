"""What was found, as tables: neurons, matches, layers, labels (columns as in docs/design.md, "The store")."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from universal_neurons.labels import FEWEST, POSITION, Families, Label, LabelSet
from universal_neurons.matching import (
    BINS,
    Comparison,
    baseline_estimate,
    corr_interval,
    excess_estimate,
    heldout_baseline,
    layer_profile,
    mutual_pairs,
    normalised_estimate,
)
from universal_neurons.statistics import RANKED, GroupedSums, deterministic, percentiles
from universal_neurons.study.detail import Detail
from universal_neurons.units import Units

TOP_TOKENS = 10
LABEL_FIELDS = {"label": "name", "group": "group", "previous": "previous"}
FEW_STRETCHES, LARGE_SHARE = 3, 0.05  # of stretches of text, and of one position in a neuron's variance
UNLIKE = 1.5  # held-out rows whose variance is so many times that of the rows that choose, or less by as much


def _places(model: str, units: Units) -> dict[str, Any]:
    return {"model": [model] * len(units)} | units.table_columns()


def _schema(kind: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind)


NEURON_SCHEMA: dict[str, Any] = {
    "model": pl.String, "layer": pl.Int32, "neuron": pl.Int32, "dead": pl.Boolean,
    **_schema(pl.Float64, """max_corr mean_corr min_corr max_baseline mean_baseline min_baseline excess_corr
        excess_heldout excess_low excess_high q_value p_untrained fdr_untrained"""),
    "is_universal": pl.Boolean, "mutual_all": pl.Boolean,
    **_schema(pl.Float64, """baseline_standardised baseline_standardised_low baseline_standardised_high
        excess_standardised excess_standardised_heldout excess_standardised_low excess_standardised_high
        excess_normalised excess_normalised_heldout excess_normalised_low excess_normalised_high
        p_untrained_standardised fdr_untrained_standardised position_share"""),
    "carried_by_few": pl.Boolean,
    **_schema(pl.Float64, """w_in_norm w_up_norm input_bias w_out_norm in_out_sim in_up_sim up_out_sim l2_penalty
        in_cos_max in_cos_min out_cos_max out_cos_min vocab_mean vocab_var vocab_skew vocab_kurt
        mean var skew kurt sparsity bos_mean"""),
    "is_bos": pl.Boolean,
    "activation_mean": pl.Float64, "activation_sd": pl.Float64,
    "layer_corr_max": pl.Float64, "layer_corr_neuron": pl.Int32,
    "position_mi": pl.Float64, "family": pl.String, "label": pl.String, "label_sign": pl.Int8,
    **_schema(pl.Float64, """variance_reduction variance_reduction_second variance_reduction_heldout
        variance_reduction_null"""),
    **{f"{metric}_percentile": pl.Float64 for metric in RANKED},
    "null_fraction": pl.Float64, "roles": pl.List(pl.String),
}  # fmt: skip


def neurons_table(units: Mapping[str, Units], columns: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """A row per neuron of every model; what was not asked is null, what has no answer (dead) NaN."""
    frames = []
    for model, units_of_model in units.items():
        data = _places(model, units_of_model) | dict(columns[model])
        frames.append(pl.DataFrame(data, schema_overrides={name: NEURON_SCHEMA[name] for name in data}))
    table = percentiles(pl.concat(frames, how="diagonal"))
    missing = {name: pl.lit(None, kind) for name, kind in NEURON_SCHEMA.items() if name not in table.columns}
    return table.with_columns(**missing).select(pl.col(name).cast(kind) for name, kind in NEURON_SCHEMA.items())


def heldout_columns(
    comparison: Comparison, detail: Detail, shares: Mapping[str, np.ndarray], variances: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """What held-out rows say of neurons that were asked about.

    `shares` is the `position_share` of every model, `variances` those of its activations on the rows that choose.
    """
    matches = [match.times(signs) for match, signs in zip(detail.matches, comparison.signs)]
    raw = heldout_baseline(comparison.raw, detail.rotated, matches)
    standardised = heldout_baseline(comparison.standardised, detail.standardised, matches)
    excess = excess_estimate(matches, comparison.raw, raw)
    baseline = baseline_estimate(comparison.standardised, standardised)
    further = {
        "excess_standardised": excess_estimate(matches, comparison.standardised, standardised),
        "excess_normalised": normalised_estimate(matches, comparison.standardised, standardised),
    }
    columns = {"excess_heldout": excess.value, "excess_low": excess.low, "excess_high": excess.high}
    columns |= {"baseline_standardised_low": baseline.low, "baseline_standardised_high": baseline.high}
    for name, estimate in further.items():
        columns |= {f"{name}_heldout": estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return columns | {"carried_by_few": _carried_by_few(comparison, detail, shares, variances)}


def _carried_by_few(
    comparison: Comparison, detail: Detail, shares: Mapping[str, np.ndarray], variances: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Whether a neuron's matches rest on little text.

    On few stretches; a large part of a neuron on one position; or on text of which held-out rows have another share
    than the rows that choose.
    """
    few = shares[comparison.asker] > LARGE_SHARE
    for place, (other, match) in enumerate(zip(comparison.others, comparison.best_index)):
        ratio = variance_ratio(comparison, detail, place, variances)
        few |= shares[other][match] > LARGE_SHARE
        few |= (detail.matches[place].stretches < FEW_STRETCHES) | (ratio > UNLIKE) | (ratio < 1 / UNLIKE)
    return few


def variance_ratio(
    comparison: Comparison, detail: Detail, place: int, variances: Mapping[str, np.ndarray]
) -> Float[np.ndarray, " neurons"]:
    """Variance on held-out rows over that on the rows that choose, of a neuron or its match: the one further from 1.

    NaN of sketches, which know no single position.
    """
    if detail.ranks is None:
        return np.full(len(comparison.excess), np.nan)
    theirs = variances[comparison.others[place]][comparison.best_index[place]]
    with np.errstate(divide="ignore", invalid="ignore"):
        mine, match = detail.matches[place].variances / np.stack([variances[comparison.asker], theirs])
        return np.asarray(np.where(np.abs(np.log(mine)) >= np.abs(np.log(match)), mine, match))


def excess_columns(comparison: Comparison, threshold: float) -> dict[str, Any]:
    """The columns that the rows which choose decide."""
    return {
        "max_corr": comparison.best.max(0),
        "mean_corr": comparison.best.mean(0),
        "min_corr": comparison.best.min(0),
        "max_baseline": comparison.baseline.max(0),
        "mean_baseline": comparison.baseline.mean(0),
        "min_baseline": comparison.baseline.min(0),
        "excess_corr": comparison.excess,
        "baseline_standardised": comparison.standardised.mean.mean(0),
        "excess_standardised": comparison.excess_standardised,
        "excess_normalised": _null_where_full(comparison),
        "q_value": comparison.q_value,
        "is_universal": comparison.excess > threshold,
        "mutual_all": mutual_pairs(comparison).anchors,
    }


def _null_where_full(comparison: Comparison) -> list[float | None]:
    """The normalised excess, null where a living neuron's baseline leaves nothing to measure."""
    full = np.isfinite(comparison.excess) & np.isnan(comparison.excess_normalised)
    return [None if nothing else value for value, nothing in zip(comparison.excess_normalised.tolist(), full)]


def subsets_table(units: Mapping[str, Units], by_subset: Mapping[str, Comparison], threshold: float) -> pl.DataFrame:
    """A row per asked neuron and subset."""
    frames = []
    for subset, comparison in by_subset.items():
        places = _places(comparison.asker, units[comparison.asker])
        frames.append(
            pl.DataFrame({"subset": [subset] * len(places["model"])} | places | excess_columns(comparison, threshold))
        )
    return pl.concat(frames)


def matches_table(
    units: Mapping[str, Units],
    comparisons: Sequence[Comparison],
    details: Mapping[str, Detail],
    variances: Mapping[str, np.ndarray],
) -> pl.DataFrame:
    """A row per living asker, other model and rank (1 = best, −1 = most negative); intervals for rank 1."""
    frames = []
    for comparison in comparisons:
        detail = details[comparison.asker]
        for place, (other, matches) in enumerate(zip(comparison.others, comparison.matches)):
            for rank in range(1, matches.index.shape[1] + 1):
                columns = _match(comparison.asker, units[comparison.asker], other, rank)
                columns |= units[other].table_columns(matches.index[:, rank - 1].numpy(), "match_")
                columns |= {"corr": matches.corr[:, rank - 1].numpy()}
                if rank == 1:
                    heldout = detail.matches[place]
                    low, high = corr_interval(heldout)
                    columns |= {
                        "corr_heldout": heldout.corr.value,
                        "corr_low": low,
                        "corr_high": high,
                        "mutual": matches.mutual.numpy(),
                        "certified": None if matches.certified is None else matches.certified.numpy(),
                        "corr_ranks": None if detail.ranks is None else detail.ranks[place],
                        "corr_within_tokens": None if detail.within is None else detail.within[place],
                        "stretches": heldout.stretches,
                        "variance_ratio": variance_ratio(comparison, detail, place, variances),
                        "corr_without_sinks": heldout.without_sinks,
                    }
                frames.append(pl.DataFrame(columns))
            columns = _match(comparison.asker, units[comparison.asker], other, -1)
            columns |= units[other].table_columns(matches.lowest_index.numpy(), "match_")
            frames.append(pl.DataFrame(columns | {"corr": matches.lowest_corr.numpy()}))
    table = pl.concat(frames, how="diagonal").filter(pl.col("corr").is_finite())
    order = ["asker", "layer", "neuron", "match_model", pl.col("rank") < 0, "rank"]
    return table.sort(order).select(
        "asker", pl.col("asker").alias("model"), "layer", "neuron", "match_model", "rank", "match_layer",
        "match_neuron", "corr", "corr_heldout", "corr_low", "corr_high", "mutual", pl.col("certified").cast(pl.Boolean),
        pl.col("corr_ranks", "corr_within_tokens", "stretches", "variance_ratio").cast(pl.Float64),
        pl.col("corr_without_sinks").cast(pl.Float64),
    )  # fmt: skip


def _match(asker: str, units: Units, other: str, rank: int) -> dict[str, Any]:
    n = len(units)
    places = {"asker": [asker] * n} | units.table_columns()
    return places | {"match_model": [other] * n, "rank": np.full(n, rank, np.int32)}


def layers_table(units: Mapping[str, Units], comparisons: Sequence[Comparison]) -> pl.DataFrame:
    """The layer profile: per asker layer that has units, and other model, the fraction of best matches in each layer
    (Fig 2c)."""
    rows = []
    for comparison in comparisons:
        for other, matches in zip(comparison.others, comparison.matches):
            profile = layer_profile(matches.index[:, 0], units[comparison.asker], units[other])
            with_units = np.flatnonzero(units[comparison.asker].widths).tolist()
            for layer, fractions in zip(with_units, profile[with_units].tolist()):
                for match_layer, fraction in enumerate(fractions):
                    rows.append((comparison.asker, comparison.asker, layer, other, match_layer, fraction))
    schema = {
        "asker": pl.String,
        "model": pl.String,
        "layer": pl.Int32,
        "match_model": pl.String,
        "match_layer": pl.Int32,
        "fraction": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def correlations_table(comparisons: Sequence[Comparison]) -> pl.DataFrame:
    """How many ρ of an asker's living neurons with another model's lie in each bin, given by its lower edge."""
    frames = []
    for comparison in comparisons:
        for other, matches in zip(comparison.others, comparison.matches):
            assert matches.histogram is not None
            counts = matches.histogram.numpy()
            filled = np.flatnonzero(counts)
            low = np.round(filled * (2 / BINS) - 1, 2)
            names = {"asker": comparison.asker, "model": comparison.asker, "match_model": other}
            places = {column: [name] * len(filled) for column, name in names.items()}
            frames.append(pl.DataFrame(places | {"low": low, "count": counts[filled]}))
    return pl.concat(frames)


def family_columns(labels: LabelSet, families: Families) -> dict[str, Any]:
    """The columns of neurons whose labels were looked for."""
    names = np.array([_full_name(label) for label in (*labels.all, POSITION)])
    return {
        "position_mi": families.position_mi,
        "family": families.family,
        "label": [name if family else None for name, family in zip(names[families.best.index[0]], families.family)],
        "label_sign": [int(sign) if family else None for sign, family in zip(families.best.sign[0], families.family)],
        "variance_reduction": families.best.variance_reduction[0],
        "variance_reduction_second": families.best.second,
        "variance_reduction_heldout": families.heldout,
        "variance_reduction_null": families.null,
    }


def _full_name(label: Label) -> str:
    return f"previous token: {label.name}" if label.previous else label.name


def labels_table(units: Mapping[str, Units], labels: LabelSet, families: Mapping[str, Families]) -> pl.DataFrame:
    """A row per neuron and rank: the labels with the highest variance reduction."""
    everything = [*labels.all, POSITION]
    names = np.array([label.name for label in everything])
    groups = np.array([label.group for label in everything])
    previous = np.array([label.previous for label in everything])
    frames = []
    for model, units_of_model in units.items():
        best = families[model].best
        for rank, (index, size, sign) in enumerate(zip(best.index, best.variance_reduction, best.sign), start=1):
            places = _places(model, units_of_model)
            columns = {"rank": np.full(len(index), rank, np.int32), "label": names[index], "group": groups[index]}
            columns |= {"previous": previous[index], "variance_reduction": size, "sign": sign.astype(np.int8)}
            frames.append(pl.DataFrame(places | columns))
    return _judged_labels(frames)


def own_labels_table(units: Mapping[str, Units], labels: LabelSet, families: Mapping[str, Families]) -> pl.DataFrame:
    """A row per label of the user's own and neuron, whatever other labels say of it; the columns of `labels_table`."""
    every = [labels.all[index] for index in labels.own]
    of_label = pl.DataFrame({name: [getattr(label, field) for label in every] for name, field in LABEL_FIELDS.items()})
    frames = []
    for model, units_of_model in units.items():
        own = families[model].best.own
        assert own is not None
        places = pl.DataFrame(_places(model, units_of_model))[own.neuron.flatten().numpy()]
        names = of_label[np.repeat(np.arange(len(every)), own.neuron.shape[1])]
        rank, reduction = own.rank.flatten().numpy(), own.reduction.flatten().numpy()
        scores = {"variance_reduction": np.abs(reduction), "sign": np.sign(np.nan_to_num(reduction)).astype(np.int8)}
        ranks = pl.DataFrame({"rank": rank.astype(np.int32)})
        frames.append(pl.concat([places, ranks, names, pl.DataFrame(scores)], how="horizontal"))
    return _judged_labels(frames)


def _judged_labels(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    table = pl.concat(frames).filter(pl.col("variance_reduction").is_finite())
    return table.sort("model", "layer", "neuron", "rank", maintain_order=True)


def tokens_table(
    model: str,
    units: Units,
    words: GroupedSums,
    word_tokens: np.ndarray,
    provisional: np.ndarray,
    n_tokens: int,
    *,
    by_size: bool = False,
) -> pl.DataFrame:
    """The ten tokens with the highest mean activation of each neuron, among tokens that occur at least 20 times.

    `by_size`: with the largest |mean activation|.
    """
    counts = np.zeros(n_tokens, np.int64)
    np.add.at(counts, word_tokens, words.counts.cpu().numpy()[: len(word_tokens)])
    sums = torch.zeros(n_tokens, words.sums.shape[1], dtype=torch.float64, device=words.sums.device)
    token_of_word = torch.from_numpy(word_tokens).to(sums.device)
    with deterministic(sums.is_cuda):
        sums.index_add_(0, token_of_word, words.sums[: len(word_tokens)])
    often = np.flatnonzero(counts >= FEWEST)
    if not len(often):
        return pl.DataFrame()
    means = sums[often] / torch.from_numpy(counts[often]).to(sums.device)[:, None]
    size = (means + torch.from_numpy(provisional).to(means.device)).abs() if by_size else means
    best = size.topk(min(TOP_TOKENS, len(often)), 0).indices
    index = best.cpu().numpy()
    frames = [
        pl.DataFrame(
            _places(model, units)
            | {"rank": np.full(len(at), rank, np.int32), "token": often[at].astype(np.int32)}
            | {"mean_activation": mean + provisional, "count": counts[often[at]]}
        )
        for rank, (at, mean) in enumerate(zip(index, means.gather(0, best).cpu().numpy()), start=1)
    ]
    return pl.concat(frames).sort("layer", "neuron", "rank")


def positions_table(
    model: str, units: Units, values: GroupedSums, firing: GroupedSums, chosen: np.ndarray, provisional: np.ndarray
) -> pl.DataFrame:
    """Mean activation and share of firing of some neurons at every counted position."""
    positions = (values.counts > 0).cpu().numpy().nonzero()[0]
    counts = values.counts.cpu().numpy()[positions]
    means = values.sums[positions][:, chosen].cpu().numpy() / counts[:, None] + provisional[chosen]
    shares = firing.sums[positions][:, chosen].cpu().numpy() / counts[:, None]
    places = _places(model, units)
    columns = {name: np.repeat(np.asarray(column)[chosen], len(positions)) for name, column in places.items()}
    columns |= {"position": np.tile(positions.astype(np.int32), len(chosen)), "count": np.tile(counts, len(chosen))}
    return pl.DataFrame(columns | {"mean_activation": means.T.ravel(), "firing": shares.T.ravel()})
