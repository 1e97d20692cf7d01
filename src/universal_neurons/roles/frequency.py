"""Token frequency neurons: they move the prediction towards or away from frequent tokens (arXiv 2406.16254, §4).

1. log p(token), centred over the vocabulary, is a direction of the logits.
2. Candidates are the neurons of the last layer whose logit effects lie most along it.
3. A candidate is held at its mean.  Then the logits' part along the direction is put back as in the clean run: the
   share of the effect on the loss that is gone by that went along token frequency.

The counts that p is of are the caller's to choose (`text.frequencies_of`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from universal_neurons.interventions import Trial
from universal_neurons.models import Model, ProcessedWeights

FREQUENCY_CANDIDATES = 4


@dataclass(frozen=True)
class Frequency:
    """How frequent tokens are: the log of each one's probability (nats), and that centred as a unit `direction`."""

    log_p: Float[Tensor, " vocabulary"]
    direction: Float[Tensor, " vocabulary"]

    @classmethod
    def of(cls, counts: np.ndarray) -> "Frequency":
        """Of how often each token occurs; each is counted once more than that, so that none has no frequency."""
        log_p = torch.from_numpy(np.log((counts + 1.0) / (counts + 1.0).sum())).float()
        centred = log_p - log_p.mean()
        return cls(log_p, centred / centred.norm().clamp_min(1e-12))

    def to(self, device: str | torch.device) -> "Frequency":
        """The same on a device."""
        return Frequency(self.log_p.to(device), self.direction.to(device))

    def cosines(self, w_out: Float[Tensor, "neurons d_model"], weights: ProcessedWeights) -> Float[Tensor, " neurons"]:
        """Of the logit effects of some neurons with the direction."""
        gram = weights.w_u.T @ weights.w_u
        along = w_out @ (weights.w_u.T @ self.direction.double().to(w_out.device))
        return along / (w_out @ gram * w_out).sum(1).clamp_min(0).sqrt()

    def candidates(
        self, model: Model, weights: ProcessedWeights, most: int, dead: Bool[np.ndarray, " neurons"]
    ) -> list[int]:
        """The last layer's living neurons whose logit effects lie most along the direction, as flat numbers."""
        last = model.units.columns(model.n_layers - 1)
        cosines = self.cosines(weights.w_out.flatten(0, -2)[last], weights)
        cosines[torch.from_numpy(dead[last]).to(cosines.device)] = 0
        return (last.start + cosines.abs().nan_to_num().topk(min(most, len(cosines))).indices).tolist()

    def restored(
        self, trial: Trial, residual: Float[Tensor, "positions d_model"]
    ) -> tuple[Float[Tensor, " positions"], Float[Tensor, " positions"]]:
        """With another last residual: the loss once the logits' part along the direction is as in the clean run, and
        by how much KL(prediction ‖ unigram distribution) has changed, in nats."""
        losses, changes = [], []
        readout = trial.readout
        clean = trial.clean
        for start in range(0, len(residual), readout.rows):
            piece = slice(start, start + readout.rows)
            logits = readout.logits(residual[piece])
            before = clean.raw[piece] / clean.metrics.scale[piece, None] + readout.constant
            changes.append(self._divergence(logits) - self._divergence(before))
            logits += ((before - logits) @ self.direction)[:, None] * self.direction
            losses.append(-logits.log_softmax(1).gather(1, clean.targets[piece, None])[:, 0])
        return torch.cat(losses), torch.cat(changes)

    def _divergence(self, logits: Float[Tensor, "positions vocabulary"]) -> Float[Tensor, " positions"]:
        """KL(prediction ‖ unigram distribution), in nats."""
        log_p = logits.log_softmax(1)
        return (log_p.exp() * (log_p - self.log_p)).sum(1)
