"""How far the data determine maps, jointly where components are seen together."""

import jax.numpy as jnp
import numpy as np

from hetmodels.imaging.ball import Ball
from hetmodels.imaging.slices import Lattice
from inference.volume_step import certainty, data_precision

LATTICE = Lattice(8, 10.0, 2, 1)
PAIRS = tuple((i, j) for i in range(3) for j in range(i, 3))
ALONE = tuple((i, i) for i in range(3))


def setting(seed=0, count=3):
    rng = np.random.default_rng(seed)
    root = rng.uniform(size=(LATTICE.rows, count, 2))
    full = np.einsum("rli,rmi->rlm", root, root)
    weights = jnp.asarray(np.stack([full[:, i, j] for i, j in PAIRS], axis=1), jnp.float32)
    return weights, jnp.asarray(rng.uniform(0.05, 0.5, (count, Ball(8).shells)), jnp.float32)


def test_it_is_that_of_the_joint_posterior_of_each_voxel():
    weights, spectra = setting()
    h, determined, log_det = certainty(LATTICE, weights, spectra, PAIRS)
    at = 2, 1, 3
    precision = np.zeros((3, 3))
    for column, (i, j) in enumerate(PAIRS):
        precision[i, j] = precision[j, i] = float(data_precision(LATTICE, weights[:, column])[at])
    tau2 = np.asarray(spectra[:, Ball(8).shell[at]], np.float64)
    posterior = np.linalg.inv(precision + np.diag(1 / tau2))
    np.testing.assert_allclose(h[(slice(None), *at)], np.diag(precision), rtol=1e-4)
    np.testing.assert_allclose(determined[(slice(None), *at)], 1 - np.diag(posterior) / tau2, rtol=1e-3)
    expected = np.linalg.slogdet(np.eye(3) + np.sqrt(tau2[:, None] * tau2) * precision)[1]
    np.testing.assert_allclose(log_det[at], expected, rtol=1e-3)


def test_components_that_are_never_seen_together_are_determined_alone():
    weights, spectra = setting(1)
    own = jnp.stack([weights[:, PAIRS.index(pair)] for pair in ALONE], axis=1)
    apart = weights * jnp.asarray([float(i == j) for i, j in PAIRS])
    joint, alone = certainty(LATTICE, apart, spectra, PAIRS), certainty(LATTICE, own, spectra, ALONE)
    for a, b in zip(joint, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
