"""Several GPT-2 models in one: every weight has a leading dimension of seeds, every product is a batched one.

One small model leaves a GPU idle, and a CPU busy with overhead.  `init` draws each seed's weights as `transformers`
initialises GPT-2, from that seed's own generator, so that a model does not depend on which others are trained beside
it; `forward` is GPT-2's; `to_hugging_face` gives one seed's weights as an ordinary model's (tests hold the logits of
both together).
"""

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

ACTIVATIONS = {
    "gelu_new": lambda x: nnf.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
}
RESIDUAL_WRITERS = ("attn.c_proj.weight", "mlp.c_proj.weight")


def shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of GPT-2's weights, as `GPT2LMHeadModel` names them (matrices are inputs × outputs)."""
    d, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    found = {"wte.weight": (config.vocab_size, d), "wpe.weight": (config.n_positions, d)}
    for layer in range(config.n_layer):
        block = {
            "ln_1.weight": (d,), "ln_1.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
            "mlp.c_fc.weight": (d, inner), "mlp.c_fc.bias": (inner,), "mlp.c_proj.weight": (inner, d),
            "mlp.c_proj.bias": (d,),
        }  # fmt: skip
        found |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return found | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


def init(config, weight_seeds: list[int]) -> dict[str, Tensor]:
    """Weights (seeds, …): matrices N(0, .02²), those that write to the residual stream / √(2 · layers), gains 1."""
    generators = [torch.Generator().manual_seed(seed) for seed in weight_seeds]
    weights = {}
    for name, shape in shapes(config).items():
        if name.endswith("bias"):
            weights[name] = torch.zeros(len(weight_seeds), *shape)
        elif len(shape) == 1:
            weights[name] = torch.ones(len(weight_seeds), *shape)
        else:
            writes = name.endswith(RESIDUAL_WRITERS)
            scale = config.initializer_range / (math.sqrt(2 * config.n_layer) if writes else 1)
            weights[name] = torch.stack([torch.randn(shape, generator=g) * scale for g in generators])
    return weights


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (seeds, rows · positions, in) through every seed's matrix."""
    return torch.baddbmm(bias[:, None].to(x.dtype), x, weight.to(x.dtype))


def _norm(x: Tensor, gain: Tensor, shift: Tensor, epsilon: float) -> Tensor:
    return nnf.layer_norm(x, x.shape[-1:], eps=epsilon) * gain[:, None] + shift[:, None]


def forward(config, weights: dict[str, Tensor], ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits (seeds, rows, positions, vocabulary) of token ids (seeds, rows, positions); products in `dtype`."""
    seeds, rows, context = ids.shape
    width, heads = config.n_embd, config.n_head
    act = ACTIVATIONS[config.activation_function]
    drop = config.resid_pdrop
    table = weights["wte.weight"]
    offset = torch.arange(seeds, device=ids.device)[:, None, None] * config.vocab_size
    x = nnf.embedding(ids + offset, table.flatten(0, 1)) + weights["wpe.weight"][:, None, :context]
    x = x.reshape(seeds, rows * context, width)
    for layer in range(config.n_layer):
        w = {name.split(".", 2)[2]: t for name, t in weights.items() if name.startswith(f"h.{layer}.")}
        read = _norm(x, w["ln_1.weight"], w["ln_1.bias"], config.layer_norm_epsilon).to(dtype)
        qkv = _linear(read, w["attn.c_attn.weight"], w["attn.c_attn.bias"])
        q, k, v = qkv.view(seeds * rows, context, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        mixed = nnf.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + nnf.dropout(_linear(mixed, w["attn.c_proj.weight"], w["attn.c_proj.bias"]).float(), drop)
        read = _norm(x, w["ln_2.weight"], w["ln_2.bias"], config.layer_norm_epsilon).to(dtype)
        hidden = act(_linear(read, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"]))
        x = x + nnf.dropout(_linear(hidden, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"]).float(), drop)
    x = _norm(x, weights["ln_f.weight"], weights["ln_f.bias"], config.layer_norm_epsilon).to(dtype)
    return (x @ table.to(dtype).transpose(1, 2)).view(seeds, rows, context, -1)


def losses(config, weights: dict[str, Tensor], ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean next-token loss of each seed on its rows of ids (seeds, rows, positions + 1)."""
    logits = forward(config, weights, ids[:, :, :-1], dtype).float()
    each = nnf.cross_entropy(logits.flatten(0, 2), ids[:, :, 1:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(1)


def to_hugging_face(config, weights: dict[str, Tensor], seed: int):
    """One seed's weights in a `GPT2LMHeadModel`."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel(config)
    state = {f"transformer.{name}": tensor[seed].detach().float().cpu() for name, tensor in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.eval()
