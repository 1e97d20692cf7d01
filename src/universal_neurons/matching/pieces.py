"""What the passes have found so far: of every pair of models the pieces of the answer, until they make a whole.

Of the whole text, of each subset, and of what had been read at some points on the way (convergence).  A finding is
plain tensors too, as part of the pass's checkpoints.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from universal_neurons.config import Settings
from universal_neurons.matching.baselines import Maxima
from universal_neurons.matching.candidates import Proposal
from universal_neurons.matching.comparison import Comparison, Evidence, Piece, comparison, pieces_of, together, unbiased
from universal_neurons.matching.correlation import Matches
from universal_neurons.matching.rotated_pairs import RotatedPairs
from universal_neurons.statistics import Certainty


@dataclass(frozen=True)
class Scope:
    """The text that a finding is of: all that chooses, one subset of it, or the first `tokens` counted positions."""

    subset: str | None = None
    tokens: int | None = None


WHOLE = Scope()
Place = tuple[Scope, str, str]  # of which text, asker, other


@dataclass
class Finding:
    """The pieces of one pair of models and, of a sketch, how far they may be off."""

    pieces: list[Piece] = field(default_factory=list)
    certainty: Certainty | None = None

    def whole(self, k: int) -> Piece:
        """The pieces as one, without a sketch's bias."""
        piece = together(self.pieces)
        if self.certainty is not None:
            return unbiased(piece, self.certainty, k)
        matches = piece.matches
        return replace(piece, matches=replace(matches, corr=matches.corr[:, :k], index=matches.index[:, :k]))


class Findings:
    """Findings by what they are of, asker and other model."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.of: dict[Place, Finding] = {}

    def take_in(
        self,
        scope: Scope,
        evidence: Evidence,
        pairs: Iterable[tuple[str, str]],
        *,
        draws: int | None = None,
        k: int | None = None,
        z: float | None = None,
    ) -> None:
        """Add what a pass's panels say of some (asker, other) pairs."""
        for asker, other in pairs:
            finding = self.of.setdefault((scope, asker, other), Finding())
            finding.pieces += pieces_of(evidence, asker, other, self.config, draws=draws, k=k, z=z)
            if evidence.sketched and finding.certainty is None:
                certainty = evidence.certainty(asker, other)
                finding.certainty = Certainty(*(part.cpu() for part in vars(certainty).values()))

    def comparison(self, scope: Scope, asker: str, others: Sequence[str], k: int | None = None) -> Comparison:
        """What an asker's neurons found in the others."""
        k = k or self.config.top_k
        return comparison(asker, others, [self.of[scope, asker, other].whole(k) for other in others])

    def doubts(self, pairs: Iterable[tuple[str, str]]) -> dict[str, float | int]:
        """How sure the whole text's answer is: of a screened search the matches certified, of how many; of a sketch the
        standard error of a small ρ and by how much the best ones were lowered, on average."""
        findings = [self.of[WHOLE, *pair] for pair in pairs]
        sketched = [finding for finding in findings if finding.certainty is not None]
        if sketched:
            raw = torch.cat([together(finding.pieces).matches.strength[:, 0] for finding in sketched])
            corrected = torch.cat([finding.whole(1).matches.strength[:, 0] for finding in sketched])
            errors = [float(finding.certainty.even.sqrt()) for finding in sketched if finding.certainty is not None]
            return {"standard_error": max(errors), "lowered": float((raw - corrected).nanmean())}
        matches = [piece.matches for finding in findings for piece in finding.pieces]
        if not matches or any(m.certified is None for m in matches):
            return {}
        certified = sum(int(m.certified.sum()) for m in matches if m.certified is not None)
        return {"certified": certified, "matches": sum(int(torch.isfinite(m.corr[:, 0]).sum()) for m in matches)}

    def state(self) -> dict[str, Tensor]:
        """As plain tensors."""
        tensors: dict[str, Tensor] = {}
        table: list[list[str | int | None]] = []
        for (scope, asker, other), finding in self.of.items():
            for number, piece in enumerate(finding.pieces):
                tensors |= {f"finding/{len(table)}/{name}": tensor for name, tensor in _flat(piece).items()}
                if finding.certainty is not None and not number:
                    tensors |= {f"finding/{len(table)}/certainty.{n}": t for n, t in vars(finding.certainty).items()}
                table.append([scope.subset, scope.tokens, asker, other])
        if table:
            tensors["findings"] = torch.frombuffer(bytearray(json.dumps(table).encode()), dtype=torch.uint8)
        return tensors

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a state written by `state`."""
        self.of.clear()
        if "findings" not in state:
            return
        for number, (subset, tokens, asker, other) in enumerate(json.loads(bytes(state["findings"].numpy()))):
            prefix = f"finding/{number}/"
            parts = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
            finding = self.of.setdefault((Scope(subset, tokens), asker, other), Finding())
            finding.pieces.append(_piece(parts))
            if "certainty.asker" in parts:
                finding.certainty = Certainty(*(parts[f"certainty.{f.name}"] for f in fields(Certainty)))


def _flat(piece: Piece) -> dict[str, Tensor]:
    tensors = {"place": torch.tensor([*piece.rows, *piece.columns])}
    tensors["by_size"] = torch.tensor(piece.matches.by_size)
    for part in ("matches", "maxima", "standardised", "proposal", "rotated"):
        value = getattr(piece, part)
        if value is not None:
            known = {name: t for name, t in vars(value).items() if t is not None and name != "by_size"}
            tensors |= {f"{part}.{name}": t for name, t in known.items()}
    return tensors


def _piece(tensors: dict[str, Tensor]) -> Piece:
    def part(name: str, kind: type) -> Any:
        return kind(**{f.name: tensors[f"{name}.{f.name}"] for f in fields(kind) if f"{name}.{f.name}" in tensors})

    first, stop, left, right = tensors["place"].tolist()
    return Piece(
        (first, stop),
        (left, right),
        replace(part("matches", Matches), by_size=bool(tensors["by_size"])),
        part("maxima", Maxima),
        part("standardised", Maxima) if "standardised.corr" in tensors else None,
        part("proposal", Proposal) if "proposal.bound" in tensors else None,
        part("rotated", RotatedPairs) if "rotated.unit" in tensors else None,
    )
