"""The attention of one block, from the Hugging Face modules: queries, keys, values, rotation, output (paper §6).

With x̂ the output of the attention's norm, a head's query is q = W_Q x̂ + b, its key k = W_K x̂ + b (Qwen3: each divided
by its own root mean square and multiplied by a gain), and its score for the key at position s from position t is

    scaling · (R(t) q)ᵀ R(s) k,

where R rotates by position in rotary families (part of the dimensions in GPT-NeoX, not in every layer of SmolLM3) and
is the identity elsewhere.  What a neuron adds to the score for BOS (s = 0) at distance Δ = t is along
W_Qᵀ R(Δ)ᵀ R(0) k.
`Heads` names the parts; `bos_key` gives the keys of a lone BOS.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from universal_neurons.errors import ArchitectureError
from universal_neurons.models import AttentionParts, Model, Sink, matrix_of, module_at

Role = Literal["query", "key", "value"]
ROLES: tuple[Role, ...] = ("query", "key", "value")


def attention_parts(model: Model) -> AttentionParts:
    """Where a model's attention is; `ArchitectureError` where its family's row does not say (encoders)."""
    model.require_whole("paths into heads")
    parts = model.architecture.attention
    if parts is None:
        raise ArchitectureError(
            f"{model.name}: its attention is not known",
            given=f"{model.architecture.name}, whose row of the table names no attention",
            wanted="a causal model, whose attention has a sink at BOS",
            fix="leave the model out, or name its AttentionParts in architecture_table.py",
        )
    return parts


class Heads:
    """The heads of one block.

    `module`, `norm`, `query`, `key`, `value` and `out` are the model's own modules (one projection may be several of
    them); `n_heads` and `d_head` count heads and their width, `n_key_heads` the keys and values that heads share;
    `scaling` is the factor of q·k (GPT-Neo has none: 1); `rotary` is the model's rotary module, or None in a layer
    without.
    """

    def __init__(self, model: Model, layer: int) -> None:
        parts = attention_parts(model)

        def at(path: str) -> Any:
            module = module_at(model.blocks[layer], path)
            if module is None:
                raise ArchitectureError(
                    f"{model.name}: block {layer} has no {path}", wanted=f"a {model.architecture.name} block"
                )
            return module

        self.layer = layer
        self.module, self.norm, self.out = at(parts.module), at(parts.norm), at(parts.out)
        self.query, self.key, self.value = at(parts.query), at(parts.key), at(parts.value)
        self.fused = parts.fused
        self.d_head = int(getattr(self.module, "head_dim", None) or self.module.head_size)
        self.n_heads = matrix_of(self.out).shape[1] // self.d_head
        self.n_key_heads = self.n_heads if self.fused else matrix_of(self.key).shape[0] // self.d_head
        self.scaling = float(getattr(self.module, "scaling", 1.0))
        rotary = module_at(model.hf.base_model, "rotary_emb")
        self.rotary: nn.Module | None = rotary if getattr(self.module, "use_rope", True) else None
        self.centred = model.architecture.norm == "layer"
        self.gain_offset = model.architecture.gain_offset
        for role in ROLES:
            rows = matrix_of(getattr(self, role)).shape[0]
            if rows != self.width(role):
                raise ArchitectureError(
                    f"{model.name}: block {layer}'s {role} projection is {rows} wide", wanted=self.width(role)
                )

    def width(self, role: Role) -> int:
        """Outputs of the projection that gives the queries, keys or values."""
        if self.fused:
            return 3 * self.n_heads * self.d_head
        return (self.n_heads if role == "query" else self.n_key_heads) * self.d_head

    def columns(self, role: Role, head: int) -> slice:
        """Where a head's queries, keys or values stand among the outputs of their projection."""
        place = ROLES.index(role)
        if self.fused == "heads":
            place += 3 * head
        elif self.fused == "blocks":
            place = place * self.n_heads + head
        else:
            place = head if role == "query" else head * self.n_key_heads // self.n_heads
        return slice(place * self.d_head, (place + 1) * self.d_head)

    def split(self, role: Role, projected: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows heads d_head"]:
        """A projection's output by head; heads that share keys and values get the same ones."""
        assert projected.shape[-1] == self.width(role), (role, projected.shape, self.width(role))
        return torch.stack([projected[..., self.columns(role, head)] for head in range(self.n_heads)], -2)

    def queries(self, projected: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows heads d_head"]:
        """Queries before rotation from the query projection's output, normalised where the family does that."""
        return self._normalised("q_norm", self.split("query", projected))

    def keys(self, projected: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows heads d_head"]:
        """Keys before rotation from the key projection's output, normalised where the family does that."""
        return self._normalised("k_norm", self.split("key", projected))

    def values(self, projected: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows heads d_head"]:
        """Values, biases included, from the value projection's output."""
        return self.split("value", projected)

    def _normalised(self, name: str, vectors: Tensor) -> Tensor:
        norm = getattr(self.module, name, None)
        return vectors if norm is None else norm(vectors)

    @property
    @torch.no_grad()
    def w_q(self) -> Float[Tensor, "heads d_head d_model"]:
        """W_Q in float64 with the norm's gain folded, centred for LayerNorm: what a direction of the residual stream,
        normalised, adds to the query.  Of Qwen3's q_norm only the gain is in it: the query's own size, by which that
        norm divides, depends on everything else in the stream, so scores are in units of it.
        """
        weight = self.split("query", matrix_of(self.query).double().T).permute(1, 2, 0)
        gain = getattr(self.norm, "weight", None)
        query_gain = getattr(getattr(self.module, "q_norm", None), "weight", None)
        if isinstance(query_gain, Tensor):
            weight = weight * query_gain.double()[:, None]
        if isinstance(gain, Tensor):
            weight = weight * (gain.double() + self.gain_offset)
        return weight - weight.mean(-1, keepdim=True) if self.centred else weight

    @property
    def w_o(self) -> Float[Tensor, "heads d_model d_head"]:
        """W_O in float64 without its bias, centred for LayerNorm: the next norm takes the mean away."""
        weight = matrix_of(self.out).double().unflatten(1, (self.n_heads, self.d_head)).transpose(0, 1)
        return weight - weight.mean(1, keepdim=True) if self.centred else weight

    def rotated(
        self,
        vectors: Float[Tensor, "*rows positions heads d_head"],
        positions: Int[Tensor, " positions"],
        *,
        back: bool = False,
    ) -> Float[Tensor, "*rows positions heads d_head"]:
        """R(position) · vector, or its transpose; the vectors themselves in a layer without rotation."""
        if self.rotary is None:
            return vectors
        cos, sin = (part[0, :, None] for part in self.rotary(vectors, positions[None]))
        turning, still = vectors[..., : cos.shape[-1]], vectors[..., cos.shape[-1] :]
        first, second = turning.chunk(2, -1)
        quarter = torch.cat((-second, first), -1)
        return torch.cat((turning * cos + quarter * (-sin if back else sin), still), -1)

    def from_distances(
        self, key: Float[Tensor, "heads d_head"], distances: Sequence[int]
    ) -> Float[Tensor, "heads d_head"]:
        """k̄ = mean over distances of R(Δ)ᵀ R(0) k: the mean score of a query for the key at position 0 is
        scaling · qᵀ k̄."""
        at = torch.tensor([0, *distances], device=key.device)
        start = self.rotated(key[None], at[:1])
        return self.rotated(start.expand(len(distances), -1, -1), at[1:], back=True).mean(0)


@contextlib.contextmanager
def projecting(model: Model, role: Role, sink: Sink) -> Iterator[None]:
    """While open, every forward pass hands the output of each block's query, key or value projection to `sink`."""
    with contextlib.ExitStack() as stack:
        for layer in range(model.n_layers):

            def take(_m: nn.Module, _args: Any, output: Tensor, layer: int = layer) -> None:
                sink(layer, output)

            stack.callback(getattr(Heads(model, layer), role).register_forward_hook(take).remove)
        yield


@torch.inference_mode()
def bos_key(model: Model, bos: int, distances: Sequence[int]) -> Float[Tensor, "layers heads d_head"]:
    """k̄ of a lone BOS (its token id) at every layer and head, float64, from one forward pass of that one token.

    `scaling · qᵀ k̄` is a query's score for BOS; in a rotary layer its mean over `distances` (those within the model's
    context; half the context where none is).
    """
    within = [distance for distance in distances if 0 < distance < model.context] or [model.context // 2]
    projected: dict[int, Tensor] = {}
    with projecting(model, "key", projected.__setitem__):
        model.forward(torch.tensor([[bos]]))
    every = [Heads(model, layer) for layer in range(model.n_layers)]
    keys = [heads.keys(projected[heads.layer])[0, 0].double() for heads in every]
    return torch.stack([heads.from_distances(key, within) for heads, key in zip(every, keys)])


@contextlib.contextmanager
def hooked(*hooks: Callable[[], Any]) -> Iterator[None]:
    """While open, the hooks that these calls register; all are removed at the end, whatever happens."""
    with contextlib.ExitStack() as stack:
        for register in hooks:
            stack.callback(register().remove)
        yield
