"""Central slices of a map's Fourier transform by interpolation on a padded grid, and the exact adjoint.

The map is divided by the transform of the interpolation kernel (sinc^(order+1)), padded, transformed and kept as
real columns of a flat table (half space x >= 0, z and y centred), so that a slice pixel is a weighted sum of
(order+1)^3 neighbouring rows. Order 1 (trilinear) on a twice padded grid serves searches and known poses, order 3
(cubic B-spline) wherever a pose is differentiated; order 0 exists because its normal matrix is exactly diagonal.
"""

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.tree import pytree


@pytree
class Cells:
    """Where the pixels of some slices fall in the table.

    Attributes:
        base: row of the first corner, int32 (slices, pixels).
        fraction: position inside the cell along x, y, z, (3, slices, pixels).
        sign: -1 where the pixel is read from its conjugate partner, else 1, (slices, pixels).
        inside: 1 where the pixel lies inside the stored sphere, else 0, (slices, pixels).
    """

    base: Array
    fraction: Array
    sign: Array
    inside: Array


@dataclasses.dataclass(frozen=True)
class Lattice:
    """The padded Fourier grid of an N^3 map.

    Attributes:
        size: voxels N along an edge of the map.
        spacing: voxel size [Å].
        padding: factor by which the map is padded before the transform.
        order: 0 nearest neighbour, 1 trilinear, 3 cubic B-spline.
    """

    size: int
    spacing: float
    padding: int = 2
    order: int = 1

    def __post_init__(self) -> None:
        if self.order not in (0, 1, 3):
            raise ValueError(f"Lattice: the interpolation order must be 0, 1 or 3, got {self.order}.")
        if self.padding < 1:
            raise ValueError(f"Lattice: the padding factor must be at least 1, got {self.padding}.")

    @property
    def padded(self) -> int:
        """Voxels along an edge of the padded grid."""
        return self.size * self.padding

    @property
    def _margin(self) -> int:
        return 2 if self.order == 3 else 1

    @property
    def _shape(self) -> tuple[int, int, int]:
        edge = self.padded + 2 * self._margin
        return edge, edge, self.padded // 2 + 1 + 2 * self._margin

    @property
    def rows(self) -> int:
        """Rows of the table."""
        return int(np.prod(self._shape))

    @cached_property
    def deapodisation(self) -> np.ndarray:
        """Reciprocal of the kernel's transform over the map, (N, N, N)."""
        x = (np.arange(self.size) - self.size // 2) / self.padded
        line = np.sinc(x) ** -(self.order + 1)
        return (line[:, None, None] * line[:, None] * line).astype(np.float32)

    def table(self, values: Array) -> Array:
        """Transform maps (components, N, N, N) into the table (rows, 2 components): real parts, then imaginary."""
        space = values * self.deapodisation.astype(values.dtype)
        before = self.padded // 2 - self.size // 2
        after = self.padded - self.size - before
        space = jnp.pad(space, ((0, 0), *[(before, after)] * 3))
        half = jnp.fft.rfftn(jnp.fft.ifftshift(space, axes=(1, 2, 3)), axes=(1, 2, 3)) / self.size
        columns = jnp.concatenate([half.real, half.imag])
        columns = jnp.fft.fftshift(columns, axes=(1, 2))
        m, odd = self._margin, self.padded % 2
        columns = jnp.pad(columns, ((0, 0), (m, m + 1 - odd), (m, m + 1 - odd), (0, 0)), mode="wrap")
        mirrored = columns[:, ::-1, ::-1, :] * jnp.where(jnp.arange(2 * len(values)) < len(values), 1, -1).astype(
            columns.dtype
        ).reshape(-1, 1, 1, 1)
        low, high = mirrored[..., m:0:-1], mirrored[..., -2 + odd : -2 + odd - m : -1]
        columns = jnp.concatenate([low, columns, high], axis=3)[:, : self._shape[0], : self._shape[1]]
        return columns.reshape(len(columns), -1).T

    def adjoint(self, table: Array) -> Array:
        """Exact transpose of `table`: (rows, 2 components) -> (components, N, N, N)."""
        shape = jax.ShapeDtypeStruct((table.shape[1] // 2, *[self.size] * 3), table.dtype)
        return jax.linear_transpose(self.table, shape)(table)[0]

    def cells(self, rotation: Array, points: Array, stretch: Array | None = None) -> Cells:
        """Locate the pixels of slices.

        Args:
            rotation: matrices A, (slices, 3, 3).
            points: in-plane frequencies [1/Å], (pixels, 2).
            stretch: in-plane frequency maps, (slices, 2, 2); identity if None.
        """
        rows = rotation[:, :2, :]
        if stretch is not None:
            rows = (stretch[:, :, :, None] * rows[:, None, :, :]).sum(2)
        scale = self.padded * self.spacing
        k = points * scale
        along = [k[None, :, 0] * rows[:, 0, i, None] + k[None, :, 1] * rows[:, 1, i, None] for i in range(3)]
        return self.cells_at(along)

    def cells_at(self, xi: list[Array]) -> Cells:
        """Locate any points: their coordinates x, y, z in steps of the padded grid, each (slices, pixels)."""
        sign = jnp.where(xi[0] < 0, -1, 1).astype(xi[0].dtype)
        inside = (xi[0] ** 2 + xi[1] ** 2 + xi[2] ** 2 <= (self.padded / 2 - 0.5) ** 2).astype(xi[0].dtype)
        xi = [x * sign * inside for x in xi]
        floor = [jnp.floor(x + 0.5) if self.order == 0 else jnp.floor(x) for x in xi]
        fraction = jnp.stack([x - f for x, f in zip(xi, floor, strict=True)])
        x, y, z = (f.astype(jnp.int32) for f in floor)
        first, centre = -1 if self.order == 3 else 0, self.padded // 2 + self._margin
        _, ny, nx = self._shape
        base = ((z + centre + first) * ny + y + centre + first) * nx + x + self._margin + first
        return Cells(base, fraction, sign, inside)

    def interior(self, column: Array) -> Array:
        """One column of the table as a grid without its margins, z and y centred: (rows,) -> (P, P, P//2+1)."""
        m, edge = self._margin, self.padded
        return column.reshape(self._shape)[m : m + edge, m : m + edge, m : m + edge // 2 + 1]

    @property
    def taps(self) -> int:
        """Rows that a pixel touches."""
        return (self.order + 1) ** 3

    @cached_property
    def offsets(self) -> np.ndarray:
        """Rows of a pixel's taps relative to its first, int32 (taps,), x fastest."""
        _, ny, nx = self._shape
        line = np.arange(self.order + 1)
        return ((line[:, None, None] * ny + line[:, None]) * nx + line).reshape(-1).astype(np.int32)

    def tap_weights(self, cells: Cells) -> Array:
        """Weights of the taps in the order of `offsets`, (slices, pixels, taps)."""
        tap = np.arange(self.taps)
        edge = self.order + 1
        weight = cells.inside[..., None]
        for axis in range(3):
            digit = tap // edge**axis % edge
            line = _kernel(cells.fraction[axis][..., None], self.order)
            weight = weight * sum(jnp.where(digit == i, w, 0) for i, w in enumerate(line))
        return weight

    def _taps(self, cells: Cells) -> list[tuple[int, Array]]:
        """Offsets of the rows that a pixel touches, with their weights."""
        x, y, z = (_kernel(f, self.order) for f in cells.fraction)
        _, ny, nx = self._shape
        taps = []
        for i, wz in enumerate(z):
            for j, wy in enumerate(y):
                plane = wz * wy * cells.inside
                taps += [((i * ny + j) * nx + k, plane * wx) for k, wx in enumerate(x)]
        return taps

    def gather(self, table: Array, cells: Cells) -> Array:
        """Slices from a table: complex (slices, pixels, components)."""
        total = jnp.zeros((), table.dtype)
        for offset, weight in self._taps(cells):
            rows = table.at[cells.base + offset].get(mode="promise_in_bounds")
            total = total + rows * weight[..., None].astype(table.dtype)
        components = table.shape[1] // 2
        return jax.lax.complex(total[..., :components], total[..., components:] * cells.sign[..., None])

    def scatter(self, accumulator: Array, cells: Cells, columns: list[Array]) -> Array:
        """Add real columns to the rows their pixels touch, with the weights of `gather`.

        Args:
            accumulator: flat (len(columns) * rows,), column after column; rows may be any number that holds the cells.
            cells: where the pixels fall.
            columns: real arrays (slices, pixels). The imaginary part of a slice is passed times `cells.sign`.

        Returns:
            The accumulator, same shape; pass it on donated.
        """
        rows = len(accumulator) // len(columns)
        for offset, weight in self._taps(cells):
            where = (cells.base + offset).reshape(-1)
            for c, column in enumerate(columns):
                value = (column * weight.astype(column.dtype)).reshape(-1)
                accumulator = accumulator.at[where + c * rows].add(value, mode="promise_in_bounds")
        return accumulator


def _kernel(t: Array, order: int) -> list[Array]:
    """Values of the interpolation kernel at the taps around a point with fraction t."""
    if order == 0:
        return [jnp.ones_like(t)]
    if order == 1:
        return [1 - t, t]
    s = 1 - t
    return [s**3 / 6, 2 / 3 - t**2 + t**3 / 2, 2 / 3 - s**2 + s**3 / 2, t**3 / 6]
