"""The still figures of a report: vector graphics that take the colour of the page's text."""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from hetmodels.analysis.fsc import Curve
from hetmodels.analysis.image_check import ImageCheck
from hetmodels.report.source import Sampler

BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82c4", "#d97b29", "#3d9a5f", "#8b6fc0", "#c4514b", "#8a8f98"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, "#3aa5a5", "#b8952b", "#c25b95", "#6b7f99", "#8d6b4f")
_INK = "#0a0b0c"  # replaced by the colour of the text
_PIXELS = 110  # of the page per inch of a figure
_STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "hetmodels", "font.size": 9, "axes.titlesize": 9,
    "text.color": _INK, "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "lines.linewidth": 1.5,
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


class _Drawing:
    """A figure that becomes text when its block ends."""

    svg = ""


@contextlib.contextmanager
def drawing(width: float = 4.6, height: float = 2.9, **options: Any) -> Iterator[tuple[_Drawing, Any]]:
    """Axes to draw on; after the block `drawing.svg` holds the figure."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = _Drawing()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield out, figure.subplots(**options)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    head, _, rest = text.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    out.svg = f'{head} role="img" style="max-width: {_PIXELS * width:.0f}px">{rest}'


def convergence(trace: list[dict[str, Any]]) -> str:
    """The objective and, where an engine reports it, the resolution of each pass."""
    passes = [row.get("pass", i) + 1 for i, row in enumerate(trace)]
    shown = [("objective", "objective [nats]", BLUE), ("resolution", "resolution [Å]", ORANGE)]
    shown = [part for part in shown if sum(row.get(part[0]) is not None for row in trace) > 1]
    if not shown:
        return ""
    with drawing(height=1.2 + 1.3 * len(shown), nrows=len(shown), sharex=True, squeeze=False) as (out, axes):
        for axis, (name, label, colour) in zip(axes[:, 0], shown, strict=True):
            known = [(p, row[name]) for p, row in zip(passes, trace, strict=True) if row.get(name) is not None]
            axis.plot(*zip(*known, strict=True), color=colour, marker="o", markersize=2.5)
            axis.set_ylabel(label)
        axes[-1, 0].set_xlabel("pass")
    return out.svg


def shell_curves(curves: dict[str, Curve], level: float, label: str) -> str:
    """Shell correlations against resolution, with the level at which they are read."""
    with drawing() as (out, axis):
        for (name, curve), colour in zip(curves.items(), PALETTE * 3, strict=False):
            axis.plot(curve.frequency[1:], curve.correlation[1:], color=colour, label=name)
        axis.axhline(level, color=GREY, linewidth=0.8, linestyle="--")
        axis.axhline(0, color=GREY, linewidth=0.5)
        axis.set(ylim=(-0.1, 1.05), xlim=(0, None), ylabel=label)
        resolution_axis(axis)
        axis.legend(fontsize=8)
    return out.svg


def resolution_axis(axis: Any) -> None:
    """Label a frequency axis [1/Å] by resolutions."""
    ticks = [t for t in axis.get_xticks() if 0 <= t <= axis.get_xlim()[1]]
    axis.set_xticks(ticks, ["∞" if t == 0 else f"{1 / t:.1f}" for t in ticks])
    axis.set_xlabel("resolution [Å]")


def residuals(check: ImageCheck) -> str:
    """Residual power over noise per shell."""
    with drawing() as (out, axis):
        axis.fill_between(
            check.frequency,
            1 - check.band,
            1 + check.band,
            color=GREY,
            alpha=0.25,
            linewidth=0,
            label="99.9 % if right",
        )
        for values, name, colour in ((check.training, "training", GREY), (check.held_out, "held out", BLUE)):
            if np.isfinite(values).any():
                axis.plot(check.frequency, values, color=colour, label=name)
        axis.axhline(1, color=GREY, linewidth=0.6)
        finite = np.concatenate([check.training, check.held_out])
        far = max(0.1, 1.3 * float(np.nanmax(np.abs(finite - 1), initial=0.0)))
        axis.set(ylim=(1 - far, 1 + far), ylabel="residual power / noise")
        resolution_axis(axis)
        axis.legend(fontsize=8)
    return out.svg


def sphere(
    view: np.ndarray,
    values: np.ndarray | None = None,
    label: str = "particles per cell",
    limits: tuple[float, float] | None = None,
) -> str:
    """Directions of view on the half sphere in an equal-area map: how many, or the mean of a value.

    Args:
        view: unit vectors, (n, 3); opposite ones see mirror images and are put together.
        values: (n,), or None.
        label: of the colours.
        limits: of the colours; about 1 in both directions if None.
    """
    x = np.where(view[:, 2:] < 0, -view, view)
    radius = np.sqrt(np.maximum(1 - x[:, 2], 0))  # Lambert's azimuthal map: equal areas
    angle = np.arctan2(x[:, 1], x[:, 0]) % (2 * np.pi)
    rings = int(np.clip(np.sqrt(len(view) / 60), 3, 8))
    cells, total, sums = _rings(radius, angle, np.ones(len(x)) if values is None else values, rings)
    if values is None:
        shown, options = total, {"cmap": "viridis", "vmin": 0, "vmax": total.max()}
    else:
        shown = np.divide(sums, total, out=np.full(len(sums), np.nan), where=total > 2)
        far = max(0.02, float(np.nanmax(np.abs(shown - 1), initial=0)))
        options = {"cmap": "coolwarm", "vmin": 1 - far, "vmax": 1 + far}
        if limits is not None:
            options = {"cmap": "viridis", "vmin": limits[0], "vmax": limits[1]}
    with drawing(width=3.4, subplot_kw={"projection": "polar"}) as (out, axis):
        for ring, part in enumerate(cells):
            arcs = np.repeat(shown[part], 120 // len(part) + 1)  # of straight pieces
            edges = np.linspace(0, 2 * np.pi, len(arcs) + 1), np.array([ring, ring + 1]) / rings
            mesh = axis.pcolormesh(*edges, arcs[None], rasterized=True, **options)
        axis.set(yticks=[], xticks=np.arange(4) * np.pi / 2, ylim=(0, 1))
        axis.grid(False)
        axis.spines["polar"].set_visible(False)
        axis.figure.colorbar(mesh, ax=axis, shrink=0.75, label=label)
    return out.svg


def _rings(
    radius: np.ndarray, angle: np.ndarray, values: np.ndarray, rings: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Cells of equal area, 3 in the innermost ring, 9 in the next, 15 …: numbers of each ring's cells, counts, sums."""
    ring = np.minimum((radius * rings).astype(int), rings - 1)
    parts = 3 * (2 * ring + 1)
    cell = 3 * ring**2 + np.minimum((angle / (2 * np.pi) * parts).astype(int), parts - 1)
    count = 3 * rings**2
    cells = [np.arange(3 * i**2, 3 * (i + 1) ** 2) for i in range(rings)]
    return cells, np.bincount(cell, minlength=count).astype(float), np.bincount(cell, values, minlength=count)


