"""The density of the latents over the population, freed from the uncertainty of each particle's latent.

A histogram of estimates is broadened by their errors, one of posterior means narrowed by the prior. The density f
itself is in the likelihood sum_i log sum_g p(y_i | z_g) f(z_g): each particle enters with its own likelihood of z,
which is its posterior with the prior divided out. Two estimates of f on a grid:

- `weights`, the nonparametric maximum: atoms, with a certificate, and no error bars;
- `smooth`, f = softmax(-G) with an intrinsic Gaussian random field G on the grid, exp(-strength |L G|²/2) with the
  grid's Laplacian L: the posterior of the free energy G up to a constant (the model of cryo-BIFE, Giraldo-Barreto et
  al. 2021, Scientific Reports 11, with a proper prior of the strength). The field is integrated by Laplace's
  approximation at each of some strengths, which are weighted by their evidence.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import numpyro.distributions as dist
import scipy.linalg

from hetmodels.analysis.mixtures import Mixture, mixture_weights
from hetmodels.analysis.one_gaussian import under_one_gaussian
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior

POINTS = {1: 41, 2: 17, 3: 9}  # nodes per axis
ROWS = 20_000  # particles that enter the random field at most; more are drawn evenly
DRAWS = 500
STRENGTHS = np.exp(np.linspace(-9.0, 9.0, 25))  # of the field, log-normal with mean 0 and standard deviation 3


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid in some latent axes.

    Attributes:
        axes: coordinates along each axis, one array per axis.
    """

    axes: tuple[np.ndarray, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Nodes along each axis."""
        return tuple(len(axis) for axis in self.axes)

    @property
    def nodes(self) -> np.ndarray:
        """All nodes, (nodes, axes), the last axis fastest."""
        return np.array(list(itertools.product(*self.axes)))

    @property
    def cell(self) -> float:
        """Size of a cell."""
        return float(np.prod([axis[1] - axis[0] for axis in self.axes]))

    def laplacian(self) -> np.ndarray:
        """The graph Laplacian L of the nodes: G·L G is the sum over neighbours of (G_a - G_b)², (nodes, nodes)."""
        number = np.arange(int(np.prod(self.shape))).reshape(self.shape)
        form = np.zeros((number.size, number.size))
        for axis in range(len(self.shape)):
            a, b = (np.take(number, range(s, self.shape[axis] - 1 + s), axis=axis).ravel() for s in (0, 1))
            for i, j, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
                np.add.at(form, (i, j), sign)
        return form


@dataclasses.dataclass(frozen=True, eq=False)
class LatentLikelihood:
    """log p(y_i | z_g) of each particle at each node of a grid, up to a constant per particle.

    Attributes:
        grid: the nodes.
        log_density: (particles, nodes).
        error: median standard deviation of a particle's own estimate along each axis; infinite where it has none.
    """

    grid: Grid
    log_density: np.ndarray
    error: np.ndarray

    @property
    def finest(self) -> np.ndarray:
        """Width below which features come from the smoothness asked for and not from the data, along each axis.

        A Fourier component w of the density is damped by exp(-error² w²/2) in the data, and n particles see it down to
        1/√n: pi error/√(ln n).
        """
        return np.pi * self.error / np.sqrt(np.log(max(len(self.log_density), 3)))

    def weights(self) -> Mixture:
        """The nonparametric maximum-likelihood estimate."""
        return mixture_weights(self.log_density)

    def smooth(self, seed: int = 0, draws: int = DRAWS) -> "MixingDensity":
        """The posterior of the density under a random field.

        Args:
            seed: of the draws.
            draws: number of draws.
        """
        rows = np.unique(np.linspace(0, len(self.log_density) - 1, min(ROWS, len(self.log_density))).astype(int))
        density = np.exp(self.log_density[rows] - self.log_density[rows].max(1, keepdims=True)).astype(float)
        values, vectors = np.linalg.eigh(self.grid.laplacian())
        basis = vectors[:, 1:] / values[1:]  # -G = basis x with x ~ N(0, 1/strength): sum G = 0
        copies = len(self.log_density) / len(rows)
        field, fits = np.zeros(basis.shape[1]), []
        for strength in STRENGTHS[::-1]:
            fits.append(_laplace(density, copies, basis, strength, field))
            field = fits[-1].mode
        evidence = np.array(
            [fit.log_evidence - np.log(s) ** 2 / 18 for fit, s in zip(fits, STRENGTHS[::-1], strict=True)]
        )
        share = np.exp(evidence - evidence.max())
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(fits), draws, p=share / share.sum())
        white = rng.standard_normal((draws, basis.shape[1]))
        theta = np.stack([basis @ (fits[c].mode + fits[c].root @ w) for c, w in zip(chosen, white, strict=True)])
        return MixingDensity(self.grid, theta - np.logaddexp.reduce(theta, axis=1, keepdims=True), self.finest)


@dataclasses.dataclass(frozen=True, eq=False)
class _Fit:
    """Laplace's approximation: mode, a root of the covariance, and the log evidence but for a constant."""

    mode: np.ndarray
    root: np.ndarray
    log_evidence: float


def _laplace(density: np.ndarray, copies: float, basis: np.ndarray, strength: float, start: np.ndarray) -> _Fit:
    """Newton's method with a line search; where the log density bends upwards, the scores' outer products serve."""

    def objective(field: np.ndarray) -> float:
        theta = basis @ field
        weights = np.exp(theta - theta.max())
        mixed = np.log(density @ (weights / weights.sum()) + 1e-300)
        return float(copies * mixed.sum() - strength / 2 * field @ field)

    field, value = start, objective(start)
    for _ in range(60):
        slope, outer, second = _scores(density, basis, field)
        slope, ridge = copies * slope - strength * field, strength * np.eye(len(field))
        try:
            step = scipy.linalg.solve(copies * second + ridge, slope, assume_a="pos")
        except np.linalg.LinAlgError:
            step = scipy.linalg.solve(copies * outer + ridge, slope, assume_a="pos")
        size = 1.0
        while (moved := objective(field + size * step)) < value and size > 1e-6:
            size /= 2
        gained, field, value = moved - value, field + size * step, max(moved, value)
        if gained < 1e-4:
            break
    values, vectors = np.linalg.eigh(copies * _scores(density, basis, field)[2] + strength * np.eye(len(field)))
    values = np.maximum(values, strength)
    log_evidence = value + len(field) / 2 * np.log(strength) - np.log(values).sum() / 2
    return _Fit(field, vectors / np.sqrt(values), log_evidence)


def _scores(density: np.ndarray, basis: np.ndarray, field: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient of the log likelihood by the field, sum of its terms' outer products, negative second derivative."""
    theta = basis @ field
    weights = np.exp(theta - theta.max())
    weights /= weights.sum()
    shares = density * weights
    shares /= shares.sum(1, keepdims=True) + 1e-300
    total, count = shares.sum(0), len(density)
    both = shares.T @ shares
    outer = both - np.outer(total, weights) - np.outer(weights, total) + count * np.outer(weights, weights)
    second = count * (np.diag(weights) - np.outer(weights, weights)) - np.diag(total) + both
    return basis.T @ (total - count * weights), basis.T @ outer @ basis, basis.T @ second @ basis


@dataclasses.dataclass(frozen=True, eq=False)
class MixingDensity:
    """Draws of the log probability of each node.

    Attributes:
        grid: the nodes.
        log_weights: (draws, nodes), each draw sums to 1 as probabilities.
        finest: width of the finest feature that the data can show, along each axis.
    """

    grid: Grid
    log_weights: np.ndarray
    finest: np.ndarray

    @property
    def density(self) -> np.ndarray:
        """Mean density per unit of the latent, in the shape of the grid."""
        return np.exp(self.log_weights).mean(0).reshape(self.grid.shape) / self.grid.cell

    def band(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Central interval of the log density at each node, in the shape of the grid."""
        tail = (1 - level) / 2
        low, high = np.quantile(self.log_weights, [tail, 1 - tail], axis=0) - np.log(self.grid.cell)
        return low.reshape(self.grid.shape), high.reshape(self.grid.shape)


def latent_likelihood(
    posterior: Posterior, axes: Sequence[int] = (0,), points: int | None = None, reach: float = 1.15
) -> LatentLikelihood:
    """What each particle says of some of its latents, on a grid that covers the estimates.

    The posterior of a particle is taken as Gaussian, N(z; m, S), and divided by the family's prior on the same axes;
    what the prior says of the other axes given these stays in. A mixture of Gaussians as prior is exchanged for one
    Gaussian first.

    Args:
        posterior: of a family with continuous latents.
        axes: latent axes, from 0; at most three.
        points: nodes along each axis.
        reach: extent of the grid relative to that of the posterior means.

    Raises:
        UsageError: if there are no such axes, or the prior is not known in closed form.
    """
    dims = posterior.local["mean"].shape[1] if posterior.local else 0
    if not 1 <= len(axes) <= 3 or len(set(axes)) < len(axes) or not all(0 <= axis < dims for axis in axes):
        raise UsageError(f"mixing density: axes must be one to three of the {dims} latent axes, from 0; got {axes}.")
    keep = posterior.local["outlier"] < 0.5 if "outlier" in posterior.local else slice(None)
    means, covariances = under_one_gaussian(posterior)
    mean, covariance = means[keep][:, axes], covariances[keep][:, axes][:, :, axes]
    centre, spread = prior_moments(posterior)
    centre, spread = centre[list(axes)], spread[np.ix_(axes, axes)]
    low, high = mean.min(0), mean.max(0)
    middle, half = (low + high) / 2, (high - low) / 2 * reach
    count = points or POINTS[len(axes)]
    grid = Grid(tuple(np.linspace(m - h, m + h, count) for m, h in zip(middle, half, strict=True)))
    inverse, prior = np.linalg.inv(covariance), np.linalg.inv(spread)
    precision = inverse - prior
    slope = np.einsum("nij,nj->ni", inverse, mean) - prior @ centre
    nodes = grid.nodes
    quadratic = np.einsum("gi,nij,gj->ng", nodes, precision, nodes)
    own = np.diagonal(precision, axis1=1, axis2=2)
    error = np.where(np.median(own, axis=0) > 0, 1 / np.sqrt(np.maximum(np.median(own, axis=0), 1e-30)), np.inf)
    return LatentLikelihood(grid, slope @ nodes.T - quadratic / 2, error)


def prior_moments(posterior: Posterior) -> tuple[np.ndarray, np.ndarray]:
    """Mean (dims,) and covariance (dims, dims) of the family's prior on a particle's latents.

    Raises:
        UsageError: if the family gives no distribution with moments.
    """
    family = posterior.family
    if family is not None and hasattr(family, "latent_covariance"):
        covariance = np.asarray(family.latent_covariance(posterior.shared_point()), float)
        return np.zeros(len(covariance)), covariance
    prior = None if family is None else family.conformation(posterior.shared_point())
    if not isinstance(prior, dist.Distribution):
        raise UsageError("latents: the family must have one prior distribution of its latents, to be divided out.")
    mean = np.ravel(np.asarray(prior.mean, float))
    if hasattr(prior, "covariance_matrix"):
        return mean, np.asarray(prior.covariance_matrix, float)
    return mean, np.diag(np.ravel(np.asarray(prior.variance, float)))
