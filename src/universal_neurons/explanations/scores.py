"""How well does an explanation predict a unit on held-out text?  Questions, a scorer's answers, rows of `scores`.

- Detection asks of every window whether the unit fires in it.
- Fuzzing asks of the windows in which it fires whether the marked tokens are those: in half of them, drawn by chance,
  they are; in the others as many are marked on which it does not fire, or, where the window has too few, as many of
  any window in which it does not fire.  Its population is every such window marked rightly and marked wrongly.
- Simulation asks how strongly the unit fires on every token of every window.

A missing answer is missing: the answers that came stand for its stratum.  With fewer than `FEWEST` answers about
windows of yes or of no, there is no score.  Controls are scored in the same way: another unit's explanation, an empty
one.  All explanations of a unit are asked about the same windows and marks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from universal_neurons.explanations.estimates import NOTHING, Answered, Design, Estimate, Simulated
from universal_neurons.explanations.questions import STRONGEST, Kind, Question, Scorer
from universal_neurons.explanations.score_rows import ANOTHER, EMPTY, OWN, SCHEMA
from universal_neurons.explanations.windows import YES, UnitWindows
from universal_neurons.statistics import seed_of

FEWEST = 10  # answers about windows of yes, and of no


@dataclass(frozen=True)
class Trial:
    """An explanation, and the windows of the unit that it is tried on.

    `explanation` is its name, `source` who made it, `use` what it is to the unit: `OWN`, `ANOTHER`, `EMPTY`,
    `COUNTERPART` or `RANDOM`.
    """

    explanation: str
    source: str
    text: str
    windows: UnitWindows
    use: str = OWN


def controls(trials: Sequence[Trial], seed: int = 0) -> list[Trial]:
    """What units' own explanations are held against: another unit's of the same source and model, and an empty one.

    A unit has no other's where all say the same.
    """
    kin: dict[tuple[str, str], list[Trial]] = {}
    empty: dict[tuple[str, int, int], Trial] = {}
    for trial in trials:
        windows = trial.windows
        kin.setdefault((trial.source, windows.model), []).append(trial)
        empty[windows.model, windows.layer, windows.neuron] = Trial(EMPTY, EMPTY, "", windows, EMPTY)
    others = [_another(trial, kin[trial.source, trial.windows.model], seed) for trial in trials]
    return [other for other in others if other is not None] + list(empty.values())


def _another(trial: Trial, kin: Sequence[Trial], seed: int) -> Trial | None:
    """The first explanation, from one drawn on, that says something else."""
    start = seed_of("another", seed, trial.windows.layer, trial.windows.neuron) % len(kin)
    strange = (other for other in (*kin[start:], *kin[:start]) if other.text != trial.text)
    return next((replace(other, windows=trial.windows, use=ANOTHER) for other in strange), None)


def score(
    trials: Sequence[Trial],
    scorer: Scorer,
    strings: Sequence[str],
    kinds: Sequence[Kind] = tuple(Kind),
    *,
    seed: int = 0,
    scored_by: str = "",
) -> pl.DataFrame:
    """The table `scores`: a row per trial and kind of question.

    `strings` are the vocabulary's, by token id; `scored_by` is what the scorer is called.
    """
    rows = [_row(trial, kind, scorer, strings, seed) | {"scorer": scored_by} for trial in trials for kind in kinds]
    return pl.DataFrame(rows, SCHEMA)


def questions_of(
    trials: Sequence[Trial], strings: Sequence[str], kinds: Sequence[Kind] = tuple(Kind), *, seed: int = 0
) -> Iterator[Question]:
    """All that `score` will ask."""
    for trial in trials:
        for kind in kinds:
            yield from _asked(trial, kind, strings, seed)[1]


def _row(trial: Trial, kind: Kind, scorer: Scorer, strings: Sequence[str], seed: int) -> dict[str, Any]:
    windows = trial.windows
    whose = {"model": windows.model, "layer": windows.layer, "neuron": windows.neuron}
    whose |= {"explanation": trial.explanation, "source": trial.source, "use": trial.use, "method": str(kind)}
    asked, questions = _asked(trial, kind, strings, seed)
    return whose | (_simulated if kind is Kind.SIMULATION else _yes_or_no)(asked, questions, scorer)


def _asked(trial: Trial, kind: Kind, strings: Sequence[str], seed: int) -> tuple["_Asked", list[Question]]:
    """Which windows a trial asks about, and the questions."""
    windows = trial.windows
    asked = _marked(windows, seed) if kind is Kind.FUZZING else _plain(windows)
    return asked, [Question(kind, trial.text, windows.tokens(w, strings), marks) for w, marks in asked.questions]


@dataclass(frozen=True)
class _Asked:
    """Which windows are asked about, with which marks, of which strata of how many and which class."""

    windows: UnitWindows
    questions: Sequence[tuple[int, tuple[int, ...]]]
    stratum: Int[np.ndarray, " questions"]
    sizes: Int[np.ndarray, " strata"]
    yes: Bool[np.ndarray, " strata"]

    @cached_property
    def which(self) -> Int[np.ndarray, " questions"]:
        """The windows by number."""
        return np.array([window for window, _ in self.questions], int)

    def design(self, answered: Bool[np.ndarray, " questions"]) -> Design | None:
        """How those that were answered were drawn; none where they are too few."""
        of_yes = int(self.yes[self.stratum[answered]].sum())
        if min(of_yes, int(answered.sum()) - of_yes) < FEWEST:
            return None
        return Design.of(self.stratum[answered], self.sizes, self.yes)


def _plain(windows: UnitWindows) -> _Asked:
    """Every window, nothing marked."""
    return _Asked(windows, [(w, ()) for w in range(len(windows))], windows.stratum, windows.sizes, YES)


def _marked(windows: UnitWindows, seed: int) -> _Asked:
    """The windows that fire, half of them marked rightly."""
    rng = np.random.default_rng(seed_of("marks", seed, windows.model, windows.layer, windows.neuron))
    firing = np.flatnonzero(YES)
    questions, stratum = [], []
    for place, s in enumerate(firing):
        drawn = rng.permutation(np.flatnonzero(windows.stratum == s))
        for number, window in enumerate(drawn.tolist()):
            rightly = number % 2 == 0
            question = (window, windows.fires[window]) if rightly else _wrongly(windows, window, rng)
            if question is not None:
                questions.append((question[0], tuple(np.flatnonzero(question[1]).tolist())))
                stratum.append(place + (0 if rightly else len(firing)))
    sizes, yes = np.tile(windows.sizes[firing], 2), np.repeat([True, False], len(firing))
    return _Asked(windows, questions, np.array(stratum, int), sizes, yes)


def _wrongly(
    windows: UnitWindows, window: int, rng: np.random.Generator
) -> tuple[int, Bool[np.ndarray, " width"]] | None:
    """As many tokens of a window, or of one that does not fire, as it fires on, on none of which it fires."""
    many = int(windows.fires[window].sum())
    quiet = windows.size <= windows.threshold
    silent = np.flatnonzero(~YES[windows.stratum] & (quiet.sum(1) >= many))
    if quiet[window].sum() < many:
        if not len(silent):
            return None
        window = int(rng.choice(silent))
    marks = np.zeros(quiet.shape[1], bool)
    marks[rng.choice(np.flatnonzero(quiet[window]), many, replace=False)] = True
    return window, marks


def _yes_or_no(asked: _Asked, questions: Sequence[Question], scorer: Scorer) -> dict[str, Any]:
    """Scores of detection or fuzzing."""
    said = scorer.probabilities(questions) if questions else np.empty(0)
    assert said.shape == (len(questions),), "an answer for each question"
    known = np.isfinite(said)
    assert ((said[known] >= 0) & (said[known] <= 1)).all(), "a probability outside 0 to 1"
    design = asked.design(known)
    certain = int(((said == 0) | (said == 1)).sum())
    counts = {"n_windows": len(questions), "missing": int((~known).sum()), "certain": certain}
    if design is None:
        return counts | _columns("auprc", NOTHING)
    answered = Answered(design, said[known], asked.yes)
    estimates = _columns("auprc", answered.auprc()) | _columns("balanced_accuracy", answered.balanced_accuracy())
    return counts | {"base_rate": answered.base_rate} | estimates


def _simulated(asked: _Asked, questions: Sequence[Question], scorer: Scorer) -> dict[str, Any]:
    """The score of simulation."""
    was = asked.windows.size[asked.which]
    said = np.full(was.shape, np.nan)
    if questions:
        answers = scorer.strengths(questions)
        assert len(answers) == len(questions), "an answer for each question"
        said[:, : answers.shape[1]] = answers[:, : was.shape[1]]
    assert not ((said < 0) | (said > STRONGEST)).any(), "a strength outside its range"
    known = (np.isfinite(said) & np.isfinite(was)).any(1)
    design = asked.design(known)
    counts = {"n_windows": len(questions), "missing": int((~known).sum())}
    if design is None:
        return counts | _columns("rho", NOTHING)
    return counts | _columns("rho", Simulated.of(design, said[known], was[known]).rho())


def _columns(measure: str, estimate: Estimate) -> dict[str, float | None]:
    """An estimate and its interval, null where there is none."""
    parts = {f"{measure}{end}": part for end, part in zip(("", "_low", "_high"), asdict(estimate).values())}
    return {name: part if np.isfinite(part) else None for name, part in parts.items()}
