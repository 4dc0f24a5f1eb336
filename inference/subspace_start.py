"""Where EM starts a family with a Gaussian latent: the mean map, and the components of the moments' covariance."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.protocol import Masked, Shared, mixture_of
from hetmodels.imaging.ball import Ball
from hetmodels.local import component_lattice
from hetmodels.observation import Known
from hetmodels.problem import ParticleProblem
from inference.columns import DirectionSums
from inference.covariance import ColumnSums, ProjectedSums, View, low_shell, orthonormal_to, principal
from inference.low_band import lowered, raised
from inference.mixture_step import first_gaussians

_log = logging.getLogger("hetmodels.fit")
_MOST = 20_000  # particles that are read for the start
_RESOLUTION = 20.0  # of the covariance [Å]
_SPARE = 8  # directions kept beyond those asked for, before the covariance is solved for exactly
_PASSES = 3
_HELD, _FREE = 6, 6  # passes in the low band with the components' spectra kept wide, and with all of them learnt
_SEARCHES = 6  # passes where poses are searched


def moment_start(key: Array, engine: Any, problem: ParticleProblem) -> Shared:
    """Shared values to start from, with components from the covariance of at most 20,000 particles in a low band.

    Args:
        key: random key.
        engine: an EM, whose settings make the mean map where none is given.
        problem: the problem; the mean map is taken from its start where there is one.

    Poses to be searched are, for the start, the likeliest ones under the mean map.
    """
    low = problem if problem.searches else _few(lowered(problem))
    return _as_given(problem, raised(_moments(key, engine, low), low, problem))


def grown_start(key: Array, engine: Any, problem: ParticleProblem) -> Shared:
    """The start of the moments, improved by passes of EM in the low band.

    At first the components' spectra are kept wide. Components of noise would otherwise be believed to be weak before
    those of motion have grown out of them, which then takes very many passes.

    Args:
        key: random key.
        engine: an EM.
        problem: see `moment_start`.
    """
    if problem.searches:
        return moment_start(key, engine, problem)
    low = _few(lowered(problem))
    found = _moments(key, engine, low)
    if not bool(jnp.any(found["components"])):
        return _as_given(problem, raised(found, low, problem))
    guess = low.family.spectra(dataclasses.replace(low, start={}).starting(key))[1:]
    wide = jnp.maximum(found["components_tau2"], guess)
    low = dataclasses.replace(low, start=_as_given(low, found | {"components_tau2": wide}))
    size, passes = low.particles.size, _HELD + _FREE
    _log.info("components grow in a box of %d pixels for %d passes before the first one in full", size, passes)
    state, held = engine.init(key, low), dataclasses.replace(engine, learn_spectrum=False)
    for number in range(passes):
        state = _pass(key, held if number < _HELD else engine, low, state, number)
    return _as_given(problem, raised(engine.draw(key, low, state), low, problem))


def _as_given(problem: ParticleProblem, shared: Shared) -> Shared:
    """Shared values with those that are not to be inferred put back."""
    return shared | {name: value for name, value in problem.given.items() if name in shared}


def _moments(key: Array, engine: Any, problem: ParticleProblem) -> Shared:
    """Shared values with the components of the moments' covariance."""
    family, few, shared = problem.family, _few(problem), problem.starting(key)
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
    found = shared | {"map": mean, "components": components, "components_tau2": spectra} | fresh
    if mixture_of(family, shared) is None:
        return found
    return first_gaussians(key, few, found, noise)


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
        state = _pass(key, engine, inner, state, number, problem)
    shared = engine.draw(key, inner, state)
    return shared["map"], shared["map_tau2"], shared["noise"], state.poses


def _pass(key: Array, engine: Any, problem: ParticleProblem, state: Any, number: int, images: Any = None) -> Any:
    """One pass of an EM over the batches of the problem, or of another one with the same particles."""
    for batch in (images or problem).batches(number, key, engine.batch_size):
        state, _ = engine.step(key, problem, state, batch)
    return engine.sweep(key, problem, state)[0]
