"""Laws that every engine must obey, for the tests of engines of one's own."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree

from hetmodels.data.particles import Particles
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.rotations import uniform
from hetmodels.observation import FixedNoise, Observation
from hetmodels.plain import PlainProblem, Sites
from hetmodels.problem import ParticleProblem
from hetmodels.volumes.voxels import Voxels
from inference.engine import Log, Result, run


class Interrupted(Exception):
    """Stands for a killed run."""


def check_engine(engine: Any, key: Array, tolerance: float = 0.02, spread: float = 0.15, errors: float = 5.0) -> None:
    """Check that an engine finds a posterior known in closed form, and that a killed run can be resumed.

    An engine for model functions is tried on a linear regression with orthogonal columns, y = A x + noise with
    x ~ N(0, 1), whose posterior is a product of normals; an engine for families on a map of 8^3 voxels seen in 60
    images at known poses with known spectra, whose posterior is normal. Give the engine settings with which it
    converges there, and which keep what is known (`learn_spectrum=False`).

    Args:
        engine: the engine.
        key: random key of data and run.
        tolerance: distance allowed between the point (or the mean of the draws) and the posterior mean, in posterior
            standard deviations (root mean square).
        spread: relative error allowed of the standard deviations of draws, root mean square.
        errors: standard errors by which the mean of draws may be off besides.

    Raises:
        AssertionError: naming the law that does not hold.
    """
    key_data, key_run = jax.random.split(key)
    name = type(engine).__name__
    if engine.lacks(_regression) is None:
        problem, mean, sd = regression(key_data)
        site = "x"
    else:
        assert engine.lacks(Homogeneous()) is None, f"{name} fits neither a model function nor a homogeneous family."
        problem, mean, sd = map_posterior(key_data)
        site = "map"
    result = run(engine, problem, key=key_run)
    _check_posterior(engine, problem, result, key_run, site, (mean, sd), (tolerance, spread, errors))
    check_resume(engine, problem, key_run, result)


def _check_posterior(
    engine: Any, problem: Any, result: Result, key: Array, site: str, known: tuple, limits: tuple[float, float, float]
) -> None:
    (mean, sd), (tolerance, spread, errors), name = known, limits, type(engine).__name__
    if result.draws:
        draws = result.draws[site]
        count = draws.shape[0] * draws.shape[1]
        flat = draws.reshape(count, -1)
        found = flat.mean(0).reshape(mean.shape)
        tolerance = tolerance + errors / np.sqrt(count)
        ratio = flat.std(0).reshape(sd.shape) / sd
        off = float(np.sqrt(np.mean((ratio - 1) ** 2)))
        assert off < spread, f"{name}: standard deviations of {site} are off by {off:.1%}; allowed are {spread:.1%}."
    else:
        found = np.asarray(engine.draw(key, problem, result.state)[site])
    distance = float(np.sqrt(np.mean(((found - mean) / sd) ** 2)))
    assert distance < tolerance, (
        f"{name}: {site} is {distance:.3f} posterior standard deviations from its mean; allowed are {tolerance:.3f}."
    )


def check_resume(engine: Any, problem: Any, key: Array, result: Result, steps: int = 1) -> None:
    """Check that a run killed after some steps and resumed gives the same as the uninterrupted run, bit for bit.

    Args:
        engine: the engine.
        problem: what it ran on.
        key: the key it ran with.
        result: what the uninterrupted run gave.
        steps: reports of progress before the kill.

    Raises:
        AssertionError: naming the first array that differs.
    """

    def show(done: int, total: int, info: dict[str, Any]) -> None:
        if done > steps:
            raise Interrupted

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        try:
            run(engine, problem, key=key, checkpoint=place, every=0.0, log=Log(show=show))
        except Interrupted:
            assert (place / "state.npz").exists(), f"{type(engine).__name__}: no checkpoint after {steps} steps."
            again = run(engine, problem, key=key, checkpoint=place, resume=True)
        else:
            again = run(engine, problem, key=key)
    parts = [(result.state, again.state), (result.draws, again.draws), (result.stats, again.stats)]
    for one, other in parts:
        for (path, a), b in zip(jax.tree.flatten_with_path(one)[0], jax.tree.leaves(other), strict=True):
            same = np.array_equal(_plain(a), _plain(b), equal_nan=True)
            where = jax.tree_util.keystr(path)
            assert same, f"{type(engine).__name__}: {where} of a resumed run differs from that of an uninterrupted one."


def _plain(leaf: Any) -> np.ndarray:
    key = isinstance(leaf, Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)


def _regression(design: Array, y: Array) -> None:
    x = numpyro.sample("x", dist.Normal(0, 1).expand([design.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(design @ x, 0.5).to_event(1), obs=y)


def regression(key: Array, rows: int = 30, columns: int = 3) -> tuple[PlainProblem, np.ndarray, np.ndarray]:
    """A linear regression with orthogonal columns, the mean and the standard deviations of its posterior."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    scales = np.linspace(0.5, 2.0, columns)
    design = np.linalg.qr(rng.normal(size=(rows, columns)))[0] * scales
    y = design @ rng.normal(size=columns) + 0.5 * rng.normal(size=rows)
    precision = 1 + scales**2 / 0.25
    data = {"design": design.astype(np.float32), "y": y.astype(np.float32)}
    return PlainProblem(_regression, data), design.T @ y / 0.25 / precision, precision**-0.5


