"""The units of a finished study explained in sentences, and how well the sentences predict them on held-out text.

1. Explanations are those that are there (label sentences), those imported, and those that an explainer writes from
   examples of rows that choose.
2. Of every unit, and with transfer of its counterparts and of random units beside them, windows of held-out rows are
   drawn; a scorer is asked about them, controls too.
3. The tables `explanations` and `scores` are replaced at once when all is answered.  Answers are kept on the way: an
   interrupted run asks only what is missing.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from universal_neurons.disk import disk_errors, local_path, own_folder
from universal_neurons.errors import ConfigError
from universal_neurons.explanations import (
    AT_ONCE,
    BY_LABELS,
    IMPORTED,
    Answers,
    Asked,
    Backend,
    Prices,
    Templates,
    backend_of,
    explanations_of,
    in_order,
    read_explanations,
    read_templates,
    require_apart,
    scores_of,
    still_true,
    with_explanations,
    with_scores,
)
from universal_neurons.features import Studied
from universal_neurons.progress import Reporter
from universal_neurons.storage import ANSWERS, Store, StoreWriter
from universal_neurons.study.explain_settings import KINDS, PLACE, WINDOWS, Explaining, chosen_units, kinds_of
from universal_neurons.study.explained_batches import Batches
from universal_neurons.study.read_again import on_this_machine, read_again, writer_of
from universal_neurons.text import Rows
from universal_neurons.torch_state import settled_torch

ASKED = "language_models"  # the key of the manifest: which models are meant by the names in the tables
EXPLAINERS, SCORERS = "explainers", "scorers"
DOING = {EXPLAINERS: "explaining", SCORERS: "scoring"}
FILES = {role: f"{doing}.jsonl" for role, doing in DOING.items()}  # of their answers


def explain(
    store: Store | str | Path,
    *,
    units: str | Sequence[str] = (),
    explainer: str | Backend | None = None,
    scorer: str | Backend | None = None,
    imported: str | Path | None = None,
    kinds: Sequence[str] = KINDS,
    windows: int = WINDOWS,
    transfer: bool = True,
    prompt: str | Path | None = None,
    prices: tuple[float, float] | None = None,
    concurrency: int = AT_ONCE,
    seed: int = 0,
    estimate: bool = False,
    models: Sequence[Studied] | None = None,
    tokens: Rows | None = None,
    reporter: Reporter | None = None,
) -> Store:
    """Explain units of a finished study in sentences, and score these on held-out text; returns the study.

    `units`: "universal" (the reference's; also where none are named), "all" that live, or names ("L0.32",
    "seed-2/L1.5"); with `imported` alone those that it explains.  `explainer` writes a sentence of each, `scorer` is
    asked by `kinds` ("detection", "fuzzing", "simulation") about `windows` of held-out text each: a folder, a hub id,
    "openai:URL#NAME", or a `Backend`.  With `transfer` also of the units' counterparts and of random units beside
    them.  `imported` is a file of explanations, or a folder.  `prompt` is a file of templates, `prices` what a million
    tokens read and written cost, `concurrency` how many requests a server is sent at once.  With `estimate` nothing is
    asked, only said what it would take.  `models` and `tokens` are needed where the study was made of objects in
    memory.

    Raises `ConfigError` for what cannot be explained, `ExplanationsError` for what cannot be imported, `BackendError`
    where a language model stops answering: nothing is written then, and what it answered is kept for the next time.
    """
    named = (units,) if isinstance(units, str) else tuple(units)
    settings = Explaining(
        named, explainer, scorer, imported, kinds_of(kinds), windows, transfer, prompt,
        None if prices is None else Prices(*prices), concurrency, seed, estimate,
    )  # fmt: skip
    path = store.path if isinstance(store, Store) else local_path(store)
    with writer_of(path) as writer, settled_torch(Store(path).config.threads):
        return _Run(Store(path), writer, settings, reporter or Reporter()).run(models, tokens)


class _Run:
    """Explanations and scores of some units of a study."""

    def __init__(self, study: Store, writer: StoreWriter, settings: Explaining, reporter: Reporter) -> None:
        self.study, self.writer, self.settings, self.reporter = study, writer, settings, reporter
        self.templates = Templates() if settings.prompt is None else read_templates(str(settings.prompt))
        self.before = explanations_of(study)
        self.taken: pl.DataFrame | None = None
        if settings.imported is not None:
            self.taken, empty = read_explanations(settings.imported, study)
            reporter.note(f"{settings.imported}: {len(self.taken):,} explanations{f', {empty:,} empty' * bool(empty)}")
        self.named: dict[str, dict[str, str]] = {EXPLAINERS: {}, SCORERS: {}}

    def run(self, models: Sequence[Studied] | None, tokens: Rows | None) -> Store:
        """All of it; returns the study."""
        explanations = self.before if self.taken is None else with_explanations(self.before, self.taken)
        if self.settings.explainer is None and self.settings.scorer is None:
            return self._replaced(explanations, [])
        _require_text(self.study)
        units = chosen_units(self.study, self.settings.units, self.taken)
        if self.settings.explainer is None and self._asked_about(explanations, units).is_empty():
            raise ConfigError(
                "nobody has explained these units, so there is nothing to score",
                wanted="an explainer, an import, or a study with the stage labels",
            )
        device = on_this_machine(self.study.config).device
        with contextlib.ExitStack() as opened:
            explainer, scorer = self._opened(device, opened)
            again = opened.enter_context(read_again(self.study, self.study.config, models, tokens))
            require_apart(again.chosen, again.heldout)
            asking = Batches(self.study, again, self.settings, self.templates, explainer, scorer, self.reporter)
            scored: list[pl.DataFrame] = []
            batches = list(asking.parts(units))
            for number, batch in enumerate(batches, 1):
                if len(batches) > 1:
                    self.reporter.note(f"units {number} of {len(batches)} parts: {len(batch):,}")
                found, scores = asking.of(batch, self._asked_about(explanations, batch))
                explanations = with_explanations(explanations, found)
                scored += [] if scores is None else [scores]
            if self.settings.estimate:
                return self.study
        return self._replaced(explanations, scored)

    def _opened(self, device: str, opened: contextlib.ExitStack) -> tuple[Asked | None, Asked | None]:
        """Explainer and scorer, each with the file of its answers; one model where both are the same."""
        settings = self.settings
        backends: dict[str, Backend] = {}
        for named in (settings.explainer, settings.scorer):
            if isinstance(named, str) and named not in backends:
                backends[named] = backend_of(named, device=device, at_once=settings.concurrency)
        with disk_errors(self.writer.path):
            folder = own_folder(self.writer.path / ANSWERS)
        asked: list[Asked | None] = []
        for named, role in ((settings.explainer, EXPLAINERS), (settings.scorer, SCORERS)):
            if named is None:
                asked.append(None)
                continue
            backend = backends[named] if isinstance(named, str) else named
            self._name(backend, role)
            answers = opened.enter_context(Answers(folder / FILES[role], backend, prices=settings.prices))
            if not settings.estimate:
                opened.callback(self._say_totals, role, answers)  # where a server fails too
            asked.append(Asked(answers, self.templates))
        return asked[0], asked[1]

    def _say_totals(self, role: str, answers: Answers) -> None:
        self.reporter.note(f"{DOING[role]} by {answers.backend.name}: {answers.totals()}")

    def _name(self, backend: Backend, role: str) -> None:
        """Keep which model a name means.  Raises `ConfigError` for a name that tables have for something else."""
        if backend.name in (BY_LABELS, IMPORTED):
            raise ConfigError(
                f"{backend.name}: a language model by the name that other explanations have in the tables",
                given=backend.identity,
                wanted="another name of the folder, or of the server's model",
            )
        self.named[role][backend.name] = backend.identity

    def _asked_about(self, explanations: pl.DataFrame, units: pl.DataFrame) -> pl.DataFrame:
        """Which explanations of some units are scored: all, or with new ones these and the label sentences."""
        rows = explanations.join(units, on=PLACE, how="inner", maintain_order="right")
        if self.taken is None and self.settings.explainer is None:
            return rows
        sources = [BY_LABELS, *([] if self.taken is None else self.taken["source"].unique())]
        return rows.filter(pl.col("source").is_in(sources))

    def _replaced(self, explanations: pl.DataFrame, scored: list[pl.DataFrame]) -> Store:
        """The study with its new tables, written at once."""
        earlier = {role: self.study.manifest.get(ASKED, {}).get(role, {}) for role in FILES}
        scores = still_true(scores_of(self.study), self.before, explanations)
        for scorer in {name for some in scored for name in some["scorer"].unique()}:
            identity = self.named[SCORERS][scorer]
            if earlier[SCORERS].get(scorer, identity) != identity:
                self.reporter.note(f"another model was called {scorer} before: its scores are dropped")
                scores = scores.filter(pl.col("scorer") != scorer)
        for some in scored:
            scores = with_scores(scores, some)
        named = {role: earlier[role] | self.named[role] for role in FILES}
        tables = {"explanations": in_order(explanations, scores, self.study.neurons)}
        if len(scores) or self.study.has("scores"):
            tables["scores"] = scores
        return self.writer.replace(tables, self.study.manifest | {ASKED: named})


def _require_text(study: Store) -> None:
    """Refuse a study whose units cannot be seen at work: of weights alone, or of sketches."""
    if study.manifest["tokens"] is None:
        raise ConfigError(
            f"{study.path}: a study of weights alone has no text on which explanations could be tried",
            given=", ".join(study.config.stages),
            wanted="a study of text",
        )
    sketches = [model["name"] for model in study.manifest["models"] if "sketch" in model]
    if sketches:
        raise ConfigError(
            f"{study.path}: a sketch holds sums over text, not what units do at each token",
            given=sketches[0],
            wanted="a study of the models themselves",
            fix="uneurons run --models with the models' folders, then explain that study",
        )
