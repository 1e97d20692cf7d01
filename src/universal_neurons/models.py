"""Load a language model and read its neurons: activations, pre-activations, logits.

The forward pass is the model's own, untouched.  A neuron's activation is the input of the MLP's output projection,
its pre-activation the output of the input (or gate) projection; both are taken by hooks.  Passes run the base model,
so the unembedding is computed only where logits are asked for.
"""

import contextlib
import copy
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from universal_neurons.architectures import Architecture, architecture_of, module_at
from universal_neurons.checkpoints import Source, digest_of, model_type_of, require_weights, resolve_sources
from universal_neurons.errors import ArchitectureError, CheckpointError

Sink = Callable[[int, Tensor], None]  # layer, (rows x context, d_mlp)
VERIFY_TOLERANCE = 1e-4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What broken weights and odd configurations make `transformers` raise.
UNREADABLE = (
    SafetensorError, UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError, LookupError,
    AttributeError, ArithmeticError, ImportError,
)  # fmt: skip


class Model:
    """A language model with named neurons.

    `hf` is the Hugging Face model, `architecture` its row of the table, `tokenizer` its tokenizer or None,
    `digest` a SHA-256 of its weights and configuration.  Neurons are numbered layer by layer: L3.17 is 3 · d_mlp + 17.
    """

    def __init__(self, hf: Any, name: str, *, tokenizer: Any = None, digest: str | None = None) -> None:
        self.hf = hf.eval().requires_grad_(False)
        self.name = name
        self.tokenizer = tokenizer
        self.architecture: Architecture = architecture_of(hf.config.model_type, name)
        blocks = module_at(hf, self.architecture.blocks)
        if not blocks or module_at(hf, self.architecture.unembedding) is None:
            raise ArchitectureError(
                f"{name}: not a whole {self.architecture.name} language model",
                given=type(hf).__name__,
                wanted=f"modules {self.architecture.blocks} and {self.architecture.unembedding}",
                fix="load it with AutoModelForCausalLM (encoders: AutoModelForMaskedLM)",
            )
        self.blocks: list[nn.Module] = list(blocks)
        self.n_layers = len(self.blocks)
        self.d_model: int = hf.config.hidden_size
        self.d_mlp: int = matrix_of(self.part(0, "w_in")).shape[0]
        self.vocab_size: int = hf.get_input_embeddings().weight.shape[0]
        self.context: int = hf.config.max_position_embeddings
        self.digest = digest or _digest_of_state(hf)

    @property
    def n_neurons(self) -> int:
        """Neurons over all layers."""
        return self.n_layers * self.d_mlp

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its forward pass."""
        return self.hf.dtype

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
        for layer in range(self.n_layers):
            if pre_activations:

                def take_output(_m: nn.Module, _args: Any, output: Tensor, layer: int = layer) -> None:
                    sink(layer, output.reshape(-1, self.d_mlp))

                handles.append(self.part(layer, "w_in").register_forward_hook(take_output))
            else:

                def take_input(_m: nn.Module, args: tuple[Tensor, ...], layer: int = layer) -> None:
                    sink(layer, args[0].reshape(-1, self.d_mlp))

                handles.append(self.part(layer, "w_out").register_forward_pre_hook(take_input))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def forward(self, ids: Int[Tensor, "rows context"], attention: Int[Tensor, "rows context"] | None = None) -> Any:
        """Run the base model (no unembedding).  `attention` marks real tokens; needed by encoders only."""
        return self.hf.base_model(input_ids=ids.to(self.device), attention_mask=attention, use_cache=False)

    def activations(
        self, ids: Int[Tensor, "rows context"], *, pre_activations: bool = False
    ) -> Float[Tensor, "rows context neurons"]:
        """All neurons' activations (or pre-activations) on rows of token ids."""
        layers: dict[int, Tensor] = {}
        with self.capturing(layers.__setitem__, pre_activations=pre_activations):
            self.forward(ids)
        return torch.cat([layers[layer] for layer in range(self.n_layers)], 1).view(*ids.shape, self.n_neurons)

    @torch.inference_mode()
    def logits(self, ids: Int[Tensor, "rows context"]) -> Float[Tensor, "rows context vocabulary"]:
        """The model's own logits."""
        return self.hf(input_ids=ids.to(self.device)).logits

    def describe(self) -> dict[str, Any]:
        """What the manifest keeps of a model."""
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


def matrix_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """A projection's weight as (outputs, inputs); GPT-2 stores the transpose."""
    assert isinstance(module.weight, Tensor)
    return module.weight.T if type(module).__name__ == "Conv1D" else module.weight


