"""Particles that need a second look: junk, images worse than noise, improbable images, strange contrast.

They are named, not removed: rare states lie among the improbable ones.
"""

import dataclasses

import numpy as np

from hetmodels.analysis.particle_maps import solvent_zero
from hetmodels.posterior import Posterior

JUNK = 0.5  # posterior probability
WEAK = 0.25  # of the power of the median class
FAR = 4.0  # robust standard deviations


@dataclasses.dataclass(frozen=True, eq=False)
class Flag:
    """One reason to look at particles.

    Attributes:
        name: in a word or two.
        rows: which particles, bool (N,).
        words: what was found and what to do about it.
    """

    name: str
    rows: np.ndarray
    words: str


def robust_z(values: np.ndarray, group: np.ndarray | None = None) -> np.ndarray:
    """Distance from the median in robust standard deviations (1.4826 times the median deviation), group by group.

    >>> [float(round(v, 3)) for v in robust_z(np.array([0.0, 1.0, 2.0, 50.0]))]
    [-1.012, -0.337, 0.337, 32.713]
    """
    out = np.zeros(len(values))
    labels = np.zeros(len(values), int) if group is None else group
    for label in np.unique(labels):
        part = labels == label
        distance = values[part] - np.median(values[part])
        spread = 1.4826 * np.median(np.abs(distance))
        out[part] = distance / spread if spread > 0 else 0.0
    return out


def flags(posterior: Posterior, group: np.ndarray | None = None) -> list[Flag]:
    """What is odd about single particles, most serious first; reasons that hold for none are left out.

    Args:
        posterior: of a family.
        group: optics group of each particle, whose log likelihoods are compared with each other, (N,).
    """
    local = posterior.local
    evidence, contrast = local["log_evidence"], local["contrast"]
    junk = local["outlier"] > JUNK
    found = [
        Flag("junk", junk, "more probably an image without the particle; look at them before leaving them out"),
        Flag(
            "weak class",
            _weak(posterior) & ~junk,
            "in a class whose map is far weaker than the others: it may hold junk",
        ),
        Flag("worse than noise", (evidence < 0) & ~junk, "noise alone explains them better than any of the maps"),
        Flag(
            "improbable",
            (robust_z(evidence, group) < -FAR) & ~junk & (evidence >= 0),
            "far less probable than the rest of their optics group: bad images, wrong poses, or a rare state",
        ),
        Flag(
            "contrast",
            (np.abs(robust_z(contrast)) > FAR) & (np.abs(contrast - 1) > 0.3),
            "unusual contrast: ice of another thickness, or two particles on top of each other",
        ),
    ]
    return [flag for flag in found if flag.rows.any()]


def _weak(posterior: Posterior) -> np.ndarray:
    """Particles of classes whose maps have little power, bool (N,)."""
    nodes = posterior.local["responsibilities"]
    if nodes.shape[1] < 2 or not hasattr(posterior.family, "grids") or posterior.local["mean"].shape[1]:
        return np.zeros(len(nodes), bool)
    points = posterior.family.grids(posterior.first())[0]
    power = np.array([solvent_zero(posterior.map_at(point)).var() for point in points])
    return (power < WEAK * np.median(power))[nodes.argmax(1)]
