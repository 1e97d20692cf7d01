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
from universal_neurons.models.architecture_table import architecture_of
from universal_neurons.models.architectures import FOUND, Architecture
from universal_neurons.models.described import Described
from universal_neurons.models.experts import Hook, SparseMLP, sparse_of
from universal_neurons.models.parts import matrix_of, module_at
from universal_neurons.models.passes import evaluating, first_tensor, hooked
from universal_neurons.models.spread import is_spread
from universal_neurons.models.structure import note_of, row_by_structure
from universal_neurons.models.token_rows import Text, rows_of
from universal_neurons.units import Units

Sink = Callable[[int, Tensor], None]  # layer, (rows x context, its width)
HEADLESS = "no unembedding: no logits, no roles, no vocab_* columns"
NARROW = "its unembedding reads a projection of the residual stream: no vocab_* columns"
DIVIDED = "a norm follows its MLP: w_out has that norm's gain, not its division by the size of all that the MLP writes"
CAPPED = "its logits are capped by a tanh: the unembedding is not centred, no roles"
UNBOUNDED = 2048  # the context of a model that has no longest row
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model(Described):
    """A language model with named neurons.

    `hf` is the Hugging Face model, `architecture` its row of the table (without it, looked up, else found by
    structure), `tokenizer` its tokenizer or None,
    `digest` a SHA-256 of its weights and configuration, `notes` what is left out of it; `device` is where a model that
    `accelerate` spread over several is handed text and hands activations.  `units` are its neurons,
    numbered layer by layer.  The Hugging Face model stays as it is: forward passes evaluate it (no dropout) and keep
    no gradients, then it trains on if it did.  One without an unembedding has neurons, but no logits.
    """

    def __init__(
        self,
        hf: Any,
        name: str,
        *,
        tokenizer: Any = None,
        digest: str | None = None,
        notes: Sequence[str] = (),
        device: str | torch.device | None = None,
        architecture: Architecture | None = None,
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
        self._device = None if device is None else torch.device(device)
        row = architecture or architecture_of(hf.config.to_dict() | {"model_type": model_type})
        self.architecture: Architecture = row or row_by_structure(hf, name, self.device)
        blocks = module_at(hf, self.architecture.blocks)
        if not blocks:
            raise ArchitectureError(
                f"{name}: not a whole {self.architecture.name} language model",
                given=type(hf).__name__,
                wanted=f"blocks at {self.architecture.blocks}",
                fix="load it with AutoModelForCausalLM (encoders: AutoModelForMaskedLM)",
            )
        self.has_unembedding = module_at(hf, self.architecture.unembedding) is not None
        self.gated = self.architecture.gated
        self.blocks: list[nn.Module] = list(blocks)
        made = ((layer, sparse_of(block, self.architecture)) for layer, block in enumerate(self.blocks))
        self.sparse: dict[int, SparseMLP] = {layer: sparse for layer, sparse in made if sparse is not None}
        self._require_plain_weights()
        self._require_experts_on_devices()
        self.d_model = hf.config.hidden_size
        self.notes += self._left_out()
        self.units = self._units()
        self.vocab_size = len(self.embedding)
        self.context = context_of(hf.config, self.architecture)
        if self.context < 1:
            raise ArchitectureError(
                f"{name}: it reads no text", given=f"a context of {self.context}", wanted="1 or more"
            )
        self.digest = digest or _digest_of_state(hf)

    def _require_plain_weights(self) -> None:
        """Refuse weights that are no numbers: quantised ones."""
        weights = (
            self.sparse[0].parameters
            if 0 in self.sparse
            else [getattr(self.part(0, role), "weight", None) for role in ("w_in", "w_out")]
        )
        for weight in weights:
            if not isinstance(weight, Tensor) or not weight.is_floating_point():
                numbers = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
                raise CheckpointError(
                    f"{self.name}: its weights are quantised",
                    given=numbers,
                    wanted="floating-point numbers in memory",
                    fix="load the model that was quantised",
                )

    def _require_experts_on_devices(self) -> None:
        """Refuse experts that `accelerate` fetches from memory or disk: they are gone when activations are made."""
        for layer, sparse in self.sparse.items():
            if any(weight.is_meta for weight in sparse.parameters):
                raise ConfigError(
                    f"{self.name}: its experts are neither in memory nor on a device",
                    given=f"layer {layer}'s on the disk, or in memory beside a GPU",
                    wanted="all experts where they are multiplied",
                    fix="give more devices, or --device-map sequential with more --max-memory, or leave it out",
                )

    def _left_out(self) -> tuple[str, ...]:
        """What cannot be said of it, for the notes."""
        notes = []
        if self.architecture.name.startswith(tuple(FOUND.values())):
            notes.append(note_of(self.architecture))
        if not self.has_unembedding:
            notes.append(HEADLESS)
        elif not self.unembedding_reads_stream:
            notes.append(NARROW)
        if self.architecture.out_norm is not None:
            notes.append(DIVIDED)
        if self.logit_cap is not None:
            notes.append(CAPPED)
        return tuple(notes)

    @property
    def unembedding_reads_stream(self) -> bool:
        """Whether it has an unembedding of the residual stream's width: some read a projection of it."""
        if not self.has_unembedding:
            return False
        return matrix_of(module_at(self.hf, self.architecture.unembedding)).shape[1] == self.d_model

    @property
    def residual_multiplier(self) -> float:
        """What the MLP's output is multiplied by before it is added to the residual stream."""
        return self._setting(self.architecture.residual_multiplier) or 1.0

    @property
    def logit_multiplier(self) -> float:
        """What the unembedding's output is multiplied by."""
        row = self.architecture
        return (self._setting(row.logit_multiplier) or 1.0) / (self._setting(row.logit_divisor) or 1.0)

    @property
    def logit_cap(self) -> float | None:
        """Logits are cap · tanh(logit / cap); `None` where they are not capped."""
        return self._setting(self.architecture.logit_cap)

    def _setting(self, name: str | None) -> float | None:
        value = None if name is None else getattr(self.hf.config, name, None)
        return None if value is None else float(value)

    def _units(self) -> Units:
        if not self.sparse:
            return Units.equal(len(self.blocks), matrix_of(self.part(0, "w_out")).shape[1])
        shapes = [
            (self.sparse[layer].width, (self.sparse[layer].count, self.sparse[layer].each))
            if layer in self.sparse
            else (matrix_of(self.part(layer, "w_out")).shape[1], (0, 0))
            for layer in range(len(self.blocks))
        ]
        widths, experts = zip(*shapes)
        return Units(widths, experts)

    @property
    def device(self) -> torch.device:
        """The device that holds its weights; of one that is spread over several, where its activations are handed."""
        return self._device or self.hf.device

    @property
    def network(self) -> "Model":
        """The model that runs: itself."""
        return self

    def like(self, network: "Model") -> "Model":
        """The same of another model of its architecture: its neurons."""
        return network

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its forward pass."""
        return self.hf.dtype

    @property
    def unit_dtype(self) -> torch.dtype:
        """The precision of the units' values."""
        return self.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights in memory; those that a spread model keeps elsewhere are not."""
        tensors = (*self.hf.parameters(), *self.hf.buffers())
        return sum(t.numel() * t.element_size() for t in tensors if not t.is_meta)

    @property
    def spread(self) -> bool:
        """Whether its parts are on several devices, or some of them on none."""
        return is_spread(self.hf)

    def require_whole(self, what: str) -> None:
        """Raise `ConfigError` where its weights are spread over devices, and `what` needs them on one."""
        if self.spread:
            raise ConfigError(
                f"{self.name} is spread over devices, and {what} need it on one",
                given=", ".join(sorted(set(map(str, self.hf.hf_device_map.values())))),
                wanted="a model that is loaded without device_map",
                fix="un.load_model(...) without device_map, on a machine that holds it",
            )

    def require_unembedding(self) -> None:
        """Raise `ArchitectureError` where it has no unembedding."""
        if not self.has_unembedding:
            raise ArchitectureError(
                f"{self.name}: it has no unembedding, so no logits",
                wanted=f"a model with {self.architecture.unembedding}",
                fix="use a model that was saved with its head",
            )

    @property
    def embedding(self) -> Float[Tensor, "vocabulary width"]:
        """The input embedding, a row per token id."""
        return self.hf.get_input_embeddings().weight.detach()

    def part(self, layer: int, role: str, block: nn.Module | None = None) -> nn.Module:
        """A block's `w_in`, `w_up`, `w_out`, `mlp_norm` or `out_norm` module, or that of a copy of the block."""
        paths = self.architecture.paths(role)
        for path in paths:
            module = module_at(self.blocks[layer] if block is None else block, path)
            if module is not None:
                return module
        raise ArchitectureError(
            f"{self.name}: block {layer} has no {' or '.join(paths) or role}",
            wanted=f"a block of {self.architecture.name}",
        )

    def half(self, layer: int, role: str) -> slice:
        """Where a projection's outputs stand among those of its module: gates come first where both are one."""
        width = self.units.widths[layer] if self.architecture.fused else 0
        return {"w_in": slice(width or None), "w_up": slice(width, None)}.get(role, slice(None))

    def read(self, layer: int, hook: Hook, *, pre: bool = False) -> Any:
        """A handle, to be removed, of a hook that every forward pass gives a layer's activations, or pre-activations.

        What it returns, where that is not None, takes the place of the activations.
        """
        if layer in self.sparse:
            return self.sparse[layer].tap(hook, pre=pre)
        if pre:
            half = self.half(layer, "w_in")
            return self.part(layer, "w_in").register_forward_hook(lambda _m, _args, output: hook(output[..., half]))
        return self.part(layer, "w_out").register_forward_pre_hook(partial(_in_place, hook))

    def written(self, layer: int) -> Float[Tensor, "neurons d_model"]:
        """What a unit of each neuron's activation adds to the residual stream, or to what the `out_norm` reads."""
        if layer in self.sparse:
            return self.sparse[layer].w_out()
        weight, factor = matrix_of(self.part(layer, "w_out")).T, self.residual_multiplier
        return weight if factor == 1 else weight * factor

    @contextlib.contextmanager
    def capturing(self, sink: Sink, *, pre_activations: bool = False) -> Iterator[None]:
        """While open, every forward pass hands each layer's (pre-)activations, positions flattened, to `sink`."""
        handles = [
            self.read(layer, partial(_hand_over, sink, layer, width, self.device), pre=pre_activations)
            for layer, width in enumerate(self.units.widths)
        ]
        with hooked(handles):
            yield

    @contextlib.contextmanager
    def after_blocks(self, sink: Sink) -> Iterator[None]:
        """While open, every forward pass hands the residual stream after each block, positions flattened, to `sink`."""
        handles = [
            block.register_forward_hook(partial(_stream_out, sink, layer, self.d_model, self.device))
            for layer, block in enumerate(self.blocks)
        ]
        with hooked(handles):
            yield

    def evaluating(self, part: nn.Module | None = None) -> contextlib.AbstractContextManager[None]:
        """While open, the model (or a part of it) evaluates: no dropout.  Afterwards, what trained trains again."""
        return evaluating(part or self.hf)

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
        self.require_unembedding()
        rows = self.ids_of(ids).to(self.device)
        with self.evaluating():
            return self.hf(input_ids=rows, return_dict=True).logits

    def describe(self) -> dict[str, Any]:
        """Name, architecture, sizes and digest, as study.json holds them."""
        return {
            "name": self.name,
            "architecture": self.architecture.name,
            **self.units.facts,
            "d_model": self.d_model,
            "vocabulary": self.vocab_size,
            "context": self.context,
            "sha256": self.digest,
        }

    def __repr__(self) -> str:
        shape = f"{self.units}, d_model {self.d_model}, context {self.context}"
        return f"Model({self.name!r}, {self.architecture.name}, {shape}, {self.dtype} on {self.device})"


def _hand_over(sink: Sink, layer: int, width: int, device: torch.device, values: Tensor) -> None:
    """Give `sink` a layer's (pre-)activations, on this device."""
    sink(layer, values.reshape(-1, width).to(device))


def _stream_out(
    sink: Sink, layer: int, width: int, device: torch.device, _m: nn.Module, _args: Any, output: Any
) -> None:
    """After a block, give `sink` its residual stream."""
    _hand_over(sink, layer, width, device, first_tensor(output))


def _in_place(hook: Hook, _m: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Before an output projection runs, let a hook see what it reads, and change it."""
    changed = hook(args[0])
    return None if changed is None else (changed, *args[1:])


def context_of(config: Any, row: Architecture) -> int:
    """The longest row that a configuration allows; BLOOM's, with biases in place of positions, need not name one."""
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "seq_length"))
    context = next((number for number in named if number is not None), UNBOUNDED)
    return context - config.pad_token_id - 1 if row.positions_after_padding else context


def _digest_of_state(hf: Any) -> str:
    config = {k: v for k, v in hf.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(hf.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