def _digest_of_state(hf: Any) -> str:
    config = {k: v for k, v in hf.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(hf.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_model(
    source: str | Source, *, revision: str | None = None, device: str = "cpu", dtype: str = "float32", name: str = ""
) -> Model:
    """A model from a local folder, a hub id (with `revision`), or `bundled/seed-N`, checked.

    Raises `MissingFileError`, `CheckpointError` (pickled, truncated or incomplete weights) and `ArchitectureError`
    (a family not in the table, or one whose MLP does not add activation · W_out + b to the residual stream).
    """
    if isinstance(source, str):
        source = resolve_sources([f"{source}@{revision}" if revision else source])[0]
    architecture_of(model_type_of(source), source.given)
    files = require_weights(source)
    network = load_weights(source, dtype).to(device)
    model = Model(
        network,
        name or source.name,
        tokenizer=load_tokenizer(source.folder),
        digest=digest_of([*files, source.folder / "config.json"]),
    )
    verify(model)
    return model


def load_weights(source: Source, dtype: str, *, pickled: bool = False) -> Any:
    """The Hugging Face model of a folder; every weight must be there."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    row = architecture_of(model_type_of(source), source.given)
    loader = AutoModelForCausalLM if row.causal else AutoModelForMaskedLM
    try:
        with quiet_transformers():
            loaded: Any = loader.from_pretrained(
                source.folder,
                dtype=DTYPES[dtype],
                use_safetensors=not pickled,
                weights_only=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (*UNREADABLE, StrictDataclassError) as error:
        raise CheckpointError(
            f"{source.given}: its weights cannot be read",
            given=f"{type(error).__name__}: {error}".splitlines()[0][:300],
            wanted="complete weights and a config.json that they fit",
            fix="copy or download the files again",
        ) from error
    network, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        raise CheckpointError(
            f"{source.given}: its weights are incomplete",
            given=f"missing or misshapen: {sorted(map(str, report['missing_keys'] or report['mismatched_keys']))[:5]}",
            wanted="every weight of the model",
            fix="copy or download the files again",
        )
    _in_one_kernel(network)
    return network


def _in_one_kernel(network: nn.Module) -> None:
    """Compute GPT-2's GELU, which `transformers` spells out in eight steps, by the same function of `torch`."""
    from transformers.activations import GELUTanh, NewGELUActivation

    for module in network.modules():
        for name, part in module.named_children():
            if isinstance(part, NewGELUActivation):
                setattr(module, name, GELUTanh())


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or notices of `transformers` while open."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(folder: Any) -> Any:
    """The tokenizer in a local folder, or None where there is none."""
    from pathlib import Path

    from transformers import AutoTokenizer

    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    if not any((Path(folder) / name).exists() for name in names):
        return None
    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be read", given=str(error).splitlines()[0], wanted="a tokenizer's files"
        ) from error


@torch.inference_mode()
def verify(model: Model) -> float:
    """Check the architecture's row on a running model; returns the largest relative error seen.

    Every block runs twice in float32 on the same input, the second time with its MLP's output projection silenced:
    the difference must be activation · W_out + b.  Raises `ArchitectureError`.
    """
    ids = torch.arange(2 * min(16, model.context)).view(2, -1) % model.vocab_size
    worst = 0.0
    calls: list[tuple[Any, Any]] = []
    handles = [
        block.register_forward_pre_hook(lambda _m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        for block in model.blocks
    ]
    try:
        model.forward(ids)
    finally:
        for handle in handles:
            handle.remove()
    row = model.architecture
    for layer, call in enumerate(calls):
        block = model.blocks[layer]
        if model.dtype != torch.float32:
            block, call = copy.deepcopy(block).float(), _in_float32(call)
        after, activation = _residual_after(row, block, call, silenced=False)
        without, _ = _residual_after(row, block, call, silenced=True)
        if activation.shape[-1] != model.d_mlp:
            raise ArchitectureError(
                f"{model.name}: layer {layer}'s activation is {activation.shape[-1]} wide", wanted=model.d_mlp
            )
        out = module_at(block, row.w_out)
        expected = activation.double() @ matrix_of(out).double().T
        if isinstance(out.bias, Tensor):
            expected = expected + out.bias.double()
        difference = (after.double() - without.double()).reshape(expected.shape)
        rounding = 1e-6 * float(after.abs().max())
        error = max(0.0, float((difference - expected).abs().max()) - rounding)
        worst = max(worst, error / max(float(expected.abs().max()), 1e-30))
    if not worst <= VERIFY_TOLERANCE:
        raise ArchitectureError(
            f"{model.name}: what its MLP adds to the residual stream is not activation · W_out + b",
            given=f"relative error {worst:.2g}",
            wanted=f"at most {VERIFY_TOLERANCE:g}",
            fix=f"this variant of {row.name} needs a row of its own in architectures.py",
        )
    return worst


def _in_float32(value: Any) -> Any:
    """Tensors in nested arguments as float32, all else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _in_float32(part) for key, part in value.items()}
    return type(value)(map(_in_float32, value)) if type(value) in (tuple, list) else value


def _residual_after(row: Architecture, block: nn.Module, call: Any, *, silenced: bool) -> tuple[Tensor, Tensor]:
    """One block's residual stream after its MLP (before the norm, where the norm comes last), and its activation."""
    args, kwargs = call
    seen: dict[str, Any] = {}

    def take(_m: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["activation"] = inputs[0]
        return torch.zeros_like(output) if silenced else output

    handles = [module_at(block, row.w_out).register_forward_hook(take)]
    if row.post_norm:
        norm = module_at(block, row.mlp_norm)
        handles.append(norm.register_forward_pre_hook(lambda _m, inputs: seen.__setitem__("residual", inputs[0])))
    try:
        output = block(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    after = output[0] if isinstance(output, tuple) else output
    return seen["residual"] if row.post_norm else after, seen["activation"].flatten(0, -2)
