"""The independent Fourier voxels of a real map: its band-limited coordinates and their radial spectrum.

A map is described by the coefficients V^(xi) = (1/N) sum_r V(r) exp(-2 pi i xi.r/N) in the half space, for
1 <= |xi| <= (N-1)//2; each is stored once. The zero frequency is absent, as it is from the images.
"""

import dataclasses
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclasses.dataclass(frozen=True)
class Ball:
    """Band-limited maps of N^3 voxels.

    Attributes:
        size: voxels N along an edge.
    """

    size: int

    @property
    def limit(self) -> int:
        """Largest radius in the band, in Fourier voxels."""
        return (self.size - 1) // 2

    @property
    def shells(self) -> int:
        """Number of radial shells, counting shell 0, which stays empty."""
        return self.limit + 1

    @cached_property
    def _radius(self) -> np.ndarray:
        line, half = np.fft.fftfreq(self.size, 1 / self.size), np.arange(self.size // 2 + 1)
        return np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + half**2)

    @cached_property
    def mask(self) -> np.ndarray:
        """1 inside the band on the rfftn layout, (N, N, N//2+1)."""
        return ((self._radius >= 0.5) & (self._radius <= self.limit)).astype(np.float32)

    @cached_property
    def shell(self) -> np.ndarray:
        """round(|xi|) on the rfftn layout, clipped to the last shell, int32."""
        return np.minimum(np.rint(self._radius), self.limit).astype(np.int32)

    @cached_property
    def multiplicity(self) -> np.ndarray:
        """How many of the N^3 full-grid voxels each stored one stands for (2, or 1 on the plane x = 0), in the band."""
        weight = np.full(self.mask.shape, 2.0, np.float32)
        weight[..., 0] = 1.0
        return weight * self.mask

    @cached_property
    def degrees(self) -> np.ndarray:
        """Real degrees of freedom per shell, (shells,)."""
        return np.bincount(self.shell.ravel(), self.multiplicity.ravel(), self.shells)

    @cached_property
    def _independent(self) -> np.ndarray:
        line = np.fft.fftfreq(self.size, 1 / self.size)
        z, y, x = np.meshgrid(line, line, np.arange(self.size // 2 + 1), indexing="ij")
        once = (x > 0) | (y > 0) | ((y == 0) & (z > 0))
        return np.flatnonzero(once & (self.mask > 0))

    @property
    def coordinates(self) -> int:
        """Real numbers that describe a map in the band."""
        return 2 * len(self._independent)

    def transform(self, values: Array) -> Array:
        """V^ on the rfftn layout: (…, N, N, N) -> complex (…, N, N, N//2+1)."""
        return jnp.fft.rfftn(jnp.fft.ifftshift(values, axes=(-3, -2, -1)), axes=(-3, -2, -1)) / self.size

    def map(self, half: Array) -> Array:
        """Inverse of `transform`."""
        values = jnp.fft.irfftn(half * self.size, s=(self.size,) * 3, axes=(-3, -2, -1))
        return jnp.fft.fftshift(values, axes=(-3, -2, -1))

    def filter(self, values: Array, gain: Array) -> Array:
        """Multiply the band by a radial gain (…, shells) and drop all else."""
        return self.map(self.transform(values) * gain[..., self.shell] * self.mask)

    def colour(self, white: Array, spectrum: Array) -> Array:
        """Map from standard normal coordinates: V^ = sqrt(spectrum/2) (a + i b), so that E|V^|^2 = spectrum.

        Args:
            white: (…, coordinates).
            spectrum: variance per shell, (…, shells).
        """
        a, b = jnp.split(white, 2, axis=-1)
        scale = jnp.sqrt(spectrum / 2)[..., self.shell.ravel()[self._independent]]
        half = jnp.zeros((*white.shape[:-1], self.mask.size), jnp.result_type(white, jnp.complex64))
        half = half.at[..., self._independent].set(scale * (a + 1j * b))
        half = half.reshape(*white.shape[:-1], *self.mask.shape)
        plane = half[..., 0]
        mirrored = jnp.roll(plane[..., ::-1, ::-1], (1, 1), axis=(-2, -1))
        half = half.at[..., 0].add(jnp.conj(mirrored))
        return self.map(half)

    def whiten(self, values: Array, spectrum: Array) -> Array:
        """Inverse of `colour` in the band: (…, N, N, N) -> (…, coordinates)."""
        half = self.transform(values).reshape(*values.shape[:-3], -1)[..., self._independent]
        scale = jnp.sqrt(spectrum / 2)[..., self.shell.ravel()[self._independent]]
        return jnp.concatenate([half.real, half.imag], axis=-1) / jnp.concatenate([scale, scale], axis=-1)

    def shell_sum(self, half: Array) -> Array:
        """Sum of a real quantity over the full grid's voxels per shell: (…, N, N, N//2+1) -> (…, shells)."""
        flat = (half * self.multiplicity).reshape(-1, self.mask.size)
        total = jnp.zeros((len(flat), self.shells), half.dtype).at[:, self.shell.ravel()].add(flat)
        return total.reshape(*half.shape[:-3], self.shells)

    def power(self, values: Array) -> Array:
        """Mean |V^|^2 per shell, (…, shells); shell 0 is 0."""
        half = self.transform(values)
        return self.shell_sum(half.real**2 + half.imag**2) / np.maximum(self.degrees, 1)

    def log_prior(self, values: Array, spectrum: Array) -> Array:
        """log N(V; 0, spectrum) over the band's coordinates, constants included, (…)."""
        spectrum = jnp.maximum(spectrum, 1e-30)[..., 1:]
        power = self.power(values)[..., 1:]
        per_shell = power / spectrum + jnp.log(2 * jnp.pi * spectrum)
        return -0.5 * jnp.sum(self.degrees[1:] * per_shell, axis=-1)
