"""Point groups of particles, with their axes where RELION puts them, and the rotations that they leave to be looked at.

A map with the symmetry G looks the same after every g of G, V(g r) = V(r), so that the poses A g of one image cannot be
told apart. Cn has its axis along z; Dn a further twofold axis along x; T a threefold axis along z; O a fourfold axis
along z and a threefold one along (1, 1, 1); I1 and I2 have twofold axes along x, y and z, I3 and I4 a fivefold one
along z and twofold ones in the plane of x and z (Heymann, Chagoyen & Belnap 2005 for the icosahedral settings).
"""

import re
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.errors import UsageError
from hetmodels.imaging.grids import Grid
from hetmodels.imaging.slices import Lattice
from hetmodels.tree import pytree, static

_GOLDEN = (1 + 5**0.5) / 2
_LONG, _SHORT = np.array([_GOLDEN, 1.0]) / np.hypot(_GOLDEN, 1.0)  # of the edges of an icosahedron's golden rectangles
_MOST = 60  # largest n of Cn and Dn


@lru_cache(maxsize=32)
def elements(name: str) -> np.ndarray:
    """The rotations of a point group, the identity first, float64 (order of the group, 3, 3).

    Args:
        name: Cn, Dn, T, O, I1, I2 (also I), I3 or I4, in upper or lower case.

    Raises:
        UsageError: if there is no such group.

    >>> [len(elements(name)) for name in ("C1", "C7", "D3", "T", "O", "I2")]
    [1, 7, 6, 12, 24, 60]
    """
    found, whole = [np.eye(3)], _generators(name.upper())
    for rotation in found:
        for generator in whole:
            fresh = rotation @ generator
            if min(np.abs(fresh - other).max() for other in found) > 1e-6:
                found.append(fresh)
    return np.stack(found)


def _generators(name: str) -> list[np.ndarray]:
    match = re.fullmatch(r"([CD])([1-9]\d*)", name)
    if match and int(match[2]) <= _MOST:
        turn = _about((0, 0, 1), 2 * np.pi / int(match[2]))
        return [turn] if match[1] == "C" else [turn, _about((1, 0, 0), np.pi)]
    z, x = (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)
    twofold = [_about(z, np.pi), _about(x, np.pi)]
    groups = {
        "T": [_about(z, 2 * np.pi / 3), _about((0.0, np.sqrt(2 / 3), np.sqrt(1 / 3)), np.pi)],
        "O": [_about(z, np.pi / 2), _about((1.0, 1.0, 1.0), 2 * np.pi / 3)],
        "I1": [*twofold, _about((_LONG, 0.0, -_SHORT), 2 * np.pi / 5)],
        "I2": [*twofold, _about((_SHORT, 0.0, _LONG), 2 * np.pi / 5)],
        "I3": [_about(z, 2 * np.pi / 5), _about((-_SHORT, 0.0, _LONG), np.pi)],
        "I4": [_about(z, 2 * np.pi / 5), _about((_SHORT, 0.0, _LONG), np.pi)],
    }
    groups["I"] = groups["I2"]
    if name not in groups:
        raise UsageError(f"symmetry: a group is one of C1 … C{_MOST}, D1 … D{_MOST}, T, O, I1 … I4, got {name!r}.")
    return groups[name]


def _about(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    """The rotation by an angle [rad] about an axis of any length, float64 (3, 3)."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def log_share(rotation: Array, name: str, margin: float) -> Array:
    """Log of how much a rotation counts if of all that a symmetry makes alike those near the identity are kept.

    Rotations (…, 3, 3) are kept, of the same look those by the smallest angle and others by at most `margin` [rad]
    more, so that a cell of that size that reaches into the asymmetric unit is not missed. Alike ones that are kept
    share the number of elements; the others count nothing. Averaged over all rotations that is 1.

    >>> import jax; jax.numpy.exp(log_share(jax.numpy.eye(3)[None], "C1", 0.1)).tolist()
    [1.0]
    """
    group = jnp.asarray(elements(name), rotation.dtype)
    alike = jnp.einsum("...ij,gjk->...gik", rotation, group, precision=jax.lax.Precision.HIGHEST)
    cosine = (jnp.trace(alike, axis1=-2, axis2=-1) - 1) / 2
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    kept = angle <= angle.min(-1, keepdims=True) + margin
    count = jnp.log(len(group) / kept.sum(-1).astype(rotation.dtype))
    return jnp.where(kept[..., 0], count, -jnp.inf)


def symmetrised(values: Array, spacing: float, name: str) -> Array:
    """Maps averaged over the rotations of a group about the box centre, by cubic interpolation of their transforms.

    Args:
        values: maps, (..., N, N, N).
        spacing: voxel size [Å].
        name: the group.
    """
    group = elements(name)
    if len(group) == 1:
        return values
    size = values.shape[-1]
    lattice, maps = Lattice(size, spacing, 2, 3), values.reshape(-1, size, size, size)
    top = (size - 1) // 2
    line = np.arange(size) - size // 2
    z, y, x = np.meshgrid(line, line, np.arange(top + 1), indexing="ij")
    inside = x**2 + y**2 + z**2 <= top**2
    k = np.stack([x, y, z], -1)[inside] / (size * spacing)
    table = lattice.table(maps)
    total = jnp.zeros((len(k), len(maps)), jnp.result_type(values, jnp.complex64))
    for element in group:
        total = total + _sampled(lattice, table, jnp.asarray(k @ element, values.dtype))
    half = jnp.zeros((*inside.shape, len(maps)), total.dtype).at[np.nonzero(inside)].set(total / len(group))
    half = jnp.fft.ifftshift(jnp.moveaxis(half, -1, 0), axes=(1, 2))
    half = jnp.pad(half, ((0, 0), (0, 0), (0, 0), (0, size // 2 - top)))
    maps = jnp.fft.fftshift(jnp.fft.irfftn(half, s=(size,) * 3, axes=(1, 2, 3)) * size, axes=(1, 2, 3))
    return maps.reshape(values.shape).astype(values.dtype)


@partial(jax.jit, static_argnums=0)
def _sampled(lattice: Lattice, table: Array, k: Array) -> Array:
    """Transforms at any frequencies (points, 3): a slice of one pixel (1, 0) whose first axis lies along each."""
    frame = jnp.zeros((len(k), 3, 3), k.dtype).at[:, 0].set(k)
    cells = lattice.cells(frame, jnp.asarray([[1.0, 0.0]], k.dtype))
    return lattice.gather(table, cells)[:, 0]


@pytree
class Symmetrised:
    """A volume averaged over a point group: `project` looks the same after every rotation of the group.

    Attributes:
        volume: a `Volume`.
        name: the group.
    """

    volume: Any
    name: str = static()

    def project(self, rotation: Array, grid: Grid) -> Array:
        """See `Volume`."""
        group = jnp.asarray(elements(self.name), rotation.dtype)
        turned = jnp.matmul(rotation, group, precision=jax.lax.Precision.HIGHEST)
        return jax.vmap(lambda r: self.volume.project(r, grid))(turned).mean(0)

    def density(self, size: int, spacing: float) -> Array:
        """See `Volume`; the rotated copies are interpolated."""
        return symmetrised(self.volume.density(size, spacing), spacing, self.name)
