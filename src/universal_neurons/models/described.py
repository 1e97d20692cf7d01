"""What a study must know of a model before it reads text; `transformers` kept quiet while a model is made."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.units import Units


@dataclass(frozen=True)
class Decoder:
    """Where units write to, by a name that all share which write to the same place, and what, a row each."""

    stream: str
    directions: Float[Tensor, "units d_model"]


class Described:
    """A model as far as a study must know it before it reads text: its name, units, sizes and digest.

    Itself, or as a sketch of it tells them.
    """

    units: Units
    d_model: int
    vocab_size: int
    context: int
    digest: str
    gated = False  # or of another kind whose units' signs are nobody's choice
    of_neurons = True  # which have weights of an MLP and pre-activations
    has_weights = True  # that say what its units write into the residual stream
    decoder: Decoder | None = None  # of units that a dictionary decodes

    def __init__(self, name: str, *, tokenizer: Any = None, notes: Sequence[str] = ()) -> None:
        self.name, self.tokenizer, self.notes = name, tokenizer, tuple(notes)

    @property
    def n_neurons(self) -> int:
        """Neurons over all layers."""
        return len(self.units)

    @property
    def n_layers(self) -> int:
        """Its layers."""
        return self.units.layers

    @property
    def d_mlp(self) -> int:
        """Neurons of its widest layer."""
        return max(self.units.widths)

    @property
    def device(self) -> torch.device:
        """Where its blocks are."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps."""
        raise NotImplementedError


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or notices of `transformers` while open."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
