"""What kurtosis cos(direction, W_U) can have in one unembedding, by which the paper's cut of 10 is to be judged.

1. A direction that is one token's own unembedding has cosine 1 with that token.  Were W_U isotropic, cosines with the
   others would have variance 1 / d, and their kurtosis would be 3 + d² / V: 24 in GPT2-medium, 7 where d = 64 and
   V = 1024.  Real ones are not isotropic, so it is measured: of tokens that the text often has.
2. Random directions give what no neuron has to explain.
3. The relative cut lies halfway (`kurtosis_share`) from random directions to the median token's, and at least five
   standard deviations beyond random directions, so that none of these passes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from universal_neurons.statistics import seed_of, vocabulary_moments

DIRECTIONS = 256  # tokens, at most, and random directions
DEVIATIONS = 5  # beyond random directions, at least
HIGH = 0.95  # quantile of what tokens' own unembeddings reach: a cut above it can hardly be passed


@dataclass(frozen=True)
class Reach:
    """Kurtosis of cos(direction, W_U): median and 0.95 quantile of `tokens` directions that are a token's own
    unembedding, mean and standard deviation of random ones."""

    tokens: int
    token_kurt: float
    token_kurt_high: float
    random_kurt: float
    random_kurt_sd: float

    def shares(self, kurtosis: Float[np.ndarray, " neurons"]) -> Float[np.ndarray, " neurons"]:
        """Each kurtosis between a random direction's (0) and the median token's (1); NaN where these do not differ."""
        span = self.token_kurt - self.random_kurt
        return (kurtosis - self.random_kurt) / (span if span > 0 else np.nan)

    def cut(self, share: float) -> float:
        """The relative cut: so far from random directions to the median token, and beyond random directions."""
        halfway = self.random_kurt + share * (self.token_kurt - self.random_kurt)
        return max(halfway, self.random_kurt + DEVIATIONS * self.random_kurt_sd)


def kurtosis_reach(
    w_u: Float[Tensor, "vocabulary d_model"],
    tokens: Int[np.ndarray, " tokens"] | None = None,
    *,
    centred: bool,
    seed: int = 0,
) -> Reach:
    """What directions reach in a processed unembedding: its own rows (those of `tokens`; all if none are given) and as
    many random ones as `DIRECTIONS`, mean-free with `centred`, as the w_out of LayerNorm models are.

    Of more tokens than `DIRECTIONS` that many are taken, evenly spaced.
    """
    if tokens is not None:
        chosen = tokens[np.unique(np.linspace(0, len(tokens) - 1, min(len(tokens), DIRECTIONS)).astype(int))]
        own = w_u[torch.from_numpy(chosen).to(w_u.device)]
    else:
        own = w_u
    generator = torch.Generator().manual_seed(seed_of("kurtosis", seed))
    random = torch.randn(DIRECTIONS, w_u.shape[1], dtype=torch.float64, generator=generator)
    if centred:
        random -= random.mean(1, keepdim=True)
    found = vocabulary_moments(torch.cat([own, random.to(w_u.device)]), w_u)["vocab_kurt"].cpu().numpy()
    of_tokens, of_random = np.split(found, [len(own)])
    return Reach(
        len(own),
        float(np.nanmedian(of_tokens)),
        float(np.nanquantile(of_tokens, HIGH)),
        float(of_random.mean()),
        float(of_random.std()),
    )
