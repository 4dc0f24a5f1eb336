"""A density whose Fourier transform is a neural network of the frequency and of a latent (Zhong et al. 2021, cryoDRGN).

The network sees a frequency k through waves cos(2 pi k·d) and sin(2 pi k·d), each the transform of a point displaced by
d from the centre: the displacements say how far from the centre the density may reach.
"""

import dataclasses
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.imaging.grids import Grid
from hetmodels.tree import pytree, static

CHUNK = 2**14  # frequencies of a map that go through the network at a time
HIGHEST = jax.lax.Precision.HIGHEST

Weights = dict[str, Array]


class Waves(Protocol):
    """How frequencies are shown to the network."""

    def displacements(self, size: int) -> np.ndarray:
        """Displacements d as parts of the box edge, (waves, 3), for a box of `size` pixels."""


@dataclasses.dataclass(frozen=True)
class GaussianWaves:
    """Random displacements d ~ N(0, spread^2), the same for the same seed (Tancik et al. 2020; Levy et al. 2022).

    Attributes:
        spread: standard deviation along each axis, as a part of the box edge; about 0.15 of the particle's radius.
        count: number of displacements; three halves of the box edge in pixels if none.
        seed: of the displacements.
    """

    spread: float = 0.04
    count: int | None = None
    seed: int = 0

    def displacements(self, size: int) -> np.ndarray:
        """See `Waves`."""
        count = 3 * (size // 2) if self.count is None else self.count
        return self.spread * np.random.default_rng(self.seed).normal(size=(count, 3))


@dataclasses.dataclass(frozen=True)
class GeometricWaves:
    """Displacements along the axes in geometric progression, down to 1/(2 pi) pixel (Zhong et al. 2021).

    Attributes:
        longest: the largest displacement, as a part of the box edge: 0.08 for the low waves alone, 0.5 for all.
        count: displacements per axis; half the box edge in pixels if none.
    """

    longest: float = 0.08
    count: int | None = None

    def displacements(self, size: int) -> np.ndarray:
        """See `Waves`."""
        count = size // 2 if self.count is None else self.count
        series = np.geomspace(self.longest, 1 / (2 * np.pi * size), count)
        return np.concatenate([series[:, None] * axis for axis in np.eye(3)])


@pytree
class NeuralVolume:
    """The density of a latent z: F(k) = envelope(|k|) * network(waves(k), z), complex.

    The density is real, F(-k) = conj F(k): the network is asked on one half of space and its conjugate is the other.

    Attributes:
        weights: of the network, see `initial_weights`.
        z: latent, (dims,).
        waves: how frequencies are shown.
        size, spacing: box edge in pixels and pixel size [Å] of the images that F is scaled to.
        envelope: amplitude of F on shells of |k| in Fourier pixels of that box, interpolated; nothing lies beyond them.
        products: precision of the matrix products; sums, phases and weights are float32 in any case.
    """

    weights: Weights
    z: Array
    waves: Any = static()
    size: int = static()
    spacing: float = static()
    envelope: tuple[float, ...] = static()
    products: Literal["float32", "bfloat16"] = static(default="float32")

    def transform(self, k: Array) -> Array:
        """F at frequencies (…, 3) [1/Å], complex (…)."""
        edge = self.size * self.spacing
        side = _side(k)
        radius = jnp.linalg.norm(k, axis=-1) * edge
        nodes = np.append(np.arange(len(self.envelope)), len(self.envelope) - 1 + 1e-3)
        heights = np.append(self.envelope, self.envelope[-1])
        height = jnp.interp(radius, nodes.astype(np.float32), heights.astype(np.float32), right=0.0)
        turns = (edge * self.waves.displacements(self.size)).astype(np.float32)
        cycles = jnp.matmul(k * side[..., None], turns.T, precision=HIGHEST)
        angle = 2 * jnp.pi * (cycles - jnp.round(cycles))
        out = self._network(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1))
        return jax.lax.complex(height * out[..., 0], height * side * out[..., 1])

    def _network(self, x: Array) -> Array:
        w = self.weights
        bias = w["bias"] if self.z.shape[-1] == 0 else w["bias"] + jnp.matmul(self.z, w["latent"], precision=HIGHEST)
        h = jax.nn.relu(self._product(x, w["waves"]) + bias)
        for block, own in zip(w["blocks"], w["block_biases"], strict=True):
            h = jax.nn.relu(self._product(h, block) + own + h)
        return jnp.matmul(h, w["output"]) + w["output_bias"]

    def _product(self, x: Array, w: Array) -> Array:
        if self.products == "bfloat16":
            return half_product(x, w)
        return jnp.matmul(x, w)

    def project(self, rotation: Array, grid: Grid) -> Array:
        """Slice at the grid's frequencies, complex (pixels,); see `Volume`."""
        k = jnp.matmul(grid.points, rotation[:2], precision=HIGHEST)
        return self.transform(k) * ((self.spacing / grid.spacing) ** 3 * self.size / grid.size)

    def density(self, size: int, spacing: float) -> Array:
        """Voxels [z, y, x] of a box of `size` voxels of `spacing` Å, band-limited to |k| <= (size-1)//2."""
        line, half = np.rint(np.fft.fftfreq(size) * size), np.arange(size // 2 + 1)
        z, y, x = np.meshgrid(line, line, half, indexing="ij")
        where = np.flatnonzero(x**2 + y**2 + z**2 <= ((size - 1) // 2 + 1e-6) ** 2)
        points = np.stack([x, y, z], axis=-1).reshape(-1, 3)[where] / (size * spacing)
        values = jax.lax.map(self.transform, jnp.asarray(points, self.weights["bias"].dtype), batch_size=CHUNK)
        gain = self.size * (self.spacing / spacing) ** 3
        full = jnp.zeros(x.size, values.dtype).at[where].set(gain * values).reshape(x.shape)
        return jnp.fft.fftshift(jnp.fft.irfftn(full, s=(size,) * 3))


def _side(k: Array) -> Array:
    """1 on one half of space, -1 on the other, 0 at the origin: the sign of the first of kz, ky, kx that is not 0."""
    x, y, z = jnp.sign(k[..., 0]), jnp.sign(k[..., 1]), jnp.sign(k[..., 2])
    return jax.lax.stop_gradient(jnp.where(z != 0, z, jnp.where(y != 0, y, x)))


@jax.custom_vjp
def half_product(x: Array, w: Array) -> Array:
    """The product (…, n) @ (n, m) of values rounded to bfloat16, summed in float32; its gradients likewise."""
    return _rounded_product("...n,nm->...m", x, w)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _rounded_product("...n,nm->...m", x, w), (x, w)


def _backward(kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, w = kept
    slope = slope.astype(jnp.bfloat16)
    columns = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)  # laid out anew, which CPUs multiply faster
    by_weights = _rounded_product("ni,im->nm", columns, slope.reshape(-1, slope.shape[-1]))
    return _rounded_product("...m,nm->...n", slope, w), by_weights


half_product.defvjp(_forward, _backward)


def _rounded_product(what: str, a: Array, b: Array) -> Array:
    return jnp.einsum(what, a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def initial_weights(key: Array, waves: int, dims: int, hidden: int, layers: int) -> Weights:
    """Weights as PyTorch's Linear starts them: uniform within ±1/sqrt(inputs), biases too (He et al. 2015).

    Args:
        key: random key.
        waves: number of displacements.
        dims: latent dimensions.
        hidden: width of the network.
        layers: residual layers.

    Returns:
        `waves` (2 waves, hidden) and `latent` (dims, hidden), together the first layer, its `bias` (hidden,);
        `blocks` (layers, hidden, hidden), `block_biases` (layers, hidden); `output` (hidden, 2), `output_bias` (2,).
    """
    inputs = 2 * waves + dims
    shapes = {
        "waves": ((2 * waves, hidden), inputs),
        "latent": ((dims, hidden), inputs),
        "bias": ((hidden,), inputs),
        "blocks": ((layers, hidden, hidden), hidden),
        "block_biases": ((layers, hidden), hidden),
        "output": ((hidden, 2), hidden),
        "output_bias": ((2,), hidden),
    }
    return {
        name: jax.random.uniform(jax.random.fold_in(key, i), shape, minval=-1.0, maxval=1.0) / fan_in**0.5
        for i, (name, (shape, fan_in)) in enumerate(shapes.items())
    }
