"""The maps that a report shows: the classes, or the way along the main motions, on one small grid."""

import base64
import dataclasses
import gzip
import io

import numpy as np

from hetmodels.analysis import fourier
from hetmodels.analysis.masks import automatic_threshold
from hetmodels.analysis.particle_maps import map_at, solvent_zero
from hetmodels.report.source import Source

EDGE, CLASSES, MOTIONS, STEPS, TAIL = 64, 20, 3, 9, 0.05


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """One map with its name, density [z, y, x]."""

    label: str
    values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Maps in an order that a slider goes through."""

    name: str
    states: list[State]


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """All series, low-passed on one grid.

    Attributes:
        series: the maps.
        spacing: voxel size [Å].
        level: density at which surfaces are drawn.
        resolution: of the low-pass [Å], None where there was none.
    """

    series: list[Series]
    spacing: float
    level: float
    resolution: float | None


def shown(source: Source) -> Shown | None:
    """The maps of a run, None if its family has no densities."""
    found = _series(source)
    if not found:
        return None
    size, spacing = source.posterior.box()
    cut, resolution = _resolution(source), None
    edge = min(size, EDGE)
    if cut is not None and cut > 2.2 * spacing:
        resolution = cut

    def small(values: np.ndarray) -> np.ndarray:
        if resolution is not None:
            values = fourier.filtered(values, fourier.lowpass_gain(size, spacing, resolution))
        return solvent_zero(fourier.crop(values, edge)).astype(np.float32)

    series = [Series(s.name, [State(t.label, small(t.values)) for t in s.states]) for s in found]
    mean = np.mean([t.values for t in series[0].states], axis=0)
    return Shown(series, spacing * size / edge, automatic_threshold(mean), resolution)


def _resolution(source: Source) -> float | None:
    """To which the maps can be trusted [Å]."""
    metrics, trace = source.metrics, source.posterior.trace
    if metrics.get("resolution_0143"):
        return float(metrics["resolution_0143"])
    if metrics.get("class_resolution_0143"):
        return float(np.median(metrics["class_resolution_0143"]))
    return float(trace[-1]["resolution"]) if trace and trace[-1].get("resolution") else None


def _series(source: Source) -> list[Series]:
    posterior = source.posterior
    if source.dims:
        motions = [_motion(source, axis) for axis in range(min(source.dims, MOTIONS))]
        return [*motions, *_ways(source)]
    if source.classes:
        nodes = posterior.family.grids(posterior.first())[0]
        shares = posterior.local["responsibilities"].mean(0)
        order = range(source.classes) if source.classes <= CLASSES else np.argsort(-shares)[:CLASSES]
        return [
            Series(
                "classes",
                [State(f"class {k + 1} ({100 * shares[k]:.1f} %)", map_at(posterior, nodes[k]).values) for k in order],
            )
        ]
    return [Series("map", [State("the map", map_at(posterior, None).values)])]


def _motion(source: Source, axis: int) -> Series:
    """Maps along a principal axis of the particles' latents, from the 5th to the 95th percentile."""
    mean = source.posterior.local["mean"].astype(float)
    centre = mean.mean(0)
    _, _, axes = np.linalg.svd(mean - centre, full_matrices=False)
    score = (mean - centre) @ axes[axis]
    low, high = np.quantile(score, [TAIL, 1 - TAIL])
    found = []
    for value in np.linspace(low, high, STEPS):
        found.append(
            State(f"{value:+.2f} along motion {axis + 1}", map_at(source.posterior, centre + value * axes[axis]).values)
        )
    return Series(f"motion {axis + 1}", found)


def _ways(source: Source) -> list[Series]:
    """Maps along the path of least energy, and through particles; none with fewer than two latents."""
    found = []
    if source.way is not None and source.way.path is not None and source.way.latents is not None:
        length = source.way.path.length
        even = np.searchsorted(length, np.linspace(0, length[-1], STEPS))
        labels = [f"{100 * length[i] / length[-1]:.0f} % of the path, {source.way.path.energy[i]:.1f} kT" for i in even]
        found.append(_series_at(source, "path of least energy", labels, source.way.latents[even]))
    if source.traversal is not None:
        some = np.unique(np.linspace(0, len(source.traversal) - 1, STEPS).astype(int))
        labels = [f"particle {i + 1} of {len(some)} on the way" for i in range(len(some))]
        found.append(_series_at(source, "way through particles", labels, source.traversal[some]))
    return found


def _series_at(source: Source, name: str, labels: list[str], latents: np.ndarray) -> Series:
    maps = [map_at(source.posterior, z).values for z in latents]
    return Series(name, [State(label, values) for label, values in zip(labels, maps, strict=True)])


def packed(maps: Shown) -> dict[str, object]:
    """What the viewer of the page reads: voxels as signed bytes of one scale, x slowest, compressed, as text."""
    every = [state.values for series in maps.series for state in series.states]
    cut = _extent(every, 0.3 * maps.level)
    top = max(float(np.abs(v).max()) for v in every)
    cubes = [np.rint(v[cut] * (127 / top)).astype(np.int8).transpose(2, 1, 0) for v in every]
    return {
        "maps": base64.b64encode(gzip.compress(np.stack(cubes).tobytes(), 6)).decode(),
        "size": cubes[0].shape[0],
        "spacing": maps.spacing,
        "level": 127 * maps.level / top,
        "series": [{"name": s.name, "labels": [t.label for t in s.states]} for s in maps.series],
    }


def _extent(maps: list[np.ndarray], level: float) -> tuple[slice, slice, slice]:
    """The smallest central cube with all voxels above a level, and a margin."""
    half = maps[0].shape[0] // 2
    over = np.argwhere(np.max(maps, axis=0) > level)
    reach = min(int(np.abs(over - half).max()) + 3, half) if len(over) else half
    return (slice(half - reach, half + reach),) * 3


def pictures(values: np.ndarray) -> list[np.ndarray]:
    """Central slices and projections across z, y and x, rows of the picture from top to bottom."""
    half = values.shape[0] // 2
    flat = [np.take(values, half, axis) for axis in range(3)] + [values.sum(axis) for axis in range(3)]
    return [picture[::-1] for picture in flat]


def png(picture: np.ndarray, low: float, high: float, colours: str = "gray") -> str:
    """A picture as a data address."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    imsave(buffer, picture, vmin=low, vmax=high, cmap=colours, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
