"""Which of a file's weights the model takes, by name and shape, before any is read.

1. A stored name is one of the model's own, an old spelling of one, or becomes one when the base model's prefix is added
   or taken away.  Weights of single experts stand for the parameter that `transformers` makes of those of all.
2. Weights that the model lacks are an error, unless they are the whole head: then the model goes without it.
3. Weights that the model does not take are an error where units read or write them (embeddings, blocks, final norm,
   unembedding), for the activations would be others; mask buffers, poolers and other heads are noted.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from universal_neurons.errors import CheckpointError
from universal_neurons.models.locations import Source
from universal_neurons.models.weight_files import SHOWN, Stored, quantised_weights

BUFFER = re.compile(
    r"(^|\.)((attn|attention)\.masked_bias|inv_freq|(cos|sin)_cached|position_ids|token_type_ids|decoder\.version)$"
)
MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")  # (1, 1, context, context)
POOLER = re.compile(r"(^|\.)pooler\.")
QUANTISED = re.compile(r"\.(qweight|qzeros|absmax|SCB|quant_map|weight_scale(_inv)?|weight_packed|weight_format)$")
RENAMED = (  # names of old files, which `transformers` reads as well
    (re.compile(r"LayerNorm\.gamma"), "LayerNorm.weight"),
    (re.compile(r"LayerNorm\.beta"), "LayerNorm.bias"),
    (re.compile(r"^embed_out\."), "lm_head."),  # GPT-NeoX
    (re.compile(r"\.block_sparse_moe\.gate\."), ".mlp.gate."),  # Mixtral
)
OF_EXPERT = re.compile(
    r"(?:\.mlp|\.block_sparse_moe)\.experts\.(\d{1,4})\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$"
)
FUSED = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "w1": "gate_up_proj", "w3": "gate_up_proj"}
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_forward_module.": "Lightning",
    "module.": "DataParallel",
}


@dataclass(frozen=True)
class Fit:
    """How stored weights fit a model: which it lacks, which have other shapes, which it does not take."""

    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unread: tuple[str, ...]
    special: tuple[str, ...]  # taken, but not of plain numbers
    headless: bool


def require_fit(tensors: Mapping[str, Stored], network: Any, unembedding: str, source: Source) -> tuple[bool, str]:
    """Whether the model goes without its head (what holds `unembedding`), and a note on what is left out.

    Raises `CheckpointError`.
    """
    fit = fit_of(tensors, network)
    units = [name for name in fit.unread if _reaches_units(name, tensors[name].shape, network, unembedding)]
    if fit.missing or fit.misshapen or units or fit.special:
        raise _refusal(fit, units, tensors, network, source)
    return fit.headless, f"its weights {_first_few(fit.unread)} are left out: no unit reads them" if fit.unread else ""


def fused_experts(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors, those of single experts as one of all, as `transformers` stacks them: [gate; up] together, and down.

    Where an expert lacks one, or has one of another shape, they stay as they are: then the model lacks a weight.
    """
    fused = dict(tensors)
    by_name: dict[str, list[str]] = {}
    for name in tensors:
        if match := OF_EXPERT.search(name):
            whole = f"{name[: match.start()]}.mlp.experts.{FUSED.get(match[2], 'down_proj')}"
            by_name.setdefault(whole, []).append(name)
    for whole, names in by_name.items():
        shapes = {tensors[name].shape for name in names}
        halves = 2 if whole.endswith("gate_up_proj") else 1
        experts = {int(match[1]) for name in names if (match := OF_EXPERT.search(name))}
        complete = len(names) == halves * len(experts) and experts == set(range(len(experts)))
        if not complete or len(shapes) > 1 or shapes == {()}:
            continue
        height, *rest = shapes.pop()
        precisions = Counter(fused.pop(name).precision for name in names)
        precision = None if None in precisions else precisions.most_common(1)[0][0]
        fused[whole] = Stored((len(experts), halves * height, *rest), precision)
    return fused


