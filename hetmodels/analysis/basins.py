"""Basins of a free-energy landscape in two latent axes, and the way between two of them with its barrier.

A minimum counts by its persistence: how far one must climb from it to reach a deeper one (Edelsbrunner, Letscher and
Zomorodian 2002, Discrete & Computational Geometry 28). The barrier is given for every draw of the density, by the
way of the lowest highest point there, so that its interval holds the uncertainty of the way as well.
"""

import dataclasses

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from hetmodels.analysis.landscape import Landscape, MapMeasure, landscape, metric_field, metric_of
from hetmodels.analysis.map_space import MapSpace
from hetmodels.analysis.mixing_density import Grid, latent_likelihood
from hetmodels.analysis.paths import Path, minimum_energy_path
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior

DEEP, SURE = 1.0, 0.5  # kT that a minimum must be deep to count, and still be in nineteen of twenty draws
DRAWS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Basin:
    """A minimum of the landscape.

    Attributes:
        node: number of the grid's node.
        point: the same in the latent axes, (axes,).
        energy: [kT].
        depth: kT to climb to reach a deeper one; infinite for the deepest.
    """

    node: int
    point: np.ndarray
    energy: float
    depth: float


def basins(grid: Grid, energy: np.ndarray, deep: float = DEEP) -> list[Basin]:
    """Minima that are deep enough, the deepest basin first.

    Args:
        grid: the nodes.
        energy: in the shape of the grid.
        deep: least depth [kT].
    """
    flat = energy.ravel()
    rows, columns = _neighbours(grid)
    around: list[list[int]] = [[] for _ in flat]
    for a, b in zip(rows.tolist(), columns.tolist(), strict=True):
        around[a].append(b)
        around[b].append(a)
    root, depth = np.full(len(flat), -1), np.full(len(flat), np.inf)

    def lowest(node: int) -> int:
        while root[node] != node:
            node = root[node]
        return node

    for node in np.argsort(flat):
        met = sorted({lowest(n) for n in around[node] if root[n] >= 0}, key=lambda n: flat[n])
        root[node] = met[0] if met else node
        for other in met[1:]:
            depth[other], root[other] = flat[node] - flat[other], met[0]
    minima = [n for n in range(len(flat)) if lowest(n) == n or np.isfinite(depth[n])]
    kept = sorted((n for n in minima if depth[n] >= deep), key=lambda n: -depth[n])
    return [Basin(n, grid.nodes[n], float(flat[n]), float(depth[n])) for n in kept]


def barriers(found: Landscape, first: int, last: int, draws: int = DRAWS) -> np.ndarray:
    """Energy of the lowest pass between two nodes less that of the first, in each of some draws, (draws,)."""
    rows, columns = _neighbours(found.grid)
    chosen = found.draws[np.unique(np.linspace(0, len(found.draws) - 1, draws).astype(int))]
    heights = []
    for energy in chosen:
        edge = np.maximum(energy[rows], energy[columns])
        graph = scipy.sparse.coo_array((edge + 1, (rows, columns)), (len(energy), len(energy)))  # 0 would be no edge
        tree = scipy.sparse.csgraph.minimum_spanning_tree(graph.tocsr())
        before = scipy.sparse.csgraph.breadth_first_order(tree, first, directed=False)[1]
        node, top = last, energy[last]
        while node != first:
            node = int(before[node])
            top = max(top, energy[node])
        heights.append(top - energy[first])
    return np.array(heights)


def _neighbours(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of nodes next to each other along an axis, each once."""
    number = np.arange(int(np.prod(grid.shape))).reshape(grid.shape)
    pairs = [
        (np.take(number, range(size - 1), axis).ravel(), np.take(number, range(1, size), axis).ravel())
        for axis, size in enumerate(grid.shape)
    ]
    rows, columns = zip(*pairs, strict=True)
    return np.concatenate(rows), np.concatenate(columns)


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """The minimum-energy path between the two deepest basins of a run.

    Attributes:
        axes: the two latent axes of the landscape, from 0.
        landscape: the landscape.
        basins: its basins, the deepest first; without a second there is no path.
        path: from the first basin to the second, None if there is only one.
        barrier: 5th, 50th and 95th percentile of the barrier from the first to the second [kT].
        latents: all latents along the path, those on other axes as particles at that place have them, (images, dims).
    """

    axes: tuple[int, int]
    landscape: Landscape
    basins: list[Basin]
    path: Path | None
    barrier: tuple[float, float, float] | None
    latents: np.ndarray | None


def main_axes(posterior: Posterior, space: MapSpace) -> tuple[int, int]:
    """The two latent axes along which the maps of the particles differ most.

    Raises:
        UsageError: if there are fewer than two.
    """
    mean = np.asarray(posterior.local["mean"], float)
    if mean.shape[1] < 2:
        raise UsageError(f"path: a landscape in two latent axes is needed, the run has {mean.shape[1]}.")
    power = mean.var(0) * np.diagonal(space.metric(mean.mean(0)))
    first, second = sorted(np.argsort(-power)[:2].tolist())
    return first, second


def way(posterior: Posterior, size: int = 32) -> Way:
    """Landscape, basins and path of a run in its two main latent axes.

    Args:
        posterior: of a family with two continuous latents or more.
        size: box in which maps are compared for the metric.

    Raises:
        UsageError: if there are too few latents, or their prior is not known in closed form.
    """
    space = MapSpace.of(posterior, size)
    axes = main_axes(posterior, space)
    centre = np.asarray(posterior.local["mean"], float).mean(0)
    likelihood = latent_likelihood(posterior, axes)
    metric = metric_of(space, axes, centre)
    found = landscape(likelihood.smooth(), MapMeasure(metric))
    minima = _lasting(found, basins(found.grid, found.energy))
    if len(minima) < 2:
        return Way(axes, found, minima, None, None, None)
    surface = found.function()
    try:
        path = minimum_energy_path(
            surface, surface.gradient, (minima[0].point, minima[1].point), metric_field(found.grid, metric)
        )
    except UsageError:  # splines may join minima that the nodes part
        return Way(axes, found, minima[:1], None, None, None)
    low, middle, high = np.quantile(barriers(found, minima[0].node, minima[1].node), [0.05, 0.5, 0.95])
    filled = _filled(posterior, axes, path.points)
    return Way(axes, found, minima, path, (float(low), float(middle), float(high)), filled)


def _lasting(found: Landscape, minima: list[Basin]) -> list[Basin]:
    """Minima that are parted from the deepest one in nineteen of twenty draws; the others may be chance."""
    deepest, *others = minima
    sure = [np.quantile(barriers(found, b.node, deepest.node), 0.05) > SURE for b in others]
    return [deepest, *(b for b, keep in zip(others, sure, strict=True) if keep)]


def _filled(posterior: Posterior, axes: tuple[int, int], points: np.ndarray) -> np.ndarray:
    """All latents at points of two axes: the others by linear regression on these over the particles."""
    mean = np.asarray(posterior.local["mean"], float)
    chosen = list(axes)
    design = np.column_stack([np.ones(len(mean)), mean[:, chosen]])
    slope = np.linalg.lstsq(design, mean, rcond=None)[0]
    out = np.column_stack([np.ones(len(points)), points]) @ slope
    out[:, chosen] = points
    return out
