"""Laws of the mixture of Gaussians on the latents: dense reference, gauge, exact M-step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import logsumexp

from hetmodels.families import Subspace
from hetmodels.families.latent_mixture import LatentMixture, expected_log_density, first_mixture, most_likely
from hetmodels.families.protocol import Frame, Mixed, mixture_of
from hetmodels.local import design_moments
from hetmodels.observation import Contrast

COUNT, DIMS, PIXELS, ROWS = 3, 2, 12, 4


def a_mixture(seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(COUNT, DIMS, DIMS))
    with jax.enable_x64(True):
        found = LatentMixture(
            jnp.asarray(rng.dirichlet(np.ones(COUNT) * 3)),
            jnp.asarray(2 * rng.normal(size=(COUNT, DIMS))),
            jnp.asarray(roots @ np.swapaxes(roots, 1, 2) + 0.1 * np.eye(DIMS)),
        )
        return jax.tree.map(np.asarray, jax.jit(LatentMixture.standardised)(found))


def images(seed=1):
    """Images y and slices x_l as real vectors whose noise has unit variance."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 1 + DIMS, 2 * PIXELS))
    return x[:, 0] + rng.normal(size=(ROWS, 2 * PIXELS)), x


def dense(mixture, y, x, scale=1.0):
    """Log p(y, k) - log p(y | noise only), of Gaussians over the pixels, (rows, K), and the moments of z in each."""
    found = []
    for row, slices in zip(y, x, strict=True):
        mean, w = scale * slices[0], scale * slices[1:].T
        for weight, m, s in zip(*map(np.asarray, jax.tree.leaves(mixture)), strict=True):
            cover = w @ s @ w.T + np.eye(len(row))
            ratio = scipy.stats.multivariate_normal.logpdf(row, mean + w @ m, cover)
            ratio -= scipy.stats.multivariate_normal.logpdf(row, np.zeros(len(row)), np.eye(len(row)))
            gain = s @ w.T @ np.linalg.inv(cover)
            found.append((np.log(weight) + ratio, m + gain @ (row - mean - w @ m), s - gain @ w @ s))
    shapes = (ROWS, COUNT), (ROWS, COUNT, DIMS), (ROWS, COUNT, DIMS, DIMS)
    return tuple(np.array(v).reshape(shape) for v, shape in zip(zip(*found, strict=True), shapes, strict=True))


def family_of(count=COUNT):
    return Subspace(dims=DIMS, mixture=count, frame=Frame(8, 10.0, (1.0, 1.0, 0.5, 0.2)))


def moments_of(mixture, y, x, contrast=None, count=COUNT):
    family = family_of(count)
    shared = {} if mixture is None else family.with_mixture({}, mixture)
    h, gram = np.einsum("bp,blp->bl", y, x), 0.5 * np.einsum("blp,bmp->blm", x, x)
    with jax.enable_x64(True):
        found = jax.jit(lambda *known: design_moments(family, *known, contrast))(shared, h, gram)
        return jax.tree.map(np.asarray, found)


def test_a_mixture_of_one_is_no_mixture():
    assert isinstance(Subspace(dims=DIMS, mixture=COUNT), Mixed)
    assert mixture_of(Subspace(dims=2), {}) is None
    with pytest.raises(ValueError, match="at least 1 Gaussian"):
        Subspace(mixture=0)


def test_evidence_and_moments_are_those_of_dense_gaussians():
    mixture, (y, x) = a_mixture(), images()
    found = moments_of(mixture, y, x)
    joint, means, covers = dense(mixture, y, x)
    total = logsumexp(joint, axis=1)
    share = np.exp(joint - total[:, None])
    np.testing.assert_allclose(found.log_ratio, total, atol=1e-9)
    np.testing.assert_allclose(found.responsibilities, share, atol=1e-9)
    mean = np.einsum("bk,bki->bi", share, means)
    np.testing.assert_allclose(found.mean, mean, atol=1e-9)
    square = np.einsum("bk,bkij->bij", share, covers + means[..., None] * means[..., None, :])
    np.testing.assert_allclose(found.covariance, square - mean[:, :, None] * mean[:, None], atol=1e-9)
    np.testing.assert_allclose(found.second[:, 1:, 1:], square, atol=1e-9)
    np.testing.assert_allclose(found.each[..., 0, 0], share, atol=1e-9)
    np.testing.assert_allclose(found.each.sum(1), found.second, atol=1e-9)
    np.testing.assert_allclose(found.first[:, 1:], mean, atol=1e-9)


