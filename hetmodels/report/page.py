"""The report as one HTML file: the template filled with answers, figures, maps and particles."""

import dataclasses
import json
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np

from hetmodels.report import conformations, figures, headline, latent_space, particles, sections, states
from hetmodels.report.sections import Section
from hetmodels.report.source import Source

_CLASSES, _STEPS = 12, 6  # rows of pictures at most, of classes and of a motion
_KINDS = (slice(0, 3), slice(3, 6))  # slices and projections among the pictures of a map


@dataclasses.dataclass(frozen=True)
class PictureRow:
    """Pictures of one map, as data addresses."""

    label: str
    pictures: list[str]


@dataclasses.dataclass(frozen=True)
class Plate:
    """Rows of pictures with a title, what to know of their grey levels, and whether they are shown from the start."""

    title: str
    rows: list[PictureRow]
    words: str
    open: bool


def page(source: Source) -> str:
    """The HTML text."""
    from jinja2 import Environment, StrictUndefined

    shown = states.shown(source)
    maps = None if shown is None else states.packed(shown) | {"middle": bool(source.dims), "colour": "#6ea6dc"}
    points = particles.packed(source)
    payload = {"palette": figures.PALETTE, "maps": maps, "particles": points}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["code"] = _with_code
    return environment.from_string(_asset("page.html.j2")).render(
        version=version("hetmodels"),
        title=title(source),
        subtitle=subtitle(source),
        answers=headline.answers(source),
        warnings=source.warnings,
        sections=_ordered(source, shown, points),
        plates=[] if shown is None else plates(shown),
        particles=points,
        payload=json.dumps(payload).replace("</", "<\\/"),
        css=_asset("report.css"),
        script=_asset("report.js"),
        plotly=_plotly(),
        viewer=_asset("3Dmol-min.js"),
    )


def _with_code(text: str) -> str:
    """Text with `what stands in backticks` set as code, safe to stand in the page."""
    from markupsafe import Markup, escape

    parts = str(escape(text)).split("`")
    return Markup("".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)))


def _asset(name: str) -> str:
    return (files("hetmodels.report") / "assets" / name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")


def title(source: Source) -> str:
    """'Classes of particles.star'."""
    config = source.settings
    name = str(config.get("particles", source.rows.path)).rpartition("/")[2]
    family = config.get("family", {}).get("name", source.family)
    return f"{family.rpartition('.')[2].replace('_', ' ').capitalize()} fitted to {name}"


def subtitle(source: Source) -> str:
    """Numbers of the data and the run in a line."""
    facts = source.posterior.provenance
    engine = source.settings.get("engine", {}).get("name", "")
    parts = [
        f"{source.posterior.particles:,} particles",
        f"box {facts['box']} px, {float(facts['spacing']):.4g} Å per pixel" if "box" in facts else "",
        f"engine {engine}" if engine else "",
        f"{float(facts['seconds']):.0f} s on {facts['device']}" if {"seconds", "device"} <= set(facts) else "",
        str(source.run.path.absolute()),
    ]
    return " · ".join(part for part in parts if part)


def _ordered(source: Source, shown: states.Shown | None, points: dict[str, Any]) -> list[Section]:
    found = [
        None if shown is None else sections.of_maps(source, shown),
        sections.of_particles(source, points),
        sections.of_certainty(source),
        conformations.of_clusters(source),
        latent_space.of_landscape(source),
        conformations.of_way(source),
        sections.of_resolution(source),
        sections.of_images(source),
        sections.of_flags(source),
        sections.of_sampler(source),
        sections.of_run(source),
    ]
    return [section for section in found if section is not None]


def plates(shown: states.Shown) -> list[Plate]:
    """Pictures of the maps, and of what differs between them."""
    found = []
    for series in shown.series:
        first = series is shown.series[0]
        most = _CLASSES if series.name == "classes" else _STEPS
        some = series.states[:: -(-len(series.states) // most)]
        rows = [PictureRow(s.label, _grey(states.pictures(s.values), shown)) for s in some]
        found.append(Plate(series.name.capitalize(), rows, "", first))
        if len(some) > 1:
            mean = np.mean([s.values for s in series.states], axis=0)
            differences = [states.pictures(s.values - mean) for s in some]
            tops = [max(float(np.abs(p).max()) for d in differences for p in d[part]) for part in _KINDS]
            rows = [PictureRow(s.label, _differing(d, tops)) for s, d in zip(some, differences, strict=True)]
            words = "Blue: more density than the mean of these maps, red: less. Slices share a scale; projections too."
            found.append(Plate(f"{series.name.capitalize()}: difference from the mean", rows, words, first))
    return found


def _differing(pictures: list[np.ndarray], tops: list[float]) -> list[str]:
    return [states.png(p, -t, t, "RdBu") for part, t in zip(_KINDS, tops, strict=True) for p in pictures[part]]


def _grey(pictures: list[np.ndarray], shown: states.Shown) -> list[str]:
    return [states.png(p, min(float(p.min()), 0.0), max(float(p.max()), shown.level)) for p in pictures]
