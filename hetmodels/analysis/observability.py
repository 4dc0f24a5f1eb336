"""Which viewing directions show a motion: what the images say of each latent beyond its prior, view by view.

An image whose view hides a motion leaves its latent as the prior had it. The share of the prior variance that a
particle's posterior has removed, 1 - sd²/prior sd², averaged over the particles of a viewing direction, is 1 where the
view shows the latent exactly and 0 where it cannot see it.
"""

import dataclasses

import numpy as np

from hetmodels.analysis.mixing_density import prior_moments
from hetmodels.analysis.one_gaussian import under_one_gaussian
from hetmodels.errors import UsageError
from hetmodels.imaging.rotations import healpix_directions
from hetmodels.posterior import Posterior

FEWEST = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Observability:
    """Shares of the variance that views explain.

    Attributes:
        directions: unit vectors of the beam in the frame of the molecule, (views, 3).
        counts: particles of each, (views,).
        share: of each latent axis, (views, dims); NaN where there are too few particles.
        overall: mean over all particles, (dims,).
    """

    directions: np.ndarray
    counts: np.ndarray
    share: np.ndarray
    overall: np.ndarray

    def hidden(self, axis: int, below: float = 0.2) -> np.ndarray:
        """Directions in which an axis, from 0, is hardly seen, (hidden, 3)."""
        with np.errstate(invalid="ignore"):
            return self.directions[self.share[:, axis] < below]

    def words(self, axis: int) -> str:
        """One sentence on an axis, from 0."""
        known = np.isfinite(self.share[:, axis])
        if not known.any():
            return f"latent {axis + 1}: too few particles per view to say."
        low, high = np.min(self.share[known, axis]), np.max(self.share[known, axis])
        return (
            f"latent {axis + 1}: images explain {100 * self.overall[axis]:.0f} % of its prior variance, from "
            f"{100 * low:.0f} to {100 * high:.0f} % by view; {len(self.hidden(axis))} of {known.sum()} views hide it."
        )


def observability(posterior: Posterior, order: int = 1) -> Observability:
    """Group particles by viewing direction (a direction and its opposite show the same) and average.

    Args:
        posterior: of a family with continuous latents.
        order: HEALPix order of the directions, 12 · 4^order of them on the sphere.

    Raises:
        UsageError: if there are no continuous latents.
    """
    local = posterior.local
    if not local or not local["mean"].shape[1]:
        raise UsageError("observability: the run has no continuous latents, whose visibility could depend on the view.")
    prior = np.diag(prior_moments(posterior)[1])
    share = 1 - np.diagonal(under_one_gaussian(posterior)[1], axis1=1, axis2=2) / prior
    beam = np.asarray(local["rotation"], float)[:, 2]  # row 2 of A: the beam in the molecule's frame
    rot, tilt = healpix_directions(order)
    every = np.stack([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)], axis=1)
    upper = every[_upper(every)]
    nearest = np.abs(beam @ upper.T).argmax(1)
    counts = np.bincount(nearest, minlength=len(upper))
    sums = np.stack([np.bincount(nearest, column, len(upper)) for column in share.T], axis=1)
    mean = np.where(counts[:, None] >= FEWEST, sums / np.maximum(counts, 1)[:, None], np.nan)
    return Observability(upper, counts, mean, share.mean(0))


def _upper(directions: np.ndarray) -> np.ndarray:
    """One of each pair of opposite directions."""
    x, y, z = np.round(directions, 6).T
    return (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
