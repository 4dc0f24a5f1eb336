"""The numbers of single particles that the page plots and selects by."""

import base64
import dataclasses
import gzip

import numpy as np

from hetmodels.report.source import Source

MOST, AXES = 50_000, 8


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One number per particle.

    Attributes:
        name: as the page calls it.
        values: (N,); of a kind, the number of its label.
        labels: names of the kinds; () for a plain number.
    """

    name: str
    values: np.ndarray
    labels: tuple[str, ...] = ()


def columns(source: Source) -> list[Column]:
    """All columns; the first two are what is plotted at first, the third gives the colour."""
    local = source.posterior.local
    log_likelihood = Column("log likelihood [nats]", local["log_evidence"])
    found = _latents(source)
    kinds = [*_classes(source), *_clusters(source)]
    optics = _optics(source)
    if not found and source.classes:
        found = _between(local["responsibilities"])
    if not found:
        found = optics[:1] or [Column("row", np.arange(source.posterior.particles))]
        optics = optics[1:]
    if len(found) == 1:
        found = [found[0], log_likelihood]
    colour = kinds[:1] or [log_likelihood]
    rest = [*kinds[1:], log_likelihood, *optics, *_measurement(source)]
    every = [*found[:2], *colour, *found[2:], *rest]
    unique: dict[str, Column] = {}
    for column in every:
        if np.ptp(column.values) > 0:
            unique.setdefault(column.name, column)
    return list(unique.values())


def _latents(source: Source) -> list[Column]:
    mean, sd = source.posterior.local["mean"], source.latent_sd
    axes = range(min(mean.shape[1], AXES))
    found = [Column(f"latent {k + 1}", mean[:, k]) for k in axes]
    return found + [Column(f"sd of latent {k + 1}", sd[:, k]) for k in axes] if len(found) > 1 else found


def _classes(source: Source) -> list[Column]:
    if not source.classes:
        return []
    nodes = source.posterior.local["responsibilities"]
    labels = tuple(f"class {k + 1}" for k in range(nodes.shape[1]))
    return [Column("class", nodes.argmax(1), labels), Column("probability of the class", nodes.max(1))]


def _clusters(source: Source) -> list[Column]:
    found = source.clusters
    if found is None or len(found) < 2:
        return []
    labels = tuple(f"cluster {k + 1}" for k in range(len(found)))
    return [Column("cluster", found.number, labels), Column("probability of the cluster", found.probabilities.max(1))]


def _between(nodes: np.ndarray) -> list[Column]:
    """Where a particle lies among the classes: its probabilities as weights of the corners of a polygon.

    A little scatter, the same in every report, keeps particles apart that are sure of their class.
    """
    count = nodes.shape[1]
    if count == 2:
        return [Column("probability of class 2", nodes[:, 1])]
    angle = np.pi / 2 + 2 * np.pi * np.arange(count) / count
    scatter = np.random.default_rng(0).normal(0, 0.03, (len(nodes), 2))
    place = nodes @ np.stack([np.cos(angle), np.sin(angle)], axis=1) + scatter
    return [Column("between the classes, across", place[:, 0]), Column("between the classes, up", place[:, 1])]


def _optics(source: Source) -> list[Column]:
    found = []
    defocus = source.rows.numbers("rlnDefocusU")
    if defocus is not None:
        found.append(Column("defocus [µm]", defocus / 1e4))
    for name in ("Rot", "Tilt"):
        angle = source.rows.numbers(f"rlnAngle{name}")
        if angle is not None:
            found.append(Column(f"view {name.lower()} [°]", angle))
    return found


def _measurement(source: Source) -> list[Column]:
    local = source.posterior.local
    found = [Column("probability of junk", local["outlier"]), Column("contrast", local["contrast"])]
    flagged = np.zeros(source.posterior.particles, int)
    for number, flag in reversed(list(enumerate(source.flags, 1))):
        flagged[flag.rows] = number
    labels = ("not flagged", *(flag.name for flag in source.flags))
    held = local["held_out"].astype(int)
    return [*found, Column("flag", flagged, labels), Column("use", held, ("training", "held out"))]


def packed(source: Source) -> dict[str, object]:
    """The columns as the page reads them: numbers of four bytes, compressed, as text.

    Of more than `MOST` particles some are drawn at random.
    """
    count = source.posterior.particles
    rows = np.arange(count)
    if count > MOST:
        rows = np.sort(np.random.default_rng(0).choice(count, MOST, replace=False))
    found = columns(source)
    block = np.stack([rows.astype(np.float32), *(c.values[rows].astype(np.float32) for c in found)])
    return {
        "count": len(rows),
        "of": count,
        "names": [c.name for c in found],
        "labels": [list(c.labels) for c in found],
        "data": _text(block.tobytes()),
        "star": None if source.star is None or count > MOST else _text(source.star.encode()),
        "name": source.run.path.absolute().name,
    }


def _text(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 6)).decode()
