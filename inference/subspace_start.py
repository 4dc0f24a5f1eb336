"""Where EM starts a family with a Gaussian latent: the mean map, and the components of the moments' covariance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.protocol import Masked, Shared
from hetmodels.imaging.ball import Ball
from hetmodels.local import component_lattice
from hetmodels.observation import Known
from hetmodels.problem import ParticleProblem
from inference.columns import DirectionSums
from inference.covariance import ColumnSums, ProjectedSums, View, low_shell, orthonormal_to, principal

_MOST = 20_000  # particles that are read for the start
_RESOLUTION = 20.0  # of the covariance [Å]
_SPARE = 8  # directions kept beyond those asked for, before the covariance is solved for exactly
_PASSES = 3
_SEARCHES = 6  # passes where poses are searched


def moment_start(key: Array, engine: Any, problem: ParticleProblem, shared: Shared) -> Shared:
    """Shared values to start from, with components from the covariance of at most 20,000 particles.

    Args:
        key: random key.
        engine: an EM, whose settings make the mean map where none is given.
        problem: the problem.
        shared: shared values so far, `noise` among them; the mean map is taken from them where it is not zero.

    Poses to be searched are, for the start, the likeliest ones under the mean map.
    """
    family, few = problem.family, _few(problem)
    if problem.searches:
        mean, tau2, noise, few = _searched_mean(key, engine, few, shared if problem.started else {})
        fresh = {"map_tau2": tau2, "noise": noise}
    elif problem.started:
        mean, noise = family.components(shared)[0], shared["noise"]
        fresh = {"noise": noise}
    else:
        mean, tau2, noise = _mean(key, engine, few, {}, _PASSES)[:3]
        fresh = {"map_tau2": tau2, "noise": noise}
    components = leading_components(few, mean, noise, family.dims, engine.batch_size)
    spectra = spectra_of(components, family.spectra(shared)[1:])
    return shared | {"map": mean, "components": components, "components_tau2": spectra} | fresh


def spectra_of(components: Array, guess: Array) -> Array:
    """Prior variance per shell of components: their power, but no less than a part of a guess, (dims, shells)."""
    if not len(components):
        return guess
    floor = 1e-3 * guess
    return jnp.maximum(Ball(components.shape[-1]).power(components).at[:, 0].set(floor[:, 0]), floor)


def at_all_resolutions(problem: ParticleProblem, mean: Array, noise: Array, dims: int, rows: int) -> Array:
    """Components of the covariance about a mean map in the whole band, by second moments alone, (dims, N, N, N).

    To `leading_components` two passes are added: the columns of the covariance that they select, and the exact
    covariance in the span of those.
    """
    obs, lattice = problem.observation, component_lattice(problem.family)
    low = View(obs, lattice, low_shell(obs.disc, obs.spacing, _RESOLUTION))
    full = View(obs, lattice, obs.disc.shells - 1)
    start = leading_components(problem, mean, noise, dims, rows)
    table, columns = lattice.table(jnp.concatenate([mean[None], start])), DirectionSums(low, full, dims)
    for batch in problem.batches(0, jax.random.key(0), rows):
        columns.add(table, noise, batch)
    shared = problem.starting(jax.random.key(0))
    maps, _ = columns.maps(problem.family.spectra(shared)[1:])
    basis = orthonormal_to(*_inside(problem.family, mean, maps))
    table, exact = lattice.table(jnp.concatenate([mean[None], basis])), ProjectedSums(full, dims)
    for batch in problem.batches(0, jax.random.key(0), rows):
        exact.add(table, noise, batch)
    return principal(basis, exact.solve(), dims)


def leading_components(problem: ParticleProblem, mean: Array, noise: Array, dims: int, rows: int) -> Array:
    """Components of the covariance about a mean map, each times the standard deviation along it, (dims, N, N, N).

    Two passes: the covariance of the lowest shells, then that of its leading directions in all their detail.
    """
    obs, lattice = problem.observation, component_lattice(problem.family)
    view = View(obs, lattice, low_shell(obs.disc, obs.spacing, _RESOLUTION))
    sums = ColumnSums(view, mean.shape[-1])
    table = lattice.table(mean[None])
    for batch in problem.batches(0, jax.random.key(0), rows):
        sums.add(table, noise, batch)
    masks = problem.family.masks({}) if isinstance(problem.family, Masked) else None
    directions = sums.leading(dims + _SPARE, None if masks is None else masks[-1])
    basis = orthonormal_to(*_inside(problem.family, mean, directions))
    table, exact = lattice.table(jnp.concatenate([mean[None], basis])), ProjectedSums(view, len(basis))
    for batch in problem.batches(0, jax.random.key(0), rows):
        exact.add(table, noise, batch)
    return principal(basis, exact.solve(), dims)


def _inside(family: Any, mean: Array, maps: Array) -> tuple[Array, Array]:
    """The mean map and components through the mask of the components, if there is one."""
    masks = family.masks({}) if isinstance(family, Masked) else None
    return (mean, maps) if masks is None else (mean * masks[-1], maps * masks[-1])


def _few(problem: ParticleProblem) -> ParticleProblem:
    """The problem on some of its particles, evenly spread over the table."""
    count = problem.size
    if count <= _MOST:
        return problem
    rows = problem.training[np.unique(np.linspace(0, count - 1, _MOST).astype(int))]
    observation = dataclasses.replace(problem.observation, particles=len(rows))
    return dataclasses.replace(problem, particles=problem.particles.subset(rows), observation=observation)


@dataclasses.dataclass(frozen=True, eq=False)
class Placed(ParticleProblem):
    """A problem at the likeliest poses of a table in place of the file's.

    Attributes:
        table: poses of every particle (`PoseTable`).
    """

    table: Any = None

    def _grouped(self, batch: Batch) -> Batch:
        batch, index = super()._grouped(batch), np.asarray(batch.index)
        places = jnp.asarray(self.table.rotation[index, 0]), jnp.asarray(self.table.shift[index, 0])
        return dataclasses.replace(batch, rotation=places[0], shift=places[1])


def _searched_mean(
    key: Array, engine: Any, problem: ParticleProblem, start: Shared
) -> tuple[Array, Array, Array, ParticleProblem]:
    """The consensus map with its spectrum, the noise, and the problem at the poses that were found for it."""
    known: Shared = {name: start[name] for name in ("map", "map_tau2", "noise") if name in start}
    *found, table = _mean(key, engine, problem, known, _SEARCHES)
    observation = dataclasses.replace(problem.observation, pose=Known(problem.observation.pose.symmetry))
    fields = {f.name: getattr(problem, f.name) for f in dataclasses.fields(problem)}
    return *found, Placed(**fields | {"observation": observation, "table": table})


def consensus(key: Array, engine: Any, problem: ParticleProblem) -> tuple[Array, Array, Array]:
    """The mean map with its spectrum, and the noise, after a few passes over the batches of a problem.

    Args:
        key: random key.
        engine: an EM.
        problem: a linear family's, at known poses.
    """
    return _mean(key, engine, problem, {}, _PASSES)[:3]


def _mean(key: Array, engine: Any, problem: ParticleProblem, start: Shared, passes: int) -> tuple[Any, ...]:
    """The consensus map with its spectrum, the noise, and the poses, after a few passes."""
    family = problem.family
    given = {name: value for name, value in problem.given.items() if name in ("noise", "junk")}
    inner = ParticleProblem.of(Homogeneous(family.order, family.frame), problem.particles, problem.observation, given)
    inner = dataclasses.replace(inner, start=start)
    state = engine.init(key, inner)
    for number in range(passes):
        for batch in problem.batches(number, key, engine.batch_size):
            state, _ = engine.step(key, inner, state, batch)
        state, _ = engine.sweep(key, inner, state)
    shared = engine.draw(key, inner, state)
    return shared["map"], shared["map_tau2"], shared["noise"], state.poses
