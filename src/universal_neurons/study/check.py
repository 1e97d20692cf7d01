"""Before a study: would these models work together, and what would it take?"""

import copy
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from universal_neurons.config import Settings, StudyConfig, make_config
from universal_neurons.errors import ArchitectureError, ConfigError, InputError, TokenRangeError
from universal_neurons.models import (
    Model,
    expand_bundled,
    find_tokenizer,
    load_model,
    resolve_sources,
    verify,
    vocabulary_ids,
)
from universal_neurons.progress import clock
from universal_neurons.study.estimate import Estimate, estimate
from universal_neurons.study.resolve import decide, load_models, require_kin, resolve
from universal_neurons.terminal import TextTable, shown
from universal_neurons.text import TokenDataset

SUBSET_TOKENS = 1_000_000  # how far a corpus is read to see which subsets it has


def check_models(models: Sequence[str], tokenizer: str | None = None) -> Group:
    """Load every model and say what it is; raises an `InputError` that lists all that keeps them apart."""
    config = make_config({"models": tuple(models), "tokenizer": tokenizer, "stages": ("statistics",)}, "command line")
    problems: list[InputError] = []
    loaded: list[Model] = []
    notes = []
    table = TextTable(
        "model", "family", "layers × neurons", "d_model", "vocabulary", "context", "hook error", title="Models"
    )
    for name in expand_bundled(models):
        try:
            model = load_model(resolve_sources([name])[0])
        except InputError as error:
            problems.append(error)
            continue
        loaded.append(model)
        notes += [shown(f"{name}: {note}") for note in model.notes]
        row = (
            f"{model.n_layers} × {model.d_mlp}",
            model.d_model,
            model.vocab_size,
            model.context,
            f"{verify(model):.0e}",
        )
        table.row(name, model.architecture.name, *row)

    for requirement in (_require_vocabularies, _require_kin):
        try:
            if len(loaded) > 1 or not problems:
                requirement(loaded, config)
        except InputError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        causes = [f"{type(problem).__name__}: {problem}" for problem in problems]
        raise ArchitectureError("these models do not work together:", causes=causes)
    return Group(table, *notes, shown(f"They work together: {len(loaded)} models, one tokenizer."))


def _require_vocabularies(models: Sequence[Model], config: StudyConfig) -> None:
    largest = max(vocabulary_ids(find_tokenizer(config, models)).values())
    for model in models:
        if largest >= model.vocab_size:
            raise TokenRangeError(
                f"{model.name}: its vocabulary is smaller than the tokenizer's",
                given=f"{model.vocab_size} ids",
                wanted=f"more than {largest}",
            )


def _require_kin(models: Sequence[Model], config: StudyConfig) -> None:
    """`require_kin` of models that are called by their place too: folders of one name may be compared."""
    numbered = [copy.copy(model) for model in models]
    for number, model in enumerate(numbered, start=1):
        model.name = f"{model.name} ({number})"
    require_kin(numbered, config)


def estimate_study(config: StudyConfig) -> Estimate:
    """Load the models of a configuration and estimate its study."""
    config = decide(config)
    if not config.reads_tokens:
        raise ConfigError("--stages weights reads no text", wanted="a study of text", fix="run it: it takes seconds")
    models = load_models(config)
    require_kin(models, config)
    settings = resolve(config, models)
    return estimate(settings, models, groups=_groups(settings, models))


def _groups(config: Settings, models: Sequence[Model]) -> int:
    """How many subsets are studied apart, the rest included; looks at a first stretch of the corpus."""
    if not config.subset:
        return 1
    stretch = config.model_copy(update={"max_tokens": min(config.max_tokens, SUBSET_TOKENS)})
    tokens = TokenDataset.load(stretch, find_tokenizer(config, models), context=config.context)
    named = set(tokens.subset_names if config.subset == ("all",) else config.subset)
    return len(named) + bool(set(tokens.subset_names) - named)


def estimate_view(needs: Estimate) -> Table:
    """An estimate as a table."""
    table = TextTable("", "", title=f"{needs.tokens:,} tokens on {needs.device}", show_header=False)
    table.row("time", clock(needs.seconds))
    for name in ("labels", "pass", "compare", "detail", "roles", "null"):
        table.row(f"  {name}", clock(getattr(needs, f"seconds_{name}")))
    table.row("memory", f"{_size(needs.memory_peak)} at the peak, {_size(needs.memory_available)} free")
    table.row("plan", f"{needs.passes} pass{'es' if needs.passes > 1 else ''}, sums in {needs.sums}")
    table.row("disk", f"{_size(needs.disk_peak)} at the peak, {_size(needs.disk_final)} at the end")
    return table


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
