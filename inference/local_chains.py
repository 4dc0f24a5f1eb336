"""Hamiltonian Monte Carlo for one particle at a time, many side by side: draws of latents and pose at given maps.

A joint chain over the latents of N particles mixes as slowly as its slowest particle, with one step size for all. Here
every particle has chains, a step size and a mass matrix of its own; they share only the compiled program, so that
batches of one size are compiled once.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.laplace import maximum
from hetmodels.plain import Sites
from hetmodels.problem import ParticleProblem
from hetmodels.tree import pytree


@pytree
class LocalDraws:
    """Draws of the latents and poses of some particles.

    Attributes:
        latents: by name, with poses as `pose_…`, (rows, chains, draws, …).
        acceptance: mean acceptance after warm-up, (rows, chains).
        step_size: found in the warm-up, (rows, chains).
        gradients: gradients evaluated per chain, warm-up included.
    """

    latents: Sites
    acceptance: Array
    step_size: Array
    gradients: Array


@dataclasses.dataclass(frozen=True)
class LocalHMC:
    """Hamiltonian Monte Carlo of a fixed number of leapfrog steps, adapted per particle (Neal 2011).

    The mass matrix is the precision of Laplace's approximation, and chains start from draws of it; the step size adapts
    by dual averaging (Hoffman and Gelman 2014, JMLR 15) to an acceptance of 0.8. Trajectories have random lengths.

    Attributes:
        draws: draws of each chain that are kept.
        warmup: transitions before.
        chains: chains of each particle.
        leapfrog: leapfrog steps of a trajectory.

    Raises:
        ValueError: if a setting is out of range.
    """

    draws: int = 200
    warmup: int = 100
    chains: int = 2
    leapfrog: int = 8

    def __post_init__(self) -> None:
        if min(self.draws, self.chains, self.leapfrog) < 1 or self.warmup < 10:
            raise ValueError(f"LocalHMC: draws, chains, leapfrog must be at least 1 and warmup 10, got {self!r}.")

    def program(self, problem: ParticleProblem) -> Any:
        """The compiled sampler: (key, shared, batch) -> `LocalDraws`, compiled once for all batches of a size.

        Raises:
            UsageError: if the problem has no family.
        """
        return jax.jit(partial(_sampled, self, problem))


def _sampled(settings: LocalHMC, problem: ParticleProblem, key: Array, shared: Sites, batch: Batch) -> LocalDraws:
    start, row, split = problem.row_density(shared)

    def each(key: Array, one: Batch) -> tuple[Array, Array, Array]:
        return _chains(settings, key, lambda u: row(u, one), start)

    u, acceptance, step_size = jax.vmap(each)(jax.random.split(key, len(batch.weight)), batch)
    z, poses, _ = jax.vmap(jax.vmap(jax.vmap(split)))(u)
    named = {} if z is None else z if isinstance(z, dict) else {"z": z}
    gradients = jnp.asarray((settings.draws + settings.warmup) * settings.leapfrog)
    return LocalDraws(named | {f"pose_{k}": v for k, v in poses.items()}, acceptance, step_size, gradients)


class _Point(NamedTuple):
    """A point of a chain with its log density and slope."""

    v: Array
    log_p: Array
    slope: Array


class _Averaging(NamedTuple):
    """Dual averaging of the log step size: running error, its mean over iterates, and their number."""

    error: Array
    mean: Array
    steps: Array


def _chains(
    settings: LocalHMC, key: Array, density: Callable[[Array], Array], start: Array
) -> tuple[Array, Array, Array]:
    """Draws (chains, draws, dims), mean acceptance and step size (chains,) of one particle."""
    mode, precision = maximum(density, start)
    root = jnp.linalg.cholesky(precision)

    def place(v: Array) -> Array:
        return mode + jax.scipy.linalg.solve_triangular(root.T, v, lower=False)

    look = jax.value_and_grad(lambda v: density(place(v)))

    def one(key: Array) -> tuple[Array, Array, Array]:
        key_start, key_warm, key_draw = jax.random.split(key, 3)
        v = jax.random.normal(key_start, start.shape)
        first = _Point(v, *look(v))
        about = jnp.log(1.0 / len(start) ** 0.25)  # a first guess for a standard normal
        begun = _Averaging(jnp.zeros(()), about, jnp.zeros(()))

        def warm(carry: tuple[_Point, _Averaging], key: Array) -> tuple[tuple[_Point, _Averaging], None]:
            point, state = carry
            count = state.steps + 1
            log_step = about + jnp.log(2.0) - jnp.sqrt(count) / 0.05 * state.error
            log_step = jnp.where(state.steps == 0, about, jnp.clip(log_step, -10.0, 1.0))
            point, accepted = _transition(settings, key, look, point, jnp.exp(log_step))
            error = state.error + (0.8 - accepted - state.error) / (count + 10)
            mean = state.mean + (log_step - state.mean) * count**-0.75
            return (point, _Averaging(error, mean, count)), None

        (point, state), _ = jax.lax.scan(warm, (first, begun), jax.random.split(key_warm, settings.warmup))
        step = jnp.exp(state.mean)

        def draw(point: _Point, key: Array) -> tuple[_Point, tuple[Array, Array]]:
            point, accepted = _transition(settings, key, look, point, step)
            return point, (point.v, accepted)

        _, (drawn, accepted) = jax.lax.scan(draw, point, jax.random.split(key_draw, settings.draws))
        return jax.vmap(place)(drawn), accepted.mean(), step

    return jax.vmap(one)(jax.random.split(key, settings.chains))


def _transition(settings: LocalHMC, key: Array, look: Callable, point: _Point, step: Array) -> tuple[_Point, Array]:
    """A trajectory and its acceptance; the step size is drawn within 40 % of the one given, against resonances."""
    key_p, key_step, key_accept = jax.random.split(key, 3)
    momentum = jax.random.normal(key_p, point.v.shape)
    step = step * jax.random.uniform(key_step, minval=0.6, maxval=1.4)

    def leap(at: tuple[_Point, Array], _: None) -> tuple[tuple[_Point, Array], None]:
        here, p = at
        p = p + 0.5 * step * here.slope
        v = here.v + step * p
        there = _Point(v, *look(v))
        return (there, p + 0.5 * step * there.slope), None

    (end, last), _ = jax.lax.scan(leap, (point, momentum), None, length=settings.leapfrog)
    gain = end.log_p - 0.5 * jnp.sum(last**2) - point.log_p + 0.5 * jnp.sum(momentum**2)
    gain = jnp.where(jnp.isfinite(gain), gain, -jnp.inf)
    taken = jnp.log(jax.random.uniform(key_accept)) < gain
    point = jax.tree.map(lambda new, old: jnp.where(taken, new, old), end, point)
    return point, jnp.minimum(1.0, jnp.exp(gain))
