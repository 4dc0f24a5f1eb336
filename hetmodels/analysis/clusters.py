"""Clusters of conformations: a mixture of Gaussians behind latents of which each is known with an error of its own.

A cluster algorithm on estimates takes the errors for structure: it splits one population whose latents are known well
in some views and badly in others. Here a particle enters with its likelihood of z, which is its posterior with the
prior divided out, so that a latent that an image does not show has no say (extreme deconvolution: Bovy, Hogg and Roweis
2011, Annals of Applied Statistics 5). The number of clusters is the smallest whose density predicts particles left out
as well as the best one does; how far the clusters can be had again is measured on bootstrap samples (Hennig 2007,
Computational Statistics & Data Analysis 52).
"""

import dataclasses

import numpy as np

from hetmodels.analysis.mixing_density import prior_moments
from hetmodels.analysis.one_gaussian import under_one_gaussian
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior

MOST, ROWS = 8, 2000  # clusters; particles that a mixture is fitted to, drawn evenly
FOLDS, STARTS, SAMPLES = 3, 2, 6
STABLE = 0.75  # mean Jaccard similarity from which a cluster counts as found again
_ROUNDS, _GAIN = 100, 1e-4  # of EM; nats per particle in a round that still count
_RIDGE, _PULL = 0.02, 5.0  # prior of a cluster's covariance, in variances of the latents, and its weight in particles


@dataclasses.dataclass(frozen=True, eq=False)
class LatentEvidence:
    """What the image of each particle says of its latents: log p(y | z) = slope·z - ½ zᵀ precision z and a constant.

    Attributes:
        slope: (N, dims).
        precision: positive semidefinite, (N, dims, dims).
        offset, scale: the latents are offset + scale z in the run's own coordinates, (dims,) and (dims, dims).
    """

    slope: np.ndarray
    precision: np.ndarray
    offset: np.ndarray
    scale: np.ndarray

    def __len__(self) -> int:
        return len(self.slope)

    def rows(self, chosen: np.ndarray) -> "LatentEvidence":
        """Some of the particles."""
        return dataclasses.replace(self, slope=self.slope[chosen], precision=self.precision[chosen])


