"""What every representation of a density can do: give a slice of its Fourier transform, and voxels."""

from typing import Protocol, runtime_checkable

from jax import Array

from hetmodels.imaging.grids import Grid


@runtime_checkable
class Volume(Protocol):
    """A three-dimensional density, as a frozen pytree.

    Law (checked by `hetmodels.testing.check_volume`): at the grid of a D-pixel box of spacing a,
    `project(I, grid)` is the orthonormal Fourier transform of `density(D, a).sum(0)`.
    """

    def project(self, rotation: Array, grid: Grid) -> Array:
        """Central slice at the in-plane frequencies of the grid, before CTF and shift.

        Args:
            rotation: matrix A (3, 3); a point r of the density is seen at (A r)_xy.
            grid: in-plane frequencies [1/Å], (pixels, 2).

        Returns:
            Complex coefficients, (pixels,).
        """

    def density(self, size: int, spacing: float) -> Array:
        """Voxels [z, y, x] of a box of `size` voxels of `spacing` Å, centre at size//2: (size, size, size)."""
