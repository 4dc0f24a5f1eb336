"""Clusters of the latents, and the way between the most populated conformations."""

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from hetmodels.analysis.basins import Way
from hetmodels.report import figures
from hetmodels.report.sections import Picture, Section, Table
from hetmodels.report.source import Source

_CAP = 4.0  # kT above the barrier that colours still tell apart


def of_clusters(source: Source) -> Section | None:
    """How the particles divide by their latents."""
    found = source.clusters
    if found is None:
        return None
    words = [found.words]
    if len(found) == 1:
        return Section("clusters", "Clusters", words)
    words.append(
        "Errors of the particles' latents are taken out: they widen clusters, and do not make them. Press a cluster "
        "under the plot above to save it, or use `hetmodels select … --cluster 1`. Stability is 1 where other samples "
        "of the particles give the same cluster."
    )
    number = found.number
    rows = [
        [f"cluster {k + 1}", f"{100 * found.weights[k]:.1f} %", str(int((number == k).sum()))]
        + [_mean(found.probabilities[number == k, k]), f"{found.stability[k]:.2f}"]
        + [", ".join(f"{v:.2f}" for v in found.means[k][:4]), str(int(found.representatives[k]))]
        for k in range(len(found))
    ]
    heads = ["cluster", "share", "particles", "mean probability", "stability", "centre", "row nearest to it"]
    return Section("clusters", "Clusters", words, tables=[Table(heads, rows)])


def _mean(values: np.ndarray) -> str:
    return f"{values.mean():.2f}" if len(values) else "–"


def of_way(source: Source) -> Section | None:
    """The landscape in two axes, its basins and the path between the first two."""
    way = source.way
    if way is None:
        return None
    across, up = (axis + 1 for axis in way.axes)
    caption = f"Free energy in latents {across} and {up}; a cross is a basin, the deepest is filled."
    pictures = [Picture(surface(way), caption)]
    if way.path is None or way.barrier is None:
        words = [
            f"The landscape in latents {across} and {up} has one basin: nothing parts the conformations there. The "
            "viewer above goes through particles between the two that are farthest apart."
        ]
        return Section("way", "Ways between conformations", words, pictures)
    low, middle, high = way.barrier
    words = [
        f"The landscape in latents {across} and {up} has {len(way.basins)} basins deeper than 1 kT. From the deepest "
        f"to the next there is a barrier of {middle:.1f} kT (90 % interval {low:.1f} to {high:.1f}). The path is the "
        "one of least energy, its lengths measured by the change of the map; the viewer above goes along it."
    ]
    pictures.append(Picture(along(way), "The same along the path, with a 90 % band; 0 is the lowest conformation."))
    return Section("way", "Ways between conformations", words, pictures)


def surface(way: Way) -> str:
    """The landscape in colours with basins and path."""
    grid, energy = way.landscape.grid, way.landscape.energy
    top = (0.0 if way.path is None else float(way.path.energy.max())) + _CAP
    with figures.drawing() as (out, axis):
        mesh = axis.pcolormesh(
            *grid.axes, energy.T, shading="gouraud", cmap="viridis", vmin=0, vmax=top, rasterized=True
        )
        levels = np.arange(1, top, max(1.0, round(top / 8)))
        axis.contour(*grid.axes, energy.T, levels=levels, colors="white", linewidths=0.4, alpha=0.5)
        if way.path is not None:
            axis.plot(*way.path.points.T, color="white", linewidth=1.8)
        for number, basin in enumerate(way.basins):
            axis.plot(*basin.point, marker="X" if number == 0 else "x", color=figures.RED, markersize=6)
        axis.set(xlabel=f"latent {way.axes[0] + 1}", ylabel=f"latent {way.axes[1] + 1}")
        axis.figure.colorbar(mesh, ax=axis, label="apparent free energy [kT]")
    return out.svg


def along(way: Way) -> str:
    """The energy along the path with its band."""
    assert way.path is not None
    found, points = way.landscape, way.path.points
    draws = found.draws.reshape(-1, *found.grid.shape)
    inside = np.clip(points, [a[0] for a in found.grid.axes], [a[-1] for a in found.grid.axes])
    values = RegularGridInterpolator(found.grid.axes, np.moveaxis(draws, 0, -1))(inside)
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95], axis=1)
    length = way.path.length / way.path.length[-1]
    with figures.drawing() as (out, axis):
        axis.fill_between(length, low, high, color=figures.BLUE, alpha=0.25, linewidth=0)
        axis.plot(length, middle, color=figures.BLUE)
        axis.set(xlabel="place on the path", ylabel="apparent free energy [kT]", xlim=(0, 1), ylim=(0, None))
    return out.svg
