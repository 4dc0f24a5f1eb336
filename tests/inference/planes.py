"""A family of maps in a plane, for tests that need known maps and latents and no fit."""

import numpyro.distributions as dist

from hetmodels.tree import pytree
from hetmodels.volumes.voxels import Voxels

SPACING = 3.0


@pytree
class Plane:
    """A mean map to which two others are added."""

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0, 1).expand([2]).to_event(1)

    def volume(self, shared, z):
        maps = shared["maps"]
        return Voxels(maps[0] + z[0] * maps[1] + z[1] * maps[2], SPACING)
