"""Whether trained models can have roles at all: python suite/gate.py HELDOUT TOKENIZER FOLDER [FOLDER …]

A table, a row per model, of held-out text (.jsonl.xz) and of weights alone, by the package's own rules: loss, mean
attention to BOS of the head that attends to it most, the tail of W_U's spectrum (entropy neurons write where it is
small), neurons with a role by their weights, the highest kurtosis of cos(w_out, W_U) and, beside it, the median that a
neuron would have which writes one token's unembedding alone.  Then which of the `GATES` each model passes.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as nnf
from rich.console import Console
from rich.table import Table
from text import encode, in_proportion, read

from universal_neurons.models import ProcessedWeights, load_model, processed_weights
from universal_neurons.role_settings import RoleSettings
from universal_neurons.roles.prediction import roles_of
from universal_neurons.roles.reach import kurtosis_reach
from universal_neurons.statistics import weight_statistics

TOKENS, ROWS_AT_ONCE = 40_000, 8
TAIL = 8  # smallest singular values shown
BETTER = 0.45  # of the loss of a model that knows nothing, log of the vocabulary
GATES = {"attention to BOS > .3": 0.3, "10 prediction neurons": 10, "loss < 45 % of log V": BETTER}


def held_out_rows(heldout: Path, tokenizer: Path, context: int, most: int) -> np.ndarray:
    """Rows of BOS and text, subsets in proportion."""
    documents = in_proportion(read(heldout))
    ids = encode((document["text"] for document in documents), tokenizer)[:most]
    count = len(ids) // (context - 1)
    return np.pad(ids[: count * (context - 1)].reshape(count, -1).astype(np.int64), ((0, 0), (1, 0)))


@torch.inference_mode()
def on_text(network: Any, rows: np.ndarray) -> tuple[float, torch.Tensor]:
    """Mean next-token loss, and mean attention to BOS from later positions (layers, heads)."""
    network.set_attn_implementation("eager")
    loss = 0.0
    attention = torch.zeros(network.config.n_layer, network.config.n_head, dtype=torch.float64)
    for part in torch.from_numpy(rows).split(ROWS_AT_ONCE):
        output = network(part, output_attentions=True)
        loss += float(nnf.cross_entropy(output.logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
        attention += torch.stack([layer[:, :, 1:, 0].double().mean(2).sum(0) for layer in output.attentions])
    return loss / (len(rows) * (rows.shape[1] - 1)), attention / len(rows)


def on_weights(weights: ProcessedWeights) -> dict[str, Any]:
    """What weights alone say: spectrum, kurtosis, roles."""
    statistics = weight_statistics(weights)
    columns = pl.DataFrame({name: statistics[f"vocab_{name}"] for name in ("var", "skew", "kurt")})
    roles = roles_of(columns.rename(lambda name: f"vocab_{name}"), RoleSettings(), weights.w_u.shape[1])
    spectrum = torch.linalg.svdvals(weights.w_u)[: weights.w_u.shape[1] - 1]  # one is 0: W_U is centred
    return {
        "tail": (spectrum[-TAIL:] / spectrum.median()).tolist(),
        "roles": dict(Counter(role for role in roles if role)),
        "highest_kurtosis": float(np.nanmax(statistics["vocab_kurt"])),
        "kurtosis_of_unembeddings": kurtosis_reach(weights.w_u, centred=True).token_kurt,
    }


def measured_model(folder: str, rows: np.ndarray) -> dict[str, Any]:
    """One model: everything measured, and the gates it passes."""
    model = load_model(folder)
    loss, attention = on_text(model.hf, rows)
    measured = {"loss": loss, "attention_to_bos": float(attention.max())} | on_weights(processed_weights(model))
    passed = [
        measured["attention_to_bos"] > GATES["attention to BOS > .3"],
        measured["roles"].get("prediction", 0) >= GATES["10 prediction neurons"],
        loss < BETTER * np.log(model.hf.config.vocab_size),
    ]
    return measured | {"gates": dict(zip(GATES, map(bool, passed)))}


def gate(folders: list[str], heldout: Path, tokenizer: Path, most: int = TOKENS) -> dict[str, dict[str, Any]]:
    """Every model by its folder; all have the first one's context."""
    context = load_model(folders[0]).hf.config.n_positions
    rows = held_out_rows(heldout, tokenizer, context, most)
    return {folder: measured_model(folder, rows) for folder in folders}


def table(models: dict[str, dict[str, Any]]) -> Table:
    """As a table for a terminal."""
    shown = Table("model", "loss", "BOS", "tail of W_U", "pred", "supp", "part", "kurtosis", "of W_U", "fails")
    for folder, one in models.items():
        counts = [str(one["roles"].get(role, 0)) for role in ("prediction", "suppression", "partition")]
        fails = ", ".join(name for name, passed in one["gates"].items() if not passed)
        tail = " ".join(f"{value:.2f}" for value in (one["tail"][0], one["tail"][-2], one["tail"][-1]))
        shown.add_row(
            Path(folder).name,
            f"{one['loss']:.3f}",
            f"{one['attention_to_bos']:.2f}",
            tail,
            *counts,
            f"{one['highest_kurtosis']:.1f}",
            f"{one['kurtosis_of_unembeddings']:.1f}",
            fails or "passes",
        )
    return shown


if __name__ == "__main__":
    Console(width=140).print(table(gate(sys.argv[3:], Path(sys.argv[1]), Path(sys.argv[2]))))
