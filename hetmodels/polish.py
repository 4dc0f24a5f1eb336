"""Poses moved off the grid: damped Newton steps on the log posterior of each image's rotation and shift.

The latents, contrast included, are integrated at every step, slices are cubic, so that the posterior is smooth in the
pose, A = exp(omega) A0 and t = t0 + s. Steps that lower it are refused, so a pose never becomes less likely. With the
curvature at the end goes the covariance of (omega, s) in Laplace's approximation.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Shared
from hetmodels.imaging.poses import PosePrior
from hetmodels.imaging.rotations import from_rotvec, to_rotvec
from hetmodels.local import collapsed_ratio
from hetmodels.observation import Observation
from hetmodels.tree import pytree

_DAMPING = 1e-2  # of the curvature's diagonal, at the start


@pytree
class Polished:
    """Poses at the top of the posterior.

    Attributes:
        rotation: (rows, 3, 3).
        shift: [Å], (rows, 2).
        covariance: of small rotations [rad] and shifts [Å] about them, (rows, 5, 5).
        gain: rise of the log posterior [nats], (rows,).
    """

    rotation: Array
    shift: Array
    covariance: Array
    gain: Array


@partial(jax.jit, static_argnames=("observation", "steps"))
def polished(
    family: Any, shared: Shared, observation: Observation, noise: Array, batch: Batch, prior: PosePrior, steps: int
) -> Polished:
    """Move the poses of a batch to the nearest top of their posterior.

    Args:
        family: a linear family.
        shared: its shared values.
        observation: how densities become images.
        noise: variance relative to the reference spectrum, (groups, shells).
        batch: images with the poses to start from.
        prior: of the poses.
        steps: Newton steps.
    """
    smooth = dataclasses.replace(family, order=3)
    rows, unit = len(batch.weight), jnp.asarray([1.0, 1, 1, *[observation.spacing] * 2], batch.weight.dtype)

    def place(u: Array) -> Batch:
        turn = from_rotvec(u[:, :3] * unit[:3])
        rotation = jnp.matmul(turn, batch.rotation, precision=jax.lax.Precision.HIGHEST)
        return dataclasses.replace(batch, rotation=rotation, shift=batch.shift + u[:, 3:] * unit[3:])

    def height(u: Array) -> Array:
        moved = place(u)
        ratio = collapsed_ratio(smooth, shared, moved, observation, noise, None)
        square = ((moved.shift - prior.shift) ** 2).sum(-1) / prior.shift_sd**2
        if np.isfinite(prior.rotation_sd):
            between = jnp.matmul(
                moved.rotation, jnp.swapaxes(prior.rotation, 1, 2), precision=jax.lax.Precision.HIGHEST
            )
            square = square + (to_rotvec(between) ** 2).sum(-1) / prior.rotation_sd**2
        return ratio - 0.5 * square

    def slope(u: Array) -> Array:
        return jax.grad(lambda v: height(v).sum())(u)

    def bend(u: Array) -> Array:
        each = jax.vmap(lambda e: jax.jvp(slope, (u,), (jnp.broadcast_to(e, u.shape),))[1])
        return -jnp.moveaxis(each(jnp.eye(5, dtype=u.dtype)), 0, -1)

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        u, value, damping = carry
        force, curvature = slope(u), bend(u)
        values, vectors = jnp.linalg.eigh(0.5 * (curvature + jnp.swapaxes(curvature, 1, 2)))
        scale = jnp.abs(values) + damping[:, None] * jnp.abs(values).max(1, keepdims=True) + 1e-6
        move = jnp.einsum("nij,nj,nkj,nk->ni", vectors, 1 / scale, vectors, force)
        fresh = u + move
        higher = height(fresh)
        good = higher > value
        u, value = jnp.where(good[:, None], fresh, u), jnp.where(good, higher, value)
        return (u, value, jnp.where(good, damping / 4, damping * 8)), None

    start = jnp.zeros((rows, 5), batch.weight.dtype)
    before = height(start)
    (u, after, _), _ = jax.lax.scan(step, (start, before, jnp.full(rows, _DAMPING)), None, length=steps)
    values, vectors = jnp.linalg.eigh(bend(u))
    covariance = jnp.einsum("nij,nj,nkj->nik", vectors, 1 / jnp.maximum(values, 1e-6), vectors)
    found = place(u)
    return Polished(found.rotation, found.shift, covariance * unit[:, None] * unit, after - before)
