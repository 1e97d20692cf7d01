"""The bands that a unit's examples are of, and how much text an example shows."""

from itertools import pairwise

QUANTILES = (0.5, 0.75, 0.9, 0.97, 0.995)
BANDS = ("top", *(f"{low:g}–{high:g}" for low, high in pairwise(QUANTILES)))
BOTTOM = "bottom"  # the lowest, after BANDS, where both tails are kept
BEFORE, AFTER = 16, 7
WINDOW = BEFORE + 1 + AFTER
