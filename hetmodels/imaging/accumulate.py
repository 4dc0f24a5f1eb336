"""Back-projection sums over many batches: the exact adjoint of slicing, kept as a table of real columns.

On the CPU the weighted rows form a sparse matrix and SciPy multiplies it into a float64 total (measured against XLA's
scatter: 1.5 times the slices per CPU second at 3 columns, 3.5 times at 9), ring of pixels by ring of pixels (3 to 5
times the rate of slice by slice where memory is slow); elsewhere XLA scatters. Both are tested to be equal.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.sparse import csc_matrix

from hetmodels.imaging.slices import Cells, Lattice

_RUNS = 0.8  # of slices that differ from the one before; with more, adding runs first gains nothing
_LOOK = 16  # pixels that are compared at first


def empty(lattice: Lattice, copies: int, columns: int) -> np.ndarray | Array:
    """Zeros for `columns` sums over `copies` tables, laid out as `add` wants them on this backend."""
    if jax.default_backend() == "cpu":
        return np.zeros((copies * lattice.rows, columns))
    return jnp.zeros(copies * lattice.rows * columns)


def add(lattice: Lattice, total: np.ndarray | Array, cells: Cells, values: Array) -> np.ndarray | Array:
    """Add the pixels of some slices to the rows they touch.

    Args:
        lattice: the padded grid.
        total: what `empty` or a former `add` returned; it is consumed.
        cells: where the pixels fall.
        values: real columns, (slices, pixels, columns); imaginary parts times `cells.sign`.

    Returns:
        The new total.
    """
    if isinstance(total, np.ndarray):
        return _add_on_host(lattice, total, cells, values)
    return _add_on_device(lattice, total, cells, values)


def table(total: np.ndarray | Array, columns: int) -> Array:
    """The total as a device array (rows, columns)."""
    if isinstance(total, np.ndarray):
        return jnp.asarray(total)
    return total.reshape(columns, -1).T


def _add_on_host(lattice: Lattice, total: np.ndarray, cells: Cells, values: Array) -> np.ndarray:
    cells, added = _runs_added(cells, np.asarray(values))
    rows, weights = np.asarray(_rows(lattice, cells)), np.asarray(_weights(lattice, cells))
    added = np.ascontiguousarray(added.swapaxes(0, 1)).reshape(-1, added.shape[-1])
    starts = np.arange(0, rows.size + 1, lattice.taps, dtype=np.int32)
    spread = csc_matrix((weights.reshape(-1), rows.reshape(-1), starts), shape=(len(total), len(added)), copy=False)
    total += spread @ added
    return total


def _runs_added(cells: Cells, values: np.ndarray) -> tuple[Cells, np.ndarray]:
    """Runs of slices that fall on the same places as one slice, where there are enough of them."""
    first, quarter = _first_of_alike(cells), -(-len(cells.base) // 4)
    if len(first) >= _RUNS * len(values):
        return cells, values
    more = -len(first) % quarter  # of few different sizes
    added = np.pad(np.add.reduceat(values, first, axis=0), ((0, more), (0, 0), (0, 0)))
    return _taken(cells, np.pad(first, (0, more), mode="edge")), added


def _first_of_alike(cells: Cells) -> np.ndarray:
    """Numbers of the slices that do not fall where the one before them does: runs of alike slices are added first."""
    base, fraction = np.asarray(cells.base), np.asarray(cells.fraction)
    moved = (base[1:, :_LOOK] != base[:-1, :_LOOK]).any(1)
    if moved.mean() < _RUNS:  # else no need to look at all pixels
        moved = (base[1:] != base[:-1]).any(1) | (fraction[:, 1:] != fraction[:, :-1]).any((0, 2))
    return np.flatnonzero(np.append(True, moved))


@jax.jit
def _taken(cells: Cells, index: np.ndarray | Array) -> Cells:
    return Cells(cells.base[index], cells.fraction[:, index], cells.sign[index], cells.inside[index])


@partial(jax.jit, static_argnums=0)
def _rows(lattice: Lattice, cells: Cells) -> Array:
    return _by_pixel(cells).base[..., None] + lattice.offsets


@partial(jax.jit, static_argnums=0)
def _weights(lattice: Lattice, cells: Cells) -> Array:
    return lattice.tap_weights(_by_pixel(cells))


def _by_pixel(cells: Cells) -> Cells:
    """The same cells with pixels first: pixels of one ring lie in a thin shell of the table, which a cache holds."""
    return Cells(cells.base.T, jnp.swapaxes(cells.fraction, 1, 2), cells.sign.T, cells.inside.T)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _add_on_device(lattice: Lattice, total: Array, cells: Cells, values: Array) -> Array:
    return lattice.scatter(total, cells, list(jnp.moveaxis(values, -1, 0)))
