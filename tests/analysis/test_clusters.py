"""Clusters are those of the conformations, not of the errors with which they are known."""

import numpy as np
import pytest
from planes import Plane

from hetmodels.analysis.clusters import clusters, latent_evidence
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior

N = 600


def run(z, error, rng, dims=2):
    """Posterior of latents with prior N(0, I) seen with Gaussian errors of covariance `error` (N, dims, dims)."""
    seen = z + np.einsum("nij,nj->ni", np.linalg.cholesky(error), rng.normal(size=z.shape))
    precision = np.linalg.inv(error)
    covariance = np.linalg.inv(precision + np.eye(dims))
    mean = np.einsum("nij,njk,nk->ni", covariance, precision, seen)
    local = {"mean": mean, "covariance": covariance, "responsibilities": np.ones((len(z), 1))}
    shared = {"maps": np.zeros((1, 1, dims + 1, 4, 4, 4), np.float32)}
    return Posterior(Plane(), shared, True, local, provenance={"box": 4, "spacing": 3.0})


def uneven_errors(rng):
    """Half of the particles are known ten times better than the rest, which hardly show the second latent."""
    sd = np.where(np.arange(N)[:, None] % 2, [0.15, 0.15], [1.5, 6.0])
    return np.einsum("ni,ij->nij", sd**2, np.eye(2))


def test_one_population_with_uneven_errors_is_one_cluster():
    rng = np.random.default_rng(0)
    found = clusters(run(rng.normal(size=(N, 2)) * [1.0, 0.6], uneven_errors(rng), rng))
    assert len(found) == 1 and "one cloud" in found.words
    np.testing.assert_allclose(found.covariances[0], np.diag([1.0, 0.36]), atol=0.12)


@pytest.fixture(scope="module")
def three():
    rng = np.random.default_rng(1)
    label = rng.choice(3, N, p=[0.5, 0.35, 0.15])
    centre = np.array([[1.4, 0.0], [-1.2, 0.8], [-0.9, -1.4]])
    z = centre[label] + 0.2 * rng.normal(size=(N, 2))
    sd = np.where(np.arange(N)[:, None] % 2, [0.25, 0.25], [0.6, 0.9])
    posterior = run(z, np.einsum("ni,ij->nij", sd**2, np.eye(2)), rng)
    return label, centre, posterior, clusters(posterior)


def test_clusters_are_found_with_their_own_spread_and_shares(three):
    label, centre, posterior, found = three
    assert len(found) == 3 and found.gains[2, 0] > 3 * found.gains[2, 1]
    np.testing.assert_allclose(found.weights, [0.5, 0.35, 0.15], atol=0.05)
    np.testing.assert_allclose(found.means, centre, atol=0.12)
    assert np.sqrt(found.covariances[:, [0, 1], [0, 1]]) == pytest.approx(0.2, abs=0.1)
    sure = found.probabilities.max(1) > 0.9
    assert (found.number == label)[sure].mean() > 0.95
    assert np.abs(found.probabilities.max(1).mean() - (found.number == label).mean()) < 0.03
    assert (label[found.representatives] == [0, 1, 2]).all()
    spread = np.trace(posterior.local["covariance"], axis1=1, axis2=2)
    assert (spread[found.representatives] < np.median(spread)).all()


def test_stability_tells_clusters_that_are_there_from_those_asked_for(three):
    _, _, posterior, found = three
    assert found.stability.min() > 0.85
    forced = clusters(posterior, count=5)
    assert len(forced) == 5 and forced.stability.min() < 0.75 and "Do not rely on" in forced.words


def test_evidence_gives_the_posterior_back_with_the_prior():
    rng = np.random.default_rng(2)
    posterior = run(rng.normal(size=(5, 2)), np.tile(np.array([[0.5, 0.2], [0.2, 0.8]]), (5, 1, 1)), rng)
    found = latent_evidence(posterior)
    prior = np.linalg.inv(found.scale.T @ found.scale)  # N(0, I) in the coordinates of the evidence
    inverse = np.linalg.inv(prior)
    covariance = np.linalg.inv(found.precision + inverse)
    centre = -np.linalg.solve(found.scale, found.offset)
    mean = np.einsum("nij,nj->ni", covariance, found.slope + inverse @ centre)
    np.testing.assert_allclose(found.offset + mean @ found.scale.T, posterior.local["mean"], atol=1e-4)
    np.testing.assert_allclose(found.scale @ covariance @ found.scale.T, posterior.local["covariance"], atol=1e-4)


def test_classes_are_not_divided_again():
    posterior = Posterior(Plane(), {}, True, {"mean": np.empty((3, 0))})
    with pytest.raises(UsageError, match="no continuous latents"):
        clusters(posterior)
