"""Slices of a finer grid over all rotations, made once for many images that look at the same cells.

When cells are split, images ask for the same children again and again. Their slices are interpolated once, the eight
children of a parent in one block laid out as the products want them, and each image is multiplied with the blocks of
its own parents, a few at a time, so that they stay in the processor's cache. Against interpolating every image's own
slices this takes a quarter of the processor time (64 px, three classes, 128 parents per image).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.imaging.poses import RotationGrid, Sphere
from hetmodels.scoring import Templates, latent_ratio, slices_at
from hetmodels.selection import Cells
from hetmodels.tree import pytree

_BYTES = 1.5e9  # of a bank at most
_PIECE = 32  # parents whose slices are interpolated at once
_CACHED = 2**18  # numbers of a bank that are multiplied at once
_HIGHEST = jax.lax.Precision.HIGHEST


@pytree
class Bank:
    """Slices of the children of some cells.

    Attributes:
        place: number of the block of each parent cell, (copies, cells); of no meaning for cells that have none.
        blocks: slices, real then imaginary parts, (blocks, 8 children, components, 2 pixels).
    """

    place: Array
    blocks: Array


def bank_for(
    templates: Templates, parent: RotationGrid, found: Cells, turn: Array, batch: Batch, copy: Array, limit: int
) -> Bank | None:
    """The slices that some images need when their cells are split; None where sharing them gains nothing.

    Args:
        templates: the maps.
        parent: the grid that is split.
        found: what is kept of it.
        turn: what the grid is turned by, (rows, 3, 3).
        batch: the images, for their stretches.
        copy: which copy of the maps each is compared with, (rows,).
        limit: band of the children's scores.
    """
    if not isinstance(parent, Sphere) or jax.default_backend() != "cpu":
        return None
    stretch, of = np.asarray(batch.stretch), np.asarray(copy)
    asked = np.arange(found.code.shape[1]) < np.asarray(found.rotations)[:, None]
    keys = (np.asarray(found.code) + parent.cells * of[:, None])[asked]
    needed = np.unique(keys)
    pixels, copies = templates.observation.disc.narrowed(limit).pixels, int(of.max()) + 1
    size = min(1 << (len(needed) - 1).bit_length(), copies * parent.cells)
    bytes_needed = size * 8 * templates.tables.shape[1] * pixels * templates.tables.dtype.itemsize
    if 2 * len(needed) > len(keys) or bytes_needed > _BYTES or np.ptp(stretch, axis=0).any():
        return None
    place = np.zeros(copies * parent.cells, np.int32)
    place[needed] = np.arange(len(needed))
    size = -(-size // _PIECE) * _PIECE
    keys = np.pad(needed, (0, size - len(needed)), mode="edge")
    pieces = np.asarray(-(-len(needed) // _PIECE), np.int32)
    blocks = _blocks(templates, parent, keys, turn[:1], jnp.asarray(stretch[0]), pieces, limit)
    return Bank(jnp.asarray(place.reshape(copies, -1)), blocks)


@partial(jax.jit, static_argnames="limit")
def _blocks(
    templates: Templates, parent: Sphere, keys: Array, turn: Array, stretch: Array, pieces: Array, limit: int
) -> Array:
    """Blocks of the first `pieces` times _PIECE of some cells, numbered through the copies of the maps."""
    finer, pixels = parent.finer(), templates.observation.disc.narrowed(limit).pixels
    stretch = jnp.broadcast_to(stretch, (8 * _PIECE, 2, 2))

    def add(number: Array, blocks: Array) -> Array:
        key = jax.lax.dynamic_slice_in_dim(keys, number * _PIECE, _PIECE)
        code = parent.children((key % parent.cells)[None])
        copy = jnp.repeat(key // parent.cells, 8)
        found = slices_at(templates, finer.rotation(code, turn)[0], stretch, copy, limit)
        found = jax.lax.optimization_barrier(jnp.moveaxis(found, -1, 1))  # lest it be interpolated for each part
        packed = jnp.concatenate([found.real, found.imag], -1).reshape(_PIECE, *blocks.shape[1:])
        return jax.lax.dynamic_update_slice_in_dim(blocks, packed, number * _PIECE, 0)

    empty = jnp.zeros((len(keys), 8, templates.tables.shape[1] // 2, 2 * pixels), templates.tables.dtype)
    return jax.lax.fori_loop(0, pieces, add, empty)


def packed_scores(
    templates: Templates, bank: Bank, copy: Array, left: Array, weight: Array, parents: Array, count: Array
) -> Array:
    """Log p(y | pose) - log p(y | noise only) of one image at the children of its cells, (shifts, 8 parents).

    Args:
        templates: family and layout.
        bank: the slices.
        copy: of the maps, ().
        left, weight: of the image, from `image_side`, (shifts, 2 pixels) and (pixels,).
        parents: cells, (parents,).
        count: how many of them count, (); scores of the others are minus infinity, or those of a cell that is near.
    """
    total, (children, components, width) = len(parents), bank.blocks.shape[1:]
    step = 1 << max(0, (_CACHED // (children * components * width)).bit_length() - 1)
    step = min(step, total)
    padded = jnp.pad(parents, (0, -total % step), mode="edge")
    i, j = np.array(templates.pairs).T
    both = jnp.concatenate([weight, weight])

    def add(number: Array, scores: Array) -> Array:
        own = jax.lax.dynamic_slice_in_dim(padded, number * step, step)
        x = bank.blocks[bank.place[copy, own]].reshape(-1, components, width)
        cross = jnp.dot(left, x.reshape(-1, width).T, precision=_HIGHEST).reshape(len(left), -1, components)
        square = (x[:, i] * x[:, j]).reshape(-1, width)
        gram = jnp.dot(square, both, precision=_HIGHEST).reshape(-1, len(i))
        part = latent_ratio(templates, cross[None], gram[None])[0]
        return jax.lax.dynamic_update_slice_in_dim(scores, part, number * step * children, 1)

    empty: Any = jnp.full((len(left), children * len(padded)), -jnp.inf, left.dtype)
    steps = (count + step - 1) // step
    return jax.lax.fori_loop(0, steps, add, empty)[:, : children * total]
