"""What must hold before a model can show a role at all, and what is said where it does not.

prediction, suppression  directions that are a token's own unembedding reach the cut of kurtosis, 5 % of them at least
entropy                  W_U hardly reads its last singular directions: they are a null space
attention                some later head attends to BOS: it has a sink

A role that no neuron has where this fails says nothing of the neurons.  `preconditions` decides, once, from what the
roles of a model measured; tables, pages and terminals say `cannot_be_shown`.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from universal_neurons.role_settings import RoleSettings
from universal_neurons.storage import Store

SCHEMA: dict[str, Any] = {
    "model": pl.String, "role": pl.String, "measure": pl.String, "value": pl.Float64, "wanted": pl.Float64,
    "met": pl.Boolean,
}  # fmt: skip
REASONS = {  # by measure, where it is not as wanted
    "token_kurt_high": "of tokens' own unembeddings 95 % have a kurtosis below {value:.1f}, the cut is {wanted:.1f}",
    "null_tail": "W_U has no null space, it reads its last directions {value:.2f} as strongly as the median one",
    "bos_attention": "no later head has a sink, BOS gets {value:.3f} of a head's attention at most",
}


def preconditions(
    model: str, unembedding: Mapping[str, Any], heads: pl.DataFrame | None, settings: RoleSettings
) -> pl.DataFrame:
    """A row per role of one model that needs something: what was measured, what is wanted, whether it is `met`.

    `unembedding` is the model's row of `unembeddings`, `heads` its rows of the table `heads`, if its heads are read.
    Roles go by their names in reports, those by the relative cut as `prediction, relative`.
    """
    high, relative = unembedding["token_kurt_high"], unembedding["relative_cut"]
    rows = [(role, "token_kurt_high", high, settings.kurtosis) for role in ("prediction", "suppression")]
    rows += [(f"{role}, relative", "token_kurt_high", high, relative) for role in ("prediction", "suppression")]
    found = [(*row, row[2] > row[3]) for row in rows]
    tail = unembedding["null_tail"]
    found.append(("entropy", "null_tail", tail, settings.null_space, tail < settings.null_space))
    later = pl.Series(dtype=pl.Float64) if heads is None else heads.filter(pl.col("head_layer") > 0)["bos_attention"]
    if (most := later.max()) is not None:
        met = most >= settings.attention_sink  # type: ignore[operator]
        for role in ("attention_deactivation", "attention_activation"):
            found.append((role, "bos_attention", most, settings.attention_sink, met))
    return pl.DataFrame([(model, *row) for row in found], schema=SCHEMA, orient="row")


def cannot_be_shown(store: Store, model: str, role: str) -> str:
    """Why a model cannot show a role, with the figure; empty where it can, and of an older version's study."""
    if not store.has("preconditions"):
        return ""
    unmet = store.table("preconditions").filter(~pl.col("met"), model=model, role=role).to_dicts()
    return "".join(_sentence(row) for row in unmet)


def unmet_lines(store: Store, models: list[str]) -> list[str]:
    """For each of some models what it cannot show, and why; a line for each reason."""
    if not store.has("preconditions"):
        return []
    unmet = store.table("preconditions").filter(~pl.col("met"), pl.col("model").is_in(models))
    lines = []
    for (model, *_), rows in unmet.group_by("model", "measure", "wanted", maintain_order=True):
        roles = " and ".join(role.replace("_", " ") for role in rows["role"])
        lines.append(f"{model}: {roles} {_sentence(rows.row(0, named=True))}.")
    return lines


def _sentence(row: Mapping[str, Any]) -> str:
    return f"cannot be shown in this model: {REASONS[row['measure']].format(**row)}"
