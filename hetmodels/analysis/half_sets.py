"""What two models, each fitted to one half of the particles, have in common: components, latents, departures.

Latent coordinates are a convention of each fit, so everything is compared through the maps. Whole maps agree because
of what all particles share; only departures from the mean map can fail. Every particle is looked at by both models, so
one of the two has never seen it (cross-half encoding).
"""

import dataclasses
from typing import Any

import numpy as np

from hetmodels.analysis import fourier, fsc
from hetmodels.analysis.particle_maps import from_posterior
from hetmodels.errors import UsageError
from hetmodels.families.protocol import shown
from hetmodels.posterior import Posterior

IMAGES = 100  # particles whose maps are compared
BOX = 64  # in which maps are compared at most, reached by Fourier crop
FOUND = 0.7071  # cosine of a component that both halves have: nearer to the other's space than to its complement


@dataclasses.dataclass(frozen=True, eq=False)
class HalfSets:
    """Agreement of two half-set models.

    Attributes:
        whole: FSC of the two maps of a particle, mean over particles, with resolution.
        departures: the same of maps less their means over the particles: per-image half FSC with the mean removed.
        cosines: of the principal angles between the spaces of the components, behind the mask, largest first; None
            where maps are not linear in the latents.
        crossed: canonical correlations of each latent as found by the model that has seen the particle and by the one
            that has not, one row per half that was seen.
        apart: root mean square distance of the two estimates of a particle's latents, carried over by the maps, in
            posterior standard deviations; None where `cosines` is. Both see the same image: errors of the image are
            common, and what is left is the models'.
        unseen: log evidence of particles by the model that has not seen them minus by the one that has [nats per
            particle], and its standard error: what fitting to the noise is worth.
    """

    whole: fsc.Curve
    departures: fsc.Curve
    cosines: tuple[float, ...] | None
    crossed: tuple[tuple[float, ...], ...]
    apart: float | None
    unseen: tuple[float, float]

    @property
    def components(self) -> int | None:
        """Number of directions that both halves have."""
        return None if self.cosines is None else sum(cosine > FOUND for cosine in self.cosines)

    @property
    def resolution(self) -> float:
        """Where departures of the half-set maps agree to 0.143 [Å]; infinity if nowhere."""
        return self.departures.resolution(0.143).resolution

    def values(self) -> dict[str, Any]:
        """The numbers for metrics.json."""
        return {
            "half_fsc_whole": self.whole.correlation[1:].tolist(),
            "half_fsc_departures": self.departures.correlation[1:].tolist(),
            "half_departures_resolution_0143": self.resolution if np.isfinite(self.resolution) else None,
            "half_component_cosines": None if self.cosines is None else list(self.cosines),
            "half_components_found": self.components,
            "half_latent_correlations": [list(row) for row in self.crossed],
            "half_latent_distance_sd": self.apart,
            "half_unseen_log_evidence": self.unseen[0],
            "half_unseen_log_evidence_se": self.unseen[1],
        }

    @property
    def words(self) -> str:
        """What it says, in lines."""
        lines = [
            f"maps of the same particle agree to {self.whole.correlation[1:].mean():.3f} (mean FSC), their departures "
            f"from the mean map to {self.departures.correlation[1:].mean():.3f}, as far as {self.resolution:.1f} Å"
        ]
        if self.cosines is not None:
            listed = ", ".join(f"{cosine:.2f}" for cosine in self.cosines)
            lines.append(f"{self.components} of {len(self.cosines)} components are found by both halves ({listed})")
        if self.crossed:
            listed = "; ".join(", ".join(f"{c:.2f}" for c in row) for row in self.crossed)
            lines.append(f"correlations of latents found with and without the particle in training: {listed}")
        if self.apart is not None:
            lines.append(f"the two models place a particle {self.apart:.2f} posterior standard deviations apart")
        lines.append(
            f"a particle is worth {-self.unseen[0]:.3f} ± {self.unseen[1]:.3f} nats less to the model that has not "
            "seen it"
        )
        return "\n".join(lines)


