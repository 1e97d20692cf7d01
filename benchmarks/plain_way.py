"""The plain way to correlate two models, and exact correlations in float64 to hold the searches against."""

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

import universal_neurons as un
from universal_neurons.matching.baselines import rotation
from universal_neurons.models import BUNDLED_FOLDER, Model, quiet_transformers

PLAIN_ROWS = 8


def plain_way(lenses: Sequence[Any], tokens: un.TokenDataset, layers: int, width: int) -> Any:
    """Activations of layers, a float32 product per pair of layers, float64 sums, everything again rotated."""
    turned = rotation("rotation", width, 0, 0).float()
    answers = []
    for rotate in (False, True):
        cross = torch.zeros(layers, layers, width, width, dtype=torch.float64)
        sums = torch.zeros(2, layers, width, dtype=torch.float64)
        squares = torch.zeros(2, layers, width, dtype=torch.float64)
        counted = 0
        for start in range(0, len(tokens), PLAIN_ROWS):
            rows = np.arange(start, min(start + PLAIN_ROWS, len(tokens)))
            ids = torch.from_numpy(tokens.ids(rows))
            keep = torch.from_numpy(tokens.mask(rows)).flatten()
            left, right = (layers_of(lens, ids, keep) for lens in lenses)
            if rotate:
                right = [layer @ turned.T for layer in right]
            for side, values in enumerate((left, right)):
                for layer, activations in enumerate(values):
                    sums[side, layer] += activations.sum(0).double()
                    squares[side, layer] += activations.square().sum(0).double()
            for i, left_layer in enumerate(left):
                for j, right_layer in enumerate(right):
                    cross[i, j] += (left_layer.T @ right_layer).double()
            counted += int(keep.sum())
        deviations = squares - sums.square() / counted
        spread = deviations.masked_fill(deviations <= 1e-6 * squares, torch.nan).rsqrt()  # NaN of dead neurons
        best = torch.full((layers, width), -torch.inf, dtype=torch.float64)
        for i in range(layers):
            for j in range(layers):
                centred = cross[i, j] - torch.outer(sums[0, i], sums[1, j]) / counted
                rho = (centred * spread[0, i][:, None] * spread[1, j]).nan_to_num(nan=-torch.inf)
                best[i] = torch.maximum(best[i], rho.amax(1))
        answers.append(best.flatten())
    return answers


def layers_of(lens: Any, ids: torch.Tensor, keep: torch.Tensor) -> list[torch.Tensor]:
    """The activations of every layer at the positions that are kept (positions, neurons)."""
    if isinstance(lens, Model):
        return list(lens.activations(ids).flatten(0, 1)[keep].split(lens.units.widths, 1))
    _, cache = lens.run_with_cache(ids, names_filter=lambda n: n.endswith("mlp.hook_post"), return_type=None)
    return [cache[f"blocks.{layer}.mlp.hook_post"].flatten(0, 1)[keep] for layer in range(lens.cfg.n_layers)]


def to_lens(model: Model) -> Any:
    """The same network in transformer-lens; where that is not installed, itself, whose forward pass is faster."""
    if not has_lens():
        return model
    from transformer_lens.model_bridge import TransformerBridge

    with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
        model.hf.save_pretrained(folder)  # its configuration says gelu_new, as GPT-2's
        network = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED_FOLDER / "tokenizer")
        return TransformerBridge.boot_transformers(folder, hf_model=network, tokenizer=tokenizer, device="cpu")


def has_lens() -> bool:
    """Whether transformer-lens is installed."""
    return find_spec("transformer_lens") is not None


def reads_by() -> str:
    """By what the plain way comes to its activations, in words."""
    return "transformer-lens" if has_lens() else "hooks on the transformers model (transformer-lens is not installed)"


def exact_rows(models: Sequence[Model], tokens: un.TokenDataset, layer: int) -> torch.Tensor:
    """ρ of one layer of the first model with all neurons of the second, in float64."""
    columns = models[0].units.columns(layer)
    total, squares = torch.zeros(2, models[0].n_neurons).double(), torch.zeros(2, models[0].n_neurons).double()
    cross = torch.zeros(models[0].d_mlp, models[1].n_neurons, dtype=torch.float64)
    counted = 0
    for start in range(0, len(tokens), PLAIN_ROWS):
        rows = np.arange(start, min(start + PLAIN_ROWS, len(tokens)))
        keep = torch.from_numpy(tokens.mask(rows)).flatten()
        ids = torch.from_numpy(tokens.ids(rows))
        values = [model.activations(ids).flatten(0, 1)[keep].double() for model in models]
        for side, activations in enumerate(values):
            total[side] += activations.sum(0)
            squares[side] += activations.square().sum(0)
        cross += values[0][:, columns].T @ values[1]
        counted += int(keep.sum())
    spread = (squares - total.square() / counted).rsqrt()
    centred = cross - torch.outer(total[0, columns], total[1]) / counted
    return centred * spread[0, columns][:, None] * spread[1]
