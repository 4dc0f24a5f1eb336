"""What a report is made from: a run's folder, its posterior, and what was computed for the page."""

import dataclasses
import tomllib
from functools import cached_property
from typing import Any

import numpy as np

from hetmodels.analysis.basins import Way, way
from hetmodels.analysis.clusters import Clusters, clusters
from hetmodels.analysis.flags import Flag, flags
from hetmodels.analysis.fsc import Curve, half_map_fsc
from hetmodels.analysis.image_check import ImageCheck
from hetmodels.analysis.leakage import Leakage
from hetmodels.analysis.map_graph import MapGraph
from hetmodels.analysis.masks import from_map
from hetmodels.analysis.particle_maps import solvent_zero
from hetmodels.analysis.rows import Rows
from hetmodels.data.maps import read_map
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory

LINEAR, RENDERED = 100, 24  # representatives where maps are linear in the latents, and where each is rendered
SAME = 0.85  # mean correlation of half maps of the same class at low resolution, at least


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """The chains of a run by MCMC.

    Attributes:
        table: a row per number, with mean, sd, ess_bulk, ess_tail and r_hat where they apply: {label: {column: value}}.
        draws: some of the numbers, by label, (chains, draws).
        energy: (chains, draws), or None.
    """

    table: dict[str, dict[str, float]]
    draws: dict[str, np.ndarray]
    energy: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Everything the page is made from.

    Attributes:
        run: the folder.
        posterior: its result.
        rows: its particle table.
        metrics: metrics.json.
        config: config.toml as text.
        command: the words that repeat the run.
        star: the particle table to save selections from, without the columns of the run; None if too long.
        images: checks against the images, or why there are none.
        leakage: what the latents encode, None where that was not tested.
        sampler: the chains, None for a point estimate.
        warnings: what is wrong with the posterior, in sentences.
    """

    run: RunDirectory
    posterior: Posterior
    rows: Rows
    metrics: dict[str, Any]
    config: str
    command: str
    star: str | None
    images: ImageCheck | str
    leakage: Leakage | None
    sampler: Sampler | None
    warnings: tuple[str, ...]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.toml as nested dictionaries."""
        return tomllib.loads(self.config)

    @property
    def family(self) -> str:
        """Name of the family."""
        return type(self.posterior.family).__name__

    @property
    def classes(self) -> int:
        """Number of nodes of a gridded latent, 0 without one."""
        nodes = self.posterior.local["responsibilities"].shape[1]
        return nodes if nodes > 1 and hasattr(self.posterior.family, "grids") else 0

    @property
    def dims(self) -> int:
        """Number of continuous latent coordinates."""
        return self.posterior.local["mean"].shape[1]

    @cached_property
    def group(self) -> np.ndarray:
        """Optics group of each particle, (N,)."""
        found = self.rows.numbers("rlnOpticsGroup")
        return np.zeros(len(self.rows.table), int) if found is None else found.astype(int)

    @cached_property
    def flags(self) -> list[Flag]:
        """Particles that need a second look."""
        return flags(self.posterior, self.group)

    @cached_property
    def latent_sd(self) -> np.ndarray:
        """Posterior standard deviations, (N, dims)."""
        return np.sqrt(np.maximum(np.diagonal(self.posterior.local["covariance"], axis1=1, axis2=2), 0))

    @cached_property
    def reliability(self) -> np.ndarray:
        """Share of each coordinate's variance over particles that is not uncertainty, (dims,)."""
        between, within = self.posterior.local["mean"].var(0), (self.latent_sd**2).mean(0)
        return between / np.maximum(between + within, 1e-30)

    @cached_property
    def half_curves(self) -> dict[str, Curve]:
        """FSC of the half maps by the name of what they are halves of."""
        run, extra = self.run, self.posterior.extra
        curves: dict[str, Curve] = {}
        if run.half1.is_file() and run.half2.is_file():
            a, b = read_map(run.half1), read_map(run.half2)
            mask = read_map(run.mask).values if run.mask.is_file() else None
            found = half_map_fsc(a.values, b.values, a.spacing, mask)
            return {"corrected": found.final, "without mask": found.unmasked}
        if "half_maps" not in extra or not self.classes:
            return curves
        spacing = self.posterior.box()[1]
        for number, pair in enumerate(list(zip(*extra["half_maps"], strict=True))[:10], 1):
            first, second = (solvent_zero(m) for m in pair)
            mask = from_map((first + second) / 2, spacing)
            curves[f"class {number}"] = half_map_fsc(first, second, spacing, mask).final
        return curves

    @cached_property
    def clusters(self) -> Clusters | None:
        """Clusters of the latents; None where there are none, or their prior is not known in closed form."""
        try:
            return clusters(self.posterior) if self.dims else None
        except UsageError:
            return None

    @cached_property
    def way(self) -> Way | None:
        """Landscape in two axes with the path between its basins; None with fewer latents or without closed prior."""
        try:
            return way(self.posterior) if self.dims > 1 else None
        except UsageError:
            return None

    @cached_property
    def traversal(self) -> np.ndarray | None:
        """Latents of particles on the shortest way, by their maps, between the two farthest apart, (steps, dims)."""
        if self.dims < 2:
            return None
        linear = hasattr(self.posterior.family, "latent_covariance")
        graph = MapGraph.of(self.posterior, LINEAR if linear else RENDERED)
        return graph.latents[graph.path(*graph.ends())]

    @property
    def half_words(self) -> str:
        """Classes on which the half sets disagree, in a sentence; "" where they agree.

        Half maps of the same thing agree well up to half the frequency where they part.
        """
        found = []
        for name, curve in self.half_curves.items():
            reach = curve.size * curve.spacing / curve.resolution(0.143).resolution
            shells = max(int(reach / 2), 1)
            if name.startswith("class") and curve.correlation[1 : shells + 1].mean() < SAME:
                found.append(name.removeprefix("class "))
        if not found:
            return ""
        which = f"class {found[0]}" if len(found) == 1 else f"classes {', '.join(found)}"
        return (
            f"The half sets disagree on {which} already at low resolution: each half found something else, so their "
            "resolution means little. More passes, fewer classes or another seed may help."
        )

    @property
    def doubts(self) -> str:
        """What speaks against the run besides its score, in a clause; "" for nothing."""
        if self.warnings:
            return f"{len(self.warnings)} warning{'s stand' if len(self.warnings) > 1 else ' stands'} below"
        if self.leakage is not None and self.leakage.rejected:
            return "the latents are not about the conformation alone, see Certainty"
        return "the half sets do not find the same classes" if self.half_words else ""
