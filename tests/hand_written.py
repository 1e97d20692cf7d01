"""Written out from raw parameters, in float64 and without the package: what GPT-2, GPT-NeoX and Llama compute, what a
prediction is like, and a jackknife.  Tests compare the package with these."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor


class Run(NamedTuple):
    """Logits, what the final norm reads, its scale, and every layer's activations after the change."""

    logits: Tensor
    residual: Tensor
    scale: Tensor
    activations: list[Tensor]


def run(hf, ids: Tensor, change: Callable[[int, Tensor], Tensor] | None = None, scale: Tensor | None = None) -> Run:
    """A model's forward pass with `change(layer, activation)` in its MLPs, and its final norm dividing by `scale`."""
    parameters = {name: value.double() for name, value in hf.state_dict().items()}
    written = {"gpt2": gpt2, "gpt_neox": gpt_neox, "llama": llama}[hf.config.model_type]
    return written(parameters, hf.config, ids, change or (lambda _layer, activation: activation), scale)


def gpt2(p: dict[str, Tensor], config, ids: Tensor, change, scale) -> Run:
    def conv(x: Tensor, name: str) -> Tensor:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    x = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][: ids.shape[1]]
    activations = []
    for layer in range(config.n_layer):
        at = f"transformer.h.{layer}"
        read, _ = layer_norm(x, p, f"{at}.ln_1", config.layer_norm_epsilon)
        parts = conv(read, f"{at}.attn.c_attn").chunk(3, -1)
        x = x + conv(joined(attention(*(heads(part, config.n_head) for part in parts))), f"{at}.attn.c_proj")
        read, _ = layer_norm(x, p, f"{at}.ln_2", config.layer_norm_epsilon)
        before = conv(read, f"{at}.mlp.c_fc")
        gelu = 0.5 * before * (1 + torch.tanh(math.sqrt(2 / math.pi) * (before + 0.044715 * before**3)))
        activations.append(change(layer, gelu))
        x = x + conv(activations[-1], f"{at}.mlp.c_proj")
    last, scale = layer_norm(x, p, "transformer.ln_f", config.layer_norm_epsilon, scale)
    return Run(last @ p["lm_head.weight"].T, x, scale, activations)


def gpt_neox(p: dict[str, Tensor], config, ids: Tensor, change, scale) -> Run:
    x = p["gpt_neox.embed_in.weight"][ids]
    turned = int(config.hidden_size // config.num_attention_heads * config.rope_parameters["partial_rotary_factor"])
    activations = []
    for layer in range(config.num_hidden_layers):
        at = f"gpt_neox.layers.{layer}"
        read, _ = layer_norm(x, p, f"{at}.input_layernorm", config.layer_norm_eps)
        fused = heads(linear(read, p, f"{at}.attention.query_key_value"), config.num_attention_heads)
        query, key, value = fused.chunk(3, -1)
        weighted = attention(rotated(query, turned), rotated(key, turned), value)
        attended = linear(joined(weighted), p, f"{at}.attention.dense")
        read_by_mlp = x if config.use_parallel_residual else x + attended
        read, _ = layer_norm(read_by_mlp, p, f"{at}.post_attention_layernorm", config.layer_norm_eps)
        before = linear(read, p, f"{at}.mlp.dense_h_to_4h")
        activations.append(change(layer, 0.5 * before * (1 + torch.erf(before / math.sqrt(2)))))
        x = x + attended + linear(activations[-1], p, f"{at}.mlp.dense_4h_to_h")
    last, scale = layer_norm(x, p, "gpt_neox.final_layer_norm", config.layer_norm_eps, scale)
    return Run(last @ p["lm_head.weight"].T, x, scale, activations)


def llama(p: dict[str, Tensor], config, ids: Tensor, change, scale) -> Run:
    x = p["model.embed_tokens.weight"][ids]
    shared = config.num_attention_heads // config.num_key_value_heads
    activations = []
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        read, _ = rms_norm(x, p, f"{at}.input_layernorm", config.rms_norm_eps)
        query = heads(linear(read, p, f"{at}.self_attn.q_proj"), config.num_attention_heads)
        key = heads(linear(read, p, f"{at}.self_attn.k_proj"), config.num_key_value_heads)
        value = heads(linear(read, p, f"{at}.self_attn.v_proj"), config.num_key_value_heads)
        key, value = (part.repeat_interleave(shared, 1) for part in (key, value))
        weighted = attention(rotated(query, query.shape[-1]), rotated(key, key.shape[-1]), value)
        x = x + linear(joined(weighted), p, f"{at}.self_attn.o_proj")
        read, _ = rms_norm(x, p, f"{at}.post_attention_layernorm", config.rms_norm_eps)
        gate = linear(read, p, f"{at}.mlp.gate_proj")
        activations.append(change(layer, gate / (1 + torch.exp(-gate)) * linear(read, p, f"{at}.mlp.up_proj")))
        x = x + linear(activations[-1], p, f"{at}.mlp.down_proj")
    last, scale = rms_norm(x, p, "model.norm", config.rms_norm_eps, scale)
    return Run(last @ p["lm_head.weight"].T, x, scale, activations)


def linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", torch.zeros(()))


def layer_norm(x: Tensor, p: dict[str, Tensor], name: str, epsilon: float, scale: Tensor | None = None):
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1) + epsilon).sqrt() if scale is None else scale
    return centred / scale[..., None] * p[f"{name}.weight"] + p[f"{name}.bias"], scale


