"""Densities decoded from a latent by a neural network: cryoDRGN's decoder, and with no latent a single neural map."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.families.protocol import Frame, Shared, need_frame
from hetmodels.tree import pytree, static
from hetmodels.volumes.neural import GaussianWaves, GeometricWaves, NeuralVolume, initial_weights

PREFIX = "decoder_"


@pytree
class NeuralField:
    """V(z), z ~ N(0, I), whose Fourier transform is a residual network (Zhong et al. 2021, Nat. Methods 18).

    Its output is scaled by the first guess of the map's spectrum, so that the network starts near what it must give.

    Attributes:
        dims: latent dimensions; 0 for one map of all particles.
        hidden: width of the network; 256 on CPUs and small boxes, 1024 for fine detail.
        layers: residual layers.
        waves: how frequencies are shown to the network.
        products: precision of the matrix products, float32 or bfloat16.
        frame: box and pixel size, set by `fit`.

    Raises:
        ValueError: if a size is out of range.
    """

    dims: int = static(default=8)
    hidden: int = static(default=256)
    layers: int = static(default=3)
    waves: GaussianWaves | GeometricWaves = static(default=GaussianWaves())  # noqa: RUF009
    products: Literal["float32", "bfloat16"] = static(default="float32")
    frame: Frame | None = static(default=None)

    def __post_init__(self) -> None:
        if self.dims < 0 or self.hidden < 1 or self.layers < 0:
            raise ValueError(
                "NeuralField: dims and layers must not be negative and hidden must be at least 1, got "
                f"{self.dims}, {self.layers} and {self.hidden}."
            )

    def shared(self) -> Shared:
        """Sites `decoder_…` (param), the weights of `hetmodels.volumes.neural.initial_weights`."""
        shapes = jax.eval_shape(self._first_weights, jax.random.key(0))

        def start(name: str) -> Array:
            return numpyro.param(PREFIX + name, lambda key: self._first_weights(key)[name])

        return {PREFIX + name: start(name) for name, shape in shapes.items() if shape.size}

    def _first_weights(self, key: Array) -> dict[str, Array]:
        count = len(self.waves.displacements(need_frame(self).size))
        return initial_weights(key, count, self.dims, self.hidden, self.layers)

    def weights(self) -> tuple[str, ...]:
        """All sites; see `Neural`."""
        names = ("waves", "latent", "bias", "blocks", "block_biases", "output", "output_bias")
        return tuple(PREFIX + name for name in names)

    def pixel_bytes(self) -> int:
        """Memory that a step on gradients takes per Fourier pixel of an image: activations and their gradients."""
        return 4 * self.hidden * (2 * self.layers + 4)

    def conformation(self, shared: Shared) -> dist.Distribution | None:
        """Standard normal coordinates."""
        return dist.Normal(0.0, 1.0).expand([self.dims]).to_event(1) if self.dims else None

    def volume(self, shared: Shared, z: Array | None) -> NeuralVolume:
        """The density at z."""
        frame = need_frame(self)
        own = {name.removeprefix(PREFIX): value for name, value in shared.items() if name.startswith(PREFIX)}
        if not self.layers:
            own |= {"blocks": jnp.zeros((0, self.hidden, self.hidden)), "block_biases": jnp.zeros((0, self.hidden))}
        latent = jnp.zeros(0) if z is None else z
        height = tuple(np.sqrt(_smooth(np.asarray(frame.power))).tolist())
        return NeuralVolume(own, latent, self.waves, frame.size, frame.spacing, height, self.products)

    def sites(self, shared: Shared) -> Shared:
        """Values of the sites that give these shared values: the weights themselves."""
        return {name: value for name, value in shared.items() if name.startswith(PREFIX)}


def _smooth(power: np.ndarray) -> np.ndarray:
    """Running geometric mean over three shells of a spectrum that was guessed from few pixels."""
    padded = np.pad(np.log(power), 1, mode="edge")
    return np.exp(np.convolve(padded, np.full(3, 1 / 3), mode="valid"))
