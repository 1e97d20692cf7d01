"""What a study found of one model's neurons, in ten lines for a newcomer: counts, how sure, and against what."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from universal_neurons.report.counts import anchors_line, threshold_counts, untrained_line
from universal_neurons.report.numbers import number
from universal_neurons.report.sinks import sinks_line
from universal_neurons.report.words import spoken_of
from universal_neurons.storage import Store, products_line

OTHER_TEXT = "on text that did not choose the matches"


@dataclass(frozen=True)
class Counts:
    """How many neurons exceed the threshold by one of the excesses, and how sure that is on held-out rows."""

    universal: int
    heldout: int
    surely: int  # whose whole interval is above the threshold
    possibly: int  # whose interval reaches above it
    unsure: int  # of the universal ones those whose interval on held-out rows reaches below the threshold
    on_more: int | None  # of the universal ones those whose matches rest on more than little text


@dataclass(frozen=True)
class Facts:
    """One asker's neurons in numbers; correlations are means over the other models.

    `paper` counts by the paper's baseline, `standardised` by that of standardised neurons (None of an older store).
    """

    asker: str
    others: tuple[str, ...]
    neurons: int
    dead: int
    tokens: int
    threshold: float
    paper: Counts
    standardised: Counts | None
    universal_per_layer: tuple[int | None, ...]  # None of a layer without units
    excess_median: float
    excess_p99: float
    excess_max: float
    discoveries: int  # q_value <= 0.05
    normalised: tuple[float, float] | None  # medians: of all neurons, of the universal ones
    corr: tuple[float, float]  # means: of all best matches, of the universal neurons'
    ranks: tuple[float, float] | None
    within_tokens: tuple[float, float] | None
    coverage: float | None  # share of positions that within_tokens is of
    gap_all: float  # mean over neurons of max - min over models of the best correlation
    gap_universal: float | None
    mutual: float  # share of best matches that are mutual
    certainty: str  # how sure the search is that no better match was missed
    optimism: float  # mean of corr - corr_heldout over best matches

    @property
    def universal(self) -> int:
        """Universal as the paper counts."""
        return self.paper.universal

    @property
    def share(self) -> float:
        """The share of the asker's neurons that are universal, from 0 to 1."""
        return self.universal / self.neurons


def facts(store: Store, asker: str) -> Facts:
    """Counts and quantiles of one asker's neurons, from the tables."""
    table = store.neurons.filter(pl.col("model") == asker)
    alive = table.filter(pl.col("excess_corr").is_finite())
    universal = alive.filter("is_universal")
    best = store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1))
    of_universal = best.join(universal.select("layer", "neuron"), on=["layer", "neuron"], how="semi")
    gap = pl.col("max_corr") - pl.col("min_corr")

    def mean(column: str) -> tuple[float, float] | None:
        if column not in best.columns or best[column].is_null().all():
            return None
        all_of_them, theirs = (each[column].abs().fill_nan(None).mean() for each in (best, of_universal))
        return _number(all_of_them), _number(theirs)

    normalised = None
    if "excess_normalised" in alive.columns:
        medians = [each["excess_normalised"].fill_nan(None).median() for each in (alive, universal)]
        normalised = (_number(medians[0]), _number(medians[1]))
    per_layer = dict(table.group_by("layer").agg(pl.col("is_universal").sum()).iter_rows())
    return Facts(
        asker=asker,
        others=tuple(name for name in store.models if name != asker),
        neurons=len(table),
        dead=int(table["dead"].sum()),
        tokens=int(store.manifest["counted_tokens"]),
        threshold=store.config.threshold,
        paper=_counts(alive, "excess_corr", "excess", store.config.threshold),
        standardised=_counts(alive, "excess_standardised", "excess_standardised", store.config.threshold)
        if "excess_standardised" in alive.columns
        else None,
        universal_per_layer=tuple(map(per_layer.get, range(store.units[asker].layers))),
        excess_median=_number(alive["excess_corr"].median()),
        excess_p99=_number(alive["excess_corr"].quantile(0.99, "linear")),
        excess_max=_number(alive["excess_corr"].max()),
        discoveries=int((alive["q_value"] <= 0.05).sum()),
        normalised=normalised,
        corr=mean("corr") or (math.nan, math.nan),
        ranks=mean("corr_ranks"),
        within_tokens=mean("corr_within_tokens"),
        coverage=(store.manifest.get("within_tokens") or {}).get("coverage"),
        gap_all=_number(alive.select(gap.mean()).item()),
        gap_universal=_number(universal.select(gap.mean()).item()) if len(universal) else None,
        mutual=_number(best["mutual"].mean()),
        certainty=certainty(store),
        optimism=_optimism(store, asker, best),
    )


