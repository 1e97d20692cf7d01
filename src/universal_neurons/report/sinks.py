"""How many positions are sinks, and how much of a study's matches they carry, in a line."""

import numpy as np
import polars as pl

from universal_neurons.storage import Store

HIGH = 0.5  # matches of a held-out ρ above it are asked what sinks carry of them


def has_sinks(store: Store) -> bool:
    """Whether sinks were looked for, and found."""
    return bool((store.manifest.get("sinks") or {}).get("sinks"))


def sinks_line(store: Store, asker: str) -> str | None:
    """What sinks carry of an asker's matches; None where the residual stream was not read."""
    about = store.manifest.get("sinks")
    if about is None:
        return None
    masked = (store.manifest["tokens"] or {}).get("sinks")
    before = "" if masked is None else f"{masked['left_out']:,} positions were left out; of the rest, "
    norm = f"held-out positions have a residual norm over {about['factor']:g} times their row's median"
    if not has_sinks(store):
        return f"{before}none of {about['positions']:,} {norm}"
    line = f"{before}{about['sinks']:,} of {about['positions']:,} {norm}, in some model"
    best = store.matches.filter((pl.col("asker") == asker) & (pl.col("rank") == 1))
    size = pl.col("corr_heldout").fill_nan(None).abs()
    left = pl.col("corr_without_sinks").fill_nan(0) * pl.col("corr_heldout").sign()
    high = best.select(size.alias("size"), left.alias("left")).filter(pl.col("size") > HIGH)
    if high.is_empty():
        return f"{line}; no match has a ρ above {HIGH:g} there"
    fallen, lost = int((high["left"] <= HIGH).sum()), (high["size"] - high["left"]).to_numpy()
    verb = "falls" if fallen == 1 else "fall"
    line += f"; without them {fallen:,} of {len(high):,} matches of ρ above {HIGH:g} {verb} below it"
    median, most = (round(float(value), 3) + 0.0 for value in (np.median(lost), lost.max()))
    return f"{line} (ρ lower by {median:.3f} in the median, {most:.3f} at most)"
