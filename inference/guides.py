"""Approximations q of the posterior as objects: of the shared values, and of the latents of each particle.

`Point`, `MeanField` and `LowRank` serve both. As functions of a model they make NumPyro's guide of its shared sites; as
laws they say which distribution of one particle's latents the numbers of a `Table` or of an `Encoder` describe.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from numpyro.infer.initialization import init_to_median

from hetmodels.tree import pytree

_FIRST_SD = 0.1
_LEAST_VARIANCE = 1e-6


class Law(Protocol):
    """A distribution of one particle's unconstrained latents u, described by a few numbers.

    Attributes:
        normal: whether it is a normal law.
    """

    normal: bool

    def first(self, dims: int) -> Array:
        """The numbers to start from; the location first, (numbers,)."""

    def distribution(self, numbers: Array, dims: int) -> dist.Distribution:
        """q(u) of event shape (dims,), from numbers (…, numbers)."""

    def location(self, numbers: Array, dims: int) -> Array:
        """Mean of q, (…, dims)."""

    def precision(self, numbers: Array, dims: int) -> Array | None:
        """Inverse covariance of q, (…, dims, dims); None if it is a point."""

    def numbers(self, location: Array, precision: Array) -> Array:
        """The numbers of the q that is nearest to a normal law, (…, numbers).

        Args:
            location: its mean, (…, dims).
            precision: its inverse covariance, (…, dims, dims).
        """


@dataclasses.dataclass(frozen=True)
class Point:
    """A single value: with it, the objective is a log density and no lower bound of the evidence."""

    normal = False

    def __call__(self, model: Callable, init_loc_fn: Callable = init_to_median) -> Any:
        """NumPyro's guide of the shared sites."""
        return AutoDelta(model, init_loc_fn=init_loc_fn)

    def first(self, dims: int) -> Array:
        """See `Law`."""
        return jnp.zeros(dims)

    def distribution(self, numbers: Array, dims: int) -> dist.Distribution:
        """See `Law`."""
        return dist.Delta(numbers, event_dim=1)

    def location(self, numbers: Array, dims: int) -> Array:
        """See `Law`."""
        return numbers[..., :dims]

    def precision(self, numbers: Array, dims: int) -> None:
        """There is none."""
        return None

    def numbers(self, location: Array, precision: Array) -> Array:
        """See `Law`."""
        return location


@dataclasses.dataclass(frozen=True)
class MeanField:
    """Independent normals."""

    normal = True

    def __call__(self, model: Callable, init_loc_fn: Callable = init_to_median) -> Any:
        """NumPyro's guide of the shared sites."""
        return AutoNormal(model, init_loc_fn=init_loc_fn)

    def first(self, dims: int) -> Array:
        """See `Law`."""
        return jnp.concatenate([jnp.zeros(dims), jnp.full(dims, jnp.log(_FIRST_SD))])

    def distribution(self, numbers: Array, dims: int) -> dist.Distribution:
        """See `Law`."""
        return dist.Normal(numbers[..., :dims], jnp.exp(numbers[..., dims:])).to_event(1)

    def location(self, numbers: Array, dims: int) -> Array:
        """See `Law`."""
        return numbers[..., :dims]

    def precision(self, numbers: Array, dims: int) -> Array:
        """See `Law`."""
        return jnp.exp(-2 * numbers[..., dims:, None]) * jnp.eye(dims)

    def numbers(self, location: Array, precision: Array) -> Array:
        """See `Law`; nearest in KL(q || p), which keeps the diagonal of the precision."""
        diagonal = jnp.diagonal(precision, axis1=-2, axis2=-1)
        return jnp.concatenate([location, -0.5 * jnp.log(diagonal)], axis=-1)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """A normal of covariance F F^T + D, F of a few columns, D diagonal.

    Attributes:
        rank: columns of F; for shared sites about the root of their number if none, for latents all.
    """

    rank: int | None = None

    normal = True

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"LowRank: the rank must be at least 1, got {self.rank}.")

    def __call__(self, model: Callable, init_loc_fn: Callable = init_to_median) -> Any:
        """NumPyro's guide of the shared sites."""
        return AutoLowRankMultivariateNormal(model, init_loc_fn=init_loc_fn, rank=self.rank)

    def first(self, dims: int) -> Array:
        """See `Law`."""
        columns = dims if self.rank is None else min(self.rank, dims)
        factor = 0.01 * jnp.eye(dims, columns).ravel()
        return jnp.concatenate([jnp.zeros(dims), jnp.full(dims, jnp.log(_FIRST_SD)), factor])

    def _parts(self, numbers: Array, dims: int) -> tuple[Array, Array, Array]:
        location, spread, factor = jnp.split(numbers, [dims, 2 * dims], axis=-1)
        return location, jnp.exp(2 * spread) + _LEAST_VARIANCE, factor.reshape(*factor.shape[:-1], dims, -1)

    def distribution(self, numbers: Array, dims: int) -> dist.Distribution:
        """See `Law`."""
        location, diagonal, factor = self._parts(numbers, dims)
        return dist.LowRankMultivariateNormal(location, factor, diagonal)

    def location(self, numbers: Array, dims: int) -> Array:
        """See `Law`."""
        return numbers[..., :dims]

    def precision(self, numbers: Array, dims: int) -> Array:
        """See `Law`."""
        _, diagonal, factor = self._parts(numbers, dims)
        return jnp.linalg.inv(factor @ jnp.swapaxes(factor, -1, -2) + diagonal[..., None] * jnp.eye(dims))

    def numbers(self, location: Array, precision: Array) -> Array:
        """See `Law`; F holds the widest axes, D what is left of the variances."""
        dims = location.shape[-1]
        columns = dims if self.rank is None else min(self.rank, dims)
        stiffness, axes = jnp.linalg.eigh(precision)  # the widest first
        least = 1e-3 / stiffness[..., -1:]
        wide = jnp.sqrt(1 / stiffness[..., :columns] - least)
        factor = axes[..., :columns] * wide[..., None, :]
        rest = jnp.einsum("...ic,...c->...i", axes[..., columns:] ** 2, 1 / stiffness[..., columns:] - least) + least
        spread = 0.5 * jnp.log(jnp.maximum(rest - _LEAST_VARIANCE, _LEAST_VARIANCE))
        return jnp.concatenate([location, spread, factor.reshape(*location.shape[:-1], -1)], axis=-1)