def _counts(alive: pl.DataFrame, excess: str, heldout: str, threshold: float) -> Counts:
    def above(column: str, among: pl.DataFrame) -> int:
        return int(among.select((pl.col(column).fill_nan(None) > threshold).sum()).item())

    on_more = above(excess, alive.filter(~pl.col("carried_by_few"))) if "carried_by_few" in alive.columns else None
    middle, low, high = (above(f"{heldout}_{end}", alive) for end in ("heldout", "low", "high"))
    universal = above(excess, alive)
    unsure = above(excess, alive.filter(pl.col(f"{heldout}_low").fill_nan(None) <= threshold))
    return Counts(universal, middle, low, high, unsure, on_more)


def _optimism(store: Store, asker: str, best: pl.DataFrame) -> float:
    """By how much best matches are worse on held-out rows: in ρ, where matches are by size in the ρ that counts."""
    by_size = pl.lit(asker in store.gated) | pl.col("match_model").is_in(list(store.gated))
    sign = pl.when(by_size & (pl.col("corr") < 0)).then(-1).otherwise(1)
    lost = (pl.col("corr") - pl.col("corr_heldout")) * sign
    return _number(best.select(lost.fill_nan(None).mean()).item())


def certainty(store: Store) -> str:
    """How sure a study's search is of its best matches, in words, and how exact its products."""
    how_exact = store.manifest.get("products")
    return _of_search(store.manifest["search"]) + ("" if how_exact is None else f"; {products_line(how_exact)}")


def _of_search(search: Mapping[str, Any]) -> str:
    if search["search"] == "screened":
        share = search["certified"] / max(search["matches"], 1)
        return (
            f"{search['certified']:,} of {search['matches']:,} ({share:.1%}) certified: no other neuron correlates more"
        )
    if search["search"] == "sketch":
        error, lowered = search["standard_error"], search["lowered"]
        return f"sketched: a small ρ is off by about {error:.2g}; the best were lowered by {lowered:.2g} on average"
    return "exact: all correlations computed"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def finite(value: float | None) -> bool:
    """Whether a value is a number, neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def basis_test(q_value: float, draws: int) -> str:
    """q as text; so many draws of a random basis can say no less than 1 / draws."""
    least = 1 / draws
    return f"≤ {least:.2f}" if q_value < least else f"{q_value:.2f}"


def asker_lines(store: Store, asker: str) -> list[tuple[str, str]]:
    """The lines that `show` and the report print of an asker: what each says, and its value as text."""
    told = facts(store, asker)
    anchors = anchors_line(store, asker)
    mutual = f"{told.mutual:.1%} mutual" + ("" if anchors is None else f"; {anchors}")
    matches = f"{mutual}; ρ {told.optimism:.3f} lower {OTHER_TEXT}; {told.certainty}"
    spoken = spoken_of(store.manifest)
    lines = [
        ("neurons", f"{told.neurons:,}" + (f", {told.dead} dead" if told.dead else "")),
        *_count_lines(store, told),
        ("excess correlation", _excess_line(told)),
        *_scale_lines(told, sinks_line(store, asker)),
        _chance_line(store, told),
        ("matches", matches),
    ]
    compared = ("compared with", f"{', '.join(told.others)}; on {told.tokens:,} tokens{of_subsets(store)}")
    return [compared, *((spoken(label), spoken(value)) for label, value in lines)]


def of_subsets(store: Store) -> str:
    """` of the subset german alone` and the like; nothing where every document is read."""
    only = store.config.only_subset
    return f" of the subset{'s' * (len(only) > 1)} {', '.join(only)} alone" if only else ""


def only_sentence(store: Store) -> str:
    """What is said of a study of some subsets' documents; nothing of one that reads them all."""
    of_these = of_subsets(store)
    return f"This study reads documents{of_these} (--only-subset)." if of_these else ""


