"""Before a study: would these models work together, and what would it take?"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Column, Table

from universal_neurons.config import BUNDLED, Settings, StudyConfig
from universal_neurons.config_reading import make_config
from universal_neurons.errors import ArchitectureError, ConfigError, InputError, TokenizerError, TokenRangeError
from universal_neurons.features import Latents, Studied, load_studied
from universal_neurons.models import (
    expand_bundled,
    find_tokenizer,
    resolve_sources,
    tokenizer_digest,
    verify,
    vocabulary_ids,
)
from universal_neurons.progress import clock
from universal_neurons.study.estimate import Estimate, estimate
from universal_neurons.study.fit import FIT_FACTS, fit_rows
from universal_neurons.study.product_units import with_units
from universal_neurons.study.resolve import (
    PAPER_CONTEXT,
    decide,
    differ,
    load_models,
    require_kin,
    require_tokenizers,
    resolve,
    tokenizers_of,
)
from universal_neurons.terminal import TextTable, shown
from universal_neurons.text import Passages, TokenDataset
from universal_neurons.torch_state import settled_torch

FIT_TOKENS = 100_000  # on which tokenizers are compared
CHECK_ERROR = "error: how far what is read as activations is from what the MLPs add by them, relative; 0 is exact."
SUBSET_TOKENS = 1_000_000  # how far a corpus is read to see which subsets it has


def check_models(models: Sequence[str], tokenizer: str | None = None, data: str | None = None) -> Group:
    """Load every model and say what it is; raises an `InputError` that lists all that keeps them apart.

    Where their tokenizers differ, or `data` names a text, it says how well they fit on that text, else on the bundled.
    """
    given = {"models": tuple(models), "tokenizer": tokenizer, "stages": ("statistics",), "max_tokens": FIT_TOKENS}
    config = make_config(given | ({} if data is None else {"data": data}), "command line")
    problems: list[InputError] = []
    loaded: list[Studied] = []
    notes = []
    name_column = Column("model", overflow="fold")
    whole = (Column(fact, no_wrap=True) for fact in ("width", "vocabulary", "context", "error"))
    architecture = Column("architecture", no_wrap=True)
    table = TextTable(name_column, architecture, "layers × neurons", *whole, title="Models")
    table.caption = shown(CHECK_ERROR)
    table.caption_justify = "left"
    for name in expand_bundled(models):
        try:
            (model,) = load_studied(resolve_sources([name]))
        except InputError as error:
            problems.append(error)
            continue
        loaded.append(model)
        notes += [shown(f"{name}: {note}") for note in model.notes]
        row = (
            str(model.units).replace(" x ", " × ").replace(" neurons", "").replace(" layers", ""),
            model.d_model,
            model.vocab_size,
            model.context,
            f"{verify(model.network):.0e}",
        )
        table.row(name, model.network.architecture.name, *row)

    views: list[Any] = []
    for requirement in (_require_vocabularies, _tokenizers):
        try:
            if len(loaded) > 1 or not problems:
                views += requirement(_numbered(loaded), config)
        except InputError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        causes = [f"{type(problem).__name__}: {problem}" for problem in problems]
        raise ArchitectureError("these models do not work together:", causes=causes)
    return Group(table, *notes, *views)


def _numbered(models: Sequence[Studied]) -> list[Studied]:
    """Models of which those of one name are called by their place too: such folders may be compared."""
    names = [model.name for model in models]
    numbered = [copy.copy(model) for model in models]
    for number, model in enumerate(numbered, start=1):
        if names.count(model.name) > 1:
            model.name = f"{model.name} ({number})"
    return numbered


def _require_vocabularies(models: Sequence[Studied], config: StudyConfig) -> list[Any]:
    shared = find_tokenizer(config, models)
    for model in models:
        largest = max(vocabulary_ids(model.tokenizer or shared).values())
        if largest >= model.vocab_size:
            raise TokenRangeError(
                f"{model.name}: its vocabulary is smaller than the tokenizer's",
                given=f"{model.vocab_size} ids",
                wanted=f"more than {largest}",
            )
    return []


def _tokenizers(models: Sequence[Studied], config: StudyConfig) -> list[Any]:
    """Whether the models share a tokenizer; where they do not, or a text is named, how well theirs fit."""
    several, refusal = differ(config, models), None
    try:
        require_kin(models, config, several=several)
    except TokenizerError as error:
        if several:
            raise
        refusal = error
    views: list[Any] = []
    if several or refusal is not None or config.data != BUNDLED:
        views.append(fit_view(_passages(models, config), config.data))
    if refusal is not None:
        return [*views, shown(f"`uneurons run` refuses them: {refusal.what} ({refusal.given}). {refusal.fix}.")]
    how = "several tokenizers: their positions are the spans that all of them share" if several else "one tokenizer"
    count = f"They work together: {len(models)} models" if len(models) > 1 else "It can be studied: one model"
    return [*views, shown(f"{count}, {how}.")]


def _passages(models: Sequence[Studied], config: StudyConfig) -> Passages:
    """Rows of spans of every tokenizer.  Raises `TokenizerError` for a model that has none where others differ."""
    tokenizers = tokenizers_of(models, config)
    if len({tokenizer_digest(tokenizer) for tokenizer in tokenizers.values()}) > 1:
        require_tokenizers(models)
    context = min(PAPER_CONTEXT, *(model.context for model in models))
    return Passages.load(config, tokenizers, context=context)


def fit_view(passages: Passages, data: str) -> Table:
    """How well tokenizers fit, as a table: tokens a span, tokens that are one of their own, text left out and why."""
    text = "the bundled text" if data == BUNDLED else data
    title = f"Tokenizers on {text}: {passages.n_spans:,} spans"
    table = TextTable("tokenizer of", *FIT_FACTS, title=title)
    for row in fit_rows(passages.fit_table()):
        table.row(*row)
    return table


def estimate_study(config: StudyConfig) -> Estimate:
    """Load the models of a configuration and estimate its study."""
    given, config = config, decide(config)
    if not config.reads_tokens:
        raise ConfigError("--stages weights reads no text", wanted="a study of text", fix="run it: it takes seconds")
    models = load_models(config)
    for model in models:
        if isinstance(model, Latents):
            model.settle(model.scales)  # time needs no factor that only text gives
    require_kin(models, config, several=differ(config, models))
    return estimate_loaded(with_units(given, resolve(config, models), models), models)


def estimate_loaded(settings: Settings, models: Sequence[Studied]) -> Estimate:
    """Estimate a study of models that are loaded, measured as it would run."""
    groups = _groups(settings, models)
    with settled_torch(settings.threads):
        return estimate(settings, models, groups=groups)


def _groups(config: Settings, models: Sequence[Studied]) -> int:
    """How many subsets are studied apart, the rest included; looks at a first stretch of the corpus."""
    if not config.subset:
        return 1
    stretch = config.model_copy(update={"max_tokens": min(config.max_tokens, SUBSET_TOKENS)})
    tokens = TokenDataset.load(stretch, find_tokenizer(config, models), context=config.context)
    named = set(tokens.subset_names if config.subset == ("all",) else config.subset)
    return len(named) + bool(set(tokens.subset_names) - named)


def estimate_view(needs: Estimate, beside: Mapping[str, float] | None = None) -> Table:
    """An estimate as a table; `beside`, by name, the seconds of what comes beside a study."""
    table = TextTable("", "", title=f"{needs.tokens:,} tokens on {needs.device}", show_header=False)
    table.row("text", "the rest of a longer text is not read (--max-tokens)")
    table.row("time", clock(needs.seconds))
    for name in ("weights", "sinks", "labels", "pass", "compare", "detail", "similarity", "roles", "null"):
        table.row(f"  {name}", clock(getattr(needs, f"seconds_{name}")))
    for name, seconds in (beside or {}).items():
        table.row(f"  {name}", clock(seconds))
    table.row("memory", f"{_size(needs.memory_peak)} at the peak, {_size(needs.memory_available)} free")
    table.row("plan", f"{needs.passes} pass{'es' if needs.passes > 1 else ''}, sums in {needs.sums}")
    table.row("disk", f"{_size(needs.disk_peak)} at the peak, {_size(needs.disk_final)} at the end")
    return table


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
