"""One map for all particles."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.families.protocol import Frame, Shared, need_frame
from hetmodels.imaging.ball import Ball
from hetmodels.tree import pytree, static
from hetmodels.volumes.voxels import Voxels


@pytree
class Homogeneous:
    """A single rigid density, V^ ~ N(0, tau2(|xi|)), with the spectrum tau2 learned (Scheres 2012, J. Mol. Biol. 415).

    Attributes:
        order: interpolation order of the slices, 1 (trilinear) or 3 (cubic).
        frame: box and pixel size, set by `fit`.
    """

    order: int = static(default=1)
    frame: Frame | None = static(default=None)

    def shared(self) -> Shared:
        """Sites `map_white` (standard normal coordinates) and `map_tau2` (param); returns `map` and `map_tau2`."""
        frame = need_frame(self)
        ball = Ball(frame.size)
        tau2 = numpyro.param("map_tau2", jnp.asarray(frame.power), constraint=dist.constraints.positive)
        white = numpyro.sample("map_white", dist.Normal(0, 1).expand([ball.coordinates]).to_event(1))
        return {"map": numpyro.deterministic("map", ball.colour(white, tau2)), "map_tau2": tau2}

    def conformation(self, shared: Shared) -> None:
        """There is none."""
        return None

    def volume(self, shared: Shared, z: None) -> Voxels:
        """The map."""
        return Voxels(shared["map"], need_frame(self).spacing, self.order)

    def components(self, shared: Shared) -> Array:
        """The map, (1, N, N, N)."""
        return shared["map"][None]

    def spectra(self, shared: Shared) -> Array:
        """Its prior variance per shell, (1, shells)."""
        return shared["map_tau2"][None]

    def design(self, z: None) -> Array:
        """1."""
        return jnp.ones(1)

    def updated(self, shared: Shared, components: Array, spectra: Array, occupancy: Array) -> Shared:
        """Shared values after an M-step; see `Linear`."""
        return {"map": components[0], "map_tau2": spectra[0]}

    def sites(self, shared: Shared) -> Shared:
        """Values of the sites that give these shared values."""
        white = Ball(need_frame(self).size).whiten(shared["map"], shared["map_tau2"])
        return {"map_white": white, "map_tau2": shared["map_tau2"]}
