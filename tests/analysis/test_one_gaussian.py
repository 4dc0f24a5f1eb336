"""What images say of latents is found again behind a mixture prior."""

import numpy as np
import pytest
from scipy.special import logsumexp

from hetmodels.analysis.one_gaussian import said_by_images, under_one_gaussian
from hetmodels.families import Subspace
from hetmodels.families.latent_mixture import LatentMixture
from hetmodels.families.protocol import Frame
from hetmodels.posterior import Posterior

DIMS, COUNT = 2, 40
MIXTURE = LatentMixture(
    np.array([0.6, 0.4]),
    np.array([[-0.7, 0.2], [1.05, -0.3]]),
    np.array([[[0.2, 0.05], [0.05, 0.9]], [[0.3, -0.1], [-0.1, 0.8]]]),
)


@pytest.fixture(scope="module")
def images():
    """s and P of images, and mean, covariance and responsibilities of their posteriors, in closed form."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(COUNT, DIMS, DIMS)) * rng.uniform(0.3, 4, (COUNT, 1, 1))
    precision = root @ np.swapaxes(root, 1, 2)
    slope = np.einsum("nij,nj->ni", precision, rng.normal(size=(COUNT, DIMS))) + 0.2 * rng.normal(size=(COUNT, DIMS))
    logs, means, covers = [], [], []
    for weight, mean, cover in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covariances, strict=True):
        inverse = np.linalg.inv(cover)
        own = np.linalg.inv(precision + inverse)
        right = slope + inverse @ mean
        at = np.einsum("nij,nj->ni", own, right)
        size = np.linalg.slogdet(own)[1] - np.linalg.slogdet(cover)[1]
        logs.append(np.log(weight) + 0.5 * (np.einsum("ni,ni->n", right, at) - mean @ inverse @ mean + size))
        means.append(at)
        covers.append(own)
    logs, means, covers = np.stack(logs, 1), np.stack(means, 1), np.stack(covers, 1)
    share = np.exp(logs - logsumexp(logs, axis=1, keepdims=True))
    mean = np.einsum("nk,nki->ni", share, means)
    apart = means - mean[:, None]
    cover = np.einsum("nk,nkij->nij", share, covers + apart[..., None] * apart[..., None, :])
    return slope, precision, mean, cover, share


def test_what_images_say_is_found_again(images):
    slope, precision, mean, cover, share = images
    found = said_by_images(mean, cover, share, MIXTURE)
    np.testing.assert_allclose(found[1], precision, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[0], slope, rtol=1e-5, atol=1e-6)


def test_latents_under_one_gaussian(images):
    slope, precision, mean, cover, share = images
    family = Subspace(dims=DIMS, mixture=2, frame=Frame(8, 10.0, (1.0,) * 4))
    shared = {"weights": MIXTURE.weights, "means": MIXTURE.means, "covariances": MIXTURE.covariances}
    shared = {name: np.asarray(value, np.float32)[None, None] for name, value in shared.items()}
    local = {"mean": mean, "covariance": cover, "responsibilities": share}
    own = np.linalg.inv(precision + np.eye(DIMS))
    found = under_one_gaussian(Posterior(family, shared, True, local))
    np.testing.assert_allclose(found[1], own, atol=1e-4)
    np.testing.assert_allclose(found[0], np.einsum("nij,nj->ni", own, slope), atol=1e-3)
    plain = under_one_gaussian(Posterior(Subspace(dims=DIMS), {"map": np.zeros((1, 1, 8))}, True, local))
    assert np.array_equal(plain[0], mean) and np.array_equal(plain[1], cover)
