"""The E-step of linear families on one batch: slices, posterior of the latents, and what it adds to the sums."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.imaging.slices import Cells, Lattice
from hetmodels.local import Design, Pairs, centred_images, design_moments, posterior_of, shell_statistics
from hetmodels.observation import Observation, split_junk
from hetmodels.tree import pytree


@pytree
class Sums:
    """What a pass adds up over particles, float64 on the host.

    Attributes:
        log_ratio: sum of log p(y | shared) - log p(y | noise of the reference spectrum).
        occupancy: expected particles per node, (nodes,).
        residual: expected residual power, (groups, shells).
        count: pixels that went into it, (groups, shells).
        junk: expected number of junk images.
        particles: number of images.
        latent: sum of E[(1, z) (1, z)^T] of each Gaussian that a latent comes from, (Gaussians, 1 + dims, 1 + dims);
            dims is 0 without one.
    """

    log_ratio: Any
    occupancy: Any
    residual: Any
    count: Any
    junk: Any
    particles: Any
    latent: Any


def no_sums(groups: int, shells: int, nodes: int, dims: int) -> Sums:
    """Nothing added up yet."""
    zero, edge = np.zeros, 1 + dims
    spectra = zero((groups, shells)), zero((groups, shells))
    return Sums(zero(()), zero(nodes), *spectra, zero(()), zero(()), zero((nodes if dims else 1, edge, edge)))


@dataclasses.dataclass(frozen=True)
class Mode:
    """What of the E-step is compiled in."""

    observation: Observation
    lattice: Lattice
    halves: bool
    assignment: str
    pairs: Pairs


@partial(jax.jit, static_argnums=0)
def look(mode: Mode, tables: Array, batch: Batch) -> tuple[Cells, Array, Array]:
    """Where the pixels fall, the centred images, and the component slices.

    Compiled apart from `expect`: in one program XLA repeats the gathers in every use of the slices.
    """
    obs, lattice = mode.observation, mode.lattice
    points = obs.disc.grid(obs.spacing).points.astype(batch.rotation.dtype)
    cells = lattice.cells(batch.rotation, points, batch.stretch)
    if mode.halves:
        cells = dataclasses.replace(cells, base=cells.base + (batch.half * lattice.rows)[:, None])
    return cells, centred_images(batch, obs), lattice.gather(tables, cells)


@partial(jax.jit, static_argnums=0)
def expect(
    mode: Mode, family: Any, known: tuple, batch: Batch, view: tuple, target: float | Array, key: Array
) -> tuple[Array, Sums]:
    """E-step of a batch: what its pixels add, and the other sums."""
    obs, (shared, noise, junk), (_, images, slices) = mode.observation, known, view
    variance = obs.pixel_variance(noise, batch.group)
    found = shell_statistics(images, slices, batch.ctf, obs.disc, mode.pairs)
    assign = {
        "posterior": posterior_of,
        "soft": lambda joint: softened(joint, batch.weight, target),
        "random": lambda joint: _random(joint, key, batch.index),
    }[mode.assignment]
    design = design_moments(family, shared, *found.weighted(noise[batch.group]), obs.contrast, assign)
    ratio, clean = split_junk(design.log_ratio, obs, batch, variance, junk)
    weight = batch.weight * clean
    first, second = design.first * weight[:, None], design.second * weight[:, None, None]
    values = contributions(mode, batch, view, variance, (first, second))
    weighted = dataclasses.replace(found, power=found.power * weight[:, None])
    power = weighted.expected_power(first, second)
    zero = obs.zero_ratio(batch.images, variance)
    return values, _sums(obs, batch, design, ratio + zero, weight, power)


def contributions(mode: Mode, batch: Batch, view: tuple, variance: Array, moments: tuple[Array, Array]) -> Array:
    """What the pixels of a batch add to the back-projections, (rows, pixels, columns).

    Args:
        mode: of the E-step.
        batch: the images.
        view: signs of the cells, centred images and component slices; see `look`.
        variance: of each pixel, (rows, pixels).
        moments: E[a b] and E[a^2 b b^T] of each image, times its weight.
    """
    (sign, images, slices), (first, second) = view, moments
    i, j = np.array(mode.pairs).T
    if len(mode.pairs) == first.shape[1]:
        model = slices * second[:, None, i, i]
    else:
        model = jnp.einsum("bml,bln->bmn", slices, second)
    scale = (2 * batch.ctf / variance)[..., None]
    residual = scale * (images[..., None] * first[:, None, :] - batch.ctf[..., None] * model)
    curvature = scale * batch.ctf[..., None] * second[:, None, i, j]
    return jnp.concatenate([residual.real, residual.imag * sign[..., None], curvature], axis=-1)


def _random(joint: Array, key: Array, index: Array) -> Array:
    """Every image to one node, evenly and at random; the same one at all of its poses."""
    node = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(key, i), (), 0, joint.shape[1]))(index)
    return jax.nn.one_hot(node, joint.shape[1])


def softened(joint: Array, weight: Array, target: float | Array) -> Array:
    """Node probabilities raised to 1/T, with T such that their mean effective number reaches the target."""

    def number(log_t: Array) -> Array:
        p = jax.nn.softmax(joint * jnp.exp(-log_t), axis=1)
        return jnp.sum(weight / jnp.sum(p**2, axis=1)) / jnp.maximum(jnp.sum(weight), 1)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (bounds[0] + bounds[1]) / 2
        low = number(middle) < target
        return jnp.where(low, middle, bounds[0]), jnp.where(low, bounds[1], middle)

    _, high = jax.lax.fori_loop(0, 20, halve, (jnp.zeros(()), jnp.asarray(8.0)))
    return jax.nn.softmax(joint * jnp.exp(-high), axis=1)


def _sums(obs: Observation, batch: Batch, design: Design, ratio: Array, weight: Array, power: Array) -> Sums:
    one_hot = jax.nn.one_hot(batch.group, obs.groups)
    counts = jnp.asarray(obs.disc.shell_counts, power.dtype)
    return Sums(
        jnp.sum(ratio * batch.weight),
        weight @ design.responsibilities,
        one_hot.T @ power,
        jnp.outer(one_hot.T @ weight, counts),
        jnp.sum(batch.weight - weight),
        jnp.sum(batch.weight),
        _latent_moments(design, weight),
    )


def _latent_moments(design: Design, weight: Array) -> Array:
    """Sum over images of E[(1, z) (1, z)^T], Gaussian by Gaussian."""
    if design.each is not None:
        return jnp.tensordot(weight, design.each, 1)
    point = jnp.concatenate([jnp.ones_like(weight)[:, None], design.mean], axis=1)
    spread = jnp.tensordot(weight, design.covariance, 1)
    return jnp.einsum("b,bi,bj->ij", weight, point, point).at[1:, 1:].add(spread)[None]
