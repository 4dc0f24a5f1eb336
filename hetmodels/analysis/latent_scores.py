"""How well latents agree with the true coordinates of a simulation."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from hetmodels.analysis import fourier, metrics
from hetmodels.analysis.gauge import Located, locate, region_coverage
from hetmodels.analysis.map_space import MapSpace
from hetmodels.analysis.rows import Rows
from hetmodels.analysis.scores import Score
from hetmodels.data.maps import Map
from hetmodels.posterior import Posterior

NEIGHBOURS, NEIGHBOUR_POINTS = 0.01, 5000
IMBALANCE_POINTS, IMBALANCE_NEIGHBOURS = 2000, (1, 3, 10, 30)
STATES = 100  # true states that are located in the latent space
PRINCIPAL = 48  # maps in principal component analyses
LEVELS = (0.5, 0.9)


def coordinate_scores(mean: np.ndarray, known: np.ndarray) -> list[Score]:
    """Scores that need the latents and the true coordinates only.

    Args:
        mean: latents, (particles, dims).
        known: true coordinates, all of which vary, (particles, q).
    """
    ranks = float(np.mean([metrics.latent_spearman(axis, mean) for axis in known.T]))
    scores = [Score("latent_spearman", ranks, "rank correlation of true and inferred coordinates", 0.0, 1.0)]
    some = slice(None, None, -(-len(mean) // NEIGHBOUR_POINTS))
    count = len(mean[some])
    k = max(int(NEIGHBOURS * count), 1)
    near = metrics.neighbourhood_similarity(known[some], mean[some], k)
    words = f"share of the {k} nearest neighbours in common"
    scores.append(Score("neighbourhood_similarity", near, words, k / count, (k + 1) / k))
    return scores + _imbalance_scores(mean, known)


def _imbalance_scores(mean: np.ndarray, known: np.ndarray) -> list[Score]:
    some = np.unique(np.linspace(0, len(mean) - 1, min(IMBALANCE_POINTS, len(mean))).astype(int))
    neighbours = [k for k in IMBALANCE_NEIGHBOURS if k < len(some) - 1]
    if not neighbours:
        return []
    best = float(np.mean([(k + 1) / len(some) for k in neighbours]))
    scores = []
    for name, a, b in (("latent_to_true", mean, known), ("true_to_latent", known, mean)):
        value = float(np.mean([metrics.information_imbalance(a[some], b[some], k) for k in neighbours]))
        words = f"information imbalance {name.replace('_', ' ')}: 0 where one side tells the other, 1 where nothing"
        scores.append(Score(f"information_imbalance_{name}", value, words, 1.0, best))
    return scores


def interval_scores(mean: np.ndarray, sd: np.ndarray, known: np.ndarray) -> list[Score]:
    """Coverage of intervals of the true coordinates, where only means and standard deviations are known.

    Args:
        mean: (particles, dims).
        sd: (particles, dims).
        known: true coordinates, (particles, q).
    """
    located = [metrics.in_true_gauge(axis, mean, sd) for axis in known.T]
    scores = []
    for level in LEVELS:
        share = float(np.mean([metrics.coverage(t, m, s, level) for t, (m, s) in zip(known.T, located, strict=True)]))
        words = f"true coordinates inside their {level:.0%} interval; {level:g} is right"
        scores.append(Score(f"coverage_{level * 100:.0f}", share, words))
    return scores


def model_scores(posterior: Posterior, read: Callable[[int], Map], states: np.ndarray, notes: list[str]) -> list[Score]:
    """Coverage and subspace in the coordinates of the model: the true maps say where the true latents lie there.

    Args:
        posterior: of a family with continuous latents.
        read: gives the true map of a state.
        states: true state of each particle.
        notes: gets a sentence on what could not be scored.
    """
    box, spacing = posterior.box()
    numbers, place = np.unique(states, return_inverse=True)
    example = read(int(numbers[0]))
    extent = len(example.values) * example.spacing
    if len(example.values) < box or abs(extent - box * spacing) > 0.005 * extent:
        notes.append("coverage, subspace_angle: the true maps do not cover the box of the run at its sampling.")
        return []
    chosen = np.unique(np.linspace(0, len(numbers) - 1, min(STATES, len(numbers))).astype(int))
    mean = posterior.local["mean"]
    start = np.stack([mean[place == s].mean(0) for s in chosen])
    share = np.bincount(place)[chosen] / np.isin(place, chosen).sum()
    loads = [partial(_cropped, read, int(numbers[c]), box) for c in chosen]
    space = MapSpace.of(posterior)
    found = locate(space, loads, share, start)
    used = np.flatnonzero(np.isin(place, chosen))
    true = found.latents[np.searchsorted(chosen, place[used])]
    covariance = posterior.local["covariance"][used]
    scores = []
    for level in LEVELS:
        inside = region_coverage(true, mean[used], covariance, level)
        words = f"true states, as the model would describe them, in the {level:.0%} region; {level:g} is right"
        scores.append(Score(f"coverage_{level * 100:.0f}", inside, words))
    words = "share of the variance of the true maps that no map of the model has"
    scores.append(Score("unexplained_variance", found.unexplained, words, 1.0, 0.0))
    return scores + _subspace_scores(space, loads, share, found)


def _cropped(read: Callable[[int], Map], state: int, box: int) -> np.ndarray:
    return fourier.crop(read(state).values, box)


def _subspace_scores(
    space: MapSpace, loads: Sequence[Callable[[], np.ndarray]], share: np.ndarray, found: Located
) -> list[Score]:
    """Principal volumes of the truth against the span of the run's maps, in the metric of the images."""
    if len(loads) < 2:
        return []
    few = np.unique(np.linspace(0, len(loads) - 1, min(PRINCIPAL, len(loads))).astype(int))
    weight = np.sqrt(share[few] / share[few].sum())[:, None]
    true = _centred(np.stack([space.vector(loads[i]()) for i in few]), weight)
    own = _centred(np.stack([space.at(found.latents[i]) for i in few]), weight)
    dims = found.latents.shape[1]
    power, axes = _principal(true)
    basis = _principal(own)[1][:dims]
    captured = float((power @ (axes @ basis.T) ** 2).sum() / power.sum())
    angle = float(np.degrees(np.arccos(np.clip(np.linalg.norm(basis @ axes[0]), 0, 1))))
    best = float(power[:dims].sum() / power.sum())
    return [
        Score("subspace_angle_deg", angle, "angle [°] of the first true principal volume to the run's", 90.0, 0.0),
        Score("subspace_captured", captured, "share of the true maps' variance in the run's subspace", 0.0, best),
    ]


def _centred(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * (rows - (weight**2 * rows).sum(0))


def _principal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances, largest first, and unit vectors of the principal components of few long rows; none that vanish."""
    values, mixing = np.linalg.eigh(rows @ rows.T)
    values, mixing = values[::-1], mixing[:, ::-1]
    kept = values > 1e-9 * values[0]
    return values[kept], (mixing[:, kept].T @ rows) / np.sqrt(values[kept])[:, None]


def latents_of(rows: Rows, true: Rows, where: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Inferred and varying true coordinates of the particles, None where either is missing."""
    mean, known = rows.numbered("hetLatent"), true.numbered("hetTrueLatent")
    if mean is None or known is None:
        whose = "the run has no latents (_hetLatent1)" if mean is None else "the truth has none (_hetTrueLatent1)"
        notes.append(f"latent_spearman: {whose}.")
        return None
    known = known[where]
    known = known[:, np.ptp(known, axis=0) > 0]
    if not known.shape[1]:
        notes.append("latent_spearman: the true latents do not vary.")
        return None
    return mean, known
