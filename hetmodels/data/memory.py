"""How much memory reading a particle set will take, before it is read."""

import sys

import jax
import numpy as np

from hetmodels.data.packed import CHUNK
from hetmodels.data.particles import Particles


def predict_memory(particles: Particles, rows: int, prefetch: int = 2) -> dict[str, int]:
    """Bytes that a pass over the particles in batches takes, memory-mapped pixels not counted.

    Args:
        particles: the set.
        rows: particles in a batch.
        prefetch: batches made ahead, as in `Particles.batches`.

    Returns:
        `table` (poses, CTF, names), `cache` (coefficients kept), `reading` (one chunk being transformed and the
        coefficients of one batch on the host), `batches` (on the device: those ahead, the one in use, one
        being made and its scratch); `total`.
    """
    packed = particles.packed
    chunk = min(CHUNK, rows * 4 * packed.source.box**2)
    per_row = packed.disc.pixels
    parts = {
        "table": _table_bytes(particles),
        "cache": packed.nbytes if packed.resident else 0,
        "reading": 4 * chunk + 2 * rows * per_row * 8,
        "batches": (prefetch + 3) * rows * per_row * 12,
    }
    return parts | {"total": sum(parts.values())}


def _table_bytes(particles: Particles) -> int:
    """Bytes of all per-particle arrays; texts are counted once per distinct value."""
    table, splits = particles.table, particles.splits
    leaves = [*vars(table).values(), *vars(splits).values(), table.relative_ctf, *jax.tree.leaves(table.ctf)]
    leaves += [*vars(table.metadata).values()] if table.metadata is not None else []
    arrays = {id(leaf): leaf for leaf in jax.tree.leaves(leaves) if isinstance(leaf, np.ndarray)}
    total = 0
    for array in arrays.values():
        total += array.nbytes
        if array.dtype == object:
            total += sum({id(text): sys.getsizeof(text) for text in array.tolist()}.values())
    narrow = sum(leaf.nbytes // 2 for leaf in jax.tree.leaves(table.ctf))
    return total + narrow
