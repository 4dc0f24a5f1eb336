"""Integration over a few continuous latents: the mode by damped Newton steps, then importance sampling about it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from hetmodels.tree import pytree

_NEWTON_STEPS = 25
_DEGREES = 5.0


@pytree
class Weighted:
    """Draws with importance weights, and what follows from them, of one particle.

    Attributes:
        draws: (draws, dims).
        weights: normalised, (draws,).
        log_evidence: log of the integral.
        log_evidence_se: its standard error.
    """

    draws: Array
    weights: Array
    log_evidence: Array
    log_evidence_se: Array


def maximum(log_joint: Callable[[Array], Array], start: Array) -> tuple[Array, Array]:
    """Mode of a smooth density by damped Newton steps; returns it with the precision there.

    Args:
        log_joint: log density of a vector (dims,).
        start: where to begin, (dims,).
    """
    eye = jnp.eye(len(start))
    slope, curvature = jax.grad(log_joint), jax.hessian(log_joint)

    def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        u, damping = carry
        values, vectors = jnp.linalg.eigh(-curvature(u))
        move = vectors @ ((vectors.T @ slope(u)) / (jnp.maximum(jnp.abs(values), 1e-6) + damping))
        better = log_joint(u + move) >= log_joint(u)
        return (jnp.where(better, u + move, u), jnp.where(better, damping / 5, damping * 5 + 1e-3)), None

    (mode, _), _ = jax.lax.scan(step, (start, jnp.asarray(1e-3)), None, length=_NEWTON_STEPS)
    values, vectors = jnp.linalg.eigh(-curvature(mode))
    return mode, (vectors * jnp.maximum(values, 1e-6)) @ vectors.T + 1e-9 * eye


def marginal(log_joint: Callable[[Any, Array], Array], given: Any, start: Array) -> Array:
    """Laplace's approximation of log of the integral of exp(log_joint(given, u)) over u, differentiable in `given`.

    The mode depends on what is given; a last Newton step carries its derivative (implicit differentiation).

    Args:
        log_joint: log density of a vector (dims,), given arrays.
        given: those arrays, a pytree.
        start: where the search for the mode begins, (dims,).
    """
    fixed = jax.lax.stop_gradient(given)
    mode, precision = maximum(lambda u: log_joint(fixed, u), start)
    mode, precision = jax.lax.stop_gradient((mode, precision))
    mode = mode + jnp.linalg.solve(precision, jax.grad(log_joint, 1)(given, mode))
    curvature = -jax.hessian(log_joint, 1)(given, mode)
    return log_joint(given, mode) + 0.5 * len(start) * jnp.log(2 * jnp.pi) - 0.5 * jnp.linalg.slogdet(curvature)[1]


def integrate(
    key: Array, log_joint: Callable[[Array], Array], centre: Array, precision: Array, draws: int, at_once: int = 1000
) -> Weighted:
    """Importance sampling with a multivariate t about a centre.

    Args:
        key: random key.
        log_joint: log density of a vector (dims,).
        centre: (dims,).
        precision: (dims, dims).
        draws: number of draws.
        at_once: draws at which the density is evaluated at a time.
    """
    key_z, key_s = jax.random.split(key)
    dims = len(centre)
    root = jnp.linalg.cholesky(precision)
    z = jax.random.normal(key_z, (draws, dims))
    scale = jax.random.chisquare(key_s, _DEGREES, (draws, 1)) / _DEGREES
    unit = z / jnp.sqrt(scale)
    u = centre + jax.scipy.linalg.solve_triangular(root.T, unit.T, lower=False).T
    log_q = jax.vmap(lambda t: _log_student(t, dims))(unit) + jnp.log(jnp.diagonal(root)).sum()
    log_w = (jax.vmap(log_joint)(u) if draws <= at_once else jax.lax.map(log_joint, u, batch_size=at_once)) - log_q
    total = jax.scipy.special.logsumexp(log_w)
    weights = jnp.exp(log_w - total)
    error = jnp.sqrt(jnp.maximum(jnp.sum(weights**2) - 1 / draws, 0.0))
    return Weighted(u, weights, total - jnp.log(draws), error)


def _log_student(t: Array, dims: int) -> Array:
    gammaln = jax.scipy.special.gammaln
    norm = gammaln((_DEGREES + dims) / 2) - gammaln(_DEGREES / 2) - dims / 2 * jnp.log(_DEGREES * jnp.pi)
    return norm - (_DEGREES + dims) / 2 * jnp.log1p(t @ t / _DEGREES)