def map_posterior(key: Array, size: int = 8, count: int = 60) -> tuple[ParticleProblem, np.ndarray, np.ndarray]:
    """Images of one map at known poses with known spectra; mean and standard deviations of the map's voxels."""
    key_turn, key_map, key_noise = jax.random.split(key, 3)
    spectrum = np.geomspace(20.0, 1.0, (size - 1) // 2 + 1)
    family = Homogeneous(frame=Frame(size, 4.0, tuple(spectrum.tolist())))
    ball, disc, rotation = Ball(size), Disc(size), uniform(key_turn, count)
    truth = ball.colour(jax.random.normal(key_map, (ball.coordinates,)), jnp.asarray(spectrum, jnp.float32))
    slices = jax.jit(jax.vmap(lambda turn: Voxels(truth, 4.0).project(turn, disc.grid(4.0))))(rotation)
    images = np.asarray(disc.inverse(slices) + jax.random.normal(key_noise, (count, size, size)))
    particles = Particles.from_arrays(images, np.asarray(rotation), np.zeros((count, 2)), Ctf.ideal(count), 4.0)
    particles = particles.with_holdout(0.0)
    noise = FixedNoise(tuple(map(tuple, (1 / particles.reference).tolist())))
    observation = Observation(disc, 4.0, 1, count, noise=noise)
    problem = ParticleProblem.of(family, particles, observation, {"map_tau2": jnp.asarray(spectrum, jnp.float32)})
    mean, covariance, unravel = normal_posterior(problem)

    def to_map(u: Array) -> Array:
        return problem.shared(unravel(u))["map"]

    columns = jax.jit(jax.vmap(to_map))(jnp.eye(len(mean)))  # the map is linear in its coordinates
    jacobian = np.asarray(columns, np.float64).reshape(len(mean), -1)
    variance = np.einsum("iv,ij,jv->v", jacobian, covariance, jacobian)
    return (
        problem,
        np.asarray(mean @ columns.reshape(len(mean), -1)).reshape((size,) * 3),
        variance.reshape((size,) * 3) ** 0.5,
    )


def normal_posterior(problem: PlainProblem) -> tuple[Array, np.ndarray, Callable[[Array], Sites]]:
    """Mean (flat) and covariance of the unconstrained sites where the posterior is normal, and their names put back."""
    flat, unravel = ravel_pytree(jax.tree.map(jnp.zeros_like, problem.initial(jax.random.key(0))))
    data = problem.whole()

    @jax.jit
    def quadratic(batch: Any) -> tuple[Array, Array]:
        slope = jax.grad(lambda u: -problem.log_density(unravel(u), batch))
        at, curvature = jax.linearize(slope, flat)
        return at, jax.lax.map(curvature, jnp.eye(len(flat)))

    slope, hessian = (np.asarray(part, np.float64) for part in quadratic(data))
    covariance = np.linalg.inv((hessian + hessian.T) / 2)
    return jnp.asarray(flat - covariance @ slope, flat.dtype), covariance, unravel
