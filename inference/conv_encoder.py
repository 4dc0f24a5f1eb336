"""A convolutional encoder: what `Encoder` sees, through layers that look for the same details everywhere."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.model import Observed
from inference.encoder import VIEWS, circle, corrected, declared, features, starting_numbers, views
from inference.guides import Law, MeanField
from inference.natural import NaturalSteps

_EDGE, _GROUPS = 4, 16


@dataclasses.dataclass(frozen=True)
class ConvEncoder:
    """A convolutional network from an image to the numbers of q (after Levy et al. 2022, cryoFIRE).

    It sees what `Encoder` sees: the image centred, turned by its view, multiplied by its CTF, the direction of view
    and, if wanted, the score. Levels of two convolutions of 3 x 3 and a mean over 2 x 2 follow each other, the channels
    doubling in each, normalised in groups (Wu and He 2018), until at most 4 x 4 pixels are left; then a hidden layer.

    Attributes:
        channels: of the first level.
        hidden: width of the last hidden layer.
        radius: of the circle that is seen, as a part of the box edge.
        law: what the network's outputs describe.
        score: see `Encoder`.

    Raises:
        ValueError: if a size is out of range.
    """

    channels: int = 16
    hidden: int = 256
    radius: float = 0.42
    law: Law = MeanField()  # noqa: RUF009
    score: NaturalSteps | None = None

    def __post_init__(self) -> None:
        if self.channels < 1 or self.hidden < 1 or not 0 < self.radius <= math.sqrt(0.5):
            raise ValueError(
                "ConvEncoder: channels and hidden must be at least 1 and radius must lie in (0, 0.71], got "
                f"{self.channels}, {self.hidden} and {self.radius}."
            )

    def levels(self, size: int) -> list[int]:
        """Edge of the picture before each level, and what is left [px], for a box of `size` pixels."""
        edges = [square(size, self.radius)[0]]
        while edges[-1] > _EDGE:
            edges.append(-(-edges[-1] // 2))
        return edges

    def shapes(self, size: int, dims: int) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape of each weight, and inputs of each number of its layer's output."""
        found: dict[str, tuple[tuple[int, ...], int]] = {}
        edges, before = self.levels(size), 1
        for level in range(len(edges) - 1):
            wide = self.channels * 2**level
            for name, (inputs, outputs) in {"first": (before, wide), "second": (wide, 2 * wide)}.items():
                found[f"{name}_{level}"] = (3, 3, inputs, outputs), 9 * inputs
                found[f"{name}_bias_{level}"] = (outputs,), 9 * inputs
            before = 2 * wide
        out = len(self.law.first(dims))
        inputs = before * edges[-1] ** 2 + VIEWS + (out if self.score else 0)
        found["hidden"], found["hidden_bias"] = ((inputs, self.hidden), inputs), ((self.hidden,), inputs)
        return found | {"output": ((self.hidden, out), self.hidden)}

    def numbers(self, data: Observed, dims: int, log_joint: Callable[[Array], Array]) -> Array:
        """Numbers of q for each row of a batch, (rows, numbers); see `Encoder.numbers`."""
        size = data.observation.disc.size
        begin = starting_numbers(self.law, self.score, data, dims, log_joint)
        w, (edge, where) = declared(self.shapes(size, dims)), square(size, self.radius)
        seen = features(data, self.radius)
        h = jnp.zeros((len(seen), edge * edge), seen.dtype).at[:, where].set(seen).reshape(-1, edge, edge, 1)
        for level in range(len(self.levels(size)) - 1):
            h = jax.nn.relu(_convolved(h, w[f"first_{level}"]) + w[f"first_bias_{level}"])
            h = jax.nn.relu(_convolved(h, w[f"second_{level}"]) + w[f"second_bias_{level}"])
            h = _normalised(_halved(h))
        flat = [h.reshape(len(h), -1), views(data)] + ([] if self.score is None else [begin])
        h = jax.nn.relu(jnp.concatenate(flat, axis=1) @ w["hidden"] + w["hidden_bias"])
        return corrected(begin, h @ w["output"], self.score)


def square(size: int, radius: float) -> tuple[int, np.ndarray]:
    """Edge of the square about the circle [px], and where in it the circle's pixels lie."""
    y, x = np.divmod(circle(size, radius), size)
    low, edge = y.min(), int(y.max() - y.min() + 1)
    return edge, (y - low) * edge + (x - low)


def _convolved(h: Array, w: Array) -> Array:
    return jax.lax.conv_general_dilated(h, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _halved(h: Array) -> Array:
    """Means over 2 x 2 pixels, the last row and column twice where their number is odd."""
    odd = h.shape[1] % 2
    h = jnp.pad(h, ((0, 0), (0, odd), (0, odd), (0, 0)), mode="edge")
    rows, edge, _, channels = h.shape
    return h.reshape(rows, edge // 2, 2, edge // 2, 2, channels).mean((2, 4))


def _normalised(h: Array) -> Array:
    """Mean zero and variance one over pixels and groups of channels."""
    groups = math.gcd(_GROUPS, h.shape[-1])
    parts = h.reshape(*h.shape[:-1], groups, -1)
    off = parts - parts.mean((1, 2, 4), keepdims=True)
    return (off / jnp.sqrt((off**2).mean((1, 2, 4), keepdims=True) + 1e-5)).reshape(h.shape)
