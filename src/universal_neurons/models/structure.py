"""A row for a model that no row of the table names, made of what its parts do while it runs.

1. The blocks are the longest list of modules of one class in the base model.
2. The first block's parts are told by `block_structure`.
3. The unembedding is where `transformers` says; the final norm is the module that returns what it reads.

Whether the other blocks are alike, and all of this again, is for `verification` to say, as of any row.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from universal_neurons.errors import ArchitectureError
from universal_neurons.models.architectures import FOUND, Architecture
from universal_neurons.models.block_structure import BlockRuns, UnfitError, mlp_of, norm_formula, returns, watched
from universal_neurons.models.parts import module_at
from universal_neurons.models.passes import (
    calls_of,
    evaluating,
    first_tensor,
    in_float32,
    named_failure,
    probe_ids,
    relative_error,
)
from universal_neurons.models.spread import is_spread, plain_copy

SHOWN = 8  # candidates of an error


@torch.inference_mode()
def row_by_structure(network: Any, named: str, device: torch.device) -> Architecture:
    """A row for a model whose weights are in memory; `named` names it in errors.

    Raises `ArchitectureError`, with what each candidate for the MLP's output projection lacks.
    """
    model_type = network.config.model_type
    _require_reader_of_tokens(network, named)
    path, blocks = _blocks(network, named)
    row = Architecture(
        name=FOUND[False] + model_type,
        model_types=(model_type,),
        blocks=path,
        mlp_norm=(),
        w_in="",
        w_out="",
        final_norm=None,
        unembedding=unembedding_of(network),
        positions_after_padding=_places_after_padding(network),
    )
    longest = getattr(network.config, "max_position_embeddings", None) or 16
    ids, alike = probe_ids(max(longest - 4, 1), len(network.get_input_embeddings().weight))
    tolerance = 1e-3 if network.dtype == torch.float32 else 0.1
    with evaluating(network):
        with calls_of(blocks) as calls, named_failure(named, model_type):
            states = network.base_model(input_ids=ids.to(device), use_cache=False).last_hidden_state
        if len(calls) != len(blocks):
            raise _refused(named, model_type, f"its {len(blocks)} blocks at {path} ran {len(calls)} times in a pass")
        block, call = in_float32(network, blocks[0], calls[0], device)
        with evaluating(block):
            with named_failure(named, model_type):
                runs = BlockRuns(block, call, ids.numel(), network.config.hidden_size)
            row = _with_mlp(row, runs, named)
        row = replace(row, causal=relative_error(states[1, :alike], states[0, :alike]) <= tolerance)
        return replace(row, final_norm=_final_norm(network, row, blocks[-1], ids.to(device), named, tolerance))


def unembedding_of(network: Any) -> str:
    """The path of a model's unembedding; of one that goes without it, of where it would be."""
    left_out = [name for name, part in network._modules.items() if part is None]
    module = None if left_out else network.get_output_embeddings()
    if module is None:
        return left_out[0] if left_out else "lm_head"
    return next(path for path, part in network.named_modules() if part is module)


def note_of(row: Architecture) -> str:
    """What a found row says, for the notes of its model."""
    ins = row.w_in if row.w_up is None else f"{row.w_in} (gates) and {row.w_up} (ups)"
    norm = {"rms": "RMS norms", "layer": "LayerNorms"}[row.norm]
    return (
        f"no row of the table for model_type {row.model_types[0]!r}: its parts were found by structure: blocks at "
        f"{row.blocks}, w_out at {row.w_out}, w_in at {ins}, {norm} at {row.mlp_norm} and {row.final_norm}; "
        "attention roles are not looked for"
    )


