"""The volume solver of every linear family: one step of minorise-maximise on the maps.

With the residual back-projected (R = P* 2C/sigma^2 (y E[b] - C P X E[bb^T])) and the weights H of the same kernel
summed, the log posterior has at X the gradient F* R - T X, and  F* diag(H) F + T  bounds its curvature from above
(Jensen, the kernel's weights sum to at most 1). Conjugate gradients on that bound, started at the present maps, never
lower the log posterior, however few the steps. F is the transform onto the padded grid and T = 1/tau^2 the prior.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from hetmodels.imaging.ball import Ball
from hetmodels.imaging.slices import Lattice
from hetmodels.local import Pairs


@partial(jax.jit, static_argnames=("lattice", "steps", "pairs"))
def volume_step(
    lattice: Lattice,
    maps: Array,
    residual: Array,
    weights: Array,
    spectra: Array,
    steps: int,
    pairs: Pairs,
    support: Array | None = None,
) -> tuple[Array, Array]:
    """New maps, and by how much at least the log posterior rises [nats].

    Args:
        lattice: the padded grid.
        maps: present maps X, (components, N, N, N), in the band.
        residual: R, (rows, 2 components): real parts, then imaginary.
        weights: H, (rows, pairs).
        spectra: tau^2, (components, shells).
        steps: conjugate-gradient steps.
        pairs: which components l <= m the columns of H couple; (l, l) is among them for each l.
        support: soft masks through which the maps are seen, (components, N, N, N); all of them if None.
    """
    ball = Ball(lattice.size)
    count = len(maps)
    seen = 1.0 if support is None else support
    prior = jnp.where(spectra > 0, 1 / jnp.maximum(spectra, 1e-30), 0.0)

    def mix(columns: Array) -> Array:
        total = [jnp.zeros_like(columns[:, 0])] * (2 * count)
        for weight, (i, j) in zip(weights.T, pairs, strict=True):
            for half in (0, count):
                total[half + i] = total[half + i] + weight * columns[:, half + j]
                if i != j:
                    total[half + j] = total[half + j] + weight * columns[:, half + i]
        return jnp.stack(total, axis=1)

    def prior_force(x: Array) -> Array:
        return lattice.size * ball.filter(x, prior)

    def curvature(x: Array) -> Array:
        return _in_band(ball, seen * lattice.adjoint(mix(lattice.table(seen * x)))) + prior_force(x)

    precision = jnp.stack([data_precision(lattice, weights[:, pairs.index((i, i))]) for i in range(count)])
    inverse = 1 / (precision + prior[:, ball.shell] + 1e-20) * ball.mask / lattice.size

    def precondition(x: Array) -> Array:
        return ball.map(ball.transform(x) * inverse)

    gradient = _in_band(ball, seen * lattice.adjoint(residual)) - prior_force(maps)
    move = _conjugate_gradients(curvature, precondition, gradient, steps)
    return maps + move, 0.5 * jnp.sum(gradient * move)


def _in_band(ball: Ball, x: Array) -> Array:
    return ball.filter(x, jnp.ones(ball.shells))


def _conjugate_gradients(apply, precondition, target: Array, steps: int) -> Array:  # noqa: ANN001
    """A few preconditioned steps from zero, one system per component coupled through `apply`."""

    def body(_: int, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        x, r, p, rz = carry
        ap = apply(p)
        alpha = rz / jnp.maximum(jnp.sum(p * ap), 1e-30)
        x, r = x + alpha * p, r - alpha * ap
        z = precondition(r)
        new = jnp.sum(r * z)
        return x, r, z + new / jnp.maximum(rz, 1e-30) * p, new

    z = precondition(target)
    start = (jnp.zeros_like(target), target, z, jnp.sum(target * z))
    return jax.lax.fori_loop(0, steps, body, start)[0]


@partial(jax.jit, static_argnames=("lattice", "pairs"))
def certainty(
    lattice: Lattice, weights: Array, spectra: Array, pairs: Pairs, masks: Array | None = None
) -> tuple[Array, Array, Array]:
    """How far the data determine each Fourier voxel of the maps, voxels taken as independent, components jointly.

    Of masked maps the data see a part only: as many directions as the mask has of the box are determined as the whole
    would be, the others not at all.

    Args:
        lattice: the padded grid.
        weights: H, see `volume_step`.
        spectra: tau^2, (components, shells).
        pairs: see `volume_step`.
        masks: of the maps, (components, N, N, N): 1 for the first and the same for all others.

    Returns:
        The data's precision of each component (components, N, N, N//2+1); the share of the posterior that is theirs
        and not the prior's, 1 - posterior over prior variance, likewise; and log det(1 + tau H tau), (N, N, N//2+1).
    """
    prior = 1 / jnp.maximum(spectra, 1e-30)[:, Ball(lattice.size).shell]
    count = len(spectra)
    entries = {pair: data_precision(lattice, weight) for pair, weight in zip(pairs, weights.T, strict=True)}
    h = jnp.stack([entries[i, i] for i in range(count)])
    if len(pairs) == count:
        return h, h / (h + prior), jnp.log1p(h / prior).sum(0)
    whole = jnp.zeros((*prior.shape[1:], count, count)) + jnp.eye(count)
    for (i, j), entry in entries.items():
        scaled = entry / jnp.sqrt(prior[i] * prior[j])
        whole = whole.at[..., i, j].add(scaled)
        whole = whole if i == j else whole.at[..., j, i].add(scaled)
    determined = 1 - jnp.moveaxis(jnp.diagonal(jnp.linalg.inv(whole), axis1=-2, axis2=-1), -1, 0)
    determined, log_det = jnp.clip(determined, 0, 1), jnp.linalg.slogdet(whole)[1]
    if masks is None:
        return h, determined, log_det
    inside = jnp.mean(masks[-1] ** 2)
    alone = jnp.zeros_like(h).at[0].set(h[0] / (h[0] + prior[0]))
    log_det = inside * log_det + (1 - inside) * jnp.log1p(h[0] / prior[0])
    return h, inside * determined + (1 - inside) * alone, log_det


@partial(jax.jit, static_argnames="lattice")
def data_precision(lattice: Lattice, weights: Array) -> Array:
    """What the data say of each Fourier voxel of the map, in units of 1/tau^2: (rows,) -> (N, N, N//2+1).

    The mass of H around each voxel of the unpadded grid; the posterior variance of V^ there is about
    1/(precision + 1/tau^2).
    """
    edge = lattice.padded
    if lattice.padding > 2:
        raise ValueError(f"data_precision: the grid must be padded once or twice, not {lattice.padding} times.")
    grid = lattice.interior(weights)
    plane = grid[:, :, 0]
    mirrored = jnp.roll(plane[::-1, ::-1], (1, 1), axis=(0, 1)) if edge % 2 == 0 else plane[::-1, ::-1]
    grid = grid.at[:, :, 0].add(mirrored)
    if lattice.padding == 2:
        for axis in range(2):
            grid = grid + 0.5 * (jnp.roll(grid, 1, axis) + jnp.roll(grid, -1, axis))
        left = jnp.concatenate([jnp.roll(grid[:, :, 1:2][::-1, ::-1], (1, 1), axis=(0, 1)), grid[:, :, :-1]], axis=2)
        right = jnp.concatenate([grid[:, :, 1:], grid[:, :, -2:-1]], axis=2)
        grid = grid + 0.5 * (left + right)
    return 0.5 * jnp.fft.ifftshift(grid, axes=(0, 1))[:: lattice.padding, :: lattice.padding, :: lattice.padding]