def rms_norm(x: Tensor, p: dict[str, Tensor], name: str, epsilon: float, scale: Tensor | None = None):
    scale = (x.square().mean(-1) + epsilon).sqrt() if scale is None else scale
    return x / scale[..., None] * p[f"{name}.weight"], scale


def heads(x: Tensor, number: int) -> Tensor:
    """(rows, context, all heads) as (rows, heads, context, width of a head)."""
    return x.unflatten(-1, (number, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    context, width = query.shape[-2:]
    later = torch.ones(context, context, dtype=torch.bool).triu(1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(width)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ value


def rotated(x: Tensor, turned: int, theta: float = 10_000.0) -> Tensor:
    """Each pair (n, n + turned / 2) of a head's first `turned` dimensions turned by position · theta^(−2 n / turned)."""
    frequency = theta ** (-torch.arange(0, turned, 2).double() / turned)
    angle = torch.arange(x.shape[-2]).double()[:, None] * frequency
    one, other = x[..., : turned // 2], x[..., turned // 2 : turned]
    first = one * angle.cos() - other * angle.sin()
    second = other * angle.cos() + one * angle.sin()
    return torch.cat([first, second, x[..., turned:]], -1)


def predictions(logits: Tensor, targets: Tensor, clean: Tensor) -> dict[str, np.ndarray]:
    """Loss, entropy, rank of the true token and KL(clean ‖ this) of logits (tokens, vocabulary)."""
    log_p = special.log_softmax(logits.double().numpy(), 1)
    log_clean = special.log_softmax(clean.double().numpy(), 1)
    order = np.argsort(-log_p, 1)
    return {
        "loss": np.array([-row[target] for row, target in zip(log_p, targets.tolist())]),
        "entropy": stats.entropy(np.exp(log_p), axis=1),
        "rank": np.array([1 + row.tolist().index(target) for row, target in zip(order, targets.tolist())]),
        "divergence": (np.exp(log_clean) * (log_clean - log_p)).sum(1),
    }


def jackknife_reach(statistic: Callable[[np.ndarray], float], rows: np.ndarray) -> float:
    """Half the 95 % interval of `statistic(which tokens)`, leaving out one of at most 20 stretches of rows at a time."""
    names = sorted(set(rows.tolist()))
    stretch = {name: place * 20 // len(names) for place, name in enumerate(names)}
    of_token = np.array([stretch[row] for row in rows.tolist()])
    without = np.array([statistic(of_token != out) for out in sorted(set(stretch.values()))])
    n = len(without)
    return float(stats.t.ppf(0.975, n - 1) * math.sqrt((n - 1) / n * np.sum((without - without.mean()) ** 2)))
