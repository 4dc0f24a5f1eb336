"""How well classes, latents, poses and maps agree with known values. Plain functions of arrays (numpy, scipy)."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.spatial
import scipy.spatial.distance
import scipy.special
import scipy.stats

from hetmodels.analysis import fourier, fsc
from hetmodels.analysis.alignment import FLIP
from hetmodels.errors import DataError


def contingency(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts of each pair of labels.

    Args:
        a: labels of one kind, (particles,).
        b: labels of the other kind, (particles,).

    Returns:
        Counts (labels of a, labels of b), the sorted labels of a, the sorted labels of b.

    Raises:
        DataError: if lengths differ or there are no particles.
    """
    if len(a) != len(b) or len(a) == 0:
        raise DataError(f"labels: both lists must have one label per particle, found {len(a)} and {len(b)}.")
    labels_a, row = np.unique(a, return_inverse=True)
    labels_b, column = np.unique(b, return_inverse=True)
    flat = np.bincount(row * len(labels_b) + column, minlength=len(labels_a) * len(labels_b))
    return flat.reshape(len(labels_a), len(labels_b)), labels_a, labels_b


def ari(a: np.ndarray, b: np.ndarray) -> float:
    """Adjusted Rand index (Hubert and Arabie 1985): 1 for equal partitions, 0 on average for unrelated ones.

    >>> ari(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2]))
    1.0
    """
    table, _, _ = contingency(a, b)
    counts = table.astype(float)

    def pairs(n: np.ndarray) -> float:
        return float((n * (n - 1.0) / 2.0).sum())

    both, rows, columns = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    expected = rows * columns / max(pairs(counts.sum(keepdims=True)), 1.0)
    largest = 0.5 * (rows + columns)
    return 1.0 if largest == expected else (both - expected) / (largest - expected)


def match_classes(assigned: np.ndarray, true: np.ndarray) -> tuple[dict[int, int], float]:
    """One-to-one matching of classes with true states that keeps most particles (Hungarian method).

    Returns:
        True state of each matched class; fraction of particles whose class is matched with their state.
    """
    table, classes, states = contingency(assigned, true)
    rows, columns = scipy.optimize.linear_sum_assignment(-table)
    pairs = {int(classes[r]): int(states[c]) for r, c in zip(rows, columns, strict=True)}
    return pairs, float(table[rows, columns].sum() / table.sum())


def latent_spearman(true: np.ndarray, inferred: np.ndarray) -> float:
    """Absolute rank correlation of a true coordinate with the inferred ones.

    The largest of: the best single axis; with enough particles, the true ranks regressed on all axes, linearly or with
    squares and products (a motion along a curve bends through the axes), fitted on every other particle and read on
    the rest.

    Args:
        true: one coordinate per particle, (particles,).
        inferred: latents, (particles, dims).
    """
    rank, count = scipy.stats.rankdata(true), len(true)
    inferred = inferred[:, np.ptp(inferred, axis=0) > 0]
    found = [abs(_spearman(rank, axis)) for axis in inferred.T]
    if len(found) < 2:
        return max(found, default=0.0)
    scaled = (inferred - inferred.mean(0)) / inferred.std(0)
    i, j = np.triu_indices(inferred.shape[1])
    linear = np.column_stack([np.ones(count), scaled])
    designs = [linear, np.column_stack([linear, scaled[:, i] * scaled[:, j]])]
    found += [abs(_spearman(rank, _cross_fitted(d, rank))) for d in designs if count >= 4 * d.shape[1]]
    return max(found)


