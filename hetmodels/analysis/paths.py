"""Minimum-energy paths between conformations that do not depend on the latent's coordinates.

A path of steepest descent follows -grad F, and which direction is steepest depends on how lengths are measured. With
the metric g of the maps the path follows -g⁻¹ dF and its length is measured by g: another coordinate z' = h(z) gives
the same conformations. The path is found by the string method (E, Ren and Vanden-Eijnden 2007, Journal of Chemical
Physics 126): images descend, then are spread evenly in length. Its highest point is polished by Newton's method.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from hetmodels.errors import UsageError

Function = Callable[[np.ndarray], np.ndarray]
Metric = Callable[[np.ndarray], np.ndarray]

IMAGES = 40
ROUNDS = 5000
SETTLED = 1e-4  # of the distance between images, that they still move in a round
RENEWED = 20  # rounds until the step is chosen anew
FARTHEST = 0.3  # of the distance between images, that one may move in a round


@dataclasses.dataclass(frozen=True, eq=False)
class Path:
    """A path of conformations.

    Attributes:
        points: (images, axes), evenly spaced in length.
        energy: along the path, (images,).
        length: distance travelled in the metric, (images,), from 0.
        saddle: its highest point, (axes,).
        barrier: energy there less that of the start.
    """

    points: np.ndarray
    energy: np.ndarray
    length: np.ndarray
    saddle: np.ndarray
    barrier: float


def flat(points: np.ndarray) -> np.ndarray:
    """The metric of coordinates whose units have a meaning of their own."""
    return np.broadcast_to(np.eye(points.shape[1]), (len(points), points.shape[1], points.shape[1]))


def minimise(function: Function, gradient: Function, start: np.ndarray) -> np.ndarray:
    """The minimum into which a point descends, (axes,)."""
    from scipy.optimize import minimize

    found = minimize(lambda z: float(function(z[None])[0]), start, jac=lambda z: gradient(z[None])[0], method="BFGS")
    return np.asarray(found.x)


def minimum_energy_path(
    function: Function,
    gradient: Function,
    ends: tuple[np.ndarray, np.ndarray],
    metric: Metric = flat,
    through: np.ndarray | None = None,
    images: int = IMAGES,
) -> Path:
    """The path of least energy between two minima.

    Args:
        function: energy at points, (points,) from (points, axes).
        gradient: its derivatives, (points, axes).
        ends: two points; the path ends in the minima into which they descend.
        metric: g at points, (points, axes, axes) from (points, axes).
        through: points of a first guess between the ends, (points, axes); a straight line if None.
        images: points of the path.

    Raises:
        UsageError: if both ends descend into one minimum.
    """
    first, last = (minimise(function, gradient, np.asarray(end, float)) for end in ends)
    knots = np.stack([first, *([] if through is None else np.asarray(through, float)), last])
    points = _spread(knots, metric, images)
    total = _lengths(points, metric)[-1]
    if total < 1e-6 * max(1.0, float(np.abs(first).max())):
        raise UsageError("minimum-energy path: both ends descend into the same minimum; give ends in two basins.")
    points = _descend(points, gradient, metric)
    return _finished(points, function, gradient, metric)


def _descend(points: np.ndarray, gradient: Function, metric: Metric) -> np.ndarray:
    """Rounds of descent and spreading; steps are as long as the stiffest direction on the path allows."""
    for number in range(ROUNDS):
        if number % RENEWED == 0:
            step = 0.7 / _stiffness(points, gradient, metric)
        flow = np.linalg.solve(metric(points), gradient(points)[..., None])[..., 0]
        flow[[0, -1]] = 0
        apart = np.linalg.norm(np.diff(points, axis=0), axis=1).mean()
        length = np.linalg.norm(step * flow, axis=1, keepdims=True)
        moved = points - step * flow * np.minimum(1, FARTHEST * apart / np.maximum(length, 1e-300))
        before, points = points, _spread(moved, metric, len(points))
        if np.abs(points - before).max() < SETTLED * apart:
            break
    return points


def _stiffness(points: np.ndarray, gradient: Function, metric: Metric) -> float:
    """The largest eigenvalue of g⁻¹ times the second derivatives along the path."""
    width = 1e-4 * np.abs(np.ptp(points, axis=0)).max()
    shifts = width * np.eye(points.shape[1])
    curvature = np.stack([(gradient(points + s) - gradient(points - s)) / (2 * width) for s in shifts], axis=2)
    values = np.linalg.eigvals(np.linalg.solve(metric(points), (curvature + np.swapaxes(curvature, 1, 2)) / 2))
    return float(np.abs(values).max())


def _lengths(points: np.ndarray, metric: Metric) -> np.ndarray:
    """Length up to each point by the metric at the middle of each piece, (points,)."""
    pieces, middles = np.diff(points, axis=0), (points[1:] + points[:-1]) / 2
    squares = np.einsum("ni,nij,nj->n", pieces, metric(middles), pieces)
    return np.r_[0, np.cumsum(np.sqrt(np.maximum(squares, 0)))]


def _spread(points: np.ndarray, metric: Metric, images: int) -> np.ndarray:
    """Points at even lengths along the path."""
    from scipy.interpolate import CubicSpline

    length = _lengths(points, metric)
    even = np.linspace(0, length[-1], images)
    apart = np.r_[True, np.diff(length) > 1e-12 * max(length[-1], 1e-300)]
    if apart.sum() < 4:
        return np.stack([np.interp(even, length, axis) for axis in points.T], axis=1)
    return CubicSpline(length[apart], points[apart])(even)


def _finished(points: np.ndarray, function: Function, gradient: Function, metric: Metric) -> Path:
    energy = function(points)
    top = int(energy.argmax())
    saddle = points[top] if top in (0, len(points) - 1) else _climb(points, top, gradient)
    barrier = float(max(function(saddle[None])[0], energy.max()) - energy[0])
    return Path(points, energy, _lengths(points, metric), saddle, barrier)


def _climb(points: np.ndarray, top: int, gradient: Function) -> np.ndarray:
    """The stationary point next to the highest image, by Newton's method on the gradient."""
    from scipy.optimize import root

    found = root(lambda z: gradient(z[None])[0], points[top])
    reach = 3 * np.abs(points[top + 1] - points[top - 1]).max()
    return np.asarray(found.x) if found.success and np.abs(found.x - points[top]).max() < reach else points[top]
