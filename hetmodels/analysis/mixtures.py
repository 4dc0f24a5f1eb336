"""Weights of a mixture of known densities by maximum likelihood, with a certificate of how near the maximum is.

The log likelihood sum_i log sum_m w_m p_im is concave in w. With the gain g_m = mean_i p_im / sum_l w_l p_il it can
rise by at most n (max_m g_m - 1) (Lindsay 1983, Annals of Statistics 11), which is the stopping rule; a number of
iterations is none, since it would act as a prior that nobody chose.
"""

import dataclasses

import numpy as np
import scipy.linalg
import scipy.optimize

TOLERANCE = 1e-6  # nats per observation that the likelihood may still gain
_ROUNDS, _STEPS = 200, 20


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Weights of a mixture.

    Attributes:
        weights: (components,), sum 1.
        gap: nats per observation by which the log likelihood lies below its maximum at most.
        log_likelihood: mean over observations.
    """

    weights: np.ndarray
    gap: float
    log_likelihood: float


def mixture_weights(
    log_density: np.ndarray, start: np.ndarray | None = None, counts: np.ndarray | None = None
) -> Mixture:
    """Maximise the likelihood of the weights: rounds of EM and of sequential quadratic programming.

    With held-out predictive densities of models in the columns, these are the weights of stacking (Yao, Vehtari,
    Simpson and Gelman 2018, Bayesian Analysis 13); with likelihoods of latent values, the nonparametric maximum-
    likelihood estimate of the latent's density. The quadratic step is that of Kim, Carbonetto, Stephens and Anitescu
    (2020, Journal of Computational and Graphical Statistics 29): near the maximum the objective
    mean_i -log (Pw)_i + sum_m w_m is replaced by its second-order expansion, minimised over w >= 0 as a non-negative
    least-squares problem, with a line search.

    Args:
        log_density: log p of each observation under each component, any constant per row, (n, components).
        start: weights to start from; equal if None.
        counts: weight of each observation, (n,); ones if None.
    """
    density = np.exp(log_density - log_density.max(1, keepdims=True)).astype(float)
    share = np.full(len(density), 1 / len(density)) if counts is None else counts / counts.sum()
    kept = share > 0
    density, share = density[kept], share[kept]
    weights = np.full(density.shape[1], 1 / density.shape[1]) if start is None else np.asarray(start, float)
    for _ in range(_ROUNDS):
        for _ in range(_STEPS):
            weights = weights * (density.T @ (share / (density @ weights)))
            weights /= weights.sum()
        gain = density.T @ (share / (density @ weights))
        if gain.max() - 1 < TOLERANCE:
            break
        weights = _quadratic_step(density, share, weights)
    fitted = density @ weights
    gap = float((density.T @ (share / fitted)).max() - 1)
    offset = log_density.max(1)[kept]
    return Mixture(weights, max(gap, 0.0), float(share @ (np.log(fitted) + offset)))


def _quadratic_step(density: np.ndarray, share: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One step of sequential quadratic programming with a backtracking line search.

    With A = diag(share)^½ diag(1/Pw) P, gradient and Hessian at the weights are 1 - g and AᵀA, and AᵀA w = g; the
    expansion is ½ wᵀ AᵀA w - (2g - 1)ᵀ w and a constant.
    """
    fitted = density @ weights
    scaled = np.sqrt(share)[:, None] * density / fitted[:, None]
    hessian = scaled.T @ scaled
    root = np.linalg.cholesky(hessian + 1e-9 * np.trace(hessian) * np.eye(len(weights)))
    slope = 2 * (density.T @ (share / fitted)) - 1
    try:
        target = scipy.optimize.nnls(root.T, scipy.linalg.solve_triangular(root, slope, lower=True))[0]
    except RuntimeError:  # its iterations were used up; EM goes on alone
        return weights
    before, step = share @ np.log(fitted) - weights.sum(), target - weights
    for halving in range(12):
        moved = np.maximum(weights + step / 2**halving, 0)
        after = density @ moved
        if np.all(after > 0) and share @ np.log(after) - moved.sum() > before:
            floored = np.maximum(moved / moved.sum(), 1e-12)
            return floored / floored.sum()
    return weights
