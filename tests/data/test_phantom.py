"""The built-in molecule: size, asymmetry, register of the states."""

import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.data.phantom import phantom
from hetmodels.errors import UsageError


def test_fits_the_box_and_scales_with_it() -> None:
    small, large = phantom(3, 32, 4.0), phantom(3, 64, 6.0)
    for a, b in zip(small, large, strict=True):
        np.testing.assert_allclose(np.asarray(b.centres), 3 * np.asarray(a.centres), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(a.widths, 4.0)
        np.testing.assert_allclose(b.widths, 6.0)
    np.testing.assert_allclose(phantom(1, 128, 1.0)[0].widths, 2.0)
    reach = max(np.linalg.norm(v.centres, axis=1).max() for v in large)
    assert reach == pytest.approx(0.35 * 64 * 6.0, rel=1e-5)


def test_states_share_the_body_and_their_common_centre_is_the_origin() -> None:
    states = phantom(4)
    centres = [np.asarray(v.weights) @ np.asarray(v.centres) / np.asarray(v.weights).sum() for v in states]
    np.testing.assert_allclose(np.mean(centres, axis=0), 0, atol=1e-3)
    for v in states[1:]:
        np.testing.assert_array_equal(v.centres[:84], states[0].centres[:84])
        assert float(jnp.abs(v.centres[84:] - states[0].centres[84:]).max()) > 10


def test_has_no_symmetry() -> None:
    """Principal moments differ, and no half turn or mirror about a principal axis gives the density back."""
    volume = phantom(1, 32, 8.0)[0]
    w, x = np.asarray(volume.weights, float), np.asarray(volume.centres, float)
    x = x - w @ x / w.sum()
    moments, axes = np.linalg.eigh((w[:, None] * x).T @ x / w.sum())
    assert (np.diff(np.sqrt(moments)) > 0.08 * np.sqrt(moments[-1])).all()

    def overlap(a: np.ndarray, b: np.ndarray) -> float:
        square = ((a[:, None] - b[None]) ** 2).sum(-1)
        return float(w @ np.exp(-square / (4 * float(volume.widths[0]) ** 2)) @ w)

    own = x @ axes
    for signs in np.array(np.meshgrid(*[[1, -1]] * 3)).T.reshape(-1, 3)[1:]:
        assert overlap(own, own * signs) < 0.8 * overlap(own, own)


def test_deterministic_and_refuses_no_states() -> None:
    for a, b in zip(phantom(2), phantom(2), strict=True):
        np.testing.assert_array_equal(a.centres, b.centres)
    with pytest.raises(UsageError, match="at least 1"):
        phantom(0)
