"""What a neuron may be called: the families (what it fires on) and the roles (what it does).

Every neuron has a best label, also where it explains next to nothing: a family tells whether it rests on that label.
What a score must exceed for that is said here too.
"""

import numpy as np
import polars as pl
from jaxtyping import Float

UNEXPLAINED = "unexplained"
FAMILIES = (
    "unigram", "alphabet", "previous_token", "position", "syntax", "context", "token_class", "bos", UNEXPLAINED,
)  # fmt: skip
ROLES_BY_WEIGHTS = ("prediction", "suppression", "partition")  # which every neuron is asked about
ROLES = (
    *ROLES_BY_WEIGHTS, "entropy", "token_frequency", "attention_deactivation", "attention_activation",
)  # fmt: skip
SAID_OF_FAMILIES = {  # what a neuron of each fires on, in a few words
    "unigram": "one token",
    "alphabet": "tokens of one letter",
    "previous_token": "what the token before was",
    "position": "where in the text",
    "syntax": "part of speech and the like",
    "context": "topic or source of the text",
    "token_class": "a class of tokens, such as all with a digit",
    "bos": "the beginning of the text",
    UNEXPLAINED: "no label explains enough",
}
SAID_OF_ROLES = {  # what a neuron of each does, in a few words
    "prediction": "raises a class of tokens",
    "suppression": "lowers a class of tokens",
    "partition": "raises some tokens and lowers others",
    "entropy": "changes how certain the model is, through the final norm",
    "token_frequency": "moves tokens by how frequent they are",
    "attention_deactivation": "turns a later head to the first token, so that it idles",
    "attention_activation": "turns a later head away from the first token",
}
TIE = 1e-5  # closer scores of labels, relatively, are the same but for rounding
NULL_QUANTILE = 0.99
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


def null_level(values: Float[np.ndarray, " neurons"]) -> float:
    """The 99th percentile of a model's null scores, which a label must exceed too; 0 where there is none."""
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, NULL_QUANTILE)) if len(finite) else 0.0
