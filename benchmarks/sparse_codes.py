"""Are dense blocks of TopK latents slower than sparse ones?  Seconds of the products that co-moments are made of.

    python benchmarks/sparse_codes.py [POSITIONS WIDTH K OTHER]

Latents (positions × width, K of them active at each) against a dense block of OTHER columns, and against themselves.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse
import torch
from measure import machine


def seconds_of(compute: Callable[[], object], times: int = 3) -> float:
    """The least processor seconds of several, after one that does not count."""
    compute()
    spent = []
    for _ in range(times):
        started = time.process_time()
        compute()
        spent.append(time.process_time() - started)
    return min(spent)


def report(positions: int, width: int, k: int, other: int) -> str:
    """The table."""
    torch.set_num_threads(1)
    chance = torch.Generator().manual_seed(0)
    before = torch.randn(positions, width, generator=chance)
    values, places = before.topk(k)
    latents = torch.zeros_like(before).scatter_(1, places, values)
    block = torch.randn(positions, other, generator=chance)
    ends = np.arange(0, positions * k + 1, k)

    def turned() -> scipy.sparse.csr_matrix:
        shape = positions, width
        return scipy.sparse.csr_matrix((values.numpy().ravel(), places.numpy().ravel(), ends), shape).T.tocsr()

    codes = turned()
    indices = (torch.from_numpy(part.astype(np.int64)) for part in (codes.indptr, codes.indices))
    torch_codes = torch.sparse_csr_tensor(*indices, torch.from_numpy(codes.data), codes.shape)
    torch.testing.assert_close(torch_codes @ block, latents.T @ block, rtol=1e-4, atol=1e-3)
    rows = {
        "the k largest": lambda: before.topk(k, sorted=False),
        "dense latents with a dense block": lambda: latents.T @ block,
        "sparse latents with a dense block": lambda: torch_codes @ block,
        "sparse latents with sparse latents": lambda: codes @ codes.T,
        "making them sparse": turned,
    }
    told = [f"{machine()} {positions} positions, {k} of {width:,} latents, {other} columns; processor seconds.", ""]
    told += ["| | s |", "|---|---|"]
    return "\n".join(told + [f"| {name} | {seconds_of(compute, 2):.3f} |" for name, compute in rows.items()])


if __name__ == "__main__":
    print(report(*map(int, sys.argv[1:] or (4096, 24576, 32, 4096))))