def half_sets(first: Posterior, second: Posterior) -> HalfSets:
    """Compare two half-set models.

    Args:
        first: fitted to half 0 and read on all particles.
        second: fitted to half 1 and read on the same particles.

    Raises:
        UsageError: if they are not read on the same particles, or nothing varies between particles.
    """
    if first.particles != second.particles or not first.local:
        raise UsageError(
            f"half_sets: both models must be read on the same particles, and have {first.particles} and "
            f"{second.particles}. Use inference.half_fits."
        )
    dims = min(p.local["mean"].shape[1] for p in (first, second))
    nodes = min(p.local["responsibilities"].shape[1] for p in (first, second))
    if not dims and nodes < 2:
        raise UsageError(
            "half_sets: this family has one map for all particles; its half sets are those of fit --halves."
        )
    whole, departures = _curves(first, second)
    half, trained = np.asarray(first.local["half"]), ~np.asarray(first.local["held_out"]).astype(bool)
    seen = [np.where(half == 0, p.local["log_predictive"], q.local["log_predictive"]) for p, q in _ways(first, second)]
    worth = np.asarray(seen[1] - seen[0], float)[trained]
    linear = all(hasattr(p.family, "latent_covariance") and hasattr(p.family, "design") for p in (first, second))
    crossed = tuple(_canonical(first, second, half == h) for h in (0, 1)) if dims else ()
    return HalfSets(
        whole,
        departures,
        _cosines(first, second) if linear else None,
        crossed,
        _apart(first, second) if linear else None,
        (float(worth.mean()), float(worth.std() / np.sqrt(len(worth)))),
    )


def _ways(first: Posterior, second: Posterior) -> tuple[tuple[Posterior, Posterior], ...]:
    return (first, second), (second, first)


def _curves(first: Posterior, second: Posterior) -> tuple[fsc.Curve, fsc.Curve]:
    """Mean FSC over particles of whole maps, and of maps less each model's mean over them."""
    rows = np.unique(np.linspace(0, first.particles - 1, IMAGES).astype(int))
    size, spacing = min(first.box()[0], BOX), first.box()[1]
    spacing *= first.box()[0] / size
    found = []
    for posterior in (first, second):
        source = from_posterior(posterior)
        maps = [fourier.crop(source.read(int(source.numbers[row])).values, size) for row in rows]
        found.append(np.stack([fourier.forward(one) for one in maps]))

    def mean(left: np.ndarray, right: np.ndarray) -> fsc.Curve:
        curves = [fsc.from_transforms(a, b, spacing) for a, b in zip(left, right, strict=True)]
        return dataclasses.replace(curves[0], correlation=np.mean([curve.correlation for curve in curves], axis=0))

    return mean(*found), mean(*(part - part.mean(0) for part in found))


def _components(posterior: Posterior) -> np.ndarray:
    """The components as images show them, (dims, voxels)."""
    maps = np.asarray(shown(posterior.family, posterior.shared_point()), np.float64)
    return maps[1:].reshape(len(maps) - 1, -1)


def _cosines(first: Posterior, second: Posterior) -> tuple[float, ...]:
    bases = [np.linalg.qr(_components(posterior).T)[0] for posterior in (first, second)]
    found = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return tuple(float(c) for c in np.minimum(found, 1))


def _canonical(first: Posterior, second: Posterior, rows: np.ndarray) -> tuple[float, ...]:
    """Canonical correlations of the latents of some particles."""
    bases = [np.linalg.qr(p.local["mean"][rows] - p.local["mean"][rows].mean(0))[0] for p in (first, second)]
    found = np.linalg.svd(bases[0].T.astype(float) @ bases[1].astype(float), compute_uv=False)
    return tuple(float(c) for c in np.minimum(found, 1))


def _apart(first: Posterior, second: Posterior) -> float:
    """Root mean square of (z - z') S^-1 (z - z') / dims, z' being the second's latents carried over by the maps."""
    mine, other = _components(first), _components(second)
    means = [np.asarray(p.family.components(p.shared_point())[0], np.float64).ravel() for p in (first, second)]
    inverse = np.linalg.pinv(mine.T)
    carried = second.local["mean"].astype(float) @ (inverse @ other.T).T + inverse @ (means[1] - means[0])
    gap = first.local["mean"].astype(float) - carried
    size = np.einsum("ni,ni->n", gap, np.linalg.solve(first.local["covariance"].astype(float), gap[..., None])[..., 0])
    return float(np.sqrt(size.mean() / gap.shape[1]))
