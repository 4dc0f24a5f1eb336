"""Amortized inference: a network that sees an image and gives q of its latents (Kingma and Welling 2014; cryoDRGN)."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array

from hetmodels.imaging.grids import Disc, phase_ramp
from hetmodels.model import Observed
from inference.guides import Law, MeanField
from inference.natural import NaturalSteps

PREFIX = "encoder_"
VIEWS = 8  # numbers that say the direction of view


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A residual network from an image to the numbers of q, with as many weights whatever the number of particles.

    It sees the image centred, multiplied by its CTF, in real space inside a circle: what the likelihood of a linear
    model depends on. The mean square of the CTF is one in each shell and image, so that defocus changes nothing else.
    Where the file's poses count, images of one direction of view are turned alike, and the network is told the
    direction: the posterior of the latents depends on it.

    Attributes:
        hidden: width of the network.
        layers: residual layers.
        radius: of the circle, as a part of the box edge.
        law: what the network's outputs describe.
        score: how the network sees the likelihood itself, None if it does not: steps from N(0, I) to the particle's
            posterior at the present shared values, whose end the network is told and corrects. Where the density is
            normal a step ends at the posterior, so that nothing is left to learn; a network that decodes must be
            evaluated 2 dims times for each, which is dear in many dimensions.
    """

    hidden: int = 256
    layers: int = 3
    radius: float = 0.42
    law: Law = MeanField()  # noqa: RUF009
    score: NaturalSteps | None = None

    def __post_init__(self) -> None:
        if self.hidden < 1 or self.layers < 0 or not 0 < self.radius <= math.sqrt(0.5):
            raise ValueError(
                "Encoder: hidden must be at least 1, layers must not be negative and radius must lie in (0, 0.71], got "
                f"{self.hidden}, {self.layers} and {self.radius}."
            )

    def shapes(self, size: int, dims: int) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape of each weight, and inputs of its layer."""
        out = len(self.law.first(dims))
        inputs = len(circle(size, self.radius)) + VIEWS + (out if self.score else 0)
        return {
            "input": ((inputs, self.hidden), inputs),
            "input_bias": ((self.hidden,), inputs),
            "blocks": ((self.layers, self.hidden, self.hidden), self.hidden),
            "block_biases": ((self.layers, self.hidden), self.hidden),
            "output": ((self.hidden, out), self.hidden),
        }

    def numbers(self, data: Observed, dims: int, log_joint: Callable[[Array], Array]) -> Array:
        """Numbers of q for each row of a batch, (rows, numbers); sites `encoder_…` (param).

        Args:
            data: the batch.
            dims: latents of a particle.
            log_joint: log density of each row's latents at the present shared values, (rows, dims) -> (rows,).
        """
        begin = starting_numbers(self.law, self.score, data, dims, log_joint)
        seen = [features(data, self.radius), views(data)] + ([] if self.score is None else [begin])
        w = declared(self.shapes(data.observation.disc.size, dims))
        h = jax.nn.relu(jnp.concatenate(seen, axis=1) @ w["input"] + w["input_bias"])
        for block, bias in zip(w["blocks"], w["block_biases"], strict=True):
            h = jax.nn.relu(h @ block + bias + h)
        return corrected(begin, h @ w["output"], self.score)


def starting_numbers(
    law: Law, score: NaturalSteps | None, data: Observed, dims: int, log_joint: Callable[[Array], Array]
) -> Array:
    """What a network corrects, (rows, numbers): where steps from N(0, I) end, or the law's first numbers."""
    rows = len(data.batch.weight)
    if score is None:
        return jnp.broadcast_to(law.first(dims), (rows, len(law.first(dims))))
    return law.numbers(*score(log_joint, jnp.zeros((rows, dims)), jnp.broadcast_to(jnp.eye(dims), (rows, dims, dims))))


def declared(shapes: dict[str, tuple[tuple[int, ...], int]]) -> dict[str, Array]:
    """Weights as sites `encoder_…` (param), started as PyTorch's are: uniform within ±1/sqrt(inputs)."""

    def weight(name: str, shape: tuple[int, ...], inputs: int) -> Array:
        return numpyro.param(
            PREFIX + name, lambda key: jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / inputs**0.5
        )

    return {name: weight(name, *rest) for name, rest in shapes.items()}


def corrected(begin: Array, output: Array, score: NaturalSteps | None) -> Array:
    """The starting numbers and what a network adds; little at first where they know the likelihood already."""
    bias = numpyro.param(PREFIX + "output_bias", jnp.zeros(begin.shape[1]))
    return begin + bias + output * (1.0 if score is None else 0.1)


def circle(size: int, radius: float) -> np.ndarray:
    """Pixels inside a circle about the centre, numbers in the flattened image.

    Args:
        size: box edge in pixels.
        radius: as a part of the box edge.
    """
    line = np.arange(size) - size // 2
    return np.flatnonzero(np.hypot(line[:, None], line).ravel() <= radius * size)


def features(data: Observed, radius: float) -> Array:
    """Pixels inside the circle as the encoder sees them, (rows, pixels), of variance about one."""
    batch, disc = data.batch, data.observation.disc
    points = disc.grid(data.observation.spacing).points
    centred = batch.images * jnp.conj(phase_ramp(points, batch.shift))
    images = disc.inverse(centred * _balanced(batch.ctf, disc))
    gain, place = disc.size / math.sqrt(2 * disc.pixels), circle(disc.size, radius)
    if not _posed(data):
        return gain * images.reshape(len(images), -1)[:, place]
    y, x = np.divmod(place, disc.size) - np.asarray(disc.size // 2)

    def turned(image: Array, rotation: Array) -> Array:
        angle = jnp.arctan2(rotation[1, 2], rotation[0, 2])
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        at = [sin * x + cos * y + disc.size // 2, cos * x - sin * y + disc.size // 2]
        return jax.scipy.ndimage.map_coordinates(image, at, order=1)

    return gain * jax.vmap(turned)(images, batch.rotation)


def views(data: Observed) -> Array:
    """The direction of view in the frame of the map, to second degree, (rows, 8); zeros where it is not known."""
    x, y, z = data.batch.rotation[:, 2].T
    found = jnp.stack([x, y, z, x * y, y * z, x * z, (x**2 - y**2) / 2, 1.5 * z**2 - 0.5], axis=1)
    return found if _posed(data) else jnp.zeros_like(found)


def _posed(data: Observed) -> bool:
    """Whether the file's rotations count: unknown poses have none."""
    return not hasattr(data.observation.pose, "refresh")


def _balanced(ctf: Array, disc: Disc) -> Array:
    """The CTF over its root mean square in each shell, (rows, pixels)."""
    power = disc.shell_mean(ctf**2)
    return ctf / jnp.sqrt(jnp.maximum(power, 1e-12 * power.max()))[:, disc.shell]
