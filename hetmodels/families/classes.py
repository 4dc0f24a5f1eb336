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


@pytree
class Classes:
    """K densities with unknown frequencies: pi ~ Dirichlet, c_i ~ Categorical(pi), V = V_c.

    All classes share one spectrum, so that none is favoured for being smoother (Scheres 2012, J. Struct. Biol. 180).

    Attributes:
        classes: number of maps K.
        concentration: pseudo-counts of the Dirichlet prior per class, at least 1.
        order: interpolation order of the slices, 1 (trilinear) or 3 (cubic).
        frame: box and pixel size, set by `fit`.

    Raises:
        ValueError: if there is no class, or the concentration is below 1.
    """

    classes: int = static(default=2)
    concentration: float = static(default=1.0)
    order: int = static(default=1)
    frame: Frame | None = static(default=None)

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"Classes: at least one class is needed, got {self.classes}.")
        if self.concentration < 1:
            raise ValueError(f"Classes: the concentration must be at least 1, got {self.concentration}.")

    def shared(self) -> Shared:
        """Sites `maps_white`, `weights` and `maps_tau2` (param); returns `maps`, `weights`, `maps_tau2`."""
        frame = need_frame(self)
        ball = Ball(frame.size)
        tau2 = numpyro.param("maps_tau2", jnp.asarray(frame.power), constraint=dist.constraints.positive)
        white = numpyro.sample("maps_white", dist.Normal(0, 1).expand([self.classes, ball.coordinates]).to_event(2))
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.full(self.classes, float(self.concentration))))
        maps = numpyro.deterministic("maps", ball.colour(white, tau2))
        return {"maps": maps, "maps_tau2": tau2, "weights": weights}

    def conformation(self, shared: Shared) -> dist.Distribution:
        """The class, counted from 0."""
        return dist.Categorical(probs=shared["weights"])

    def volume(self, shared: Shared, z: Array) -> Voxels:
        """The map of class z."""
        return Voxels(shared["maps"][z], need_frame(self).spacing, self.order)

    def components(self, shared: Shared) -> Array:
        """The maps, (K, N, N, N)."""
        return shared["maps"]

    def spectra(self, shared: Shared) -> Array:
        """The common spectrum, repeated, (K, shells)."""
        return jnp.broadcast_to(shared["maps_tau2"], (self.classes, *shared["maps_tau2"].shape))

    def design(self, z: Array) -> Array:
        """One-hot."""
        return jax.nn.one_hot(z, self.classes)

    def grids(self, shared: Shared) -> tuple[Array, Array]:
        """All classes with their log frequencies."""
        return jnp.arange(self.classes), jnp.log(shared["weights"])

    def updated(self, shared: Shared, components: Array, spectra: Array, occupancy: Array) -> Shared:
        """Shared values after an M-step; the frequencies at their conditional mode."""
        counts = occupancy + self.concentration - 1
        return {"maps": components, "maps_tau2": spectra.mean(0), "weights": counts / counts.sum()}

    def sites(self, shared: Shared) -> Shared:
        """Values of the sites that give these shared values."""
        white = Ball(need_frame(self).size).whiten(shared["maps"], shared["maps_tau2"])
        return {"maps_white": white, "maps_tau2": shared["maps_tau2"], "weights": shared["weights"]}
