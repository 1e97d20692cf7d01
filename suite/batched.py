"""Several GPT-2 models in one: every weight has a leading dimension of seeds, every product is a batched one.

One small model leaves a GPU idle, and a CPU busy with overhead.  `init` draws each seed's weights as `transformers`
initialises GPT-2, from that seed's own generator, so that a model does not depend on which others are trained beside
it; `Forward` is GPT-2's, in which seeds may differ in their activation; `to_hugging_face` gives one seed's weights as
an ordinary model's (tests hold the logits of both together).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
import torch.nn.functional as nnf
from torch import Tensor

ACTIVATIONS = {
    "gelu_new": lambda x: nnf.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x).square(),
}
RESIDUAL_WRITERS = ("attn.c_proj.weight", "mlp.c_proj.weight")
BOS = 0


def model_config(model: dict):
    """A recipe's `model` as `transformers` knows it."""
    from transformers import GPT2Config

    return GPT2Config(**model, attn_pdrop=0.0, embd_pdrop=0.0, bos_token_id=BOS, eos_token_id=BOS)


def shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of GPT-2's weights, as `GPT2LMHeadModel` names them (matrices are inputs × outputs)."""
    d, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    shape_of = {"wte.weight": (config.vocab_size, d), "wpe.weight": (config.n_positions, d)}
    for layer in range(config.n_layer):
        block = {
            "ln_1.weight": (d,), "ln_1.bias": (d,), "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
            "mlp.c_fc.weight": (d, inner), "mlp.c_fc.bias": (inner,), "mlp.c_proj.weight": (inner, d),
            "mlp.c_proj.bias": (d,),
        }  # fmt: skip
        shape_of |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shape_of | {"ln_f.weight": (d,), "ln_f.bias": (d,)}


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


