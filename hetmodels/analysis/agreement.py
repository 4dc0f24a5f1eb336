"""Whether two runs on the same particles say the same of them: two engines, two seeds, two families.

Latent coordinates, the order of classes and, where poses were inferred, the orientation and hand of the maps are
conventions of a run. Compared is what does not depend on them: the maps of the same particle, tables of classes,
canonical correlations and neighbourhoods of latents, and, within a family, shared values after classes are matched.
"""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import scipy.linalg
import scipy.optimize

from hetmodels.analysis import fourier, fsc, metrics
from hetmodels.analysis.alignment import Alignment, align
from hetmodels.analysis.particle_maps import from_posterior
from hetmodels.analysis.shared_values import Difference, differences
from hetmodels.posterior import Posterior

IMAGES = 40  # particles whose maps are compared
POINTS = 5000  # particles whose latents are compared
BOX = 64  # in which maps are compared at most, reached by Fourier crop
NEIGHBOURS = 0.01  # share of the particles that counts as near
SLACK, HALF, SPREAD = 0.05, 0.5, 1.5  # of the verdict: classes, departures and latents, uncertainties


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two runs side by side; None where a measure does not apply.

    Attributes:
        a, b: names of the runs.
        classes: adjusted Rand index of the most probable classes.
        table: particles in class i of a and class j of b, (classes of a, classes of b).
        same: share of the particles in matched classes.
        expected: what that is at least if the probabilities of both runs are right, E max(0, p_a + p_b - 1) with the
            probabilities of the particle's classes.
        latents: canonical correlations of the latents, which no linear change of coordinates alters, largest first.
        neighbours: mean share of the nearest neighbours in latent space in common.
        chance: what unrelated spaces would have in common.
        spread: median ratio of the standard deviations of a particle's latents, b over a, in the coordinates of b.
        maps: mean over shells of the FSC of the maps that the two runs give the same particle.
        common: the same of maps less their means over particles, which only heterogeneity can make agree.
        alignment: how the maps of b were moved onto those of a, both hands tried, where poses were inferred.
        shared: shared values of runs of the same family, where at least one is sampled.
    """

    a: str
    b: str
    classes: float | None
    table: np.ndarray | None
    same: float | None
    expected: float | None
    latents: tuple[float, ...] | None
    neighbours: float | None
    chance: float | None
    spread: float | None
    maps: float
    common: float | None
    alignment: Alignment | None
    shared: tuple[Difference, ...]

    @property
    def objections(self) -> tuple[str, ...]:
        """What speaks against the two runs meaning the same, in sentences."""
        found = []
        if self.common is not None and self.common < HALF * (1 if self.expected is None else self.expected):
            found.append("What they say of the heterogeneity differs: departures from the mean map hardly agree.")
        if self.same is not None and self.expected is not None and self.same < self.expected - SLACK:
            found.append(
                f"{100 * self.same:.0f} % of the particles are in matched classes; their own probabilities promise at "
                f"least {100 * self.expected:.0f} %."
            )
        if self.latents is not None and min(self.latents) < HALF:
            found.append(
                f"{sum(c < HALF for c in self.latents)} of {len(self.latents)} latent directions are unrelated."
            )
        if self.spread is not None and not 1 / SPREAD < self.spread < SPREAD:
            found.append(f"Latents are {self.spread:.2f} times as uncertain in {self.b} as in {self.a}.")
        return (*found, *(d.words for d in self.shared if d.clear))

    @property
    def agree(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.objections

    @property
    def words(self) -> str:
        """One line."""
        parts = [f"maps of the same particle agree to {self.maps:.3f} (mean FSC, 1 for equal maps)"]
        if self.alignment is not None and self.alignment.mirrored:
            parts.append("of opposite hands")
        if self.common is not None:
            parts.append(f"their departures from the mean map to {self.common:.3f}")
        if self.classes is not None:
            parts.append(f"classes to {self.classes:.3f} (adjusted Rand index)")
        if self.latents is not None:
            parts.append(f"canonical correlations of latents {', '.join(f'{c:.3f}' for c in self.latents)}")
            parts.append(f"{100 * (self.neighbours or 0):.0f} % of the neighbours in common")
        return ". ".join([", ".join(parts), *(text.rstrip(".") for text in self.objections)])


def agreements(posteriors: Mapping[str, Posterior]) -> tuple[Agreement, ...]:
    """Every pair of runs, all on the same particles in the same box."""
    return tuple(agreement(*pair) for pair in itertools.combinations(posteriors.items(), 2))


def agreement(first: tuple[str, Posterior], second: tuple[str, Posterior]) -> Agreement:
    """Compare two runs, (name, posterior) each."""
    (name_a, a), (name_b, b) = first, second
    maps, common, move = _maps(a, b)
    index, table, same, expected, order = _classes(a, b)
    shared = differences(a, b, order) if type(a.family) is type(b.family) else ()
    near, chance = _neighbours(a, b)
    return Agreement(
        name_a, name_b, index, table, same, expected, _latents(a, b), near, chance, _spread(a, b), maps, common, move,
        shared,
    )  # fmt: skip


Table = tuple[float | None, np.ndarray | None, float | None, float | None, np.ndarray | None]


def _classes(a: Posterior, b: Posterior) -> Table:
    """Rand index, counts, shares in matched classes as found and as promised, and the class of b for each of a."""
    nodes = [np.asarray(posterior.local["responsibilities"], float) for posterior in (a, b)]
    if min(n.shape[1] for n in nodes) < 2:
        return None, None, None, None, None
    one, other = (n.argmax(1) for n in nodes)
    counts = np.zeros((nodes[0].shape[1], nodes[1].shape[1]), int)
    np.add.at(counts, (one, other), 1)
    together = nodes[0].T @ nodes[1]
    left, right = scipy.optimize.linear_sum_assignment(-together)
    same = counts[left, right].sum() / counts.sum()
    promised = np.maximum(nodes[0].max(1) + nodes[1].max(1) - 1, 0).mean()
    order = right if counts.shape[0] == counts.shape[1] else None
    return metrics.ari(one, other), counts, float(same), float(promised), order


def _some(a: Posterior, b: Posterior) -> tuple[np.ndarray, np.ndarray] | None:
    """Latents of both runs, of the same particles; None unless both have any."""
    means = [posterior.local["mean"] for posterior in (a, b)]
    if min(m.shape[1] for m in means) == 0:
        return None
    some = slice(None, None, -(-len(means[0]) // POINTS))
    return means[0][some].astype(float), means[1][some].astype(float)


def _latents(a: Posterior, b: Posterior) -> tuple[float, ...] | None:
    means = _some(a, b)
    if means is None:
        return None
    bases = [scipy.linalg.orth(m - m.mean(0)) for m in means]
    if min(basis.shape[1] for basis in bases) == 0:
        return None
    found = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return tuple(float(c) for c in np.minimum(found, 1))


def _neighbours(a: Posterior, b: Posterior) -> tuple[float | None, float | None]:
    means = _some(a, b)
    if means is None:
        return None, None
    white = [_whitened(m) for m in means]
    count = max(int(NEIGHBOURS * len(white[0])), 1)
    same = metrics.neighbourhood_similarity(white[0], white[1], count) * count / (count + 1)
    return float(same), 1 / (count + 1) + count / len(white[0])


def _whitened(z: np.ndarray) -> np.ndarray:
    """Latents with unit covariance: distances do not depend on linear coordinates."""
    left, values, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
    return left[:, values > 1e-9 * max(values[0], 1e-300)] * np.sqrt(len(z))


def _spread(a: Posterior, b: Posterior) -> float | None:
    if not all("covariance" in p.local for p in (a, b)):
        return None
    x, y = (p.local["mean"].astype(float) for p in (a, b))
    dims = x.shape[1]
    if not dims or y.shape[1] != dims:
        return None
    slope = np.linalg.lstsq(np.column_stack([np.ones(len(x)), x]), y, rcond=None)[0][1:]
    carried = np.einsum("ik,nij,jl->nkl", slope, a.local["covariance"].astype(float), slope)
    log_ratio = np.linalg.slogdet(b.local["covariance"].astype(float))[1] - np.linalg.slogdet(carried)[1]
    ratio = np.exp(np.median(log_ratio) / (2 * dims))
    return float(ratio) if np.isfinite(ratio) and ratio > 0 else None


def _maps(a: Posterior, b: Posterior) -> tuple[float, float | None, Alignment | None]:
    """Mean FSC, of whole maps and of what is left when each run's mean is taken away; how b was moved."""
    sources = [from_posterior(posterior) for posterior in (a, b)]
    rows = np.unique(np.linspace(0, a.particles - 1, IMAGES).astype(int))
    pairs, place = np.unique(np.stack([s.numbers[rows] for s in sources], axis=1), axis=0, return_inverse=True)
    counts = np.bincount(place.ravel())
    size, spacing = min(a.box()[0], BOX), a.box()[1]
    spacing *= a.box()[0] / size
    maps = [
        {int(n): fourier.crop(source.read(int(n)).values, size) for n in np.unique(column)}
        for source, column in zip(sources, pairs.T, strict=True)
    ]
    move = None
    if not all(str(p.provenance.get("pose", "Known")).startswith("Known") for p in (a, b)):
        means = [np.mean([part[int(n)] for n in c], axis=0) for part, c in zip(maps, pairs.T, strict=True)]
        move = align(means[1], means[0], spacing, hands=True)
        maps[1] = {n: move.apply(values, spacing) for n, values in maps[1].items()}
    found = [{n: fourier.forward(values) for n, values in part.items()} for part in maps]

    def share(left: dict[int, np.ndarray], right: dict[int, np.ndarray]) -> float:
        curves = [fsc.from_transforms(left[int(x)], right[int(y)], 1.0).correlation[1:] for x, y in pairs]
        return float(np.average([c.mean() for c in curves], weights=counts))

    if any(len(part) == 1 for part in found):
        return share(found[0], found[1]), None, move
    middle = [
        np.average(np.stack([part[int(n)] for n in column]), axis=0, weights=counts)
        for part, column in zip(found, pairs.T, strict=True)
    ]
    apart = [{n: values - mean for n, values in part.items()} for part, mean in zip(found, middle, strict=True)]
    return share(found[0], found[1]), share(apart[0], apart[1]), move