def histogram(values: dict[str, np.ndarray], label: str, of: str = "particles", bins: int = 50) -> str:
    """Distributions of some numbers over particles, or whatever is counted."""
    joined = np.concatenate(list(values.values()))
    low, high = np.quantile(joined, [0.0005, 0.9995])
    edges = np.linspace(low, high if high > low else low + 1, bins)
    with drawing() as (out, axis):
        for (name, part), colour in zip(values.items(), PALETTE * 3, strict=False):
            axis.hist(np.clip(part, edges[0], edges[-1]), edges, histtype="stepfilled", color=colour, alpha=0.25)
            axis.hist(np.clip(part, edges[0], edges[-1]), edges, histtype="step", color=colour, label=name)
        axis.set(xlabel=label, ylabel=of)
        if len(values) > 1:
            axis.legend(fontsize=8)
    return out.svg


def traces(sampler: Sampler) -> str:
    """Draws of some numbers against their place in the chain, and their ranks among all chains."""
    names = list(sampler.draws)
    with drawing(width=7.2, height=1.25 * len(names) + 0.6, nrows=len(names), ncols=2, squeeze=False) as (out, axes):
        for (trace, rank), name in zip(axes, names, strict=True):
            draws = sampler.draws[name]
            chains, count = draws.shape
            ranks = np.argsort(np.argsort(draws.ravel())).reshape(draws.shape)
            edges = np.linspace(0, chains * count, 21)
            for c in range(chains):
                colour = PALETTE[c % len(PALETTE)]
                trace.plot(draws[c], color=colour, linewidth=0.5)
                rank.stairs(np.histogram(ranks[c], edges)[0], edges, color=colour, linewidth=1.0)
            trace.set_ylabel(name, fontsize=7)
            rank.set_yticks([])
            rank.axhline(count / 20, color=GREY, linewidth=0.6, linestyle="--")
        axes[-1, 0].set_xlabel("draw")
        axes[-1, 1].set_xlabel("rank among all chains (flat is right)")
    return out.svg


def energies(energy: np.ndarray) -> str:
    """Distribution of the energy and of its changes from draw to draw; alike is right."""
    moved = np.diff(energy, axis=1).ravel()
    return histogram(
        {"energy": (energy - energy.mean(1, keepdims=True)).ravel(), "change of energy": moved}, "nats", "draws"
    )
