"""Laws of the closed-form integral over Gaussian latents and contrast: quadrature, gradients, calibration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.special import logsumexp
from simulated import problem, simulated

from hetmodels.families import Subspace
from hetmodels.families.protocol import Frame
from hetmodels.local import design_moments
from hetmodels.observation import Contrast

DIMS = 2


def statistics(scale, rows=3, pixels=40, seed=0):
    """h = 2 Re <y, x_l> and G = Re <x_l, x_m> of random images; the first component is much like the mean."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.normal(size=(*shape, pixels)) + 1j * rng.normal(size=(*shape, pixels))

    mean = scale * draw(rows, 1)
    x = np.concatenate([mean, 0.3 * mean + 0.1 * scale * draw(rows, 1), 0.3 * scale * draw(rows, DIMS - 1)], axis=1)
    z = rng.normal(size=(rows, DIMS))
    y = (1.2 * (x[:, 0] + np.einsum("bl,blm->bm", z, x[:, 1:])) + draw(rows) / np.sqrt(2))[:, None]
    return 2 * (y.conj() * x).real.sum(-1), np.einsum("blm,bnm->bln", x.conj(), x).real


def family_of(size=8):
    family = Subspace(dims=DIMS, frame=Frame(size, 10.0, (1.0,) * ((size - 1) // 2 + 1)))
    zero = jnp.zeros((size,) * 3)
    return family, {"map": zero, "components": jnp.zeros((DIMS, *zero.shape))}


def quadrature(h, gram, sd, reach=9.0, nodes=121):
    """Evidence and moments of one image by a grid over contrast and both latents."""
    line = np.linspace(-reach, reach, nodes)
    # a grid along the principal axes of the latents' posterior at the likeliest contrast
    trial = np.linspace(max(1 - 5 * sd, 0.02), 1 + 5 * sd, 4001) if sd else np.ones(1)
    precision = 2 * trial[:, None, None] ** 2 * gram[1:, 1:] + np.eye(DIMS)
    slope = trial[:, None] * h[1:] - 2 * trial[:, None] ** 2 * gram[0, 1:]
    mode = np.linalg.solve(precision, slope[..., None])[..., 0]
    inner = trial * h[0] - trial**2 * gram[0, 0] + 0.5 * (mode * slope).sum(1) - 0.5 * np.linalg.slogdet(precision)[1]
    total = inner + (scipy.stats.norm.logpdf(trial, 1, sd) if sd else 0)
    share = np.exp(total - logsumexp(total))
    keep = share > 1e-13 * share.max()
    a = np.linspace(trial[keep][0], trial[keep][-1], 301) if sd else trial
    terms, points = [], []
    for one in a:
        p = 2 * one**2 * gram[1:, 1:] + np.eye(DIMS)
        centre = np.linalg.solve(p, one * h[1:] - 2 * one**2 * gram[0, 1:])
        axes = np.linalg.cholesky(np.linalg.inv(p))
        grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, DIMS) @ axes.T + centre
        b = np.concatenate([np.ones((len(grid), 1)), grid], axis=1)
        value = one * b @ h - one**2 * np.einsum("nl,lm,nm->n", b, gram, b)
        value += scipy.stats.norm.logpdf(grid).sum(1) + np.log(np.linalg.det(axes)) + 2 * np.log(line[1] - line[0])
        terms.append(value + (scipy.stats.norm.logpdf(one, 1, sd) + np.log(a[1] - a[0]) if sd else 0))
        points.append(b)
    terms, points = np.array(terms), np.array(points)
    log_ratio = logsumexp(terms)
    weight = np.exp(terms - log_ratio)
    first = np.einsum("an,a,anl->l", weight, a, points)
    second = np.einsum("an,a,anl,anm->lm", weight, a**2, points, points)
    mean = np.einsum("an,anl->l", weight, points[..., 1:])
    square = np.einsum("an,anl,anm->lm", weight, points[..., 1:], points[..., 1:])
    return log_ratio, first, second, mean, square - np.outer(mean, mean), (weight.sum(1) * a).sum()


@pytest.mark.parametrize("sd", [0.0, 0.2], ids=["contrast fixed", "contrast"])
@pytest.mark.parametrize("scale", [0.1, 0.5, 4.0], ids=["weak", "clear", "strong"])
def test_the_integral_is_the_quadrature_over_latents_and_contrast(scale, sd):
    h, gram = statistics(scale)
    family, shared = family_of()
    with jax.enable_x64(True):
        found = design_moments(family, shared, jnp.asarray(h), jnp.asarray(gram), Contrast(sd) if sd else None)
    fields = found.log_ratio, found.first, found.second, found.mean, found.covariance, found.contrast
    for row in range(len(h)):
        for value, exact in zip(fields, quadrature(h[row], gram[row], sd), strict=True):
            np.testing.assert_allclose(value[row], exact, rtol=1e-6, atol=1e-6)


def test_moments_are_the_gradient_of_the_evidence():
    """Fisher's identity: d log p / dh = E[a b], d log p / dG = -E[a^2 b b^T]."""
    h, gram = statistics(0.5)
    family, shared = family_of()
    with jax.enable_x64(True):

        def evidence(h, gram):
            return design_moments(family, shared, h, gram, Contrast(0.2)).log_ratio.sum()

        h, gram = jnp.asarray(h), jnp.asarray(gram)
        slope, curvature = jax.grad(evidence, (0, 1))(h, gram)
        found = design_moments(family, shared, h, gram, Contrast(0.2))
        np.testing.assert_allclose(slope, found.first, rtol=1e-8, atol=1e-8)
        even = (curvature + jnp.swapaxes(curvature, 1, 2)) / 2
        np.testing.assert_allclose(even, -found.second, rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def drawn():
    """5,000 images drawn from a subspace, CTF and all, and the posterior of their latents under it."""
    made = simulated(n=5000, size=16, snr=0.1, states=3)
    task = problem(made.particles, Subspace(dims=DIMS))
    mean = made.truth.mean(0)
    shared = task.shared(task.initial(jax.random.key(0)))
    maps = jnp.asarray(np.stack([made.truth[2] - made.truth[0], made.truth[1] - mean]), jnp.float32)
    shared |= {"map": jnp.asarray(mean, jnp.float32), "components": maps}
    batch = task.batch(np.arange(5000))
    again, z, _ = jax.jit(task.simulate)(jax.random.key(1), shared, batch)
    return task, shared, again, np.asarray(z, float)


def test_latents_have_the_posterior_they_were_drawn_with(drawn):
    """T13: (z - mean)^T H (z - mean) is chi-squared; every standardised residual is normal."""
    task, shared, batch, z = drawn
    local = jax.jit(task.infer)(jax.random.key(2), shared, batch)
    off, spread = z - np.asarray(local.mean, float), np.asarray(local.covariance, float)
    distance = np.einsum("bi,bij,bj->b", off, np.linalg.inv(spread), off)
    assert scipy.stats.kstest(distance, "chi2", args=(DIMS,)).pvalue > 1e-3
    inside = np.mean(distance < scipy.stats.chi2.ppf(0.9, DIMS))
    assert abs(inside - 0.9) < 3 * np.sqrt(0.09 / len(z))
    for axis in range(DIMS):
        assert scipy.stats.kstest(off[:, axis] / np.sqrt(spread[:, axis, axis]), "norm").pvalue > 1e-3
    assert np.sqrt(np.diagonal(spread, axis1=1, axis2=2)).min(0).max() < 0.7  # the images do say something


def test_unknown_contrast_keeps_the_regions_of_the_latents(drawn):
    task, shared, batch, z = drawn
    observation = dataclasses.replace(task.observation, contrast=Contrast(0.2))
    task = dataclasses.replace(task, observation=observation)
    batch, z, _ = jax.jit(task.simulate)(jax.random.key(3), shared, batch)
    local = jax.jit(task.infer)(jax.random.key(4), shared, batch)
    off, spread = np.asarray(z - local.mean, float), np.asarray(local.covariance, float)
    distance = np.einsum("bi,bij,bj->b", off, np.linalg.inv(spread), off)
    inside = np.mean(distance < scipy.stats.chi2.ppf(0.9, DIMS))
    assert abs(inside - 0.9) < 0.02
