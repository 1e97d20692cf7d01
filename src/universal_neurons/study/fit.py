"""How well tokenizers fit: the table `spans` as rows of text."""

import polars as pl

LEFT_OUT = {
    "bytes_special": "special tokens",
    "bytes_white_space": "white space",
    "bytes_dropped": "other text",
    "bytes_too_long": "in no row",
}
FIT_FACTS = ("tokens", "tokens a span", "spans of their own", "text left out")


def fit_rows(fit: pl.DataFrame) -> list[tuple[str, str, str, str, str]]:
    """The table `spans` as text: a model's name, then what `FIT_FACTS` names."""
    rows = []
    for row in fit.iter_rows(named=True):
        left_out = [f"{reason} {row[column]:,}" for column, reason in LEFT_OUT.items() if row[column]]
        kept = f"of {row['bytes']:,} bytes: {', '.join(left_out)}" if left_out else "none"
        share = f"{row['own_fraction']:.1%}"
        rows.append((row["model"], f"{row['tokens']:,}", f"{row['tokens_per_span']:.2f}", share, kept))
    return rows
