"""A language model with named neurons: activations, pre-activations, logits.

The forward pass is the model's own, untouched.  A neuron's activation is the input of the MLP's output projection,
its pre-activation the output of the input (or gate) projection; both are taken by hooks.  Passes run the base model,
so the unembedding is computed only where logits are asked for.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from universal_neurons.errors import ArchitectureError, CheckpointError, ConfigError
from universal_neurons.models.architectures import Architecture, architecture_of, module_at
from universal_neurons.models.described import Described
from universal_neurons.models.token_rows import Text, rows_of
from universal_neurons.units import Units

Sink = Callable[[int, Tensor], None]  # layer, (rows x context, its width)
HEADLESS = "no unembedding: no logits, no roles, no vocab_* columns"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model(Described):
    """A language model with named neurons.

    `hf` is the Hugging Face model, `architecture` its row of the table, `tokenizer` its tokenizer or None,
    `digest` a SHA-256 of its weights and configuration, `notes` what is left out of it.  `units` are its neurons,
    numbered layer by layer.  The Hugging Face model stays as it is: forward passes evaluate it (no dropout) and keep
    no gradients, then it trains on if it did.  One without an unembedding has neurons, but no logits.
    """

    def __init__(
        self, hf: Any, name: str, *, tokenizer: Any = None, digest: str | None = None, notes: Sequence[str] = ()
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError("a model needs a name", given=repr(name), wanted="a string of one character or more")
        model_type = getattr(getattr(hf, "config", None), "model_type", None)
        if not isinstance(model_type, str) or not hasattr(hf, "named_parameters"):
            raise ArchitectureError(
                f"{name}: not a Hugging Face model",
                given=type(hf).__name__,
                wanted="a loaded model with a config",
                fix="un.load_model(...) loads one by its folder or hub id",
            )
        super().__init__(name, tokenizer=tokenizer, notes=notes)
        self.hf = hf
        self.architecture: Architecture = architecture_of(model_type, name)
        blocks = module_at(hf, self.architecture.blocks)
        if not blocks:
            raise ArchitectureError(
                f"{name}: not a whole {self.architecture.name} language model",
                given=type(hf).__name__,
                wanted=f"blocks at {self.architecture.blocks}",
                fix="load it with AutoModelForCausalLM (encoders: AutoModelForMaskedLM)",
            )
        self.has_unembedding = module_at(hf, self.architecture.unembedding) is not None
        self.notes += () if self.has_unembedding else (HEADLESS,)
        self.gated = self.architecture.gated
        self.blocks: list[nn.Module] = list(blocks)
        self._require_plain_weights()
        self.d_model = hf.config.hidden_size
        self.units = Units.equal(len(self.blocks), matrix_of(self.part(0, "w_in")).shape[0])
        self.vocab_size = len(self.embedding)
        self.context = hf.config.max_position_embeddings
        if self.context < 1:
            raise ArchitectureError(
                f"{name}: it reads no text", given=f"a context of {self.context}", wanted="1 or more"
            )
        self.digest = digest or _digest_of_state(hf)

    def _require_plain_weights(self) -> None:
        """Refuse weights that are no numbers: quantised ones."""
        for role in ("w_in", "w_out"):
            weight = getattr(self.part(0, role), "weight", None)
            if not isinstance(weight, Tensor) or not weight.is_floating_point():
                numbers = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
                raise CheckpointError(
                    f"{self.name}: its weights are quantised",
                    given=numbers,
                    wanted="floating-point numbers in memory",
                    fix="load the model that was quantised",
                )

    @property
    def device(self) -> torch.device:
        """The device that holds its weights."""
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its forward pass."""
        return self.hf.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights in memory."""
        return sum(t.numel() * t.element_size() for t in (*self.hf.parameters(), *self.hf.buffers()))

    @property
    def embedding(self) -> Float[Tensor, "vocabulary width"]:
        """The input embedding, a row per token id."""
        return self.hf.get_input_embeddings().weight.detach()

    def part(self, layer: int, role: str) -> nn.Module:
        """A block's `w_in`, `w_up`, `w_out` or `mlp_norm` module."""
        path = getattr(self.architecture, role)
        module = module_at(self.blocks[layer], path)
        if module is None:
            raise ArchitectureError(
                f"{self.name}: block {layer} has no {path}", wanted=f"a {self.architecture.name} block"
            )
        return module

    @contextlib.contextmanager
    def capturing(self, sink: Sink, *, pre_activations: bool = False) -> Iterator[None]:
        """While open, every forward pass hands each layer's (pre-)activations, positions flattened, to `sink`."""
        handles = []
        for layer, width in enumerate(self.units.widths):
            hand_over = partial(_hand_over, sink, layer, width)
            if pre_activations:
                handles.append(self.part(layer, "w_in").register_forward_hook(hand_over))
            else:
                handles.append(self.part(layer, "w_out").register_forward_pre_hook(hand_over))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def after_blocks(self, sink: Sink) -> Iterator[None]:
        """While open, every forward pass hands the residual stream after each block, positions flattened, to `sink`."""
        handles = [
            block.register_forward_hook(partial(_hand_over, sink, layer, self.d_model))
            for layer, block in enumerate(self.blocks)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def evaluating(self, part: nn.Module | None = None) -> Iterator[None]:
        """While open, the model (or a part of it) evaluates: no dropout.  Afterwards, what trained trains again."""
        training = [module for module in (part or self.hf).modules() if module.training]
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True

    @torch.inference_mode()
    def forward(self, ids: Int[Tensor, "rows context"], attention: Int[Tensor, "rows context"] | None = None) -> Any:
        """Run the base model (no unembedding).  `attention` marks real tokens; needed by encoders only."""
        with self.evaluating():
            return self.hf.base_model(input_ids=ids.to(self.device), attention_mask=attention, use_cache=False)

    def ids_of(self, given: Text) -> Int[Tensor, "rows context"]:
        """Rows of token ids from a string (BOS in front, as studies read text), the ids of one row, or rows of ids.

        Raises `TokenizerError` for a string without a tokenizer, `TokenRangeError` for what are no ids of its
        vocabulary, and `ContextError` for rows longer than it can read.
        """
        return rows_of(self, given)

    def activations(self, ids: Text, *, pre_activations: bool = False) -> Float[Tensor, "rows context neurons"]:
        """All neurons' activations (or pre-activations) on a string or on token ids; errors as `ids_of` says."""
        ids = self.ids_of(ids)
        layers: dict[int, Tensor] = {}
        with self.capturing(layers.__setitem__, pre_activations=pre_activations):
            self.forward(ids)
        return torch.cat([layers[layer] for layer in range(self.n_layers)], 1).view(*ids.shape, self.n_neurons)

    @torch.no_grad()
    def logits(self, ids: Text) -> Float[Tensor, "rows context vocabulary"]:
        """The model's own logits on a string or on token ids; errors as `ids_of` says.

        Raises `ArchitectureError` where it has no unembedding.
        """
        if not self.has_unembedding:
            raise ArchitectureError(
                f"{self.name}: it has no unembedding, so no logits",
                wanted=f"a model with {self.architecture.unembedding}",
                fix="use a model that was saved with its head",
            )
        rows = self.ids_of(ids).to(self.device)
        with self.evaluating():
            return self.hf(input_ids=rows, return_dict=True).logits

    def describe(self) -> dict[str, Any]:
        """Name, architecture, sizes and digest, as study.json holds them."""
        return {
            "name": self.name,
            "architecture": self.architecture.name,
            "layers": self.n_layers,
            "d_mlp": self.d_mlp,
            "d_model": self.d_model,
            "vocabulary": self.vocab_size,
            "context": self.context,
            "sha256": self.digest,
        }

    def __repr__(self) -> str:
        shape = f"{self.n_layers} x {self.d_mlp} neurons, d_model {self.d_model}, context {self.context}"
        return f"Model({self.name!r}, {self.architecture.name}, {shape}, {self.dtype} on {self.device})"


def _hand_over(sink: Sink, layer: int, width: int, _m: nn.Module, args: Any, output: Any = None) -> None:
    """A hook that gives `sink` what its module returns (first) or, before the module runs, what it is handed."""
    value = args if output is None else output
    value = value[0] if isinstance(value, tuple) else value
    sink(layer, value.reshape(-1, width))


def matrix_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """A projection's weight as (outputs, inputs); GPT-2 stores the transpose."""
    assert isinstance(module.weight, Tensor)
    weight = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


def _digest_of_state(hf: Any) -> str:
    config = {k: v for k, v in hf.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(hf.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
