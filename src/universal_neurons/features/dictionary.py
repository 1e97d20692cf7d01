"""A dictionary: an encoder makes latents of what stands at a place of a model, a decoder makes of them what is written.

1. x is what the model has at `read`, where `centred` less its mean over the width.
2. x is normalised, times `scale`, less `b_in`: this the encoder reads.
3. `activation` makes latents of it (`dictionary_activations`).
4. latents · W_dec + b_dec is what stands at `write`, of an autoencoder in the same normalised units.
   `reconstruction` puts the units back (not of a transcoder: what it writes was not normalised), and adds x · W_skip.

What a format does otherwise and is the same by other numbers (decoder norms in the pre-activations, factors of the
latents) is folded into the weights where it is read (`dictionary_formats`).
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from universal_neurons.errors import DictionaryError
from universal_neurons.features.dictionary_activations import Activation
from universal_neurons.models import Model, Place, width_of

Normalisation = Literal["none", "layer_norm", "unit_norm", "average_norm"]
EPSILON = 1e-5  # of SAELens's layer_norm


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Latents on a place of a model; weights are float32, on one device.

    `normalisation`: `layer_norm` takes each position's mean away and divides by its standard deviation (n − 1),
    `unit_norm` makes its norm √d_in, `average_norm` does so on average over the text, by a factor that the text gives
    (`scaled_to`).  `bos` says whether the text it was trained on began with BOS; None: nobody says.
    """

    name: str
    read: Place
    write: Place
    W_enc: Float[Tensor, "d_in width"]
    b_enc: Float[Tensor, " width"]
    W_dec: Float[Tensor, "width d_out"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation
    b_in: Float[Tensor, " d_in"] | None = None
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    normalisation: Normalisation = "none"
    scale: float = 1.0
    centred: bool = False
    bos: bool | None = None
    kind: str = "plain"  # the format that it was read from
    digest: str = ""  # SHA-256 of the files that it was read from

    @property
    def width(self) -> int:
        """The number of its latents."""
        return self.W_enc.shape[1]

    @property
    def transcodes(self) -> bool:
        """Whether it writes at another place than it reads."""
        return self.read != self.write

    @property
    def decoder(self) -> Float[Tensor, "width d_out"] | None:
        """What a unit of each latent writes into the residual stream; None where it writes elsewhere.

        In normalised units, where every position has its own (`layer_norm`, `unit_norm`).
        """
        if not self.write.in_stream:
            return None
        return self.W_dec if self.transcodes else self.W_dec / self._factor()

    def to(self, device: torch.device | str) -> "Dictionary":
        """The same on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | Activation)
        }
        return replace(self, **moved)

    def encode(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n width"]:
        """The latents of what the model has at `read`, in float32."""
        read = self._normalised(x)[0]
        if self.b_in is not None:
            read = read - self.b_in
        return self.activation(read @ self.W_enc, self.b_enc)

    def decode(self, latents: Float[Tensor, "n width"]) -> Float[Tensor, "n d_out"]:
        """What latents write, in the units of what was normalised."""
        return torch.addmm(self.b_dec, latents, self.W_dec)

    def reconstruction(
        self, x: Float[Tensor, "n d_in"], latents: Float[Tensor, "n width"] | None = None
    ) -> Float[Tensor, "n d_out"]:
        """What it makes of x (`latents`: where they are known), to be held against `target` of what is at `write`."""
        made = self.decode(self.encode(x) if latents is None else latents)
        if not self.transcodes:
            _, shift, size = self._normalised(x)
            made = made * size + shift
        return made if self.W_skip is None else made + self.target(x, self.read) @ self.W_skip

    def normalised(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
        """x in the units in which it is encoded, and in which an autoencoder's `decode` gives it again."""
        return self._normalised(x)[0]

    def target(self, y: Float[Tensor, "n d_out"], place: Place | None = None) -> Float[Tensor, "n d_out"]:
        """What it is to make of what stands at `write` (or at this place): in float32, centred where it centres."""
        y = y.float()
        return y - y.mean(-1, keepdim=True) if self.centred and (place or self.write).in_stream else y

    def scaled_to(self, norm: float) -> "Dictionary":
        """The same with the factor of `average_norm` where norms (`target` of what it reads) are this on average."""
        if self.normalisation != "average_norm":
            return self
        return replace(self, normalisation="none", scale=self.W_enc.shape[0] ** 0.5 / norm)

    def on(self, model: Model) -> "Dictionary":
        """The same as it is used on a model: what centring leaves as it is (of RMS norms) is not centred.

        Raises `DictionaryError` where it reads or writes another width than the model has there, `ConfigError` for a
        layer that the model has not, and `ArchitectureError` for a place that its blocks lack.
        """
        for what, place, width in (
            ("reads", self.read, self.W_enc.shape[0]),
            ("writes", self.write, self.W_dec.shape[1]),
        ):
            if width_of(model, place) != width:
                raise DictionaryError(
                    f"{self.name} is no dictionary of {model.name}",
                    given=f"it {what} {width} numbers at {place}, where the model has {width_of(model, place)}",
                    wanted="a dictionary that was trained on this model, at this place",
                    fix="name the model that it was trained on, or mend the place in its configuration",
                )
        return replace(self, centred=self.centred and model.architecture.norm == "layer")

    def _factor(self) -> float:
        if self.normalisation == "average_norm":
            raise DictionaryError(
                f"{self.name}: its weights are for activations whose norm is √{self.W_enc.shape[0]} on average",
                given="expected_average_only_in without a factor",
                wanted="the factor, or text to estimate it on",
                fix="verify it on text first (features.verified), or write norm_scaling_factor into its configuration",
            )
        return self.scale

    def _normalised(self, x: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """What is encoded, less `b_in`; and what makes x of it again: by what it was shifted and then divided."""
        x = self.target(x, self.read)
        if self.normalisation == "layer_norm":
            mean = x.mean(-1, keepdim=True)
            deviation = x.std(-1, keepdim=True)
            return (x - mean) / (deviation + EPSILON), mean, deviation
        if self.normalisation == "unit_norm":
            size = x.norm(dim=-1, keepdim=True) / x.shape[1] ** 0.5
            return x / size, 0.0, size
        factor = self._factor()
        return (x if factor == 1 else x * factor), 0.0, 1 / factor
