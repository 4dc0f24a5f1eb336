"""Free energies of conformations from the density of the latents, relative to a stated measure.

F(z) = -ln(p(z)/m(z)) in units of kT. A density has no value of its own: under another coordinate z' = h(z) it changes
by the Jacobian, and so would F. The measure m makes F a property of the conformations: with m = √det g, g the metric of
the maps, it is the density per unit of change of the map. Freezing and picking may alter populations: F is apparent.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from hetmodels.analysis.map_space import MapSpace
from hetmodels.analysis.mixing_density import Grid, MixingDensity

Metric = Callable[[np.ndarray], np.ndarray]


class Measure(Protocol):
    """What a density is taken relative to."""

    @property
    def words(self) -> str:
        """It in words."""

    def log(self, nodes: np.ndarray) -> np.ndarray:
        """Log of the measure per unit of the latent, (nodes,) from (nodes, axes)."""


@dataclasses.dataclass(frozen=True)
class LatentMeasure:
    """The latent's own units: right only where these have a meaning, such as an angle or a distance."""

    words: str = "per unit of the latent"

    def log(self, nodes: np.ndarray) -> np.ndarray:
        """0."""
        return np.zeros(len(nodes))


@dataclasses.dataclass(frozen=True)
class MapMeasure:
    """√det g with the metric of the maps: it goes with the conformations and not with their coordinates.

    Attributes:
        metric: gives g at a point of the grid's axes, (axes, axes).
    """

    metric: Metric
    words: str = "per unit of change of the map"

    def log(self, nodes: np.ndarray) -> np.ndarray:
        """½ log det g."""
        return np.array([np.linalg.slogdet(self.metric(node))[1] / 2 for node in nodes])


def metric_of(space: MapSpace, axes: tuple[int, ...], rest: np.ndarray) -> Metric:
    """The metric of the maps in some latent axes, the other latents held at given values.

    Args:
        space: maps of the run.
        axes: latent axes, from 0.
        rest: values of all latents, of which those of `axes` are replaced, (dims,).
    """
    chosen = list(axes)
    if hasattr(space.posterior.family, "latent_covariance"):  # maps are linear in z, the metric is the same everywhere
        constant = space.metric(rest)[np.ix_(chosen, chosen)]
        return lambda node: constant

    def metric(node: np.ndarray) -> np.ndarray:
        z = np.array(rest, float)
        z[chosen] = node
        return space.metric(z)[np.ix_(chosen, chosen)]

    return metric


def metric_field(grid: Grid, metric: Metric) -> Callable[[np.ndarray], np.ndarray]:
    """A metric at many points, (points, axes, axes) from (points, axes): linear between the nodes of a grid."""
    values = np.stack([metric(node) for node in grid.nodes]).reshape(*grid.shape, len(grid.shape), len(grid.shape))
    between = RegularGridInterpolator(grid.axes, values, method="linear", bounds_error=False, fill_value=None)
    low, high = (np.array([axis[end] for axis in grid.axes]) for end in (0, -1))
    return lambda points: between(np.clip(points, low, high))


@dataclasses.dataclass(frozen=True, eq=False)
class Landscape:
    """Apparent free energy on a grid [kT], its lowest value 0 in each draw of the density.

    Attributes:
        grid: the nodes.
        energy: median over draws, in the shape of the grid.
        low, high: 90 % interval.
        reference: what the density is relative to, in words.
        draws: all draws, (draws, nodes).
    """

    grid: Grid
    energy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    reference: str
    draws: np.ndarray

    def function(self, values: np.ndarray | None = None) -> "Surface":
        """The energy, or other values at the nodes, as a smooth function of the latents."""
        return Surface(self.grid, (self.energy if values is None else values).reshape(self.grid.shape))


def landscape(density: MixingDensity, measure: Measure) -> Landscape:
    """The free energy of a density relative to a measure.

    Args:
        density: its draws.
        measure: the reference.
    """
    draws = -density.log_weights + measure.log(density.grid.nodes)
    draws = draws - draws.min(1, keepdims=True)
    low, middle, high = (q.reshape(density.grid.shape) for q in np.quantile(draws, [0.05, 0.5, 0.95], axis=0))
    return Landscape(density.grid, middle, low, high, f"-ln density {measure.words}, in kT; apparent", draws)


@dataclasses.dataclass(frozen=True, eq=False)
class Surface:
    """A function on a grid, by cubic splines; beyond the grid it rises steeply.

    Attributes:
        grid: the nodes.
        values: in the shape of the grid.
    """

    grid: Grid
    values: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "_spline", RegularGridInterpolator(self.grid.axes, self.values, method="cubic"))

    def _inside(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = (np.array([axis[end] for axis in self.grid.axes]) for end in (0, -1))
        clipped = np.clip(z, low, high)
        return clipped, (z - clipped) / (high - low)

    def __call__(self, z: np.ndarray) -> np.ndarray:
        """Values at points (points, axes)."""
        inside, beyond = self._inside(np.asarray(z, float))
        return self._spline(inside) + 1e3 * (beyond**2).sum(1)  # type: ignore[attr-defined]

    def gradient(self, z: np.ndarray) -> np.ndarray:
        """Derivatives at points, (points, axes)."""
        inside, beyond = self._inside(np.asarray(z, float))
        columns = []
        for axis in range(len(self.grid.axes)):
            order = tuple(int(axis == other) for other in range(len(self.grid.axes)))
            columns.append(self._spline(inside, nu=order))  # type: ignore[attr-defined]
        extent = np.array([axis[-1] - axis[0] for axis in self.grid.axes])
        return np.stack(columns, axis=1) + 2e3 * beyond / extent
