"""A mean map and a few maps of motion about it: probabilistic principal component analysis of volumes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.families.latent_mixture import LatentMixture, first_mixture
from hetmodels.families.protocol import Frame, Shared, need_frame
from hetmodels.families.supports import checked_support, read_support
from hetmodels.imaging.ball import Ball
from hetmodels.tree import pytree, static
from hetmodels.volumes.voxels import Voxels

_SHARE = 0.05  # first guess: all components together have this part of the map's power
_MIXTURE = ("weights", "means", "covariances")


@pytree
class Subspace:
    """V = V_0 + sum_j z_j V_j with z ~ N(0, I) (Tagare 2015, J. Struct. Biol. 191), maps with spectra of their own.

    The components are defined up to a rotation of the latent coordinates. `canonical` takes the one in which they
    are orthogonal, the strongest first.

    With a mask M the components are V_j = M U_j, and U_j has the spectrum: molecules differ inside the mask only. Fewer
    voxels are to be learnt, so that the same images tell the components better, and motion elsewhere, of a micelle
    say, is left to the noise. The mean map is not masked.

    With several Gaussians, z ~ sum_k w_k N(m_k, S_k) with mean 0 and covariance I: a mixture of factor analysers
    (Ghahramani and Hinton 1996, CRG-TR-96-1) that share their maps, for molecules that stay in a few places along their
    motions.

    Attributes:
        dims: number of latent coordinates, which is the number of components.
        mixture: number of Gaussians that z may come from.
        order: interpolation order of the slices, 1 (trilinear) or 3 (cubic).
        frame: box and pixel size, set by `fit`.
        mask: MRC file with the soft mask of the components.
        region: the mask itself, (N, N, N); read from `mask` by `fit`.

    Raises:
        ValueError: if there is no latent coordinate, or no Gaussian.
    """

    dims: int = static(default=4)
    mixture: int = static(default=1)
    order: int = static(default=1)
    frame: Frame | None = static(default=None)
    mask: str | None = static(default=None)
    region: Array | None = None

    def __post_init__(self) -> None:
        if self.dims < 1:
            raise ValueError(f"Subspace: dims must be at least 1, got {self.dims}; without motion use homogeneous.")
        if self.mixture < 1:
            raise ValueError(f"Subspace: mixture must be at least 1 Gaussian, got {self.mixture}.")

    def laid_out(self, frame: Frame) -> "Subspace":
        """On the data's grid, with the mask read.

        Raises:
            DataError: if the mask does not fit the data.
        """
        region = self.region
        if region is not None:
            region = jnp.asarray(checked_support(np.asarray(region), frame, "Subspace: the region"))
        elif self.mask:
            region = jnp.asarray(read_support(self.mask, frame, "Subspace"))
        return dataclasses.replace(self, frame=frame, region=region)

    def masks(self, shared: Shared) -> Array | None:
        """The mean map's weights, 1, and the components', (1 + dims, N, N, N); None if all are 1."""
        if self.region is None:
            return None
        own = jnp.broadcast_to(self.region, (self.dims, *self.region.shape))
        return jnp.concatenate([jnp.ones_like(own[:1]), own])

    def shared(self) -> Shared:
        """Sites `map_white`, `components_white`, and the params `map_tau2` and `components_tau2`.

        With several Gaussians the site `weights`, and the params `means` and `covariances`, brought to mean 0 and
        covariance I.

        Returns `map` (N, N, N), `components` (dims, N, N, N) before the mask, and spectra (shells,) and (dims, shells);
        with several Gaussians `weights` (K,), `means` (K, dims) and `covariances` (K, dims, dims).
        """
        frame = need_frame(self)
        ball, power = Ball(frame.size), jnp.asarray(frame.power)
        positive = dist.constraints.positive
        tau2 = numpyro.param("map_tau2", power, constraint=positive)
        share = jnp.tile(_SHARE / self.dims * power, (self.dims, 1))
        own = numpyro.param("components_tau2", share, constraint=positive)
        normal = dist.Normal(0, 1)
        white = numpyro.sample("map_white", normal.expand([ball.coordinates]).to_event(1))
        whites = numpyro.sample("components_white", normal.expand([self.dims, ball.coordinates]).to_event(2))
        mean = numpyro.deterministic("map", ball.colour(white, tau2))
        components = numpyro.deterministic("components", ball.colour(whites, own))
        found = {"map": mean, "components": components, "map_tau2": tau2, "components_tau2": own}
        return found if self.mixture == 1 else found | self._gaussians()

    def _gaussians(self) -> Shared:
        """The sites of the mixture."""
        first = first_mixture(self.mixture, self.dims)
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(self.mixture)))
        means = numpyro.param("means", first.means)
        positive = dist.constraints.positive_definite
        covariances = numpyro.param("covariances", first.covariances, constraint=positive)
        return self.with_mixture({}, LatentMixture(weights, means, covariances).standardised())

    def conformation(self, shared: Shared) -> dist.Distribution:
        """Standard normal latent coordinates, or those of a mixture of normals, (dims,)."""
        mixture = self.latent_mixture(shared)
        if mixture is None:
            return dist.Normal(0, 1).expand([self.dims]).to_event(1)
        each = dist.MultivariateNormal(mixture.means, mixture.covariances)
        return dist.MixtureSameFamily(dist.Categorical(mixture.weights), each)

    def volume(self, shared: Shared, z: Array) -> Voxels:
        """The map at latent coordinates z (dims,); the mean map at z = 0."""
        moved = jnp.tensordot(z, shared["components"], 1)
        moved = moved if self.region is None else moved * self.region
        return Voxels(shared["map"] + moved, need_frame(self).spacing, self.order)

    def components(self, shared: Shared) -> Array:
        """The mean map, then the components before the mask, (1 + dims, N, N, N)."""
        return jnp.concatenate([shared["map"][None], shared["components"]])

    def spectra(self, shared: Shared) -> Array:
        """Prior variance per shell of the mean and of each component, (1 + dims, shells)."""
        return jnp.concatenate([shared["map_tau2"][None], shared["components_tau2"]])

    def design(self, z: Array) -> Array:
        """(1, z)."""
        return jnp.concatenate([jnp.ones(1, z.dtype), z])

    def latent_covariance(self, shared: Shared) -> Array:
        """The identity."""
        return jnp.eye(self.dims)

    def latent_mixture(self, shared: Shared) -> LatentMixture | None:
        """The Gaussians that z may come from; None if there is one, N(0, I)."""
        if self.mixture == 1:
            return None
        return LatentMixture(shared["weights"], shared["means"], shared["covariances"])

    def with_mixture(self, shared: Shared, mixture: LatentMixture) -> Shared:
        """Shared values with these Gaussians, the mean of all being 0 and their covariance I."""
        return shared | {"weights": mixture.weights, "means": mixture.means, "covariances": mixture.covariances}

    def updated(self, shared: Shared, components: Array, spectra: Array, occupancy: Array) -> Shared:
        """Shared values after an M-step, the mixture as it was; see `Linear`."""
        kept = {name: shared[name] for name in _MIXTURE if name in shared}
        return kept | {
            "map": components[0],
            "components": components[1:],
            "map_tau2": spectra[0],
            "components_tau2": spectra[1:],
        }

    def sites(self, shared: Shared) -> Shared:
        """Values of the sites that give these shared values."""
        ball = Ball(need_frame(self).size)
        return {name: shared[name] for name in _MIXTURE if name in shared} | {
            "map_white": ball.whiten(shared["map"], shared["map_tau2"]),
            "components_white": ball.whiten(shared["components"], shared["components_tau2"]),
            "map_tau2": shared["map_tau2"],
            "components_tau2": shared["components_tau2"],
        }

    def from_maps(self, maps: Array) -> Array:
        """Components that start from maps: the mean, and components if there are more than one; else 0."""
        missing = jnp.zeros((1 + self.dims - len(maps), *maps.shape[1:]), maps.dtype)
        return jnp.concatenate([maps, missing])

    def canonical(self, shared: Shared) -> Shared:
        """The same distribution of maps with orthogonal components, the strongest first, each with a sum not below 0.

        The latent coordinates turn along; N(0, I) stays, and of several Gaussians the most frequent comes first. A
        turned component has the variance of the sum that it is.
        """
        flat = np.asarray(shared["components"], np.float64).reshape(self.dims, -1)
        seen = flat if self.region is None else flat * np.asarray(self.region, np.float64).ravel()
        _, vectors = np.linalg.eigh(seen @ seen.T)
        turn = vectors[:, ::-1].T
        turn = turn * np.where((turn @ seen).sum(1) < 0, -1.0, 1.0)[:, None]
        components = jnp.asarray(turn @ flat, jnp.float32).reshape(shared["components"].shape)
        spectra = jnp.asarray(turn**2 @ np.asarray(shared["components_tau2"], np.float64), jnp.float32)
        found = shared | {"components": components, "components_tau2": spectra}
        mixture = self.latent_mixture(shared)
        if mixture is None:
            return found
        return self.with_mixture(
            found, mixture.transformed(jnp.zeros(self.dims), jnp.asarray(turn, jnp.float32)).sorted()
        )