def latent_evidence(posterior: Posterior) -> LatentEvidence:
    """The evidence of all particles, in coordinates in which posterior means have mean 0 and unit covariance.

    Raises:
        UsageError: if there are no continuous latents, or their prior is not known in closed form.
    """
    local = posterior.local
    dims = local["mean"].shape[1] if local else 0
    if not dims:
        raise UsageError("clusters: the run has no continuous latents; its classes are clusters already.")
    centre, spread = prior_moments(posterior)
    mean, covariance = under_one_gaussian(posterior)
    inverse = np.linalg.inv(covariance + 1e-9 * np.eye(dims) * np.trace(spread) / dims)
    slope = np.einsum("nij,nj->ni", inverse, mean) - np.linalg.solve(spread, centre)
    offset = mean.mean(0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(mean.T)))
    scale = vectors * np.sqrt(np.maximum(values, 1e-12 * max(values.max(), 1e-300)))
    slope = (slope - np.einsum("nij,j->ni", inverse - np.linalg.inv(spread), offset)) @ scale
    precision = scale.T @ (inverse - np.linalg.inv(spread)) @ scale
    own, axes = np.linalg.eigh((precision + np.swapaxes(precision, 1, 2)) / 2)
    return LatentEvidence(slope, np.einsum("nik,nk,njk->nij", axes, np.maximum(own, 0), axes), offset, scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussians:
    """A mixture of Gaussians.

    Attributes:
        weights: (K,), sum 1.
        means: (K, dims).
        covariances: (K, dims, dims).
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def joint(self, evidence: LatentEvidence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log density of each particle with each cluster, (N, K), and moments of its latents if it is in it.

        Returns:
            The logarithm, the means (K, N, dims) and the covariances (K, N, dims, dims).
        """
        logs, means, covariances = [], [], []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            inverse = np.linalg.inv(covariance)
            own = np.linalg.inv(inverse + evidence.precision)
            right = evidence.slope + inverse @ mean
            moved = np.einsum("nij,nj->ni", own, right)
            size = np.linalg.slogdet(own)[1] - np.linalg.slogdet(covariance)[1]
            fit = np.einsum("ni,ni->n", right, moved) - mean @ inverse @ mean
            logs.append(np.log(weight) + (fit + size) / 2)
            means.append(moved)
            covariances.append(own)
        return np.stack(logs, axis=1), np.stack(means), np.stack(covariances)

    def score(self, evidence: LatentEvidence) -> np.ndarray:
        """Log density of each particle, (N,)."""
        return np.logaddexp.reduce(self.joint(evidence)[0], axis=1)

    def probabilities(self, evidence: LatentEvidence) -> np.ndarray:
        """Of each particle to be in each cluster, (N, K)."""
        logs = self.joint(evidence)[0]
        return np.exp(logs - np.logaddexp.reduce(logs, axis=1, keepdims=True))


def fit_gaussians(evidence: LatentEvidence, count: int, rng: np.random.Generator) -> Gaussians:
    """The mixture of so many Gaussians that EM finds from one random start.

    Args:
        evidence: of the particles.
        count: number of clusters.
        rng: of the start, points drawn far apart from each other.
    """
    dims = evidence.slope.shape[1]
    points = np.linalg.solve(evidence.precision + np.eye(dims), evidence.slope[..., None])[..., 0]
    found = Gaussians(
        np.full(count, 1 / count), _far_apart(points, count, rng), np.tile(np.eye(dims) / count, (count, 1, 1))
    )
    before = -np.inf
    for _ in range(_ROUNDS):
        logs, means, covariances = found.joint(evidence)
        total = np.logaddexp.reduce(logs, axis=1)
        if total.mean() - before < _GAIN:
            break
        before, share = total.mean(), np.exp(logs - total[:, None]).T
        number = share.sum(1) + 1e-9
        middle = np.einsum("kn,kni->ki", share, means) / number[:, None]
        apart = means - middle[:, None]
        outer = np.einsum("kn,knij->kij", share, covariances) + np.einsum("kn,kni,knj->kij", share, apart, apart)
        spread = (outer + _PULL * _RIDGE * np.eye(dims)) / (number + _PULL)[:, None, None]
        found = Gaussians(number / number.sum(), middle, spread)
    return found


def _far_apart(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points of which each is drawn by its squared distance from those before (k-means++)."""
    chosen = [points[rng.integers(len(points))]]
    for _ in range(count - 1):
        near = np.min([((points - c) ** 2).sum(1) for c in chosen], axis=0)
        chosen.append(points[rng.choice(len(points), p=near / near.sum())])
    return np.stack(chosen)


def _best(evidence: LatentEvidence, count: int, rng: np.random.Generator, starts: int = STARTS) -> Gaussians:
    tried = [fit_gaussians(evidence, count, rng) for _ in range(starts if count > 1 else 1)]
    return max(tried, key=lambda found: found.score(evidence).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of the latents of a run, the largest first.

    Attributes:
        probabilities: of each particle to be in each cluster, (N, K).
        weights: shares of the clusters, errors taken out, (K,).
        means: their centres in the run's coordinates, (K, dims).
        covariances: their spreads, errors of the particles taken out, (K, dims, dims).
        stability: mean Jaccard similarity with the nearest cluster of bootstrap samples, (K,); 1 if always the same.
        gains: nats per particle left out that each number of clusters, from 1, gains over one, and the standard error
            of that, (tried, 2).
        representatives: rows of the particles that each cluster is shown by: nearest to its centre, (K,).
    """

    probabilities: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    stability: np.ndarray
    gains: np.ndarray
    representatives: np.ndarray

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def number(self) -> np.ndarray:
        """The most probable cluster of each particle, from 0, (N,)."""
        return self.probabilities.argmax(1)

    @property
    def words(self) -> str:
        """What was found, in a sentence or two."""
        if len(self) == 1:
            return "The latents form one cloud: no division into clusters predicts particles left out better."
        gain, error = self.gains[len(self) - 1]
        text = (
            f"The latents form {len(self)} clusters: particles left out are {gain:.2g} ± {error:.1g} nats each more "
            "probable than under one cloud."
        )
        shaky = [str(k + 1) for k in np.flatnonzero(self.stability < STABLE)]
        if shaky:
            which = f"cluster {shaky[0]}" if len(shaky) == 1 else f"clusters {', '.join(shaky)}"
            text += f" Do not rely on {which}: other samples of the particles divide them otherwise."
        return text


def clusters(posterior: Posterior, count: int | None = None, seed: int = 0) -> Clusters:
    """Divide the particles of a run by their latents.

    Args:
        posterior: of a family with continuous latents; junk is left out of the fit.
        count: number of clusters; None to choose it by particles left out.
        seed: of random starts, folds and bootstrap samples.

    Raises:
        UsageError: see `latent_evidence`.
    """
    rng, evidence = np.random.default_rng(seed), latent_evidence(posterior)
    clean = posterior.local["outlier"] < 0.5 if "outlier" in posterior.local else np.ones(len(evidence), bool)
    usable = np.flatnonzero(clean)
    some = evidence.rows(usable[np.unique(np.linspace(0, len(usable) - 1, min(ROWS, len(usable))).astype(int))])
    scores = _tried(some, rng) if count is None else np.zeros((count, len(some)))
    found = _best(some, count or _smallest(scores), rng, 2 * STARTS)
    order = np.argsort(-found.weights)
    found = Gaussians(found.weights[order], found.means[order], found.covariances[order])
    apart = scores - scores[0]
    gains = np.stack([apart.mean(1), apart.std(1) / np.sqrt(len(some))], axis=1)
    return Clusters(
        found.probabilities(evidence),
        found.weights,
        evidence.offset + found.means @ evidence.scale.T,
        evidence.scale @ found.covariances @ evidence.scale.T,
        _stability(some, found, rng),
        gains,
        _representatives(evidence, found, usable),
    )


def _tried(evidence: LatentEvidence, rng: np.random.Generator) -> np.ndarray:
    """Log density of each particle left out by number of clusters, until two more have brought nothing, (tried, n)."""
    fold = rng.permutation(np.arange(len(evidence)) % FOLDS)
    scores: list[np.ndarray] = []
    for count in range(1, min(MOST, len(evidence) // 20 + 1) + 1):
        score = np.empty(len(evidence))
        for part in range(FOLDS):
            model = _best(evidence.rows(fold != part), count, rng)
            score[fold == part] = model.score(evidence.rows(fold == part))
        scores.append(score)
        if count - 1 >= int(np.argmax([s.sum() for s in scores])) + 2:
            break
    return np.stack(scores)


def _smallest(scores: np.ndarray) -> int:
    """The fewest clusters that are not worse than the best number by two standard errors of the difference."""
    apart = scores[scores.sum(1).argmax()] - scores
    error = apart.std(1) / np.sqrt(apart.shape[1])
    return int(np.flatnonzero(apart.mean(1) <= 2 * error)[0]) + 1


def _stability(evidence: LatentEvidence, found: Gaussians, rng: np.random.Generator) -> np.ndarray:
    """Mean over bootstrap samples of the Jaccard similarity of each cluster with the most similar one there."""
    if len(found.weights) == 1:
        return np.ones(1)
    own = found.probabilities(evidence).argmax(1)
    similar = np.zeros((SAMPLES, len(found.weights)))
    for sample in similar:
        drawn = rng.integers(0, len(evidence), len(evidence))
        again = _best(evidence.rows(drawn), len(found.weights), rng, 2).probabilities(evidence).argmax(1)
        both = np.zeros((len(found.weights),) * 2)
        np.add.at(both, (own, again), 1)
        union = both.sum(1, keepdims=True) + both.sum(0) - both
        sample[:] = (both / np.maximum(union, 1)).max(1)
    return similar.mean(0)


def _representatives(evidence: LatentEvidence, found: Gaussians, usable: np.ndarray) -> np.ndarray:
    """The particle that is expected nearest to the centre of each cluster, its own error included, (K,)."""
    _, means, covariances = found.joint(evidence.rows(usable))
    rows = []
    for mean, spread, own, error in zip(found.means, found.covariances, means, covariances, strict=True):
        inverse, apart = np.linalg.inv(spread), own - mean
        distance = np.einsum("ni,ij,nj->n", apart, inverse, apart) + np.einsum("ij,nji->n", inverse, error)
        rows.append(usable[int(distance.argmin())])
    return np.array(rows)
