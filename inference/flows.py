"""Normalizing flows for one particle's latents: guides of posteriors with several modes, or bent ones."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.transforms import LowerCholeskyAffine, Transform

_EDGE = 4.0  # beyond so many standard deviations a spline is the identity
_LEAST = 1e-3  # of widths, heights and slopes of its pieces
_POINTS = 256  # draws from which moments are taken, and as many opposite ones


@dataclasses.dataclass(frozen=True)
class Flow:
    """N(0, I) through monotone rational-quadratic splines along the axes and a triangular map, once or more often.

    All of the flow is described by the numbers (Durkan et al. 2019, Neural Spline Flows; Rezende and Mohamed 2015), so
    that it serves in a table, every particle with a flow of its own, and behind an encoder. It starts as N(0, I): what
    starts narrow finds one mode only.

    Attributes:
        bins: pieces of a spline.
        layers: how often; one is a product along skew axes, two also bend.
    """

    bins: int = 8
    layers: int = 1

    normal = False

    def __post_init__(self) -> None:
        if self.bins < 2 or self.layers < 1:
            raise ValueError(f"Flow: bins must be at least 2 and layers at least 1, got {self.bins} and {self.layers}.")

    def first(self, dims: int) -> Array:
        """See `Law`."""
        return jnp.zeros(self.layers * self._length(dims))

    def _length(self, dims: int) -> int:
        return dims + dims * (dims + 1) // 2 + dims * (3 * self.bins - 1)

    def _steps(self, numbers: Array, dims: int) -> list[Transform]:
        """The maps from N(0, I), the last first in the numbers."""
        steps: list[Transform] = []
        corner = dims + dims * (dims + 1) // 2
        for layer in jnp.split(numbers, self.layers, axis=-1)[::-1]:
            pieces = layer[..., corner:].reshape(*layer.shape[:-1], dims, 3 * self.bins - 1)
            root = (
                jnp.zeros((*layer.shape[:-1], dims, dims)).at[..., *np.tril_indices(dims)].set(layer[..., dims:corner])
            )
            diagonal = jnp.exp(jnp.diagonal(root, axis1=-2, axis2=-1))
            root = jnp.tril(root, -1) + diagonal[..., None] * jnp.eye(dims)
            steps += [Splines(pieces), LowerCholeskyAffine(layer[..., :dims], root)]
            if len(steps) < 2 * self.layers:
                steps[-1] = _Turned(steps[-1])  # the next triangle has another axis first
        return steps

    def distribution(self, numbers: Array, dims: int) -> dist.Distribution:
        """See `Law`."""
        base = dist.Normal(jnp.zeros((*numbers.shape[:-1], dims)), 1.0).to_event(1)
        return dist.TransformedDistribution(base, self._steps(numbers, dims))

    def _moments(self, numbers: Array, dims: int) -> tuple[Array, Array]:
        half = np.random.default_rng(0).normal(size=(_POINTS, dims))
        draws = jnp.asarray(np.concatenate([half, -half]), numbers.dtype)
        u = jnp.broadcast_to(jnp.expand_dims(draws, range(1, numbers.ndim)), (2 * _POINTS, *numbers.shape[:-1], dims))
        for step in self._steps(numbers, dims):
            u = step(u)
        mean = u.mean(0)
        return mean, jnp.einsum("p...i,p...j->...ij", u - mean, u - mean) / len(u)

    def location(self, numbers: Array, dims: int) -> Array:
        """See `Law`; from fixed draws."""
        return self._moments(numbers, dims)[0]

    def precision(self, numbers: Array, dims: int) -> Array:
        """See `Law`; from fixed draws."""
        return jnp.linalg.inv(self._moments(numbers, dims)[1] + 1e-6 * jnp.eye(dims))

    def numbers(self, location: Array, precision: Array) -> Array:
        """See `Law`; the splines are the identity."""
        dims = location.shape[-1]
        root = jnp.linalg.cholesky(jnp.linalg.inv(precision))
        diagonal = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1))
        packed = jnp.tril(root, -1) + diagonal[..., None] * jnp.eye(dims)
        outer = jnp.concatenate([location, packed[..., *np.tril_indices(dims)]], axis=-1)
        return jnp.zeros((*location.shape[:-1], len(self.first(dims)))).at[..., : outer.shape[-1]].set(outer)


class Splines(Transform):
    """Monotone piecewise rational-quadratic maps of each coordinate, the identity outside [-4, 4]."""

    domain = codomain = dist.constraints.real_vector

    def __init__(self, raw: Array) -> None:
        """From unconstrained pieces (…, dims, 3 bins - 1): widths, heights and inner slopes; zeros are the identity."""
        self.raw = raw
        bins = (raw.shape[-1] + 1) // 3
        self.x, self.y = (_knots(part) for part in (raw[..., :bins], raw[..., bins : 2 * bins]))
        inner = _LEAST + jax.nn.softplus(raw[..., 2 * bins :] + np.log(np.expm1(1 - _LEAST)))
        ends = jnp.ones((*inner.shape[:-1], 1), inner.dtype)
        self.slopes = jnp.concatenate([ends, inner, ends], axis=-1)

    def __call__(self, x: Array) -> Array:
        """The map, (…, dims)."""
        return self._forward(x)[0]

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """See `numpyro.distributions.transforms.Transform`."""
        return self._forward(x)[1].sum(-1)

    def _forward(self, x: Array) -> tuple[Array, Array]:
        """Values and log slopes, Durkan et al. 2019, eqs. 4 and 5."""
        (left, width), (low, height), (d0, d1) = self._piece(x, self.x)
        inside = jnp.abs(x) < _EDGE
        t = jnp.clip((x - left) / width, 0.0, 1.0)
        slope, mixed = height / width, t * (1 - t)
        below = slope + (d0 + d1 - 2 * slope) * mixed
        y = low + height * (slope * t**2 + d0 * mixed) / below
        rise = slope**2 * (d1 * t**2 + 2 * slope * mixed + d0 * (1 - t) ** 2) / below**2
        return jnp.where(inside, y, x), jnp.where(inside, jnp.log(rise), 0.0)

    def _inverse(self, y: Array) -> Array:
        """Durkan et al. 2019, eqs. 6 to 8."""
        (left, width), (low, height), (d0, d1) = self._piece(y, self.y)
        slope, up = height / width, jnp.clip(y - low, 0.0, height)
        bend = up * (d0 + d1 - 2 * slope)
        a, b, c = height * (slope - d0) + bend, height * d0 - bend, -slope * up
        t = 2 * c / (-b - jnp.sqrt(jnp.maximum(b**2 - 4 * a * c, 0.0)))
        return jnp.where(jnp.abs(y) < _EDGE, left + width * t, y)

    def _piece(self, at: Array, knots: Array) -> tuple[tuple[Array, Array], ...]:
        """Left ends and lengths in x and y of the piece that each value lies in, and the slopes at its ends."""
        inner = jnp.broadcast_to(knots, (*at.shape, knots.shape[-1]))[..., 1:-1]
        which = jnp.sum(at[..., None] >= inner, axis=-1, keepdims=True)

        def take(values: Array, offset: int) -> Array:
            spread = jnp.broadcast_to(values, (*at.shape, values.shape[-1]))
            return jnp.take_along_axis(spread, which + offset, axis=-1)[..., 0]

        x, y, slopes = ((take(v, 0), take(v, 1)) for v in (self.x, self.y, self.slopes))
        return (x[0], x[1] - x[0]), (y[0], y[1] - y[0]), slopes

    def tree_flatten(self) -> tuple[tuple, tuple]:
        """See `numpyro.distributions.transforms.Transform`."""
        return (self.raw,), (("raw",), {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Splines) and bool(jnp.array_equal(self.raw, other.raw))


class _Turned(Transform):
    """A map followed by the reversal of the coordinates."""

    domain = codomain = dist.constraints.real_vector

    def __init__(self, inner: Transform) -> None:
        self.inner = inner

    def __call__(self, x: Array) -> Array:
        return self.inner(x)[..., ::-1]

    def _inverse(self, y: Array) -> Array:
        return self.inner._inverse(y[..., ::-1])

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return self.inner.log_abs_det_jacobian(x, y[..., ::-1])

    def tree_flatten(self) -> tuple[tuple, tuple]:
        return (self.inner,), (("inner",), {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Turned) and self.inner == other.inner


def _knots(raw: Array) -> Array:
    """Increasing knots from -4 to 4 of unconstrained widths, (…, bins + 1)."""
    bins = raw.shape[-1]
    share = _LEAST + (1 - _LEAST * bins) * jax.nn.softmax(raw, axis=-1)
    inner = -_EDGE + 2 * _EDGE * jnp.cumsum(share, axis=-1)[..., :-1]
    end = jnp.full((*raw.shape[:-1], 1), _EDGE, raw.dtype)
    return jnp.concatenate([-end, inner, end], axis=-1)