@dataclasses.dataclass(frozen=True)
class Table:
    """A row of numbers for each particle (an autodecoder), stepped only when its particle is seen.

    Attributes:
        law: what the numbers describe.
        rate: of Adam along the rows, which has its moments per row (lazy Adam), with a cosine decay.
    """

    law: Law = MeanField()  # noqa: RUF009
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"Table: the rate must be positive, got {self.rate}.")


@pytree
class TableState:
    """A table with the moments of its steps.

    Attributes:
        value: the numbers, (particles, numbers).
        first, second: moving averages of the gradient and its square, likewise.
        count: steps of each row, (particles,).
    """

    value: Array
    first: Array
    second: Array
    count: Array

    @staticmethod
    def begin(key: Array, law: Law, particles: int, dims: int) -> "TableState":
        """The law's first numbers in each row, locations spread by 0.1."""
        first = law.first(dims)
        value = jnp.tile(first, (particles, 1))
        value = value.at[:, :dims].add(0.1 * jax.random.normal(key, (particles, dims)))
        return TableState(value, jnp.zeros_like(value), jnp.zeros_like(value), jnp.zeros(particles, jnp.int32))

    def stepped(self, index: Array, gradient: Array, rate: Array) -> "TableState":
        """After a step of Adam (Kingma and Ba 2015) on some rows.

        Args:
            index: the rows, (batch,); those beyond the end are passed over.
            gradient: of the loss, (batch, numbers).
            rate: learning rate.
        """
        count = self.count[index] + 1
        first = 0.9 * self.first[index] + 0.1 * gradient
        second = 0.999 * self.second[index] + 0.001 * gradient**2
        age = count[:, None].astype(gradient.dtype)
        step = (first / (1 - 0.9**age)) / (jnp.sqrt(second / (1 - 0.999**age)) + 1e-8)

        def put(table: Array, values: Array) -> Array:
            return table.at[index].set(values, mode="drop")

        value = put(self.value, self.value[index] - rate * step)
        return TableState(value, put(self.first, first), put(self.second, second), put(self.count, count))


@dataclasses.dataclass(frozen=True)
class Latents:
    """The latents of one particle as one unconstrained vector u.

    Attributes:
        sites: name, support and number of unconstrained coordinates of each, by name in alphabetical order.
    """

    sites: tuple[tuple[str, Any, tuple[int, ...]], ...]

    @staticmethod
    def of(sites: dict[str, dict]) -> "Latents":
        """From the sites of a trace."""
        found = []
        for name in sorted(sites):
            law = sites[name]["fn"]
            inside = jax.eval_shape(dist.biject_to(law.support).inv, jnp.zeros(law.event_shape))
            found.append((name, law.support, inside.shape))
        return Latents(tuple(found))

    @property
    def names(self) -> set[str]:
        """Names of the sites."""
        return {name for name, _, _ in self.sites}

    @property
    def dims(self) -> int:
        """Length of u."""
        return sum(_size(shape) for _, _, shape in self.sites)

    def values(self, u: Array) -> dict[str, tuple[Array, Array]]:
        """Value of each site and log |d value / d u|, from u (…, dims)."""
        found, start = {}, 0
        for name, support, shape in self.sites:
            raw = u[..., start : start + _size(shape)].reshape(*u.shape[:-1], *shape)
            start += _size(shape)
            transform = dist.biject_to(support)
            value = transform(raw)
            found[name] = value, transform.log_abs_det_jacobian(raw, value)
        return found

    def sample(self, law: dist.Distribution) -> None:
        """Sites of a guide inside the plate: u, and the latents that follow from it."""
        u = numpyro.sample("particle_latents", law, infer={"is_auxiliary": True})
        for name, (value, log_det) in self.values(u).items():
            inner = value.ndim - u.ndim + 1
            total = log_det.reshape(*u.shape[:-1], -1).sum(-1)
            numpyro.sample(name, dist.Delta(value, log_density=-total, event_dim=inner))


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
