"""What does the scale of an activation do to how many neurons are universal?

    python benchmarks/twins.py [--tokens N]

Two seeds with squared ReLU (roles-2 and roles-3), and two of the same recipe with GELU (roles-2-gelu, the twin of roles-2:
the same initial weights, the same rows of text; roles-4-gelu).  For every neuron of one, its best match in the other by
ρ of the activations as they are, of their square roots (with the sign) and of their ranks over the tokens; less the best
match among the neurons of the other rotated at random within each layer (after the paper's baseline: whatever lies in
few directions is found there too), as they are and each of variance 1.  Universal is a neuron of an excess above 0.5,
here of one other model.

Prints a Markdown section; docs/suite.md holds one.
"""

import argparse

import numpy as np
import torch
from scipy.stats import rankdata

import universal_neurons as un

torch.set_grad_enabled(False)
PAIRS = {
    "ReLU²": ("bundled/roles-2", "bundled/roles-3"),
    "GELU": ("bundled/roles-2-gelu", "bundled/roles-4-gelu"),
}
SCALES = {
    "as they are": lambda values: values,
    "square roots": lambda values: np.sign(values) * np.sqrt(np.abs(values)),
    "ranks": lambda values: rankdata(values, axis=0),
}
UNIVERSAL = 0.5


def activations(name: str, tokens: int) -> tuple[np.ndarray, int]:
    """Activations of all neurons at the first tokens of the held-out text, BOS left out; and the number of layers."""
    model = un.load_model(name)
    config = un.StudyConfig(models=(name,), max_tokens=tokens)
    text = un.TokenDataset.load(config, model.tokenizer, context=model.context)
    rows = torch.from_numpy(text.ids(np.arange(len(text)))).split(8)
    values = torch.cat([model.activations(part)[:, 1:].flatten(0, 1) for part in rows])
    return values.numpy(), model.n_layers


def correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """|ρ| of every column with every column; 0 where one is constant."""
    return np.abs(_unit(one).T @ _unit(other))


def _unit(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(0)
    norms = np.linalg.norm(centred, axis=0)
    return np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)


def rotated(values: np.ndarray, layers: int, seed: int = 0) -> np.ndarray:
    """Columns of every layer in a random orthonormal basis."""
    draw = np.random.default_rng(seed)
    parts = np.split(values, layers, 1)
    return np.concatenate([p @ np.linalg.qr(draw.normal(size=(p.shape[1],) * 2))[0] for p in parts], 1)


def row(kind: str, scale: str, one: np.ndarray, other: np.ndarray, layers: int) -> str:
    """A row of the table, of the neurons of one model that live."""
    living = one.std(0) > 0
    rho = correlations(one, other).max(1)
    chance = correlations(one, rotated(other, layers)).max(1)
    standardised = correlations(one, rotated(_unit(other), layers)).max(1)
    counts = [int((rho - baseline > UNIVERSAL)[living].sum()) for baseline in (chance, standardised)]
    shown = [f"{np.median(rho[living]):.2f}", *(f"{(rho[living] > level).mean():.1%}" for level in (0.5, 0.8))]
    shares = [f"{count} = {count / living.sum():.1%}" for count in counts]
    return "| " + " | ".join([kind, scale, f"{living.sum():,}", *shown, *shares]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=20_000)
    tokens = parser.parse_args().tokens
    print(
        "| activation | ρ of activations | living | median ρ | ρ > 0.5 | ρ > 0.8 | universal | universal, standardised |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kind, names in PAIRS.items():
        (one, layers), (other, _) = (activations(name, tokens) for name in names)
        for scale, change in SCALES.items():
            print(row(kind, scale, *(change(values).astype(np.float32) for values in (one, other)), layers), flush=True)


if __name__ == "__main__":
    main()