def loader_of(row: Architecture | None, config: Any, named: str) -> Any:
    """The class of `transformers` that loads a model: with its unembedding where its kind has one.

    Raises `ArchitectureError` for an encoder with a decoder.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
    )

    if row is not None:
        return AutoModelForCausalLM if row.causal else AutoModelForMaskedLM
    if config.is_encoder_decoder:
        raise _refused(named, config.model_type, "it is an encoder with a decoder")
    fills_masks = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    saved = config.architectures or ()
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not (
        fills_masks and any(str(name).endswith("ForMaskedLM") for name in saved)
    ):
        return AutoModelForCausalLM
    return AutoModelForMaskedLM if fills_masks else AutoModel


def _refused(named: str, model_type: str, given: str, causes: Sequence[str] = ()) -> ArchitectureError:
    return ArchitectureError(
        f"{named}: no row of the table for model_type {model_type!r}, and its parts cannot be found by structure",
        given=given,
        wanted="one linear layer in every block through which its whole MLP writes to the residual stream",
        fix="add a row to ARCHITECTURES in architecture_table.py (docs/models.md says how)",
        causes=causes,
    )


def _require_reader_of_tokens(network: Any, named: str) -> None:
    """Refuse what reads no tokens, or has no numbers, before anything runs."""
    embedding = getattr(network.get_input_embeddings(), "weight", None)
    reasons = {
        "it is on the meta device, without numbers": network.device.type == "meta" and not is_spread(network),
        "it is an encoder with a decoder": bool(getattr(network.config, "is_encoder_decoder", False)),
        "it has no embedding of tokens": not isinstance(embedding, Tensor) or embedding.dim() != 2,
        "its configuration names no hidden_size": not isinstance(getattr(network.config, "hidden_size", None), int),
    }
    for reason, holds in reasons.items():
        if holds:
            raise _refused(named, network.config.model_type, reason)


def _blocks(network: Any, named: str) -> tuple[str, list[nn.Module]]:
    """The longest list of modules of one class that is in no other list; of equally long ones the first."""
    base = {id(module) for module in network.base_model.modules()}
    lists: dict[str, list[nn.Module]] = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and id(module) in base and not _is_in(path, lists):
            lists[path] = list(module)
    alike = {path: parts for path, parts in lists.items() if len({type(part) for part in parts}) == 1}
    if not alike:
        raise _refused(named, network.config.model_type, "it has no list of modules of one class for its blocks")
    path = max(alike, key=lambda path: len(alike[path]))
    for layer, block in enumerate(alike[path]):
        if experts := _experts(block):
            given = f"experts, or another stack of matrices, at {path}.{layer}.{experts}"
            raise _refused(named, network.config.model_type, given)
    return path, alike[path]


def _is_in(path: str, lists: dict[str, list[nn.Module]]) -> bool:
    return any(path.startswith(f"{outer}.") for outer in lists)


def _experts(block: nn.Module) -> str:
    """The path of a parameter that holds a stack of matrices, or of a list of linear layers; empty without one."""
    for path, module in block.named_modules():
        stacks = [
            name
            for name, tensor in module.named_parameters(recurse=False)
            if sum(size > 1 for size in tensor.shape) > 2
        ]
        if stacks and not isinstance(module, (nn.Conv1d, nn.Conv2d)):
            return f"{path}.{stacks[0]}"
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) and any(
            isinstance(part, nn.Linear) for part in module.modules()
        ):
            return path
    return ""


def _places_after_padding(network: Any) -> bool:
    """Whether position ids start behind the padding token's: then the table of positions has a row for padding."""
    words, places = network.get_input_embeddings(), getattr(network.config, "max_position_embeddings", None)
    tables = [part for part in network.modules() if isinstance(part, nn.Embedding) and part is not words]
    return any(table.num_embeddings == places and table.padding_idx is not None for table in tables)


def _with_mlp(row: Architecture, runs: BlockRuns, named: str) -> Architecture:
    """The row with its MLP's parts, by the one candidate that fits."""
    model_type = row.model_types[0]
    if not isinstance(runs.after, Tensor) or runs.after.shape[-1] != runs.width:
        raise _refused(named, model_type, f"blocks at {row.blocks} that return no residual stream")
    fits, lacking = [], []
    for path in runs.candidates():
        try:
            fits.append(mlp_of(replace(row, w_out=path), runs))
        except UnfitError as error:
            lacking.append(f"{path}: {error}")
    if len(fits) == 1:
        return fits[0]
    if fits:
        given = f"{len(fits)} that fit in {row.blocks}.0: {', '.join(fit.w_out for fit in fits)}"
    else:
        given = f"none of the {len(lacking)} linear layers in {row.blocks}.0 that return {runs.width} numbers"
    raise _refused(named, model_type, given, lacking[:SHOWN])


def _final_norm(
    network: Any, row: Architecture, last: nn.Module, ids: Tensor, named: str, tolerance: float
) -> str | None:
    """The path of the norm that returns what the unembedding reads; None where that is a projection of the stream.

    A causal model's must read what the last block returns, for roles are told by that.
    """
    if module_at(network, row.unembedding) is None:
        return None
    streams: list[Tensor] = []
    handle = last.register_forward_hook(lambda _m, _args, output: streams.append(first_tensor(output)))
    try:
        with named_failure(named, row.model_types[0]):
            _, seen = watched(network, lambda: network(input_ids=ids, return_dict=True), leave_out=row.blocks)
    finally:
        handle.remove()
    read = next((one.given for one in seen if one.path == row.unembedding), None)
    if read is None or read.shape[-1] != network.config.hidden_size:
        return None
    for one in seen:
        if returns(one, read) and not (row.causal and not torch.equal(one.given, streams[0].to(one.given.device))):
            norm = plain_copy(one.module, one.given.device) if is_spread(network) else one.module
            if norm_formula(one, row, norm, tolerance):
                return one.path
    kind = "LayerNorm" if row.norm == "layer" else "RMS norm"
    stream = " of what its blocks return" if row.causal else ""
    raise _refused(named, row.model_types[0], f"what {row.unembedding} reads is no {kind}{stream}")
