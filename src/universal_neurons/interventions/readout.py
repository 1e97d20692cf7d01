"""From the last residual stream to predictions: the final norm, the unembedding, and what a token's prediction is like.

A neuron of the last layer acts on the logits through one direction only: with residual r, change Δ of its activation
and new scale s', they are (W r + Δ W w_out) / s' + c.  W r and W w_out are computed once, so that a change of
activation costs no product; its metrics are taken while a stretch of the logits is in the cache.
"""

import time
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.errors import ArchitectureError
from universal_neurons.interventions.final_norm import FinalNorm, final_residual
from universal_neurons.models import Model, matrix_of, module_at

CACHED = 1 << 18  # logits read together on a CPU
AT_ONCE = 1 << 27  # and on a GPU
MULTIPLIED = 256  # positions multiplied with the unembedding together, which is read once for them
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Metrics:
    """Of every prediction, in float32: loss and entropy in nats, rank of the true token (1 is the best), scale of the
    final norm, Kullback–Leibler divergence KL(clean ‖ this) in nats."""

    loss: Float[Tensor, "*any"]
    entropy: Float[Tensor, "*any"]
    rank: Float[Tensor, "*any"]
    scale: Float[Tensor, "*any"]
    divergence: Float[Tensor, "*any"]

    @property
    def reciprocal_rank(self) -> Float[Tensor, "*any"]:
        """1 / rank."""
        return 1 / self.rank


@dataclass(frozen=True)
class Clean:
    """Predictions of the model as it is: its centred residuals, W r, probabilities, entropies, and true tokens."""

    centred: Float[Tensor, "tokens width"]
    raw: Float[Tensor, "tokens vocabulary"]
    probabilities: Float[Tensor, "tokens vocabulary"]
    metrics: Metrics
    targets: Int[Tensor, " tokens"]


class Readout:
    """A model's final norm and unembedding in float32; W = s W_U diag γ, c = s (b_U + W_U β), s the logits' multiplier.

    Raises `ArchitectureError` where this is not what the model computes.
    """

    def __init__(self, model: Model) -> None:
        norm = module_at(model.hf, model.architecture.final_norm)
        if model.architecture.post_norm or norm is None or not model.has_unembedding:
            raise ArchitectureError(f"{model.name}: no final norm before an unembedding", wanted="a pre-norm model")
        self.norm = FinalNorm(model)
        unembedding = module_at(model.hf, model.architecture.unembedding)
        matrix = matrix_of(unembedding).float() * model.logit_multiplier
        if matrix.shape[1] != model.d_model:
            what = f"{model.name}: its unembedding does not read the final norm"
            raise ArchitectureError(what, given=f"{matrix.shape[1]} dimensions", wanted=model.d_model)
        self.matrix: Float[Tensor, "vocabulary width"] = matrix * self.norm.gain
        self.constant: Float[Tensor, " vocabulary"] = matrix @ self.norm.shift
        if isinstance(unembedding.bias, Tensor):
            self.constant = self.constant + unembedding.bias.detach().float() * model.logit_multiplier
        self.step = _step(model.device, len(matrix))
        self.rows = max(self.step, MULTIPLIED)
        self._require(model)

    @torch.inference_mode()
    def _require(self, model: Model) -> None:
        ids = torch.arange(min(16, model.context))[None] % model.vocab_size
        with final_residual(model) as seen:
            logits = model.logits(ids).float()
        error = float((self.logits(seen[0]) - logits).abs().max() / logits.abs().max().clamp_min(1e-30))
        limit = TOLERANCE if model.dtype == torch.float32 else 0.1
        if not error <= limit:
            raise ArchitectureError(
                f"{model.name}: its logits are not those of a final norm and an unembedding",
                given=f"relative error {error:.2g}",
                wanted=f"at most {limit:g}",
            )

    def logits(
        self, residual: Float[Tensor, "*any width"], scale: Float[Tensor, "*any"] | None = None
    ) -> Float[Tensor, "*any vocabulary"]:
        """Logits from what the final norm reads; with `scale`, that of another run is divided by."""
        divisor = self.norm.scale(residual) if scale is None else scale
        return torch.nn.functional.linear(self.norm.centred(residual) / divisor[..., None], self.matrix, self.constant)

    def clean(self, residual: Float[Tensor, "tokens width"], targets: Int[Tensor, " tokens"]) -> Clean:
        """The predictions of a run in which nothing was changed."""
        centred, scale = self.norm.centred(residual), self.norm.scale(residual)
        raw = centred @ self.matrix.T
        log_p = (raw / scale[:, None] + self.constant).log_softmax(1)
        p = log_p.exp()
        true = log_p.gather(1, targets[:, None])
        metrics = Metrics(
            -true[:, 0], -(p * log_p).sum(1), 1.0 + (log_p > true).sum(1).float(), scale, torch.zeros_like(scale)
        )
        return Clean(centred, raw, p, metrics, targets)

    def of_residual(
        self,
        residual: Float[Tensor, "variants tokens width"],
        clean: Clean,
        scale: Float[Tensor, " tokens"] | None = None,
    ) -> Metrics:
        """Metrics of changed runs from their residuals; with `scale`, the final norm is frozen at it."""
        by_variant = []
        for variant in residual:
            parts = []
            for start in range(0, len(variant), self.rows):
                at_once = slice(start, start + self.rows)
                scales = self.norm.scale(variant[at_once]) if scale is None else scale[at_once]
                logits = self.logits(variant[at_once], scales)
                mean = _dot(clean.probabilities[at_once], logits)
                pieces = zip(logits.split(self.step), clean.targets[at_once].split(self.step))
                measured = [_measure(*piece) for piece in pieces]
                loss, entropy, rank, normaliser = (torch.cat(part) for part in zip(*measured))
                parts.append((loss, entropy, rank, scales, normaliser - mean - clean.metrics.entropy[at_once]))
            by_variant.append([torch.cat(part) for part in zip(*parts)])
        return Metrics(*(torch.stack(part) for part in zip(*by_variant)))

    def of_last_layer(
        self,
        direction: Float[Tensor, "neurons width"],
        change: Float[Tensor, "neurons values tokens"],
        clean: Clean,
        *,
        frozen: bool = False,
    ) -> Metrics:
        """Metrics (neurons, values, tokens) after changes of last-layer neurons' activations, one neuron at a time.

        `direction` is w_out.  `frozen`: the final norm's scale stays the clean run's.
        """
        centred = self.norm.centred(direction)
        effect = centred @ self.matrix.T
        width = centred.shape[1]
        along, size = clean.centred.double() @ centred.double().T, centred.double().square().sum(1)
        squares = clean.centred.double().square().sum(1)
        expected = _dot(clean.probabilities, clean.raw)
        of_effect, of_constant = clean.probabilities @ effect.T, clean.probabilities @ self.constant
        loss, entropy, rank, scale, divergence = (torch.empty_like(change) for _ in range(5))
        for neuron, values in enumerate(change):
            d = values.double()
            moved = (squares + 2 * d * along[:, neuron] + d * d * size[neuron]) / width + self.norm.epsilon
            scales = clean.metrics.scale.expand_as(values) if frozen else moved.sqrt().float()
            mean = (expected + values * of_effect[:, neuron]) / scales + of_constant
            scale[neuron] = scales
            alike = first_alike(values)
            for start in range(0, len(clean.raw), self.step):
                piece = slice(start, start + self.step)
                for value in sorted(set(alike)):
                    at = (neuron, value, piece)
                    logits = torch.addcmul(clean.raw[piece], values[value, piece, None], effect[neuron])
                    torch.addcdiv(self.constant, logits, scales[value, piece, None], out=logits)
                    loss[at], entropy[at], rank[at], divergence[at] = _measure(logits, clean.targets[piece])
            for read in (loss, entropy, rank, divergence):
                read[neuron] = read[neuron, alike]
            divergence[neuron] -= mean + clean.metrics.entropy
        return Metrics(loss, entropy, rank, scale, divergence)


