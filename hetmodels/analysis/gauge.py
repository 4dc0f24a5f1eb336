"""True states in the coordinates of a model: where its maps come nearest to the true ones.

A latent has no scale, origin or direction of its own; what a model calls z is known through the map V(z) only. The
true latent of a state is therefore the z that minimises |c V_true - V(z)|² in the metric of the images (`MapSpace`),
with one factor c for all states between the grey values of the true maps and those of the run.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from hetmodels.analysis.map_space import MapSpace

ROUNDS = 12
SETTLED = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Located:
    """True states in the latent space of a model.

    Attributes:
        latents: (states, dims).
        scale: factor c from the true maps to those of the run.
        unexplained: share of the variance of the true maps over states that no map of the model has.
    """

    latents: np.ndarray
    scale: float
    unexplained: float


def locate(
    space: MapSpace, truths: Sequence[Callable[[], np.ndarray]], share: np.ndarray, start: np.ndarray
) -> Located:
    """Gauss-Newton for all states at once; the factor is eliminated in closed form in each round.

    Args:
        space: maps of the run.
        truths: give the true maps in its box, one per state.
        share: weight of each state, sum 1, (states,).
        start: latents to start from, (states, dims).
    """
    z = np.array(start, float)
    true = [space.vector(load()) for load in truths]
    scale = 1.0
    for _ in range(ROUNDS):
        steps_true, steps_own, upper, lower = [], [], 0.0, 0.0
        for target, place, weight in zip(true, z, share, strict=True):
            own, slope = space.at(place), space.jacobian(place)
            basis, triangle = np.linalg.qr(slope)
            beside_true, beside_own = target - basis @ (basis.T @ target), own - basis @ (basis.T @ own)
            upper += weight * beside_true @ beside_own
            lower += weight * beside_true @ beside_true
            inverse = np.linalg.pinv(triangle, rcond=1e-6)
            steps_true.append(inverse @ (basis.T @ target))
            steps_own.append(inverse @ (basis.T @ own))
        scale = upper / lower
        move = scale * np.stack(steps_true) - np.stack(steps_own)
        z = z + move
        if np.abs(move).max() < SETTLED * max(np.ptp(z, axis=0).max(), 1e-12):
            break
    mean = np.tensordot(share, np.stack(true), 1)
    total = sum(w * ((t - mean) ** 2).sum() for w, t in zip(share, true, strict=True))
    left = sum(w * ((t - space.at(place) / scale) ** 2).sum() for w, t, place in zip(share, true, z, strict=True))
    return Located(z, float(scale), float(left / total) if total > 0 else 0.0)


def region_coverage(true: np.ndarray, mean: np.ndarray, covariance: np.ndarray, level: float) -> float:
    """Fraction of true latents inside the Gaussian region of the given probability of their particles.

    Args:
        true: (particles, dims).
        mean: posterior means, (particles, dims).
        covariance: posterior covariances, (particles, dims, dims).
        level: probability of the region.
    """
    apart = true - mean
    distance = np.einsum("ni,ni->n", apart, np.linalg.solve(covariance.astype(float), apart[..., None])[..., 0])
    return float(np.mean(distance <= scipy.stats.chi2.ppf(level, true.shape[1])))
