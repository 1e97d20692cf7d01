"""What this machine's processor can do, and by which library torch multiplies float32 on it."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

EXACT = ("none", "ieee")  # values of `fp32_precision`
CPUINFO = Path("/proc/cpuinfo")  # Linux; elsewhere nothing is known of the processor
AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
ROUNDING = frozenset({"amx_tile", "amx_bf16"})  # units on which oneDNN would round to bfloat16
OVERRIDE = "UNEURONS_FLOAT32"  # an environment variable
PROBED = 96  # numbers a side: their products' sums are below 2²⁴, and exact in float32


@cache
def _facts() -> dict[str, str]:
    """What Linux says of the first processor."""
    lines = CPUINFO.read_text(errors="replace").split("\n\n")[0].splitlines() if CPUINFO.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def processor_flags() -> frozenset[str]:
    """What the processor can do, as Linux names it; nothing elsewhere."""
    return frozenset(_facts().get("flags", "").split())


@cache
def onednn_is_faster() -> bool:
    """Whether torch's float32 products are best made by oneDNN, which fills AVX-512: torch's own choice, MKL, uses
    half of it on AMD's processors.

    torch hands products to oneDNN where it may round them to bfloat16 (`fp32_precision`).  oneDNN does so with AMX
    alone, which is looked for; and a product that bfloat16 would round must come out exact.  UNEURONS_FLOAT32=torch
    leaves all to torch.
    """
    if os.environ.get(OVERRIDE) == "torch":
        return False
    flags = processor_flags()
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    half_used = _facts().get("vendor_id") == "AuthenticAMD" and AVX512.issubset(flags)
    return half_used and has_both and not flags & ROUNDING and _is_exact()


def _is_exact() -> bool:
    """Whether oneDNN multiplies odd numbers of nine bits, one more than bfloat16 has, without rounding them."""
    numbers = 257 + 2 * (torch.arange(PROBED**2, device="cpu") % 71).view(PROBED, PROBED)
    with torch.autocast("cpu", enabled=False), float32_products("bf16", "cpu"), torch.inference_mode():
        product = numbers.float() @ numbers.T.float()
    return bool((product.long() == numbers @ numbers.T).all())


def exact_products(device: str) -> AbstractContextManager[None]:
    """While open, products of float32 on a kind of device are exact to its rounding, by the faster library."""
    if device == "cpu" and onednn_is_faster():
        return float32_products("bf16", device)
    return nullcontext() if _products_on(device).fp32_precision in EXACT else float32_products("ieee", device)


@contextmanager
def float32_products(precision: str, device: str) -> Iterator[None]:
    """While open, products of float32 on a kind of device are made in this `fp32_precision` of torch's."""
    products = _products_on(device)
    before = products.fp32_precision
    products.fp32_precision = precision
    try:
        yield
    finally:
        products.fp32_precision = before


def _products_on(device: str) -> Any:
    return torch.backends.cuda.matmul if device == "cuda" else getattr(torch.backends.mkldnn, "matmul")  # noqa: B009
