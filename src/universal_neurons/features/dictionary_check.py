"""Is a dictionary one of what this model has there?  Told on text: how much of the variance how many latents explain.

1. Explained: 1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖², of what stands at `write`, over the counted positions; y is centred where the
   dictionary centres.  L0: the mean number of latents that are not 0.
2. Below a floor the dictionary is refused.  Then it is tried as it might have been meant: at other places of its width,
   otherwise normalised or centred, with and without the decoder's bias in the input, without the first position of
   every row.  What explains most, if that is enough, is named as the likely reason; in units that are normalised,
   since a mean and a size that every position keeps for itself are no merit of the latents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from universal_neurons.errors import ArchitectureError, DictionaryError
from universal_neurons.features.dictionary import Dictionary
from universal_neurons.models import PLACE_KINDS, Model, Place, captured, width_of

FLOOR = 0.2  # of the variance explained; dictionaries that people use explain 0.4 (transcoders) to 0.99
TRIED = 1024  # positions, where reasons are looked for
VALUES = 1 << 26  # latents computed at once
BATCH = 8  # rows


@dataclass(frozen=True)
class Verification:
    """What a dictionary does on some text: share of the variance explained, mean number of active latents.

    `silent` is how many latents were 0 at all `positions`.
    """

    dictionary: Dictionary
    explained: float
    l0: float
    silent: int
    positions: int

    def describe(self) -> dict[str, Any]:
        """As study.json holds it."""
        d = self.dictionary
        return {
            "name": d.name,
            "format": d.kind,
            "read": str(d.read),
            "write": str(d.write),
            "latents": d.width,
            "sha256": d.digest,
            "explained": self.explained,
            "l0": self.l0,
            "silent": self.silent,
            "positions": self.positions,
        }


class Explained:
    """Sums over positions, in float64, that give the share of the variance explained and L0.

    `normalised`: of what an autoencoder encodes, in its units.
    """

    def __init__(self, dictionary: Dictionary, *, normalised: bool = False) -> None:
        self.dictionary, self.normalised = dictionary, normalised and not dictionary.transcodes
        self.positions, self.active = 0, 0
        self.left = self.squares = 0.0
        self.total: Tensor | float = 0.0
        self.fired: Tensor | None = None

    def update(self, x: Float[Tensor, "n d_in"], y: Float[Tensor, "n d_out"]) -> None:
        """Add positions: what stands there at `read` and at `write`."""
        for start in range(0, len(x), rows := max(VALUES // self.dictionary.width, 1)):
            part, of = slice(start, start + rows), self.dictionary
            latents = of.encode(x[part])
            target = (of.normalised(x[part]) if self.normalised else of.target(y[part])).double()
            made = of.decode(latents) if self.normalised else of.reconstruction(x[part], latents)
            self.left += float((target - made).square().sum())
            self.squares += float(target.square().sum())
            self.total = self.total + target.sum(0)
            fires = latents != 0
            self.active += int(fires.sum())
            self.fired = fires.any(0) if self.fired is None else self.fired | fires.any(0)
            self.positions += len(latents)

    def result(self) -> Verification:
        """The figures so far."""
        assert isinstance(self.total, Tensor), "no positions"
        assert self.fired is not None
        variance = self.squares - float(self.total.square().sum()) / self.positions
        return Verification(
            self.dictionary,
            explained=1 - self.left / variance if variance > 0 else float("nan"),
            l0=self.active / self.positions,
            silent=int((~self.fired).sum()),
            positions=self.positions,
        )


def verified(
    dictionaries: Sequence[Dictionary],
    model: Model,
    ids: Int[Tensor, "rows context"],
    keep: Bool[Tensor, "rows context"],
    attention: Int[Tensor, "rows context"] | None = None,
    *,
    floor: float = FLOOR,
) -> tuple[Verification, ...]:
    """What dictionaries of a model do on the kept positions of these rows; each as it is used from now on.

    That is on the model's device, centred only where the model's norms centre, with the factor of `average_norm`.
    Raises `DictionaryError` for one that explains less than the floor, naming the likely reason, and what
    `Dictionary.on` raises.
    """
    usable = [each.on(model).to(model.device) for each in dictionaries]
    if any(each.normalisation == "average_norm" for each in usable):
        usable = _scaled(usable, model, ids, keep, attention)
    sums = [Explained(each) for each in usable]
    for values, kept in _batches(model, [p for d in usable for p in (d.read, d.write)], ids, keep, attention):
        for each in sums:
            each.update(values(each.dictionary.read)[kept], values(each.dictionary.write)[kept])
    results = tuple(each.result() for each in sums)
    for result, given in zip(results, dictionaries):
        if not result.explained >= floor:
            raise _refused(result, given, model, _reason(given, model, ids, keep, attention, floor), floor)
    return results


def _batches(
    model: Model, places: Sequence[Place], ids: Tensor, keep: Tensor, attention: Tensor | None
) -> Iterator[tuple[Callable[[Place], Tensor], Tensor]]:
    """For some rows at a time, what stands at places, and which positions are kept."""
    for start in range(0, len(ids), BATCH):
        rows = slice(start, start + BATCH)
        if keep[rows].any():
            with captured(model, places) as values:
                model.forward(ids[rows], None if attention is None else attention[rows].to(model.device))
            yield values.__getitem__, keep[rows].to(model.device)


def _scaled(
    dictionaries: Sequence[Dictionary], model: Model, ids: Tensor, keep: Tensor, attention: Tensor | None
) -> list[Dictionary]:
    """The same, with the factors of `average_norm` by the mean norms over all kept positions."""
    norms = [0.0] * len(dictionaries)
    for values, kept in _batches(model, [each.read for each in dictionaries], ids, keep, attention):
        for number, each in enumerate(dictionaries):
            norms[number] += float(each.target(values(each.read)[kept], each.read).norm(dim=-1).double().sum())
    return [each.scaled_to(norm / int(keep.sum())) for each, norm in zip(dictionaries, norms)]


def _refused(
    result: Verification, given: Dictionary, model: Model, reason: str | None, floor: float
) -> DictionaryError:
    began = {
        None: "",
        True: "; it was trained on text with BOS in front",
        False: "; it was trained on text without BOS",
    }
    return DictionaryError(
        f"{given.name}: no dictionary of what {model.name} has at {given.read}",
        given=f"{result.explained:.2f} of the variance at {given.write}, by {result.l0:.1f} latents a position",
        wanted=f"{floor:g} of the variance explained, or more",
        fix=reason
        or "check that it was trained on this model, at this place, on activations processed in this way"
        + began[given.bos],
    )


def _reason(
    given: Dictionary, model: Model, ids: Tensor, keep: Tensor, attention: Tensor | None, floor: float
) -> str | None:
    """Why a dictionary explains little: the change with which it explains most, if that is enough."""
    rows = max(int(TRIED // max(float(keep.sum()) / len(keep), 1)), 1)
    ids, keep = ids[:rows], keep[:rows]
    attention = None if attention is None else attention[:rows]
    inner = keep.clone()
    inner[:, 0] = False
    best, words = floor, None
    for of, what in _variants(given, model):
        explained = _explained(of, model, ids, keep, attention)
        if explained > best:
            best, words = explained, what
    if inner.any() and (explained := _explained(given, model, ids, inner, attention)) > best:
        best, words = explained, "leave out the first position of every row, whose activations are of another kind"
    return None if words is None else f"it would explain {best:.2f}: {words}"


def _explained(of: Dictionary, model: Model, ids: Tensor, keep: Tensor, attention: Tensor | None) -> float:
    """The share of the variance explained, or less than any floor where it cannot be used so."""
    try:
        (of,) = _scaled([of.on(model).to(model.device)], model, ids, keep, attention)
    except (ArchitectureError, DictionaryError):
        return float("-inf")
    sums = Explained(of, normalised=True)
    for values, kept in _batches(model, [of.read, of.write], ids, keep, attention):
        sums.update(values(of.read)[kept], values(of.write)[kept])
    return sums.result().explained


def _variants(given: Dictionary, model: Model) -> Iterator[tuple[Dictionary, str]]:
    """The same dictionary as it might have been meant, and what to mend then."""
    if model.architecture.norm == "layer":
        centred = "centred" if given.centred else "not centred"
        yield (
            replace(given, centred=not given.centred),
            f"its activations are {centred} here, against its training: mend center_writing_weights in "
            "model_from_pretrained_kwargs (centred in our own form)",
        )
    for kind in ("none", "average_norm", "unit_norm", "layer_norm"):
        if (kind, 1.0) != (given.normalisation, given.scale):
            changed = replace(given, normalisation=kind, scale=1.0)
            yield changed, f"activations are to be normalised otherwise: {kind} (normalize_activations, normalisation)"
    if not given.transcodes:
        bias = given.b_dec if given.b_in is None else None
        word = "taken from" if bias is not None else "left in"
        yield replace(given, b_in=bias), f"b_dec is to be {word} the input (apply_b_dec_to_input)"
    for place in _other_places(given, model):
        write = Place(given.write.kind, place.layer) if given.transcodes else place
        yield replace(given, read=place, write=write), f"it belongs to {place}: mend the place in its configuration"


def _other_places(given: Dictionary, model: Model) -> Iterator[Place]:
    """Places of the width that it reads, those of the same kind first; of a transcoder only these."""
    kinds = [given.read.kind, *(kind for kind in PLACE_KINDS if kind != given.read.kind and not given.transcodes)]
    places = [Place(kind, layer) for kind in kinds for layer in range(model.n_layers)]
    after = {Place("residual_in", layer) for layer in range(1, model.n_layers)}  # what the block before leaves
    for place in places if given.read.kind == "residual_in" else [place for place in places if place not in after]:
        try:
            fits = width_of(model, place) == given.W_enc.shape[0]
        except ArchitectureError:
            continue
        if fits and place != given.read:
            yield place