def _count_lines(store: Store, told: Facts) -> list[tuple[str, str]]:
    """Universal neurons by both baselines, on held-out rows, at thresholds around the study's own."""
    lead, at = told.standardised or told.paper, f"{told.threshold:g}"
    per_layer = " ".join("–" if count is None else str(count) for count in told.universal_per_layer)
    lines = [
        (
            f"as the paper counts (excess > {at})",
            f"{told.paper.universal} = {told.share:.2%}; per layer {per_layer}{_unsure(told.paper, at)}",
        ),
        (OTHER_TEXT, _heldout_line(lead, at)),
    ]
    if told.standardised is not None:
        beyond = (
            f"{lead.universal} = {lead.universal / told.neurons:.2%}: matched in every model, on average {at} better"
        )
        ending = f"than in a random basis of equal variances{_unsure(lead, at)}"
        lines.insert(0, (f"universal (excess > {at})", f"{beyond} {ending}"))
    if store.has("thresholds"):
        ending = "" if told.standardised is None else "_standardised"
        thresholds, counts = threshold_counts(store, told.asker, f"universal{ending}")
        lines.append((f"at thresholds {thresholds}", f"{counts}: the count is the threshold's"))
    return lines


def _unsure(counts: Counts, at: str) -> str:
    """How many of the universal neurons text that did not choose them leaves unsure; nothing where there are none."""
    if not counts.universal:
        return ""
    return f"; {counts.unsure} of the {counts.universal} have an interval that reaches below {at}"


def _chance_line(store: Store, told: Facts) -> tuple[str, str]:
    if store.has("null"):
        return "beside untrained networks", untrained_line(store, told.asker)
    return "basis test", (
        f"{told.discoveries} neurons are matched better than randomly rotated ones (q ≤ 0.05); of a trained model "
        "nearly all are, so this does not say that they are universal"
    )


def _heldout_line(counts: Counts, at: str) -> str:
    line = f"{counts.heldout}; the 95 % interval of {counts.surely} is wholly above {at}, "
    line += f"of {counts.possibly} it reaches above"
    if counts.on_more is None or not counts.universal:
        return line
    return f"{line}; {counts.universal - counts.on_more} of the {counts.universal} rest on little text"


def _excess_line(told: Facts) -> str:
    line = f"median {told.excess_median:.3f}, p99 {told.excess_p99:.3f}, max {told.excess_max:.3f}"
    if told.normalised is None:
        return line
    of_all, of_universal = told.normalised
    universal = "" if math.isnan(of_universal) else f", of universal ones {of_universal:.0%}"
    return f"{line}; of the way from chance to 1: median {of_all:.0%}{universal}"


def _scale_lines(told: Facts, sinks: str | None) -> list[tuple[str, str]]:
    """How much of ρ is left of ranks, within single tokens, without sinks: of universal neurons, or all of them."""
    if told.ranks is None or told.within_tokens is None or told.coverage is None:
        return []
    place, whose = (0, "all neurons") if math.isnan(told.corr[1]) else (1, "universal neurons")
    corr, ranks, within = (number(values[place]) for values in (told.corr, told.ranks, told.within_tokens))
    line = f"of {whose} mean ρ {corr}; of ranks, whatever the size, {ranks}; "
    line += f"within single tokens ({told.coverage:.0%} of positions) {within}"
    if sinks is None:
        return [("scale and vocabulary", line)]
    return [("scale, vocabulary, sinks", f"{line}; {sinks}")]
