"""Units of a study explained and scored, as many at a time as memory holds the windows of."""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import polars as pl

from universal_neurons.errors import TokenizerError
from universal_neurons.explanations import (
    DRAWN,
    SCHEMA,
    Asked,
    Templates,
    Trial,
    UnitWindows,
    draw_windows,
    drawn_of,
    evidence_prompts,
    pairs_of,
    questions_of,
    score,
    trials_of,
    units_tried,
)
from universal_neurons.models import find_tokenizer
from universal_neurons.progress import PLAIN_SECONDS, Reporter
from universal_neurons.roles import vocabulary_of
from universal_neurons.storage import Store
from universal_neurons.study.explain_settings import PLACE, Explaining
from universal_neurons.study.read_again import Reread
from universal_neurons.text import Passages

UNITS_AT_ONCE = 1024  # whose windows are held, 33 KB each, and before them the positions that set their quantiles
UNKNOWN = "?" * 100  # for a sentence that is not written yet, where costs are told


class Batches:
    """Explainer and scorer at work on batches of units, with the study's models and text at hand."""

    def __init__(
        self,
        study: Store,
        again: Reread,
        settings: Explaining,
        templates: Templates,
        explainer: Asked | None,
        scorer: Asked | None,
        reporter: Reporter,
    ) -> None:
        self.study, self.again, self.settings, self.templates = study, again, settings, templates
        self.explainer, self.scorer, self.reporter = explainer, scorer, reporter

    @cached_property
    def strings(self) -> Sequence[str]:
        """What the study's positions say, by id."""
        text = self.again.text
        if isinstance(text, Passages):
            return text.strings
        networks = self.again.reader.networks
        tokenizer = find_tokenizer(self.again.settings, networks, required=False)
        if tokenizer is None:
            raise TokenizerError(f"{self.study.path}: no tokenizer, so nobody can read its text", wanted="a tokenizer")
        return vocabulary_of(tokenizer, networks).strings

    def parts(self, units: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The units, so many at once as memory holds the windows of, with those elsewhere."""
        beside = 2 * (len(self.study.models) - 1) if self.settings.transfer and self.scorer is not None else 0
        return units.iter_slices(max(1, UNITS_AT_ONCE // (1 + beside)))

    def of(self, units: pl.DataFrame, explanations: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame | None]:
        """New explanations of some units, and the scores of these and of `explanations`; with `estimate` neither."""
        found = explanations.select("model", "layer", "neuron", "source", "explanation").clear()
        prompts = []
        if self.explainer is not None:
            prompts = evidence_prompts(self.study, units, self.strings, self.again.heldout, self.templates)
            self._say(self.explainer, "explaining", self.explainer.answers.forecast(prompts))
        trials: list[Trial] = []
        if self.scorer is not None:
            pairs, windows = self._windows(units)
            unknown = [f"{UNKNOWN} {number}" for number in range(len(units))]
            expected = [] if self.explainer is None else [self._said(units, unknown)]
            trials = trials_of(pl.concat([explanations, *expected]), pairs, windows, self.settings.seed)
            questions = questions_of(trials, self.strings, self.settings.kinds, seed=self.settings.seed)
            asked = (prompt for question in questions for prompt in self.scorer.prompts([question]))
            self._say(self.scorer, "scoring", self.scorer.answers.forecast(asked))
        if self.settings.estimate:
            return found, None
        if self.explainer is not None:
            written = self._said(units, self.explainer.sentences(prompts)).filter(pl.col("explanation") != "")
            if len(written) < len(units):
                self.reporter.note(f"without an explanation: {len(units) - len(written):,} of {len(units):,} units")
            found, explanations = written.drop("flat"), pl.concat([explanations, written])
        if self.scorer is None:
            return found, None
        return found, self._scored(trials_of(explanations, pairs, windows, self.settings.seed))

    def _said(self, units: pl.DataFrame, sentences: Sequence[str]) -> pl.DataFrame:
        """Rows of `explanations`, with the units' numbers, of what the explainer says."""
        assert self.explainer is not None
        source = pl.lit(self.explainer.answers.backend.name).alias("source")
        said = pl.Series("explanation", sentences, pl.String)
        return units.select(*PLACE, source, said, "flat")

    def _say(self, asked: Asked, what: str, forecast: str) -> None:
        self.reporter.note(f"{what} by {asked.answers.backend.name}: {forecast}")

    def _windows(self, units: pl.DataFrame) -> tuple[pl.DataFrame, Mapping[tuple[str, int], UnitWindows]]:
        """The pairs of some units and others elsewhere, and the windows of all of them."""
        again, settings = self.again, self.settings
        pairs = pairs_of(self.study, units if settings.transfer else units.clear(), settings.seed)
        tried = units_tried(units, pairs)
        studied = [each for each in again.reader.studied if each.name in tried]
        with self.reporter.stage("windows"):
            drawn = draw_windows(
                [again.reader.source(each, again.settings.gemm_dtype) for each in studied],
                tried,
                again.text,
                again.chosen,
                again.heldout,
                gated=frozenset(self.study.gated),
                drawn=drawn_of(settings.windows, DRAWN),
                seed=settings.seed,
            )
        by_unit = {
            (model, number): windows
            for model, numbers in tried.items()
            for number, windows in zip(numbers, drawn[model], strict=True)
        }
        return pairs, by_unit

    def _scored(self, trials: Sequence[Trial]) -> pl.DataFrame:
        """The scores of trials, with a line now and then of how far it is."""
        assert self.scorer is not None
        name, settings, shown = self.scorer.answers.backend.name, self.settings, time.perf_counter()
        found = [pl.DataFrame(schema=SCHEMA)]
        for number, trial in enumerate(trials):
            if time.perf_counter() - shown >= PLAIN_SECONDS:
                shown = time.perf_counter()
                self.reporter.note(f"scoring: {number / len(trials):4.0%}, {number:,} of {len(trials):,} trials")
            found.append(score([trial], self.scorer, self.strings, settings.kinds, seed=settings.seed, scored_by=name))
        return pl.concat(found)
