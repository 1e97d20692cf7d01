"""What a neuron may be called: the families (what it fires on) and the roles (what it does).

Every neuron has a best label, also where it explains next to nothing: a family tells whether it rests on that label.
"""

import polars as pl

UNEXPLAINED = "unexplained"
FAMILIES = (
    "unigram", "alphabet", "previous_token", "position", "syntax", "context", "token_class", "bos", UNEXPLAINED,
)  # fmt: skip
ROLES_BY_WEIGHTS = ("prediction", "suppression", "partition")  # which every neuron is asked about
ROLES = (
    *ROLES_BY_WEIGHTS, "entropy", "token_frequency", "attention_deactivation", "attention_activation",
)  # fmt: skip
OF_NO_LABEL = ("bos", UNEXPLAINED)  # families of neurons that no label explains


def explained(family: str | None, label: str | None) -> bool:
    """Whether a neuron's family rests on its best label; only then is that what it fires on."""
    if family is None or label is None or family in OF_NO_LABEL:
        return False
    return family != "position" or label.startswith("position")


def explaining_label() -> pl.Expr:
    """The column `label` of a neuron table, null where `explained` is false."""
    by_position = (pl.col("family") == "position") & ~pl.col("label").str.starts_with("position")
    return pl.when(~pl.col("family").is_in(OF_NO_LABEL) & ~by_position).then("label").alias("label")