def first_alike(changes: Float[Tensor, "edits positions"]) -> list[int]:
    """Of each change of an activation the first that is the same: fixed to two quantiles that are both 0, say."""
    return [
        next((first for first in range(edit) if torch.equal(changes[first], changes[edit])), edit)
        for edit in range(len(changes))
    ]


def reading_seconds(device: torch.device, vocabulary: int) -> float:
    """Seconds that one prediction's changed logits take, measured on random ones."""
    step = _step(device, vocabulary)
    logits = torch.randn(step, vocabulary, device=device)
    targets = torch.zeros(step, dtype=torch.long, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        changed = torch.addcmul(logits, logits[:, :1], logits[0])
        _measure(torch.addcdiv(logits[0], changed, logits[:, 1:2], out=changed), targets)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best / step


def _step(device: torch.device, vocabulary: int) -> int:
    return max(1, (AT_ONCE if device.type == "cuda" else CACHED) // vocabulary)


def _dot(left: Float[Tensor, "tokens n"], right: Float[Tensor, "tokens n"]) -> Float[Tensor, " tokens"]:
    return torch.linalg.vecdot(left, right)


def _measure(
    logits: Float[Tensor, "tokens vocabulary"], targets: Int[Tensor, " tokens"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, entropy, rank, and log of the sum of exponentials; the logits are written over."""
    true = logits.gather(1, targets[:, None])
    weights = torch.empty_like(logits)
    rank = torch.gt(logits, true, out=weights).sum(1) + 1  # as floats, which add up five times as fast as truths
    highest = logits.amax(1, keepdim=True)
    logits.sub_(highest)
    torch.exp(logits, out=weights)
    total = weights.sum(1)
    entropy = total.log() - _dot(weights, logits) / total
    normaliser = total.log() + highest[:, 0]
    return normaliser - true[:, 0], entropy, rank, normaliser
