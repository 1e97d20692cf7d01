"""What the table says of a model family: where its blocks, MLPs, norms and unembedding are, and what it multiplies.

Paths are attribute paths inside the Hugging Face model; those of a block's parts start at the block.  The rows are in
`architecture_table`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FOUND = {False: "found by structure: ", True: "found by structure, gated: "}  # then a model_type: a name of no row


@dataclass(frozen=True)
class AttentionParts:
    """Names of the parts of a block's attention; queries, keys and values may come from one fused projection."""

    module: str
    norm: str  # the norm that queries, keys and values read through
    query: str
    key: str
    value: str
    out: str
    fused: Literal["", "blocks", "heads"] = ""  # all queries, all keys, all values; or those of each head in turn


@dataclass(frozen=True)
class ExpertParts:
    """Names of the parts of a block's MLP where it has experts (`models.experts`)."""

    module: str = "mlp"  # its output is what the MLP adds
    experts: str = "mlp.experts"  # called with tokens, the experts they are routed to, and with which weights
    shared: str | None = None  # a gated MLP that every token passes through
    shared_gate: str | None = None  # the sigmoid of its output is the shared expert's weight


@dataclass(frozen=True)
class Architecture:
    """Names of the parts of one model family.

    `mlp_norm` may name several norms: a block's is the first that it has; none where the MLP reads the residual stream
    itself.  The multipliers and `logit_cap` name settings of config.json.
    """

    name: str
    model_types: tuple[str, ...]  # values of `config.model_type`
    blocks: str
    mlp_norm: str | tuple[str, ...]  # the norm that the MLP's input weights read through
    w_in: str  # its output is the pre-activation; in a gated MLP, the gate
    w_out: str  # its input is the activation
    final_norm: str | None  # the norm that the unembedding reads through
    unembedding: str = "lm_head"
    w_up: str | None = None  # the same as w_in where one projection gives both: first the gates, then these
    up_plus_one: bool = False  # the activation is act(gate) · (up + 1): its sign is no free choice
    out_norm: str | None = None  # an RMS norm between the MLP and the residual sum
    norm: Literal["layer", "rms"] = "layer"
    gain_offset: float = 0.0  # a norm's gain is this plus its weight
    post_norm: bool = False  # the norm follows the residual sum: weights cannot be folded, outputs are normalised
    causal: bool = True
    attention: AttentionParts | None = None  # what roles of attention need; None where nothing of them is tried out
    heads_out: str | None = None  # attention's output projection: it reads the heads side by side
    heads_norm: str | None = None  # an RMS norm between attention and the residual sum
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)  # that config.json must have
    residual_multiplier: str | None = None  # of what the MLP adds
    logit_multiplier: str | None = None
    logit_divisor: str | None = None
    logit_cap: str | None = None  # logits are cap · tanh(logit / cap)
    positions_after_padding: bool = False  # position ids start behind the padding token's id
    experts: ExpertParts | None = None  # then w_in, w_up and w_out are those of dense layers among the sparse ones

    @property
    def gated(self) -> bool:
        """Whether the activation is act(gate) · up, so that negating w_up and w_out leaves the model the same."""
        return self.w_up is not None and not self.up_plus_one

    @property
    def fused(self) -> bool:
        """Whether one projection gives gates and ups."""
        return self.w_up == self.w_in

    def paths(self, role: str) -> tuple[str, ...]:
        """Where a part may be, the likeliest first: of `w_in`, `w_up`, `w_out`, `mlp_norm` or `out_norm`."""
        named = getattr(self, role)
        return named if isinstance(named, tuple) else () if named is None else (named,)
