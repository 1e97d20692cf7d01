"""How a study comes to its blocks: from models that read text, or from sketches of them (`sketched.Sketches`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from universal_neurons.config import Settings
from universal_neurons.features.loaded import Studied
from universal_neurons.features.neurons import NeuronSource
from universal_neurons.features.source import Source
from universal_neurons.models import Described, Model, find_tokenizer
from universal_neurons.statistics import Recipe
from universal_neurons.text import Passages, Rows, TokenDataset


@runtime_checkable
class Reader(Protocol):
    """What differs between a study of models and one of sketches.

    `networks` are the models that can run here, `studied` these or what else of them is asked about, a model perhaps
    several times.  `complete` says that the statistics of single models are those of the
    whole text from the beginning.
    """

    networks: list[Model]
    studied: list[Studied]
    complete: bool

    def source(self, model: Described, rounding: str, *, pre: bool = False) -> Source:
        """A model as a source of blocks."""
        ...

    def text(self, settings: Settings, folder: Path) -> Rows | None:
        """The text of the study, its rows in a file in a folder; None where no text is read."""
        ...

    def recipes(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """Statistics as this study makes them."""
        ...

    def again(self, settings: Settings, tokens: Rows, folder: Path) -> tuple[list[Source], Rows]:
        """Sources that run the models, and the text with its tokens: for a second pass over the same text."""
        ...


class Networks:
    """Models that read text here."""

    complete = False

    def __init__(self, studied: Sequence[Studied]) -> None:
        self.studied = list(studied)
        self.networks = list({id(each.network): each.network for each in studied}.values())
        self._by_name = {each.name: each for each in studied}

    def source(self, model: Described, rounding: str, *, pre: bool = False) -> Source:
        """Its neurons, or what else of it is studied."""
        return NeuronSource(self._by_name[model.name], rounding, pre=pre)

    def text(self, settings: Settings, folder: Path) -> Rows | None:
        """What the configuration names."""
        if not settings.reads_tokens:
            return None
        if settings.pooling is not None:
            readers = {each.name: each.tokenizer for each in self.studied}
            return Passages.load(settings, readers, context=settings.context, folder=folder, pooling=settings.pooling)
        tokenizer = find_tokenizer(settings, self.networks)
        return TokenDataset.load(settings, tokenizer, context=settings.context, folder=folder)

    def recipes(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """As they are."""
        return list(recipes)

    def again(self, settings: Settings, tokens: Rows, folder: Path) -> tuple[list[Source], Rows]:
        """The same models and text."""
        return [NeuronSource(each, settings.gemm_dtype) for each in self.studied], tokens