def runs(activations: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Neighbouring seeds of one activation, as (activation, seeds)."""
    return tuple((name, len(list(same))) for name, same in groupby(activations))


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x (seeds, rows · positions, in) through every seed's matrix; compiled, the bias joins what comes after."""
    if torch.compiler.is_compiling():
        return torch.bmm(x, weight.to(x.dtype)) + bias[:, None].to(x.dtype)
    return torch.baddbmm(bias[:, None].to(x.dtype), x, weight.to(x.dtype))


def _norm(x: Tensor, gain: Tensor, shift: Tensor, epsilon: float) -> Tensor:
    return nnf.layer_norm(x, x.shape[-1:], eps=epsilon) * gain[:, None] + shift[:, None]


def _activate(x: Tensor, activations: tuple[tuple[str, int], ...]) -> Tensor:
    """x (seeds, …) through each seed's activation, given as `runs` does."""
    if len(activations) == 1:
        return ACTIVATIONS[activations[0][0]](x)
    slices = x.split([seeds for _, seeds in activations])
    return torch.cat([ACTIVATIONS[name](part) for (name, _), part in zip(activations, slices)])


@dataclass(frozen=True)
class Forward:
    """GPT-2's forward pass of all seeds; `activations` as `runs` gives them.  The residual stream is float32.

    `compile` compiles the embedding, the block (once for all layers) and the head with its loss.
    """

    heads: int
    layers: int
    epsilon: float
    dropout: float
    activations: tuple[tuple[str, int], ...]
    dtype: torch.dtype = torch.float32
    compiled: bool = False

    @classmethod
    def of(cls, config, seeds: int, dtype: torch.dtype = torch.float32, activations: Sequence[str] = ()) -> "Forward":
        """That of a configuration; without `activations` every seed has the configuration's."""
        each = runs(activations or [config.activation_function] * seeds)
        return cls(config.n_head, config.n_layer, config.layer_norm_epsilon, config.resid_pdrop, each, dtype)

    def embed(self, table: Tensor, places: Tensor, ids: Tensor) -> Tensor:
        """The residual stream (seeds, rows · positions, width) before the first block."""
        seeds, _, context = ids.shape
        offset = torch.arange(seeds, device=ids.device)[:, None, None] * table.shape[1]
        x = nnf.embedding(ids + offset, table.flatten(0, 1)) + places[:, None, :context]
        return x.flatten(1, 2)

    def block(self, x: Tensor, w: dict[str, Tensor], context: int) -> Tensor:
        """Attention and MLP, each added to the residual stream."""
        seeds, length, width = x.shape
        read = _norm(x, w["ln_1.weight"], w["ln_1.bias"], self.epsilon).to(self.dtype)
        qkv = _linear(read, w["attn.c_attn.weight"], w["attn.c_attn.bias"])
        shape = (seeds * length // context, context, 3, self.heads, width // self.heads)
        q, k, v = qkv.view(shape).permute(2, 0, 3, 1, 4)
        mixed = nnf.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self._drop(_linear(mixed, w["attn.c_proj.weight"], w["attn.c_proj.bias"]))
        read = _norm(x, w["ln_2.weight"], w["ln_2.bias"], self.epsilon).to(self.dtype)
        hidden = _activate(_linear(read, w["mlp.c_fc.weight"], w["mlp.c_fc.bias"]), self.activations)
        return x + self._drop(_linear(hidden, w["mlp.c_proj.weight"], w["mlp.c_proj.bias"]))

    def _drop(self, x: Tensor) -> Tensor:
        return nnf.dropout(x.float(), self.dropout) if self.dropout else x.float()

    def head(self, x: Tensor, gain: Tensor, shift: Tensor, table: Tensor) -> Tensor:
        """Logits (seeds, rows · positions, vocabulary)."""
        return _norm(x, gain, shift, self.epsilon).to(self.dtype) @ table.to(self.dtype).transpose(1, 2)

    def head_loss(self, x: Tensor, gain: Tensor, shift: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of each seed; float32 from the logits on."""
        logits = self.head(x, gain, shift, table).float()
        each = nnf.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return each.view(len(x), -1).mean(1)

    def stream(self, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
        """The residual stream after the last block."""
        x = self._run("embed", weights["wte.weight"], weights["wpe.weight"], ids)
        for layer in range(self.layers):
            w = {name.split(".", 2)[2]: t for name, t in weights.items() if name.startswith(f"h.{layer}.")}
            x = self._run("block", x, w, ids.shape[2])
        return x

    def logits(self, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Logits (seeds, rows, positions, vocabulary) of token ids (seeds, rows, positions)."""
        last = [weights[name] for name in ("ln_f.weight", "ln_f.bias", "wte.weight")]
        return self.head(self.stream(weights, ids), *last).view(*ids.shape, -1)

    def losses(self, weights: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Mean next-token loss of each seed on its rows of ids (seeds, rows, positions + 1)."""
        x = self.stream(weights, ids[:, :, :-1].contiguous())
        last = [weights[name] for name in ("ln_f.weight", "ln_f.bias", "wte.weight")]
        return self._run("head_loss", x, *last, ids[:, :, 1:].contiguous())

    def _run(self, part: str, *arguments) -> Tensor:
        function = getattr(self, part)
        return (compiled(function) if self.compiled else function)(*arguments)


@cache
def compiled(function: Callable) -> Callable:
    """A function compiled whole, for the shapes it is called with."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def clip(gradients: list[Tensor], most: float) -> None:
    """Shorten each seed's gradient to a length, in place."""
    squares = torch.stack([g.square().flatten(1).sum(1) for g in gradients]).sum(0)
    scale = (most / (squares.sqrt() + 1e-6)).clamp_max(1.0)
    for g in gradients:
        g.mul_(scale.view(-1, *[1] * (g.dim() - 1)))


@torch.no_grad()
def shrink(matrices: list[Tensor], factors: Tensor) -> None:
    """AdamW's weight decay, in place: each seed's matrices by a factor of its own."""
    for t in matrices:
        t.mul_(factors.view(-1, *[1] * (t.dim() - 1)))


def product_flops(config, context: int) -> int:
    """Floating-point operations a token in training takes in products: 3 × forward; attention counted whole.

    A multiplication and its addition are two; half of attention's are masked away.
    """
    width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    layer = 2 * (4 * width**2 + 2 * width * inner) + 2 * 2 * context * width
    return 3 * (config.n_layer * layer + 2 * width * config.vocab_size)


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
