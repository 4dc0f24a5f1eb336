"""Maps as vectors in which distances are what images see.

The expected loss in log likelihood when the images of a map are explained by another, over uniform views, is

    sum_k n(k) I(k) <|V^ - V'^|²>_k,     I(k) = mean of C²/sigma² over images,

with n(k) pixels of an image in shell k and the mean taken over the shell of the map (physics of slices: a slice passes
every point of a shell equally often). A map is therefore represented by its Fourier coefficients times the root of that
weight; squared distances of such vectors are in nats per image, and twice the Gram matrix of their derivatives by z is
the expected information of an image about z.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hetmodels.analysis import fourier
from hetmodels.imaging.grids import Disc
from hetmodels.posterior import Posterior

BOX = 64  # to which larger maps are Fourier-cropped


@dataclasses.dataclass(frozen=True, eq=False)
class MapSpace:
    """The maps of a posterior with continuous latents, and their derivatives, as weighted vectors.

    Attributes:
        posterior: the run.
        size: box to which maps are cropped.
    """

    posterior: Posterior
    size: int

    @classmethod
    def of(cls, posterior: Posterior, size: int = BOX) -> "MapSpace":
        """The space of a posterior's maps, in its own box or a smaller one."""
        return cls(posterior, min(posterior.box()[0], size))

    @cached_property
    def _root(self) -> np.ndarray:
        """Root of the weight of each kept coefficient of the half-volume, (coefficients,)."""
        full, spacing = self.posterior.box()
        disc = Disc(self.size)
        shells = fourier.shell_index(self.size)
        voxels = fourier.shell_sum(np.ones(shells.shape), shells, disc.shells)
        known = np.asarray(self.posterior.extra.get("information", np.ones(Disc(full).shells)), float)
        weight = np.zeros(disc.shells)
        weight[1:] = (disc.shell_counts * known[: disc.shells] / voxels)[1:]
        each = np.where(shells < disc.shells, weight[np.minimum(shells, disc.shells - 1)], 0)
        scale = (full / self.size) ** 3 / full  # unnormalised transform of the cropped map -> that of a slice
        return (np.sqrt(each * fourier.multiplicity(self.size)) * scale)[self._kept]

    @cached_property
    def _kept(self) -> np.ndarray:
        shells = fourier.shell_index(self.size)
        return (shells > 0) & (shells < Disc(self.size).shells)

    def vector(self, values: np.ndarray) -> np.ndarray:
        """A map in the box of the posterior or of this space as a real vector, float64."""
        found = fourier.forward(fourier.crop(np.asarray(values, np.float32), self.size))[self._kept] * self._root
        return np.concatenate([found.real, found.imag]).astype(np.float64)

    @cached_property
    def _render(self) -> Callable[[Any], Any]:
        return jax.jit(lambda z: self.posterior.volume_at(z).density(*self.posterior.box()))

    @cached_property
    def _slopes(self) -> Callable[[Any], Any]:
        def moved(z: jax.Array) -> jax.Array:
            return jax.vmap(lambda step: jax.jvp(self._render, (z,), (step,))[1])(jnp.eye(len(z), dtype=z.dtype))

        return jax.jit(moved)

    def at(self, z: np.ndarray) -> np.ndarray:
        """The vector of the map at a latent (dims,)."""
        return self.vector(np.asarray(self._render(jnp.asarray(z, jnp.float32))))

    def jacobian(self, z: np.ndarray) -> np.ndarray:
        """Derivatives of the vector by the latent, (vector, dims)."""
        slopes = np.asarray(self._slopes(jnp.asarray(z, jnp.float32)))
        return np.stack([self.vector(slope) for slope in slopes], axis=1)

    def metric(self, z: np.ndarray) -> np.ndarray:
        """Expected information of an image about the latent at z, (dims, dims): 2 Jᵀ J."""
        slope = self.jacobian(z)
        return 2 * slope.T @ slope
