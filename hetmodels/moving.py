"""Families whose parts move, through the statistics of static ones: every part at every placement is a component.

A *view* is a map with a rotation Q and a shift t; at a node of the latent a particle is a sum of views. Views that
nodes share, such as a part that stays, are computed once. With x_v = C S(R t_v) P(R Q_v) X_l(v) in place of the slices
of components, all that is said in `hetmodels.local` holds.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.families.protocol import Shared, shown
from hetmodels.imaging.grids import phase_ramp
from hetmodels.imaging.slices import Cells, Lattice
from hetmodels.local import (
    Assignment,
    Local,
    Pairs,
    at_poses_of,
    centred_images,
    component_lattice,
    posterior_of,
    shell_statistics,
)
from hetmodels.observation import Observation, marginal_ratio, split_junk
from hetmodels.tree import pytree, static

POINTS = 2**21  # Fourier pixels of views that are in memory at a time


@pytree
class Views:
    """The placements of a family's maps at the nodes of its latent, ordered by map.

    Attributes:
        nodes: coordinates z of the nodes, (nodes, dims).
        log_weights: their log prior weights, (nodes,).
        rotation: Q_v, (views, 3, 3).
        shift: t_v [Å], (views, 3).
        design: weight of each view at each node, (nodes, views).
        counts: number of views of each map.
        pairs: pairs (v <= w) of views that are seen together; each with itself.
    """

    nodes: Array
    log_weights: Array
    rotation: Array
    shift: Array
    design: Array
    counts: tuple[int, ...] = static()
    pairs: Pairs = static()

    @property
    def owner(self) -> np.ndarray:
        """The map of each view, (views,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def products(self) -> Array:
        """Product of the weights of each pair at each node, (nodes, pairs)."""
        i, j = np.array(self.pairs).T
        return self.design[:, i] * self.design[:, j]


def views_of(family: Any, shared: Shared) -> Views:
    """All placements of a family's maps; equal ones are one, where the nodes are known when this is traced."""
    nodes, log_weights = family.grids(shared)
    with jax.ensure_compile_time_eval():
        parts = jax.vmap(family.design)(nodes)
    if isinstance(parts.rotation, jax.core.Tracer):
        return _every(nodes, log_weights, parts)
    weight, rotation, shift = (np.asarray(x) for x in (parts.weight, parts.rotation, parts.shift))
    count, columns, counts, kept = len(weight), [], [], []
    for part in range(weight.shape[1]):
        flat = np.concatenate([rotation[:, part].reshape(count, 9), shift[:, part]], axis=1)
        _, first, own = np.unique(np.round(flat, 5), axis=0, return_index=True, return_inverse=True)
        column = np.zeros((count, len(first)), np.float32)
        column[np.arange(count), own.reshape(-1)] = weight[:, part]
        columns.append(column)
        counts.append(len(first))
        kept.append((rotation[first, part], shift[first, part]))
    design = np.concatenate(columns, axis=1)
    seen = (design != 0).astype(np.float32)
    i, j = np.nonzero(np.triu(seen.T @ seen + np.eye(seen.shape[1])))
    turns, shifts = (jnp.asarray(np.concatenate(x), jnp.float32) for x in zip(*kept, strict=True))
    pairs = tuple(zip(i.tolist(), j.tolist(), strict=True))
    return Views(nodes, log_weights, turns, shifts, jnp.asarray(design), tuple(counts), pairs)


def _every(nodes: Array, log_weights: Array, parts: Any) -> Views:
    """One view for each map and node."""
    count, maps = parts.weight.shape
    number = lambda part, node: part * count + node  # noqa: E731
    pairs = [(number(a, n), number(b, n)) for n in range(count) for a in range(maps) for b in range(a, maps)]
    design = (jnp.eye(count)[:, None, :] * parts.weight[:, :, None]).reshape(count, -1)
    turns = jnp.moveaxis(parts.rotation, 1, 0).reshape(-1, 3, 3)
    shifts = jnp.moveaxis(parts.shift, 1, 0).reshape(-1, 3)
    return Views(nodes, log_weights, turns, shifts, design, (count,) * maps, tuple(pairs))


def rows_at_once(observation: Observation, views: Views) -> int:
    """Images whose views fit in memory together."""
    return max(1, POINTS // (observation.disc.pixels * len(views.shift)))


def view_slices(
    lattice: Lattice, table: Array, batch: Batch, obs: Observation, views: Views, copy: Array | None = None
) -> tuple[Array, Cells, Array]:
    """Every view of every image before CTF.

    Args:
        lattice: the padded grid.
        table: of the maps X_l, (rows, 2 maps); of several copies of them, one below the other.
        batch: the images.
        obs: the measurement.
        views: the placements.
        copy: which copy each image is compared with, (rows,); the first if None.

    Returns:
        Slices shifted by t_v (rows, pixels, views), where their pixels fall (rows * views slices, view by view within
        an image), and the phases of the shifts (rows, pixels, views).
    """
    points = obs.disc.grid(obs.spacing).points
    rows, count = len(batch.weight), len(views.shift)
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    turned = exact("bij,vjk->bvik", batch.rotation, views.rotation).reshape(rows * count, 3, 3)
    stretch = jnp.repeat(batch.stretch, count, axis=0)
    cells = lattice.cells(turned, points, stretch)
    moved = exact("bij,vj->bvi", batch.rotation, views.shift)[..., :2]
    seen = exact("mi,bij->bmj", points, batch.stretch)
    phase = jax.vmap(phase_ramp)(seen, moved)  # (rows, views, pixels)
    shape = (rows, count, obs.disc.pixels)
    below = jnp.zeros(rows, jnp.int32) if copy is None else copy * lattice.rows
    base = cells.base.reshape(shape) + below[:, None, None]
    grid = Cells(base, cells.fraction.reshape(3, *shape), cells.sign.reshape(shape), cells.inside.reshape(shape))
    maps, parts = table.shape[1] // 2, []
    for part, where in enumerate(np.split(np.arange(count), np.cumsum(views.counts)[:-1])):
        own = jax.tree.map(lambda x: x[..., where, :], grid)  # noqa: B023
        parts.append(lattice.gather(table[:, [part, maps + part]], own)[..., 0])
    slices = jnp.concatenate(parts, axis=1) * phase
    return jnp.moveaxis(slices, 1, -1), cells, jnp.moveaxis(phase, 1, -1)


@pytree
class Seen:
    """Posterior moments of the weights b_v of the views, contrast a included, and of the latent.

    Attributes:
        log_ratio: log p(y) - log p(y | noise only), without junk, (rows,).
        first: E[a b], (rows, views).
        second: E[a^2 b_v b_w] of the pairs, (rows, pairs).
        responsibilities: (rows, nodes).
        contrast: E[a], (rows,).
        power: E|y - a sum_v b_v x_v|^2 per shell, (rows, shells).
    """

    log_ratio: Array
    first: Array
    second: Array
    responsibilities: Array
    contrast: Array
    power: Array


def view_moments(
    views: Views, images: Array, slices: Array, batch: Batch, obs: Observation, noise: Array,
    assign: Assignment = posterior_of,
) -> Seen:  # fmt: skip
    """Enumerate the nodes for some images.

    Args:
        views: the placements.
        images: centred, (rows, pixels).
        slices: see `view_slices`.
        batch: the images' CTF and groups.
        obs: the measurement.
        noise: (groups, shells).
        assign: node probabilities from log prior plus log likelihood; an engine may soften them.
    """
    found = shell_statistics(images, slices, batch.ctf, obs.disc, views.pairs)
    variance = noise[batch.group]
    weight = jnp.where(variance > 0, 1 / variance, 0)[:, None, :]
    h, gram = (found.cross * weight).sum(-1), (found.square * weight).sum(-1)
    i, j = np.array(views.pairs).T
    twice = jnp.asarray(np.where(i == j, 1.0, 2.0), h.dtype)
    exact = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    ratio, first, second = marginal_ratio(exact(h, views.design.T), exact(gram * twice, views.products.T), obs.contrast)
    joint = ratio + views.log_weights
    posterior = assign(joint)
    b, bb = exact(posterior * first, views.design), exact(posterior * second, views.products)
    power = found.power - (b[..., None] * found.cross).sum(1) + ((bb * twice)[..., None] * found.square).sum(1)
    return Seen(jax.scipy.special.logsumexp(joint, axis=1), b, bb, posterior, (posterior * first).sum(1), power)


def _in_parts(family: Any, shared: Shared, batch: Batch, obs: Observation, noise: Array) -> tuple[Seen, Views]:
    """The moments of a batch of any size, a few images at a time."""
    lattice, views = component_lattice(family), views_of(family, shared)
    table = lattice.table(shown(family, shared))

    def one(row: Batch) -> Seen:
        single = jax.tree.map(lambda leaf: leaf[None], row)
        slices, _, _ = view_slices(lattice, table, single, obs, views)
        seen = view_moments(views, centred_images(single, obs), slices, single, obs, noise)
        return jax.tree.map(lambda leaf: leaf[0], seen)

    return jax.lax.map(one, batch, batch_size=rows_at_once(obs, views)), views


def moving_ratio(
    family: Any, shared: Shared, batch: Batch, obs: Observation, noise: Array, junk: Array | None
) -> Array:
    """log p(y | shared) - log p(y | noise only) with latents, contrast and junk integrated, (rows,)."""
    seen, _ = _in_parts(family, shared, batch, obs, noise)
    return split_junk(seen.log_ratio, obs, batch, obs.pixel_variance(noise, batch.group), junk)[0]


def moving_power(family: Any, shared: Shared, batch: Batch, obs: Observation, noise: Array) -> Array:
    """Expected residual power per shell, (rows, shells)."""
    return _in_parts(family, shared, batch, obs, noise)[0].power


def moving_local(
    family: Any, shared: Shared, batch: Batch, obs: Observation, noise: Array, junk: Array | None
) -> Local:
    """The posterior of the latents at known poses: mean and covariance of the nodes' coordinates."""
    seen, views = _in_parts(family, shared, batch, obs, noise)
    total, clean = split_junk(seen.log_ratio, obs, batch, obs.pixel_variance(noise, batch.group), junk)
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    mean = exact("bn,nd->bd", seen.responsibilities, views.nodes)
    about = views.nodes[None] - mean[:, None]
    covariance = exact("bn,bnd,bne->bde", seen.responsibilities, about, about)
    return at_poses_of(batch, (mean, covariance, jnp.ones((len(mean), 1)), seen.contrast), total, clean)