def test_the_contrast_is_integrated_with_each_gaussian():
    mixture, (y, x), sd = a_mixture(), images(), 0.2
    found = moments_of(mixture, y, x, Contrast(sd))
    line = np.linspace(1 - 7 * sd, 1 + 7 * sd, 121)
    prior = scipy.stats.norm.logpdf(line, 1, sd) + np.log(line[1] - line[0])
    joint = np.stack([dense(mixture, y, x, a)[0] for a in line]) + prior[:, None, None]
    np.testing.assert_allclose(found.log_ratio, logsumexp(joint, axis=(0, 2)), atol=1e-6)
    share = np.exp(logsumexp(joint, axis=0) - logsumexp(joint, axis=(0, 2))[:, None])
    np.testing.assert_allclose(found.responsibilities, share, atol=1e-6)


def test_equal_gaussians_are_the_plain_subspace():
    (y, x), eye = images(), np.broadcast_to(np.eye(DIMS), (COUNT, DIMS, DIMS))
    same = LatentMixture(np.full(COUNT, 1 / COUNT), np.zeros((COUNT, DIMS)), eye)
    a, b = moments_of(same, y, x, Contrast(0.2)), moments_of(None, y, x, Contrast(0.2), 1)
    for name in ("log_ratio", "first", "second", "mean", "covariance", "contrast"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-10, err_msg=name)
    assert b.each is None and a.each is not None


def test_the_gauge_is_mean_zero_and_unit_covariance():
    for mixture in (a_mixture(), first_mixture(COUNT, DIMS)):
        mean, cover = jax.jit(LatentMixture.moments)(mixture)
        np.testing.assert_allclose(mean, 0, atol=1e-5)
        np.testing.assert_allclose(cover, np.eye(len(mean)), atol=1e-5)
    family, mixture = family_of(), a_mixture()
    rng = np.random.default_rng(0)
    maps = {"components": jnp.asarray(rng.normal(size=(DIMS, 8, 8, 8)), jnp.float32)}
    shared = family.with_mixture(maps | {"components_tau2": jnp.ones((DIMS, 4))}, mixture)
    turned = family.canonical(shared)
    weights, means = np.asarray(turned["weights"]), np.asarray(turned["means"])
    assert (np.diff(weights) <= 0).all()
    order = np.argsort(-np.asarray(mixture.weights))
    a = np.asarray(mixture.means)[order] @ np.asarray(shared["components"]).reshape(DIMS, -1)
    b = means @ np.asarray(turned["components"]).reshape(DIMS, -1)
    np.testing.assert_allclose(a, b, atol=1e-4)  # the Gaussians stay where they are among the maps
    drawn = family.conformation(turned).sample(jax.random.key(0), (4000,))
    np.testing.assert_allclose(np.cov(np.asarray(drawn).T), np.eye(DIMS), atol=0.1)


def test_the_m_step_is_the_maximum_and_keeps_the_moments():
    rng, before = np.random.default_rng(3), a_mixture()
    z, share = rng.normal(size=(200, DIMS)) ** 3, rng.dirichlet(np.ones(COUNT), size=200)
    point = np.concatenate([np.ones((200, 1)), z], axis=1)
    moments = np.einsum("bk,bi,bj->kij", share, point, point)
    best = most_likely(moments, before)
    with jax.enable_x64(True):
        mean, cover = jax.jit(LatentMixture.moments)(best)
    np.testing.assert_allclose(mean, z.mean(0), atol=1e-10)
    np.testing.assert_allclose(cover, np.cov(z.T, bias=True), atol=1e-10)
    direct = sum(
        (share[:, k] * (np.log(w) + scipy.stats.multivariate_normal.logpdf(z, m, s))).sum()
        for k, (w, m, s) in enumerate(zip(*jax.tree.leaves(best), strict=True))
    )
    top = expected_log_density(moments, best)
    assert top == pytest.approx(direct, abs=1e-8)
    for _ in range(20):  # any other mixture is worse
        w = best.weights * np.exp(0.05 * rng.normal(size=COUNT))
        root = np.eye(DIMS) + 0.05 * rng.normal(size=(COUNT, DIMS, DIMS))
        other = LatentMixture(
            w / w.sum(),
            best.means + 0.05 * rng.normal(size=best.means.shape),
            root @ best.covariances @ np.swapaxes(root, 1, 2),
        )
        assert expected_log_density(moments, other) < top
    empty = np.concatenate([moments[:2], 1e-9 * moments[2:]])
    assert np.array_equal(most_likely(empty, before).means[2], np.asarray(before.means)[2])