def _cross_fitted(design: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares predictions of each half of the rows by the fit to the other half."""
    predicted = np.empty(len(target))
    for part in (0, 1):
        fitted, read = slice(part, None, 2), slice(1 - part, None, 2)
        predicted[read] = design[read] @ np.linalg.lstsq(design[fitted], target[fitted], rcond=None)[0]
    return predicted


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 if either side is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(scipy.stats.rankdata(a), scipy.stats.rankdata(b))[0, 1])


def in_true_gauge(true: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means and standard deviations carried to the true coordinate by one affine map for all particles.

    Inferred axes have their own origin, scale and direction. The map is the regression of the truth on the posterior
    means: for a calibrated posterior E[truth | mean] is the mean itself, so that it changes the gauge only.

    Args:
        true: (particles,).
        mean: posterior means, (particles, dims).
        sd: posterior standard deviations, axes taken as independent, (particles, dims).

    Returns:
        Mean and standard deviation in the unit of the truth, (particles,) each.
    """
    design = np.column_stack([np.ones(len(true)), mean])
    slope = np.linalg.lstsq(design, true, rcond=None)[0]
    return design @ slope, np.sqrt((sd * slope[1:]) ** 2 @ np.ones(mean.shape[1]))


def coverage(true: np.ndarray, mean: np.ndarray, sd: np.ndarray, level: float) -> float:
    """Fraction of true values inside the central Gaussian interval of the given probability, (particles,) each.

    >>> coverage(np.array([0.0, 3.0]), np.zeros(2), np.ones(2), 0.9)
    0.5
    """
    return float(np.mean(np.abs(true - mean) <= scipy.special.ndtri(0.5 + 0.5 * level) * sd))


def neighbourhood_similarity(true: np.ndarray, inferred: np.ndarray, k: int) -> float:
    """Mean share of the k nearest neighbours that two embeddings have in common, each point counted with its own.

    Chance gives about k/particles, equal embeddings (k+1)/k, as in CryoBench.

    Args:
        true: (particles, q).
        inferred: (particles, dims).
        k: neighbours, below the number of particles.
    """
    sets = [np.sort(scipy.spatial.cKDTree(x).query(x, k + 1)[1], axis=1) for x in (true, inferred)]
    merged = np.sort(np.concatenate(sets, axis=1), axis=1)
    return float((merged[:, 1:] == merged[:, :-1]).sum() / (k * len(true)))


def information_imbalance(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """How far one embedding fails to tell the other: 2/N times the mean rank in b of the k nearest neighbours in a.

    Near 0, at least (k+1)/N, where neighbours in a are neighbours in b; 1 where they are anywhere (Glielmo, Zeni,
    Cheng, Csanyi and Laio 2022, PNAS Nexus 1).

    Args:
        a: (N, p).
        b: (N, q).
        k: neighbours, below N.
    """
    near = _distances(a).argsort(1, kind="stable")[:, 1 : k + 1]
    rank = _distances(b).argsort(1, kind="stable").argsort(1)
    return float(2 * np.take_along_axis(rank, near, axis=1).mean() / len(a))


def _distances(x: np.ndarray) -> np.ndarray:
    """All distances, each point before all others in its own row, (N, N)."""
    found = scipy.spatial.distance.cdist(x, x)
    np.fill_diagonal(found, -1)
    return found


def principal_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles [rad] between the spans of two sets of maps, smallest first.

    Args:
        a: components (q, …), any shape after the first axis.
        b: components (p, …), the same shape after the first axis.

    Returns:
        min(q, p) angles, each 0 … π/2.
    """
    return np.sort(scipy.linalg.subspace_angles(a.reshape(len(a), -1).T, b.reshape(len(b), -1).T))


def geodesic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle [rad] of the rotation between matrices (…, 3, 3), from the chord, exact near 0."""
    chord = np.sqrt(((a - b) ** 2).sum((-2, -1)))
    return 2.0 * np.arcsin(np.clip(chord / np.sqrt(8.0), 0.0, 1.0))


def rotation_errors(
    estimated: np.ndarray, true: np.ndarray, *, hands: bool = False, tries: int = 60
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Angles between estimated and true poses after one global rotation Q of the molecule: A ≈ A_true Q.

    Q is taken from each of some particles in turn; the one with the lowest median error is polished to the least sum
    of distances over all particles (Weiszfeld), which outliers hardly move. With `hands`, poses of the
    mirrored molecule J A J are tried too, J = diag(1, 1, -1).

    Args:
        estimated: (particles, 3, 3).
        true: (particles, 3, 3).
        hands: try the other hand as well.
        tries: particles that propose a Q.

    Returns:
        Angles [rad] (particles,), Q (3, 3), whether the other hand was used.
    """

    def fitted(mirrored: bool) -> tuple[np.ndarray, np.ndarray, bool]:
        target = FLIP @ true @ FLIP if mirrored else true
        relative = np.swapaxes(target, -1, -2) @ estimated
        candidates = relative[np.unique(np.linspace(0, len(true) - 1, tries).astype(int))]
        chosen = min(candidates, key=lambda q: np.median(geodesic(relative, q)))
        for _ in range(20):
            weight = 1.0 / np.maximum(geodesic(relative, chosen), 1e-4)
            chosen = _nearest_rotation(np.einsum("n,nij->ij", weight / weight.sum(), relative))
        return geodesic(relative, chosen), chosen, mirrored

    return min((fitted(h) for h in ((False, True) if hands else (False,))), key=lambda f: np.median(f[0]))


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    """The rotation nearest to a matrix (3, 3) in the Frobenius norm."""
    u, _, vt = np.linalg.svd(matrix)
    return u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt


def pair_scores(
    maps: Callable[[int], np.ndarray],
    truths: Callable[[int], np.ndarray],
    pairs: np.ndarray,
    spacing: float,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Agreement of each particle's map with its true map; equal pairs are computed once.

    Args:
        maps: gives a map by number.
        truths: gives a true map by number, same box.
        pairs: number of the map and of the true map for each particle, (particles, 2).
        spacing: voxel size of all maps [Å].
        mask: weights 0 … 1.

    Returns:
        Area under the FSC in CryoBench's shells, and the resolution [Å] at which the FSC in RELION's shells falls
        below 0.5, (particles,) each.
    """
    unique, inverse = np.unique(pairs[:, ::-1], axis=0, return_inverse=True)
    window = np.float32(1.0) if mask is None else mask
    areas, resolutions = np.empty(len(unique)), np.empty(len(unique))
    transform = lru_cache(maxsize=8)(lambda number: fourier.forward(maps(number) * window))
    state, target = None, np.empty(0)
    for i, (s, m) in enumerate(unique.tolist()):
        if s != state:
            state, target = s, fourier.forward(truths(s) * window)
        areas[i] = fsc.area(fsc.cryobench_correlation(transform(m), target), len(target))
        resolutions[i] = fsc.from_transforms(transform(m), target, spacing).resolution(0.5).resolution
    return areas[inverse.ravel()], resolutions[inverse.ravel()]
