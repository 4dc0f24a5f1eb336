"""The subspace: what it declares, and its canonical gauge."""

import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.families import Subspace
from hetmodels.families.protocol import Frame, Gaussian, Linear
from hetmodels.testing import check_family


def values(dims=3, seed=0):
    frame = Frame(8, 10.0, (1.0, 1.0, 0.5, 0.2))
    family = Subspace(dims=dims, frame=frame)
    rng = np.random.default_rng(seed)
    shared = {
        "map": jnp.asarray(rng.normal(size=(8, 8, 8)), jnp.float32),
        "components": jnp.asarray(rng.normal(size=(dims, 8, 8, 8)), jnp.float32),
        "map_tau2": jnp.asarray(frame.power),
        "components_tau2": jnp.asarray(rng.uniform(0.1, 1, (dims, 4)), jnp.float32),
    }
    return family, shared


def test_it_is_a_family():
    family = Subspace(dims=2, mixture=2)  # with one Gaussian it declares less
    assert isinstance(family, Linear) and isinstance(family, Gaussian)
    check_family(family, size=8, spacing=10.0)
    with pytest.raises(ValueError, match="at least 1"):
        Subspace(dims=0)


def test_the_canonical_gauge_changes_no_distribution():
    family, shared = values()
    turned = family.canonical(shared)
    a, b = (np.asarray(s["components"], np.float64).reshape(3, -1) for s in (shared, turned))
    np.testing.assert_allclose(a.T @ a, b.T @ b, atol=1e-4)  # the covariance of the maps
    gram = b @ b.T
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-3 and (np.diff(np.diag(gram)) <= 0).all()
    assert (b.sum(1) >= 0).all()
    np.testing.assert_allclose(turned["components_tau2"].sum(0), shared["components_tau2"].sum(0), rtol=1e-5)
