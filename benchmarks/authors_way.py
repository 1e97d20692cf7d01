"""Correlating two models as the paper's published code does (github.com/wesg52/universal-neurons, correlations_fast.py).

Written from what that script computes:

1. Both models read 32 rows at a time.  Activations are kept in float16, those of masked tokens left out.
2. The product of every pair of layers is made in float32, and added to float64 sums.
3. A batch's sums and sums of squares are made in float16, and added to float64 sums.
4. ρ follows at the end, and is rounded to float16.
5. The baseline is all of this again, the second model's layers rotated in float32.

Two things are not the script's, so that answers can be held against the others': the rotation is orthogonal (the script
takes random directions of unit length), and the mask is the study's.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from plain_way import layers_of

import universal_neurons as un
from universal_neurons.matching.baselines import rotation

ROWS = 32


class LayerPairSums:
    """Running sums of two models' activations (layers, tokens, neurons): n, Σx, Σx², Σy, Σy², Σxy, in float64."""

    def __init__(self, layers: int, width: int) -> None:
        self.n = 0
        self.sums = torch.zeros(2, layers, width, dtype=torch.float64)
        self.squares = torch.zeros(2, layers, width, dtype=torch.float64)
        self.products = torch.zeros(layers, layers, width, width, dtype=torch.float64)

    def update(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add a batch's positions."""
        self.n += left.shape[1]
        for i, left_layer in enumerate(left):
            for j, right_layer in enumerate(right):
                self.products[i, j] += left_layer.float().T @ right_layer.float()
        for side, values in enumerate((left, right)):
            self.sums[side] += values.sum(1)
            self.squares[side] += (values**2).sum(1)

    def best(self) -> torch.Tensor:
        """The highest ρ of every neuron of the first model; −∞ where there is none."""
        norms = (self.squares - self.sums**2 / self.n).sqrt()
        found = []
        for i, products in enumerate(self.products):
            centred = products - self.sums[0, i][:, None] * self.sums[1][:, None, :] / self.n
            rho = (centred / (norms[0, i][:, None] * norms[1][:, None, :])).half()
            found.append(rho.float().where(rho.isfinite(), -torch.inf).amax((0, 2)))
        return torch.cat(found)


def authors_way(lenses: Sequence[Any], tokens: un.TokenDataset, layers: int, width: int) -> list[torch.Tensor]:
    """The highest ρ of every neuron of the first model, and with the second model rotated."""
    turned = rotation("rotation", width, 0, 0).float()
    answers = []
    for rotate in (False, True):
        sums = LayerPairSums(layers, width)
        for start in range(0, len(tokens), ROWS):
            rows = np.arange(start, min(start + ROWS, len(tokens)))
            ids, keep = torch.from_numpy(tokens.ids(rows)), torch.from_numpy(tokens.mask(rows)).flatten()
            left, right = (torch.stack(layers_of(lens, ids, keep)).half() for lens in lenses)
            sums.update(left, right.float() @ turned.T if rotate else right)
        answers.append(sums.best())
    return answers
