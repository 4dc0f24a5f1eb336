"""A density given by voxels."""

import jax.numpy as jnp
from jax import Array

from hetmodels.imaging.grids import Grid
from hetmodels.imaging.slices import Lattice
from hetmodels.tree import pytree, static


@pytree
class Voxels:
    """A map on a cubic grid, centre at size//2; slices by interpolation of its padded transform.

    Attributes:
        values: density [z, y, x], (N, N, N).
        spacing: voxel size [Å].
        order: interpolation order: 3 (cubic, smooth in the pose) or 1 (trilinear, faster).
        padding: padding factor of the transform.
    """

    values: Array
    spacing: float = static()
    order: int = static(default=3)
    padding: int = static(default=2)

    @property
    def lattice(self) -> Lattice:
        """The padded Fourier grid of this map."""
        return Lattice(self.values.shape[-1], self.spacing, self.padding, self.order)

    def project(self, rotation: Array, grid: Grid) -> Array:
        """Slice at the grid's frequencies, complex (pixels,); see `Volume`."""
        lattice = self.lattice
        cells = lattice.cells(rotation[None], grid.points)
        return lattice.gather(lattice.table(self.values[None]), cells)[0, :, 0] * self._gain(grid)

    def _gain(self, grid: Grid) -> float:
        """Coefficients of the same density seen in a box of another size or spacing."""
        ratio = self.spacing / grid.spacing
        return ratio**3 * self.values.shape[-1] / grid.size

    def density(self, size: int, spacing: float) -> Array:
        """The map on a grid of `size` voxels of `spacing` Å.

        Raises:
            ValueError: if the spacing is not the map's own; voxels are resampled by `hetmodels.data.maps`.
        """
        if abs(spacing / self.spacing - 1) > 1e-6:
            raise ValueError(
                f"Voxels: the map has voxels of {self.spacing} Å, asked for {spacing} Å; resample it first."
            )
        return _resized(self.values, size)


def _resized(values: Array, size: int) -> Array:
    """Crop or zero-pad about the centre N//2."""
    old = values.shape[-1]
    before = size // 2 - old // 2
    if before >= 0 and size - old - before >= 0:
        return jnp.pad(values, [(before, size - old - before)] * 3)
    start = max(-before, 0)
    values = values[(slice(start, start + min(size, old)),) * 3]
    return _resized(values, size) if values.shape[-1] != size else values
