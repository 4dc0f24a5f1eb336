"""Expectation-maximisation with moving parts: the E-step over views, and the step of the maps that move.

A view's expected residual goes back into its map at the view's own orientation, so the sums are one table per map.
Maps that overlap in an image but turn against each other meet at no common Fourier voxel. Their curvature is bounded
by that of each alone, |sum_l u_l|^2 <= L sum_l |u_l|^2 for L maps, and so the step never lowers the log posterior.
"""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.imaging import accumulate
from hetmodels.imaging.ball import Ball
from hetmodels.imaging.slices import Cells, Lattice
from hetmodels.local import centred_images, posterior_of
from hetmodels.moving import Seen, Views, rows_at_once, view_moments, view_slices, views_of
from hetmodels.observation import Observation, split_junk
from inference.expectation import Mode, Sums, softened
from inference.volume_step import certainty, volume_step

_COLUMNS = 3  # real and imaginary residual, curvature


def empty(lattice: Lattice, copies: int, maps: int) -> Any:
    """Nothing added up yet: a table of three columns for each map of each copy."""
    return accumulate.empty(lattice, copies * maps, _COLUMNS)


def expected(
    mode: Mode, family: Any, known: tuple, tables: Array, batch: Batch, target: float | Array
) -> Iterator[tuple[Cells, Array, Sums]]:
    """E-step of a batch, a few images at a time: see `inference.expectation.look` and `expect`."""
    views = views_of(family, known[0])
    rows = min(rows_at_once(mode.observation, views), len(batch.weight))
    for start in range(0, len(batch.weight), rows):
        index = np.arange(start, start + rows)
        real = index < len(batch.weight)
        part = _taken(batch, np.minimum(index, len(batch.weight) - 1), real.astype(np.float32))
        yield _expect(mode, views, known, tables, part, target)


@jax.jit
def _taken(batch: Batch, index: Array, real: Array) -> Batch:
    part = jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), batch)
    return dataclasses.replace(part, weight=part.weight * real.astype(part.weight.dtype))


@partial(jax.jit, static_argnums=0)
def _expect(
    mode: Mode, views: Views, known: tuple, tables: Array, batch: Batch, target: float | Array
) -> tuple[Cells, Array, Sums]:
    obs, lattice, (_, noise, junk) = mode.observation, mode.lattice, known
    variance, images = obs.pixel_variance(noise, batch.group), centred_images(batch, obs)
    copy = batch.half if mode.halves else jnp.zeros_like(batch.half)
    slices, cells, phase = view_slices(lattice, tables, batch, obs, views, copy)
    assign = (lambda joint: softened(joint, batch.weight, target)) if mode.assignment == "soft" else posterior_of
    seen = view_moments(views, images, slices, batch, obs, noise, assign)
    ratio, clean = split_junk(seen.log_ratio, obs, batch, variance, junk)
    weight = batch.weight * clean
    first, second = seen.first * weight[:, None], seen.second * weight[:, None]
    scale = (2 * batch.ctf / variance)[..., None]
    rest = images[..., None] * first[:, None, :] - batch.ctf[..., None] * _other_views(views, second, slices)
    residual = jnp.moveaxis(scale * rest * jnp.conj(phase), -1, 1)
    own = np.flatnonzero([i == j for i, j in views.pairs])
    curvature = jnp.moveaxis(scale * batch.ctf[..., None] * second[:, None, own], -1, 1)
    count = len(views.shift)
    sign = cells.sign.reshape(residual.shape)
    values = jnp.stack([residual.real, residual.imag * sign, curvature], axis=-1)
    place = (copy[:, None] * len(views.counts) + jnp.asarray(views.owner)) * lattice.rows
    cells = dataclasses.replace(cells, base=cells.base + place.reshape(-1, 1).astype(cells.base.dtype))
    flat = values.reshape(len(batch.weight) * count, -1, _COLUMNS)
    return cells, flat, _sums(obs, batch, seen, ratio + obs.zero_ratio(batch.images, variance), weight)


def _other_views(views: Views, second: Array, slices: Array) -> Array:
    """sum_w E[a^2 b_v b_w] x_w for every view v, (rows, pixels, views)."""
    count = len(views.shift)
    i, j = np.array(views.pairs).T
    full = jnp.zeros((len(second), count, count), second.dtype).at[:, i, j].set(second).at[:, j, i].set(second)
    exact = partial(jnp.einsum, "bml,bln->bmn", precision=jax.lax.Precision.HIGHEST)
    return jax.lax.complex(exact(slices.real, full), exact(slices.imag, full))


def _sums(obs: Observation, batch: Batch, seen: Seen, ratio: Array, weight: Array) -> Sums:
    one_hot = jax.nn.one_hot(batch.group, obs.groups)
    counts = jnp.asarray(obs.disc.shell_counts, seen.power.dtype)
    return Sums(
        jnp.sum(ratio * batch.weight),
        weight @ seen.responsibilities,
        one_hot.T @ (seen.power * weight[:, None]),
        jnp.outer(one_hot.T @ weight, counts),
        jnp.sum(batch.weight - weight),
        jnp.sum(batch.weight),
        jnp.sum(weight)[None, None],
    )


def moved(
    lattice: Lattice, total: Any, maps: Array, support: Array, spectra: Array, steps: int
) -> tuple[Array, tuple[Array, Array, Array]]:
    """New maps U of every copy, and how far the data determine them (`inference.volume_step.certainty`).

    Args:
        lattice: the padded grid.
        total: the sums.
        maps: present maps U, (copies, maps, N, N, N).
        support: their soft masks M, (maps, N, N, N).
        spectra: prior variances of U, (maps, shells).
        steps: conjugate-gradient steps.
    """
    copies, count = maps.shape[:2]
    sums = accumulate.table(total, _COLUMNS).reshape(copies, count, lattice.rows, _COLUMNS)
    pairs = tuple((i, i) for i in range(count))
    found, known = [], []
    for before, own in zip(maps, sums, strict=True):
        residual = jnp.concatenate([own[..., 0], own[..., 1]]).T
        weights = own[..., 2].T
        now, _ = volume_step(lattice, before, residual, count * weights, spectra, steps, pairs, support)
        found.append(now)
        precision, determined, _ = certainty(lattice, weights, spectra, pairs)
        # a mask that keeps a part of the box keeps that part of the degrees of freedom
        share = jnp.mean(support**2, axis=(1, 2, 3))[:, None, None, None]
        gain = jnp.log1p(precision * jnp.maximum(spectra, 1e-30)[:, Ball(lattice.size).shell])
        known.append((precision, share * determined, (share * gain).sum(0)))
    return jnp.stack(found), tuple(jnp.stack(parts) for parts in zip(*known, strict=True))  # type: ignore[return-value]
