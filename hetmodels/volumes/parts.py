"""A density put together from maps that are turned and shifted as rigid bodies."""

import jax.numpy as jnp
from jax import Array

from hetmodels.imaging.grids import Grid, phase_ramp
from hetmodels.imaging.slices import Lattice
from hetmodels.tree import pytree, static
from hetmodels.volumes.voxels import Voxels


@pytree
class MovedParts:
    """sum_l b_l of map l turned by Q_l about the box centre, then shifted by t_l.

    Attributes:
        values: the maps [z, y, x], (parts, N, N, N).
        weight: b_l, (parts,).
        rotation: Q_l, (parts, 3, 3).
        shift: t_l (x, y, z) [Å], (parts, 3).
        spacing: voxel size [Å].
        order: interpolation order: 3 (cubic) or 1 (trilinear).
    """

    values: Array
    weight: Array
    rotation: Array
    shift: Array
    spacing: float = static()
    order: int = static(default=3)

    def project(self, rotation: Array, grid: Grid) -> Array:
        """Slice at the grid's frequencies, complex (pixels,); see `Volume`."""
        total: Array | float = 0.0
        for values, weight, turn, shift in zip(self.values, self.weight, self.rotation, self.shift, strict=True):
            own = Voxels(values, self.spacing, self.order).project(rotation @ turn, grid)
            total = total + weight * own * phase_ramp(grid.points, (rotation @ shift)[:2])
        return jnp.asarray(total)

    def density(self, size: int, spacing: float) -> Array:
        """The maps moved and added, by the same interpolation of their transforms, on a grid of `size` voxels.

        Raises:
            ValueError: if the spacing is not the maps' own.
        """
        edge = self.values.shape[-1]
        lattice = Lattice(edge, self.spacing, 2, self.order)
        full, half = jnp.fft.fftfreq(edge, 1 / edge), jnp.arange(edge // 2 + 1.0)
        k = jnp.stack(jnp.broadcast_arrays(half, full[:, None], full[:, None, None])).reshape(3, -1)
        band = (k**2).sum(0) < (edge / 2) ** 2
        total = jnp.zeros(k.shape[1], jnp.complex64)
        for values, weight, turn, shift in zip(self.values, self.weight, self.rotation, self.shift, strict=True):
            seen = turn.T @ k * lattice.padding
            cells = lattice.cells_at([axis[None] for axis in seen])
            own = lattice.gather(lattice.table(values[None]), cells)[0, :, 0]
            total = total + weight * own * jnp.exp(-2j * jnp.pi * (shift @ k) / (edge * self.spacing))
        spectrum = jnp.where(band, total, 0).reshape(edge, edge, -1) * edge
        moved = jnp.fft.fftshift(jnp.fft.irfftn(spectrum, s=(edge,) * 3))
        return Voxels(moved, self.spacing, self.order).density(size, spacing)
