"""The public checks accept what is right and name what is wrong."""

import dataclasses

import jax.numpy as jnp
import pytest

from hetmodels.data.phantom import phantom
from hetmodels.families.classes import Classes
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.testing import check_family, check_volume
from hetmodels.tree import pytree
from hetmodels.volumes.voxels import Voxels

VOXELS = Voxels(phantom(1, 32, 4.0)[0].density(32, 4.0), 4.0)


@pytest.mark.parametrize("volume", [phantom(1, 32, 4.0)[0], VOXELS], ids=["gaussians", "voxels"])
def test_our_volumes_keep_the_law(volume):
    check_volume(volume, tolerance=5e-3)


@pytest.mark.parametrize("family", [Homogeneous(order=3), Classes(classes=3, order=3)], ids=["homogeneous", "classes"])
def test_our_families_keep_their_promises(family):
    check_family(family)


@pytree
class TwiceTooBright:
    inner: Voxels

    def project(self, rotation, grid):
        return 2 * self.inner.project(rotation, grid)

    def density(self, size, spacing):
        return self.inner.density(size, spacing)


def test_a_wrong_factor_is_named():
    with pytest.raises(AssertionError, match="orthonormal transform"):
        check_volume(TwiceTooBright(VOXELS))


@pytree
class Unnormalised(Classes):
    def grids(self, shared):
        nodes, weights = super().grids(shared)
        return nodes, weights + 1


def test_unnormalised_weights_are_named():
    with pytest.raises(AssertionError, match="sum to 1"):
        check_family(Unnormalised(classes=2))


def test_a_wrong_design_is_named():
    class Swapped(Classes):
        def design(self, z):
            return Classes.design(self, z)[::-1]

    wrong = Swapped(**{f.name: getattr(Classes(classes=2, order=3), f.name) for f in dataclasses.fields(Classes)})
    with pytest.raises(AssertionError, match="design"):
        check_family(wrong)
    assert jnp.ones(1).shape == (1,)