def fit_of(tensors: Mapping[str, Stored], network: Any) -> Fit:
    """How stored weights fit a (meta) model of `transformers`."""
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    base = f"{network.base_model_prefix}."
    taken: dict[str, str] = {}
    unread = []
    for stored in tensors:
        name = _name_in(expected, stored, base)
        if name is None or name in taken:
            unread.append(stored)
        else:
            taken[name] = stored
    tied = network.all_tied_weights_keys
    partners: dict[str, set[str]] = {}
    for target, origin in tied.items():
        partners.setdefault(target, set()).add(origin)
        partners.setdefault(origin, set()).add(target)
    missing = [name for name in expected if name not in taken and not partners.get(name, set()) & taken.keys()]
    head = [name for name in expected if not name.startswith(base)]
    headless = bool(set(head) & set(missing)) and not set(head) & taken.keys()
    if headless:
        missing = [name for name in missing if name not in head]
    return Fit(
        missing=tuple(missing),
        misshapen=tuple(
            f"{stored} {list(tensors[stored].shape)}, not {list(expected[name])}"
            for name, stored in taken.items()
            if tensors[stored].shape != expected[name]
        ),
        unread=tuple(unread),
        special=tuple(stored for stored in taken.values() if not tensors[stored].plain),
        headless=headless,
    )


def _name_in(expected: Iterable[str], stored: str, base: str) -> str | None:
    for old, new in RENAMED:
        stored = old.sub(new, stored)
    return next((name for name in (stored, base + stored, stored.removeprefix(base)) if name in expected), None)


def _reaches_units(stored: str, shape: tuple[int, ...], network: Any, unembedding: str) -> bool:
    if BUFFER.search(stored) or POOLER.search(stored) or (MASK.search(stored) and len(shape) == 4):
        return False
    base = f"{network.base_model_prefix}."
    head = unembedding.rpartition(".")[0] or unembedding
    parts = {name for name, _ in network.base_model.named_children()}
    return stored.startswith((base, f"{head}.")) or stored.split(".")[0] in parts


def _refusal(
    fit: Fit, units: list[str], tensors: Mapping[str, Stored], network: Any, source: Source
) -> CheckpointError:
    """Why the weights do not fit, and what helps."""
    if any(".lora_" in name or name.startswith("base_model.model.") for name in tensors):
        return CheckpointError(
            f"{source.given}: weights of an adapter",
            given=_first_few([name for name in tensors if ".lora_" in name] or list(tensors)),
            wanted="a whole model",
            fix="merge the adapter into its model (merge_and_unload of peft) and save that",
        )
    scales = [name for name in fit.unread if QUANTISED.search(name)]
    if scales or fit.special:
        return quantised_weights(source, _first_few(scales or list(fit.special)))
    wrapped = _wrapper(tensors, network, fit.missing)
    if fit.missing and wrapped:
        maker = WRAPPERS.get(wrapped)
        return CheckpointError(
            f"{source.given}: the names of its weights carry {wrapped!r}{f' of {maker}' if maker else ''}",
            given=_first_few(list(tensors)),
            wanted=_first_few(fit.missing),
            fix="save the model inside the wrapper, or rename its weights with safetensors.torch: "
            f"save_file({{name.replace({wrapped!r}, ''): t for name, t in load_file(FILE).items()}}, NEW_FILE, "
            "metadata={'format': 'pt'})",
        )
    parts = {"missing": fit.missing, "of other shapes": fit.misshapen, "not taken by the model": units}
    misfits = "; ".join(f"{what}: {_first_few(names)}" for what, names in parts.items() if names)
    if not (fit.missing or fit.misshapen):
        return CheckpointError(
            f"{source.given}: config.json denies weights that the file has",
            given=misfits,
            wanted="a model that takes every weight that its units read or write",
            fix="mend config.json (a bias, the number of layers), or save the model again with save_pretrained",
        )
    return CheckpointError(
        f"{source.given}: its weights are incomplete" if fit.missing else f"{source.given}: its weights do not fit",
        given=misfits,
        wanted="every weight of the model that config.json describes",
        fix="copy or download config.json and the weights again",
    )


def _wrapper(tensors: Iterable[str], network: Any, missing: Iterable[str]) -> str:
    """What the stored names carry besides the model's own: a wrapper's part, or a prefix; empty where nothing."""
    names = list(tensors)
    base = f"{network.base_model_prefix}."
    lacking = set(missing)
    for part in WRAPPERS:
        if any(_name_in(lacking, name.replace(part, ""), base) for name in names if part in name):
            return part
    for wanted in sorted(lacking):
        for known in (wanted, wanted.removeprefix(base)):
            for name in names:
                prefix = name.removesuffix(known)
                if name == prefix or not prefix.endswith("."):
                    continue
                if sum(other.startswith(prefix) for other in names) > len(names) / 2:
                    return prefix
    return ""


def _first_few(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    every = sorted(names)
    rest = f" and {len(every) - 4} more" if len(every) > 4 else ""
    return ", ".join(every[:4])[: 2 * SHOWN] + rest
