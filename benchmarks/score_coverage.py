"""Are scores of drawn windows estimates for all windows?  Bias and coverage against populations that are known whole.

python benchmarks/score_coverage.py [--resamples 2000]

Each population is 8 000 windows (of 32 tokens) and a scorer; all of its windows are asked once for the truth, and then
windows are drawn and asked over and over.
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from measure import machine

from universal_neurons.explanations import DRAWN, YES, Answered, Design, Estimate, Simulated

WINDOWS, TOKENS = 8000, 32
Drawn = tuple[Design, np.ndarray]


def strata(activation: np.ndarray, fires: float) -> np.ndarray:
    """Silent, near, fires, fires strongly: by quantiles of the windows' highest activations."""
    cuts = np.quantile(activation, [1 - min(5 * fires, 0.5), 1 - fires, 1 - fires / 4])
    return np.searchsorted(cuts, activation)


def drawn_from(stratum: np.ndarray, rng: np.random.Generator) -> Drawn:
    """A design of some windows, and which."""
    of = [np.flatnonzero(stratum == s) for s in range(len(YES))]
    which = np.concatenate([rng.choice(all_, min(n, len(all_)), replace=False) for all_, n in zip(of, DRAWN)])
    return Design(stratum[which], np.array([len(all_) for all_ in of])), which


def yes_or_no(fires: float, knows: float, noise: float, levels: int = 0) -> "Population":
    """A scorer that knows so much of the activation, with so much noise; `levels` of probability, 0 for all."""
    rng = np.random.default_rng(1)
    activation = rng.gamma(0.5, 1, WINDOWS)
    stratum = strata(activation, fires)
    clear = np.minimum(activation, 3) - np.quantile(activation, 1 - fires)
    score = 1 / (1 + np.exp(-(knows * clear + noise * rng.normal(size=WINDOWS))))
    score = np.round(score * levels) / levels if levels else score
    return Population(stratum, lambda design, which: Answered(design, score[which], YES))


def simulated(fires: float, noise: float) -> "Population":
    """A scorer that says the activation of every token, with noise; activations are sparse and heavy-tailed."""
    rng = np.random.default_rng(2)
    often = rng.beta(0.3, 3, (WINDOWS, 1))
    activation = (rng.random((WINDOWS, TOKENS)) < often) * rng.gamma(1.5, 1, (WINDOWS, TOKENS))
    said = np.clip(activation + noise * rng.normal(size=activation.shape), 0, 10)
    stratum = strata(activation.max(1), fires)
    return Population(stratum, lambda design, which: Simulated.of(design, said[which], activation[which]))


class Population:
    """Windows whose strata and answers are all known."""

    def __init__(self, stratum: np.ndarray, asked: Callable[[Design, np.ndarray], Answered | Simulated]) -> None:
        self.stratum, self.asked = stratum, asked

    def estimates(self, kind: str, resamples: int) -> tuple[float, list[Estimate]]:
        """The truth, and estimates of it from windows that are drawn anew each time."""
        everything = Design(self.stratum, np.bincount(self.stratum, minlength=len(YES)))
        truth = exact(kind, self.asked(everything, np.arange(WINDOWS)))
        draws = (drawn_from(self.stratum, np.random.default_rng(seed)) for seed in range(resamples))
        return truth, [getattr(self.asked(*draw), kind)() for draw in draws]


def exact(kind: str, asked: Answered | Simulated) -> float:
    """The score of all windows, by scikit-learn and NumPy."""
    from sklearn.metrics import average_precision_score, balanced_accuracy_score

    if isinstance(asked, Simulated):
        n, x, y, xx, yy, xy = asked.sums.sum(0)
        return float((xy / n - x * y / n**2) / np.sqrt((xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)))
    yes = asked.yes[asked.design.stratum]
    if kind == "auprc":
        return float(average_precision_score(yes, asked.score))
    return float(balanced_accuracy_score(yes, asked.score > 0.5))


def populations() -> Iterator[tuple[str, tuple[str, ...], Population]]:
    """What is measured: names, scores and populations."""
    both = ("auprc", "balanced_accuracy")
    yield "knows nothing", both, yes_or_no(0.1, 0, 1)
    yield "good", both, yes_or_no(0.1, 2, 1)
    yield "good, fires in 2 % of windows", both, yes_or_no(0.02, 2, 1)
    yield "fair, fires in 25 %", both, yes_or_no(0.25, 1, 1)
    yield "fair, eleven probabilities", both, yes_or_no(0.1, 2, 2, 10)
    yield "fair, yes or no alone", both, yes_or_no(0.1, 2, 1, 1)
    yield "nearly perfect", both, yes_or_no(0.1, 6, 1)
    yield "simulation, some noise", ("rho",), simulated(0.1, 0.5)
    yield "simulation, mostly noise", ("rho",), simulated(0.1, 4)


def main(resamples: int) -> None:
    """Print a row for each population and score."""
    drawn = " + ".join(map(str, DRAWN))
    print(f"{WINDOWS:,} windows, {drawn} of them drawn, {resamples:,} times; {machine()}\n")
    print("| scorer | score | truth | mean interval | bias / width | coverage | truth below, above |")
    print("|---|---|---|---|---|---|---|")
    for name, kinds, population in populations():
        for kind in kinds:
            truth, estimates = population.estimates(kind, resamples)
            value, low, high = np.array([(e.value, e.low, e.high) for e in estimates]).T
            width = (high - low).mean()
            below, above = (low > truth).mean(), (high < truth).mean()
            said = f"{low.mean():.3f} … {high.mean():.3f} | {(value.mean() - truth) / width:+.3f}"
            said += f" | {1 - below - above:.3f} | {below:.3f}, {above:.3f}"
            print(f"| {name} | {kind.replace('_', ' ')} | {truth:.3f} | {said} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--resamples", type=int, default=2000)
    main(parser.parse_args().resamples)
