"""How a number is written wherever people read it: 0.69, −0.12, 8.4 %, and – where there is none."""

import math
from typing import Any

import numpy as np
import polars as pl

NO_VALUE = "–"


def number(value: Any, digits: int = 2) -> str:
    """A number as 0.69, with a minus sign; – where there is none."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    return f"{value:z.{digits}f}".replace("-", "−")


def percent(share: Any, digits: int = 0) -> str:
    """A share as 8.4 %."""
    return NO_VALUE if share is None or not math.isfinite(share) else f"{number(100 * share, digits)} %"


def median(values: pl.Series | np.ndarray, digits: int = 2) -> str:
    """The median of what is finite."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    return number(float(np.median(finite)), digits) if len(finite) else NO_VALUE
