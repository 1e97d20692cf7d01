"""All figures of the roles of a study, by file name, from its tables."""

from collections.abc import Mapping

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from universal_neurons.report.figures.attention import attention_neurons, attention_pairs
from universal_neurons.report.figures.interventions import costs, fixed_values, functional, total_and_direct
from universal_neurons.report.figures.prediction import (
    effects_examples,
    ensembles_figure,
    role_by_layer,
    same_class_figure,
)
from universal_neurons.report.figures.style import lettering

ROLE_TABLES = (  # that have a column `model`
    "heads", "effect_histograms", "class_histograms", "ensembles", "interventions", "ablations", "attention",
    "attention_samples", "head_scores", "costs",
)  # fmt: skip
EXAMPLES = 10  # of each role on the page of Fig 23


def roles_figures(
    neurons: pl.DataFrame, tables: Mapping[str, pl.DataFrame], reference: str, kurtosis: float
) -> dict[str, Figure]:
    """Figures 1 (e, f), 5–8, 22–26 and those of functional universality, of the reference and over all models.

    `neurons` is the neuron table; `tables` the others of this stage, those that the study has.
    """

    def table(name: str) -> pl.DataFrame:
        frame = tables.get(name, pl.DataFrame())
        return frame.filter(pl.col("model") == reference) if "model" in frame.columns and name in ROLE_TABLES else frame

    named = lettering(reference)
    drawn: dict[str, Figure | None] = {}
    effects = table("effect_histograms")
    if len(effects):
        drawn["effects"] = effects_examples(effects, f"Logit effects of neurons of {named}")
        drawn["effects-more"] = effects_examples(effects, f"More neurons of {named}", EXAMPLES)
    drawn["roles-by-layer"] = role_by_layer(neurons, kurtosis, "cos(w_out, W_U) over the vocabulary")
    if len(table("class_histograms")):
        drawn["same-class"] = same_class_figure(table("class_histograms"), f"Neurons of one class of {named}")
    if len(table("ensembles")):
        drawn["ensembles"] = ensembles_figure(table("ensembles"), f"Neurons of one class of {named} together")
    if len(table("interventions")):
        reference_neurons = neurons.filter(pl.col("model") == reference)
        drawn["entropy"] = fixed_values(table("interventions"), reference_neurons, table("ablations"), effects)
        drawn["total-direct"] = total_and_direct(tables["ablations"])
    if len(table("attention")):
        pairs, samples = table("attention"), table("attention_samples")
        confirmed = pairs["role"].is_not_null().any()
        kind = "" if confirmed else ": none confirmed, the nearest candidates"
        ratio = float(np.median(table("heads")["ratio"].drop_nulls().to_numpy()))
        title = f"Attention neurons of {named}{kind} (‖W_O v‖ of other tokens / of BOS: median {ratio:.1f})"
        drawn["attention"] = attention_neurons(table("head_scores"), pairs, samples, title)
        drawn["attention-more"] = attention_pairs(pairs, samples, f"More pairs of {named}")
    what = table("costs").filter(pl.col("set") != "random")["set"][0] if len(table("costs")) else ""
    if len(table("functional")):
        drawn["functional"] = functional(table("functional"), f"{named}, {what}")
    if len(table("costs")):
        drawn["costs"] = costs(table("costs"))
    return {f"role-{name}": figure for name, figure in drawn.items() if figure is not None}
