"""Shared values of two posteriors of one family side by side, with Monte-Carlo errors: two engines, or two seeds."""

import dataclasses

import numpy as np

from hetmodels.arviz_bridge import ess
from hetmodels.posterior import Posterior

LARGEST = 10_000  # numbers per draw of a value that is compared
FEWEST = 4  # draws from which a spread is taken
MCSE, SD, RATIO = 4.0, 0.5, 1.5  # what makes a difference clear


@dataclasses.dataclass(frozen=True)
class Difference:
    """A shared value in both posteriors; of an array, the entry that differs most in standard deviations.

    Attributes:
        name: the value, with the place in its array, from 0.
        mean_a, mean_b: posterior means, or the points.
        sd_a, sd_b: posterior standard deviations, 0 for a point.
        error: Monte-Carlo standard error of the difference of the means.
        spread: median over the array of sd_b / sd_a; NaN unless both are sampled.
    """

    name: str
    mean_a: float
    mean_b: float
    sd_a: float
    sd_b: float
    error: float
    spread: float

    @property
    def in_sd(self) -> float:
        """|mean_a - mean_b| in standard deviations of the wider posterior."""
        return abs(self.mean_a - self.mean_b) / max(self.sd_a, self.sd_b, 1e-30)

    @property
    def clear(self) -> bool:
        """Whether means or spreads differ by more than the draws' own error, and by enough to matter."""
        apart = abs(self.mean_a - self.mean_b) > MCSE * self.error and self.in_sd > SD
        return apart or (np.isfinite(self.spread) and not 1 / RATIO < self.spread < RATIO)

    @property
    def words(self) -> str:
        """One sentence."""
        text = (
            f"{self.name} is {self.mean_a:.4g} in one and {self.mean_b:.4g} in the other, {self.in_sd:.2f} posterior "
            f"standard deviations apart (Monte-Carlo error {self.error:.2g})"
        )
        return f"{text}; spreads have the ratio {self.spread:.2f}." if np.isfinite(self.spread) else f"{text}."


def differences(a: Posterior, b: Posterior, order: np.ndarray | None = None) -> tuple[Difference, ...]:
    """Shared values that both have and at least one has sampled, apart from maps and their coordinates.

    Args:
        a: one run.
        b: the other, of the same family.
        order: class of b for each class of a, by which values with one entry per class are put in order; None for
            families without classes, or where the numbers of classes differ.
    """
    found = []
    for name, one in a.shared.items():
        other = b.shared.get(name)
        if other is None or one.shape[2:] != other.shape[2:] or one[0, 0].size > LARGEST or one.dtype.kind not in "fiu":
            continue
        if name.endswith(("map", "maps", "_white")):
            continue
        if order is not None and one.ndim > 2 and one.shape[2] == len(order):
            other = other[:, :, order]
        if max(_count(one), _count(other)) >= FEWEST:
            difference = _difference(name, one, other)
            if difference.sd_a > 0 or difference.sd_b > 0:  # else both were given
                found.append(difference)
    return tuple(found)


def _count(draws: np.ndarray) -> int:
    return draws.shape[0] * draws.shape[1]


def _difference(name: str, a: np.ndarray, b: np.ndarray) -> Difference:
    (mean_a, sd_a, error_a), (mean_b, sd_b, error_b) = (_moments(np.atleast_3d(v)) for v in (a, b))
    wider = np.maximum(np.maximum(sd_a, sd_b), 1e-30)
    place = int(np.argmax(np.abs(mean_a - mean_b) / wider))
    where = np.unravel_index(place, a.shape[2:])
    label = f"{name}[{', '.join(str(int(i)) for i in where)}]" if where else name
    both = (sd_a > 0) & (sd_b > 0)
    spread = float(np.median(sd_b[both] / sd_a[both])) if both.any() else float("nan")
    error = float(np.hypot(error_a[place], error_b[place]))
    middle, width = (mean_a[place], mean_b[place]), (sd_a[place], sd_b[place])
    return Difference(label, float(middle[0]), float(middle[1]), float(width[0]), float(width[1]), error, spread)


def _moments(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard deviation and Monte-Carlo standard error of the mean, flat."""
    flat = draws.reshape(*draws.shape[:2], -1)
    mean = flat.mean((0, 1), dtype=np.float64)
    if _count(draws) < FEWEST:
        return mean, np.zeros_like(mean), np.zeros_like(mean)
    sd = flat.std((0, 1), ddof=1, dtype=np.float64)
    size = np.nan_to_num(ess({"x": flat}, "mean")["x"], nan=1.0)
    return mean, sd, sd / np.sqrt(np.maximum(size, 1.0))
