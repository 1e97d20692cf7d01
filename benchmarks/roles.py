"""What does the sweep of fixed activations cost?

    python benchmarks/roles.py [--tokens N] [--rounds N]

8 values × (2 candidates + 20 controls) of the last layer: 176 times all predictions of the text.  Beside it, in the
same process: log-softmax, entropy and rank of 176 logit matrices that are there already (whole, and in stretches that
fit the cache, as the sweep has them), and one forward pass with a hook per neuron and value (timed for some of them,
scaled).  Once on bundled seed-1 and its text, once on a GPT-2-small-shaped model of random weights and tokens.

Prints a Markdown section; benchmarks/RESULTS.md holds one.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from measure import machine, timed
from scale import random_model, random_tokens

import universal_neurons as un
from universal_neurons.interventions import Edit, Readout, Trial, final_residual, intervene
from universal_neurons.models import Model

torch.set_grad_enabled(False)
VALUES = (-0.17, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
NEURONS = 22
FORWARDS = 4  # of 176, timed


def seconds_of(work: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of `rounds` runs."""
    return min(timed(work)[0] for _ in range(rounds))


def read_plainly(logits: torch.Tensor, targets: torch.Tensor) -> None:
    """Log-softmax, entropy and rank, written plainly."""
    log_p = logits.log_softmax(1)
    (log_p.exp() * log_p).sum(1)
    (logits > logits.gather(1, targets[:, None])).sum(1)


def bench(name: str, model: Model, tokens: un.TokenDataset, count: int, rounds: int) -> str:
    """A row of the table."""
    rows = np.arange(max(1, count // tokens.context))
    readout = Readout(model)
    trial = Trial(model, readout, tokens, rows)
    layer = model.n_layers - 1
    neurons = list(range(NEURONS))
    edits = [Edit("fix", value) for value in VALUES]
    logits = readout.logits(trial.final[trial.kept])
    targets = trial.clean.targets
    step = readout.step
    times = len(VALUES) * NEURONS

    def in_stretches() -> None:
        for start in range(0, len(logits), step):
            read_plainly(logits[start : start + step], targets[start : start + step])

    def forward(neuron: int, value: float) -> None:
        hooked = intervene(model, [model.units.number_of(layer, neuron)], Edit("fix", value))
        with hooked, final_residual(model) as seen:
            model.forward(trial.ids)
        read_plainly(readout.logits(seen[0].reshape(-1, model.d_model)[trial.kept]), targets)

    trial.try_out(layer, neurons[:1], edits[:2])
    sweep = seconds_of(lambda: trial.try_out(layer, neurons, edits), rounds)
    whole = seconds_of(lambda: read_plainly(logits, targets), rounds) * times
    stretches = seconds_of(in_stretches, rounds) * times
    forwards = seconds_of(lambda: [forward(n, 1.0) for n in range(FORWARDS)], rounds) / FORWARDS * times
    metrics = trial.try_out(layer, neurons[:2], edits)
    worst = 0.0
    for neuron in range(2):
        for place, value in enumerate(VALUES):
            with intervene(model, [model.units.number_of(layer, neuron)], Edit("fix", value)):
                exact = model.logits(trial.ids).flatten(0, 1)[trial.kept].double().log_softmax(1)
            loss = -exact.gather(1, targets[:, None])[:, 0]
            worst = max(worst, float((metrics.loss[neuron, place] - loss).abs().max()))
    return (
        f"| {name} | {len(trial.kept):,} × {len(readout.matrix):,} | {sweep:.2f} | {sweep / whole:.2f} | "
        f"{sweep / stretches:.2f} | {forwards / sweep:.1f}× | {worst:.1e} |"
    )


def main() -> None:
    """Print the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    bundled = un.load_model("bundled/seed-1")
    text = un.TokenDataset.load(
        un.StudyConfig(models=("bundled/seed-1",), max_tokens=4 * arguments.tokens),
        bundled.tokenizer,
        context=bundled.context,
    )
    rows = [
        bench("bundled seed-1", bundled, text, 4 * arguments.tokens, arguments.rounds),
        bench(
            "GPT2-small-shaped",
            random_model("small", 1, "cpu"),
            random_tokens(arguments.tokens),
            arguments.tokens,
            arguments.rounds,
        ),
    ]
    print(f"""## roles: the sweep

`python benchmarks/roles.py --tokens {arguments.tokens}`; 8 values × 22 neurons of the last layer, seconds of the fastest of
{arguments.rounds} rounds. {machine()}

| model | predictions × vocabulary | sweep, s | / looking at whole logits (≤ 1.3) | / in stretches | faster than forwards (≥ 8×) | max error of the loss |
|---|---|---|---|---|---|---|""")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
