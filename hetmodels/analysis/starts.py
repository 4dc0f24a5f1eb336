"""Several starts of one classification: which is best, and whether they agree.

Class probabilities are given the maps of one start. They can all be near 1 while another start, no worse, sorts the
particles otherwise: certainty within a run is no evidence of its classes. Agreement between starts is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from hetmodels.analysis.metrics import ari
from hetmodels.posterior import Posterior

CONFIDENT, AGREEING = 0.9, 0.8


@dataclasses.dataclass(frozen=True)
class Starts:
    """What several starts of the same fit say together.

    Attributes:
        objective: of each start at its end, log posterior per particle, (starts,).
        agreement: adjusted Rand index of the likeliest classes of each pair of starts, (starts, starts).
        confidence: mean probability of a particle's likeliest class in each start, (starts,).
    """

    objective: np.ndarray
    agreement: np.ndarray
    confidence: np.ndarray

    @property
    def best(self) -> int:
        """The start of the highest objective, counted from 0."""
        return int(np.argmax(self.objective))

    @property
    def reproduced(self) -> float:
        """Mean agreement of the best start with the others."""
        return float(np.delete(self.agreement[self.best], self.best).mean())

    @property
    def warning(self) -> str | None:
        """What to tell the user where the best start is sure of its classes and the others do not find them."""
        if self.reproduced >= AGREEING or self.confidence[self.best] < CONFIDENT:
            return None
        return (
            f"the classes are not reproducible: particles have their class with probability "
            f"{self.confidence[self.best]:.2f} on average, but other starts sort them otherwise (adjusted Rand index "
            f"{self.reproduced:.2f}; 1 is the same, 0 is chance). Do not read these classes as states: try fewer "
            "classes, more particles or more starts."
        )


def compare_starts(posteriors: Sequence[Posterior]) -> Starts:
    """Compare fits that differ in their random key alone.

    Args:
        posteriors: at least two fits of a family with classes to the same particles.

    Raises:
        ValueError: if there are fewer than two, or one has no classes.
    """
    nodes = [np.asarray(p.local["responsibilities"]) for p in posteriors]
    if len(nodes) < 2 or min(n.shape[1] for n in nodes) < 2:
        raise ValueError(f"compare_starts: at least two fits with at least two classes are needed, got {len(nodes)}.")
    labels = [n.argmax(1) for n in nodes]
    return Starts(
        np.array([p.trace[-1]["objective"] for p in posteriors], float),
        np.array([[ari(a, b) for b in labels] for a in labels]),
        np.array([n.max(1).mean() for n in nodes]),
    )
