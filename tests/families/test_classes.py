"""Classes: both priors keep the contracts, and describe the maps that their sites give."""

import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.families import Classes
from hetmodels.families.protocol import Frame
from hetmodels.testing import check_family


@pytest.mark.parametrize("hierarchical", [False, True])
def test_it_is_a_family(hierarchical):
    check_family(Classes(classes=2, hierarchical=hierarchical), size=8, spacing=10.0)


def test_a_common_map_and_differences_are_the_maps():
    frame = Frame(8, 10.0, (1.0, 1.0, 0.5, 0.2))
    family = Classes(classes=3, hierarchical=True, frame=frame)
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 8)), jnp.float32)
    components = family.from_maps(maps)
    spectra = jnp.asarray(np.random.default_rng(1).uniform(0.1, 1, (4, 4)), jnp.float32)
    shared = family.updated({}, components, spectra, jnp.array([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(shared["maps"], maps, atol=1e-5)
    np.testing.assert_allclose(shared["mean"], maps.mean(0), atol=1e-5)
    np.testing.assert_allclose(shared["weights"], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(shared["maps_tau2"], spectra[1:].mean(0))
    for k in range(3):
        seen = jnp.tensordot(family.design(k), family.components(shared), 1)
        np.testing.assert_allclose(seen, maps[k], atol=1e-5)
    np.testing.assert_allclose(family.from_maps(maps[:1])[1:], 0, atol=1e-6)  # one map for all: no differences
