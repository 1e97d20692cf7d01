"""The rows that training reads, in each seed's own order."""

import numpy as np
import torch
import torch.nn.functional as nnf
from batched import BOS
from torch import Tensor


class Rows:
    """The rows of a corpus, `context` ids each, in each seed's own order, a permutation an epoch.

    Ids and orders are held on the device, so that a batch is gathered there.
    """

    def __init__(self, tokens: np.ndarray, context: int, data_seeds: list[int], device: str = "cpu") -> None:
        self.width = context - 1
        self.seeds = data_seeds
        self.device = device
        self.count = len(tokens) // self.width
        text = tokens[: self.count * self.width].astype(np.int32).reshape(self.count, self.width)
        self.text = torch.from_numpy(text).to(device)
        self.epoch = -1
        self.orders = torch.empty(0)

    def batch(self, step: int, rows: int) -> Tensor:
        """Ids (seeds, rows, context) of one step, from 0; rows at the end of an epoch that fill no step drop out."""
        epoch, place = divmod(step, self.count // rows)
        if epoch != self.epoch:
            orders = [np.random.default_rng([seed, epoch]).permutation(self.count) for seed in self.seeds]
            self.epoch = epoch
            self.orders = torch.from_numpy(np.stack(orders)).to(self.device)
        text = self.text[self.orders[:, place * rows : (place + 1) * rows]].long()
        return nnf.pad(text, (1, 0), value=BOS)
