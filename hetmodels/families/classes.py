"""A finite number of maps: three-dimensional classification."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.families.protocol import Frame, Shared, need_frame
from hetmodels.imaging.ball import Ball
from hetmodels.tree import pytree, static
from hetmodels.volumes.voxels import Voxels

_SHARE = 0.1  # first guess of the part of the maps' power in which classes differ


@pytree
class Classes:
    """K densities with unknown frequencies: pi ~ Dirichlet, c_i ~ Categorical(pi), V = V_c.

    All classes share one spectrum, so that none is favoured for being smoother (Scheres 2012, J. Struct. Biol. 180).
    With a hierarchical prior they are V_k = V_0 + Delta_k: a common map with a spectrum of its own, and differences
    whose spectrum is learnt apart. What the classes have in common is then learnt from all particles, and where they
    do not differ they are the same.

    Attributes:
        classes: number of maps K.
        concentration: pseudo-counts of the Dirichlet prior per class, at least 1.
        hierarchical: whether the maps share a common part.
        order: interpolation order of the slices, 1 (trilinear) or 3 (cubic).
        frame: box and pixel size, set by `fit`.

    Raises:
        ValueError: if there is no class, or the concentration is below 1.
    """

    classes: int = static(default=2)
    concentration: float = static(default=1.0)
    hierarchical: bool = static(default=False)
    order: int = static(default=1)
    frame: Frame | None = static(default=None)

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"Classes: at least one class is needed, got {self.classes}.")
        if self.concentration < 1:
            raise ValueError(f"Classes: the concentration must be at least 1, got {self.concentration}.")

    def shared(self) -> Shared:
        """Sites `maps_white`, `weights` and `maps_tau2` (param); with a hierarchical prior `mean_white`, `mean_tau2`.

        Returns `maps` (K, N, N, N), `weights`, `maps_tau2`, and `mean` (N, N, N), `mean_tau2` with such a prior.
        """
        frame = need_frame(self)
        ball, power = Ball(frame.size), jnp.asarray(frame.power)
        share = _SHARE if self.hierarchical else 1.0
        tau2 = numpyro.param("maps_tau2", share * power, constraint=dist.constraints.positive)
        white = numpyro.sample("maps_white", dist.Normal(0, 1).expand([self.classes, ball.coordinates]).to_event(2))
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(self.classes, float(self.concentration))))
        own, common = ball.colour(white, tau2), {}
        if self.hierarchical:
            mean_tau2 = numpyro.param("mean_tau2", power, constraint=dist.constraints.positive)
            mean_white = numpyro.sample("mean_white", dist.Normal(0, 1).expand([ball.coordinates]).to_event(1))
            common = {"mean": numpyro.deterministic("mean", ball.colour(mean_white, mean_tau2)), "mean_tau2": mean_tau2}
            own = own + common["mean"]
        return {"maps": numpyro.deterministic("maps", own), "maps_tau2": tau2, "weights": weights} | common

    def conformation(self, shared: Shared) -> dist.Distribution:
        """The class, counted from 0."""
        return dist.Categorical(probs=shared["weights"])

    def volume(self, shared: Shared, z: Array) -> Voxels:
        """The map of class z."""
        return Voxels(shared["maps"][z], need_frame(self).spacing, self.order)

    def components(self, shared: Shared) -> Array:
        """The maps, (K, N, N, N); with a hierarchical prior the common map and the differences, (1 + K, N, N, N)."""
        if not self.hierarchical:
            return shared["maps"]
        return jnp.concatenate([shared["mean"][None], shared["maps"] - shared["mean"]])

    def spectra(self, shared: Shared) -> Array:
        """The common spectrum, repeated, (K, shells), after that of the common map where there is one."""
        own = jnp.broadcast_to(shared["maps_tau2"], (self.classes, *shared["maps_tau2"].shape))
        return jnp.concatenate([shared["mean_tau2"][None], own]) if self.hierarchical else own

    def design(self, z: Array) -> Array:
        """One-hot, after a 1 for the common map where there is one."""
        own = jax.nn.one_hot(z, self.classes)
        return jnp.concatenate([jnp.ones(1), own]) if self.hierarchical else own

    def from_maps(self, maps: Array) -> Array:
        """Components that start from one map for all classes, or one for each."""
        maps = jnp.broadcast_to(maps, (self.classes, *maps.shape[1:]))
        if not self.hierarchical:
            return maps
        mean = maps.mean(0)
        return jnp.concatenate([mean[None], maps - mean])

    def grids(self, shared: Shared) -> tuple[Array, Array]:
        """All classes with their log frequencies."""
        return jnp.arange(self.classes), jnp.log(shared["weights"])

    def updated(self, shared: Shared, components: Array, spectra: Array, occupancy: Array) -> Shared:
        """Shared values after an M-step; the frequencies at their conditional mode."""
        counts = occupancy + self.concentration - 1
        found = {"weights": counts / counts.sum(), "maps_tau2": spectra[-self.classes :].mean(0)}
        if not self.hierarchical:
            return found | {"maps": components}
        mean = components[0]
        return found | {"maps": mean + components[1:], "mean": mean, "mean_tau2": spectra[0]}

    def sites(self, shared: Shared) -> Shared:
        """Values of the sites that give these shared values."""
        ball, found = Ball(need_frame(self).size), {"maps_tau2": shared["maps_tau2"], "weights": shared["weights"]}
        if self.hierarchical:
            mean_tau2 = shared["mean_tau2"]
            found |= {"mean_tau2": mean_tau2, "mean_white": ball.whiten(shared["mean"], mean_tau2)}
        own = self.components(shared)[-self.classes :]
        return found | {"maps_white": ball.whiten(own, shared["maps_tau2"])}
