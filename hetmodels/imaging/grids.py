"""The Fourier pixels of an image: which are stored, in which order, and where they lie in space.

Each independent pixel of the half-plane is stored once, for 1 <= |k| <= (D-1)//2: no zero frequency, no
Nyquist. The order is by rings of growing radius, so that a lower band is a prefix of a higher one.
"""

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.tree import pytree, static


@pytree
class Grid:
    """In-plane spatial frequencies at which a slice is wanted.

    Attributes:
        points: frequencies (kx, ky) [1/Å], shape (pixels, 2).
        size: box edge D of the images these pixels belong to.
        spacing: pixel size of those images [Å].
        lattice: where the points are (kx u, ky v) for the integer frequencies of a disc, in its order, and two real
            steps u and v: that disc. A volume may then work by axes.
    """

    points: Array
    size: int = static()
    spacing: float = static()
    lattice: "Disc | None" = static(default=None)


@dataclasses.dataclass(frozen=True)
class Disc:
    """The independent Fourier pixels of a real D x D image inside the band |k| <= limit.

    Attributes:
        size: box edge D in pixels, even or odd.
        limit: largest radius kept, in Fourier pixels; (D-1)//2 if not given.

    Raises:
        ValueError: if the box is smaller than 4 or the limit lies outside 1 … (D-1)//2.

    >>> Disc(64).pixels
    1500
    """

    size: int
    limit: int = 0

    def __post_init__(self) -> None:
        if self.size < 4:
            raise ValueError(f"Disc: the box must be at least 4 pixels, got {self.size}.")
        top = (self.size - 1) // 2
        if self.limit == 0:
            object.__setattr__(self, "limit", top)
        if not 1 <= self.limit <= top:
            raise ValueError(f"Disc: the band limit must lie in 1 … {top} for a box of {self.size}, got {self.limit}.")

    @cached_property
    def index(self) -> np.ndarray:
        """Integer frequencies (kx, ky) of the stored pixels, shape (pixels, 2)."""
        plane = np.meshgrid(np.arange(self.limit + 1), np.arange(-self.limit, self.limit + 1), indexing="ij")
        kx, ky = (axis.ravel() for axis in plane)
        keep = (kx**2 + ky**2 <= self.limit**2) & ((kx > 0) | (ky > 0))
        kx, ky = kx[keep], ky[keep]
        order = np.lexsort((np.arctan2(ky, kx), np.ceil(np.sqrt(kx**2 + ky**2))))
        return np.stack([kx[order], ky[order]], axis=1)

    @cached_property
    def pixels(self) -> int:
        """Number of stored complex pixels M; the image has 2M independent real components in the band."""
        return len(self.index)

    @cached_property
    def radius(self) -> np.ndarray:
        """|k| in Fourier pixels, shape (pixels,)."""
        return np.sqrt((self.index**2).sum(1))

    @cached_property
    def shell(self) -> np.ndarray:
        """round(|k|), the radial shell of each pixel, shape (pixels,)."""
        return np.rint(self.radius).astype(np.int32)

    @property
    def shells(self) -> int:
        """Number of radial shells, counting shell 0, which stays empty."""
        return self.limit + 1

    @cached_property
    def shell_counts(self) -> np.ndarray:
        """Stored pixels per shell, shape (shells,)."""
        return np.bincount(self.shell, minlength=self.shells)

    @cached_property
    def _flat(self) -> np.ndarray:
        return (self.index[:, 1] % self.size) * (self.size // 2 + 1) + self.index[:, 0]

    def grid(self, spacing: float) -> Grid:
        """These pixels as frequencies in 1/Å for images of the given pixel size [Å]."""
        points = self.index / (self.size * spacing)
        return Grid(jnp.asarray(points, jnp.float32), self.size, float(spacing), self)

    def narrowed(self, limit: int) -> "Disc":
        """The same box with a lower band; its pixels are the first ones of this disc."""
        return Disc(self.size, min(limit, self.limit))

    def forward(self, images: Array) -> Array:
        """Orthonormal Fourier coefficients of real images (…, D, D), centre at D//2: shape (…, pixels)."""
        half = jnp.fft.rfft2(jnp.fft.ifftshift(images, axes=(-2, -1)), norm="ortho")
        return half.reshape(*half.shape[:-2], -1)[..., self._flat]

    def inverse(self, coefficients: Array) -> Array:
        """Real images (…, D, D) with the given coefficients in the band and zero elsewhere."""
        coefficients = jnp.asarray(coefficients)
        width = self.size // 2 + 1
        mirror = np.flatnonzero(self.index[:, 0] == 0)
        half = jnp.zeros((*coefficients.shape[:-1], self.size * width), coefficients.dtype)
        half = half.at[..., self._flat].set(coefficients)
        partner = (-self.index[mirror, 1] % self.size) * width
        half = half.at[..., partner].set(jnp.conj(coefficients[..., mirror]))
        half = half.reshape(*coefficients.shape[:-1], self.size, width)
        images = jnp.fft.irfft2(half, s=(self.size, self.size), norm="ortho")
        return jnp.fft.fftshift(images, axes=(-2, -1))

    def shell_sum(self, values: Array) -> Array:
        """Sum over each radial shell: (…, pixels) -> (…, shells), in the dtype given."""
        flat = values.reshape(-1, values.shape[-1])
        summed = jax.vmap(lambda row: jnp.zeros(self.shells, values.dtype).at[self.shell].add(row))(flat)
        return summed.reshape(*values.shape[:-1], self.shells)

    def shell_mean(self, values: Array) -> Array:
        """Mean over each radial shell: (…, pixels) -> (…, shells); empty shells give 0."""
        return self.shell_sum(values) / np.maximum(self.shell_counts, 1)


def phase_ramp(points: Array, shift: Array) -> Array:
    """exp(-2 pi i k·t): what moving the content by t does to a slice.

    Args:
        points: frequencies [1/Å], (pixels, 2).
        shift: content shifts t [Å], (…, 2).

    Returns:
        Unit phases, (…, pixels).
    """
    cycles = jnp.einsum("...c,mc->...m", shift, points, precision=jax.lax.Precision.HIGHEST)
    return jnp.exp(-2j * jnp.pi * cycles)
