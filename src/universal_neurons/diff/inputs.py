"""What a diff reads: a base and its fine-tune, shown to correspond; other fine-tunes, one at a time; text."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from universal_neurons.config import IN_MEMORY, Settings, StudyConfig
from universal_neurons.diff.correspondence import require_correspondence
from universal_neurons.diff.settings import EFFECTS, OF_DIFF, DiffConfig
from universal_neurons.disk import full_disk
from universal_neurons.errors import ArchitectureError, ConfigError
from universal_neurons.features import Networks
from universal_neurons.interventions import require_predictions
from universal_neurons.models import (
    Model,
    Source,
    digest_of,
    find_tokenizer,
    load_model,
    names_of,
    require_weights,
    resolve_sources,
)
from universal_neurons.study import resolve
from universal_neurons.text import Rows, TokenDataset


class Inputs:
    """The models of a diff, and its settings with everything decided.

    Raises an `InputError` where they cannot be compared; `notes` say what has no part in it.
    """

    def __init__(
        self, config: DiffConfig, models: Sequence[Model] | None, nulls: Sequence[Model], tokens: Rows | None
    ) -> None:
        if (models is None and nulls) or (models is not None and config.nulls):
            raise ConfigError(
                "nulls and models are given in two ways",
                given="some as objects, some by name",
                wanted="both models and all nulls as objects, or all by name",
            )
        resolve.require_neurons([*config.models, *config.nulls] if models is None else [], "a diff")
        self.given, self.tokens, self.notes = models, tokens, list[str]()
        if models is not None:
            given = resolve.from_objects(config.study(), [*models, *nulls])
            alike = {"device": given.device, "dtype": given.dtype}
            config = config.model_copy(update={"models": given.models[:2], "nulls": given.models[2:], **alike})
        if tokens is not None:
            config = config.model_copy(update={"data": IN_MEMORY, "context": tokens.context})
        decided = resolve.decide(config.study(), 2)
        of_diff = {name: getattr(config, name) for name in (*OF_DIFF, "models", "pairs")}
        self.config = DiffConfig(**decided.model_dump() | of_diff)
        self.base, self.tuned = self._pair(models)
        self.names = [self.base.name, self.tuned.name]
        added = require_correspondence(self.base, self.tuned)
        self.notes += added
        self.extended = bool(added)  # the fine-tune's tokenizer, which a study by name would read by
        self.config = self.config.model_copy(update={"effects": self._effects()})
        self.nulls = self._nulls(None if models is None else nulls)
        self.settings: Settings = resolve.resolve(decided, [self.base, self.tuned])
        resolve.require_kin([self.base, self.tuned], self.settings, several=False)

    def _effects(self) -> int:
        """Of how many units effects are measured: of none, unless that was asked, where the models predict nothing."""
        asked = self.config.effects
        if asked == 0:
            return 0
        try:
            for model in (self.base, self.tuned):
                require_predictions(model)
        except ArchitectureError as error:
            if asked is not None:
                raise
            self.notes.append(f"no effects on the loss: {error.what}")
            return 0
        return EFFECTS if asked is None else asked

    def _pair(self, models: Sequence[Model] | None) -> tuple[Model, Model]:
        if models is None:
            sources = resolve_sources(self.config.models)
            self.notes += _notes_on_adapters(*sources)
            models = [self._load(source) for source in sources]
        base, tuned = map(copy.copy, models)  # one with added tokens is given another tokenizer
        return base, tuned

    def _load(self, source: Any, name: str = "") -> Model:
        return load_model(source, device=self.config.device, dtype=self.config.dtype, name=name)

    def _nulls(self, models: Sequence[Model] | None) -> list[Callable[[], Model]]:
        """What gives each of the other fine-tunes."""
        load: list[Callable[[], Model]]
        if models is not None:
            names, load = [model.name for model in models], [partial(copy.copy, model) for model in models]
        else:
            names = names_of([*self.config.models, *self.config.nulls])[2:]
            sources = resolve_sources(self.config.nulls)
            self.notes += _notes_on_adapters(*resolve_sources(self.config.models[:1]), *sources)
            load = [partial(self._load, *pair) for pair in zip(sources, names)]
        every = [*self.names, *names]
        if len(set(every)) < len(every):
            raise ConfigError("two models have the same name", given=", ".join(every), fix="give them different names")
        return [partial(self._comparable, one) for one in load]

    def _comparable(self, load: Callable[[], Model]) -> Model:
        """One of the other fine-tunes, whose units correspond to the base's."""
        model = load()
        require_correspondence(self.base, model)
        return model

    def text(self, folder: Path) -> Rows:
        """The text that is studied."""
        text = self.tokens
        if text is None:
            with full_disk(folder.parent):
                text = Networks([self.base, self.tuned]).text(self.settings, folder)
            assert text is not None
        self._require_readable(text)
        return text

    def second_text(self) -> Rows | None:
        """The second text, where one is named."""
        if self.config.data_tuned is None:
            return None
        other = {"data": self.config.data_tuned, "data_config": None, "data_split": None}
        settings = self.settings.model_copy(update=other)
        tokenizer = find_tokenizer(settings, [self.base, self.tuned])
        text = TokenDataset.load(settings, tokenizer, context=settings.context)
        self._require_readable(text)
        return text

    def _require_readable(self, text: Rows) -> None:
        for model in (self.base, self.tuned):
            text.require_vocabulary(model.vocab_size, model.name)

    def release(self) -> tuple[list[Model] | None, StudyConfig]:
        """Let go of the models that the study loads itself; those that it cannot, and its configuration."""
        study = self.config.study()
        models = [self.base, self.tuned] if self.given is not None or self.extended else None
        del self.base, self.tuned
        return models, study

    def load_again(self) -> None:
        """Both models once more, after `release`."""
        self.base, self.tuned = self._pair(self.given)
        require_correspondence(self.base, self.tuned)


def _notes_on_adapters(base: Source, *others: Source) -> list[str]:
    """Which of the others are adapters of another model than the base: what the two differ by is counted too."""
    bases = {other.name: other.base for other in others if other.base is not None}
    if not bases or base.base is not None or base.gguf is not None:
        return []
    own = digest_of(require_weights(base))
    return [
        f"{name}: an adapter of {of.given}, which is not {base.name}: what the two differ by counts as a change too"
        for name, of in bases.items()
        if digest_of(require_weights(of)) != own
    ]
