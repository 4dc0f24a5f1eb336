"""Reconstruction of one map from weighted particles at known poses, by least squares."""

import dataclasses
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.data.batch import Batch
from hetmodels.data.particles import Particles
from hetmodels.errors import DataError, UsageError
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.observation import Contrast, Known, Radial
from hetmodels.plain import Sites
from hetmodels.posterior import Posterior
from hetmodels.problem import ParticleProblem
from inference.engine import run
from inference.fitting import make_problem
from inference.moments import Moments
from inference.predictive import UNSEEN

ROWS = 500  # of a batch
FREE = 1e4  # times the map's power: a prior that hardly regularises


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted(ParticleProblem):
    """A problem whose particles count with weights.

    Attributes:
        weights: of all particles, (N,); those of weight 0 are not read.
        first: shared values to start from.
        plain: the same problem without weights, whose sites these are.
    """

    weights: np.ndarray = None  # type: ignore[assignment]
    first: Sites = dataclasses.field(default_factory=dict)
    plain: ParticleProblem = None  # type: ignore[assignment]

    @cached_property
    def sites(self) -> Any:
        """Those of the plain problem."""
        return self.plain.sites

    def starting(self, key: Array) -> Sites:
        """The same values every time."""
        return self.first

    @cached_property
    def training(self) -> np.ndarray:
        """Rows that count."""
        return np.flatnonzero(self.weights > 0)

    def batches(self, pass_: int, key: Array, size: int = 0, shuffle: bool = False) -> Iterator[Batch]:
        """All in file order, in batches of one size whatever the weights, so that one compilation serves all."""
        for batch in self.particles.batches(self.training, min(ROWS, len(self.particles))):
            yield self._grouped(batch)

    def _grouped(self, batch: Batch) -> Batch:
        found = super()._grouped(batch)
        own = jnp.asarray(self.weights, jnp.float32)[found.index]
        return dataclasses.replace(found, weight=found.weight * own)


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """Maps of the particles of a run, under its noise, as a function of the particles' weights.

    Attributes:
        problem: one map for all particles.
    """

    problem: ParticleProblem

    @classmethod
    def of(cls, posterior: Posterior, particles: Particles) -> "Reconstruction":
        """For the data of a run.

        Raises:
            DataError: if the particles are not those of the run.
            UsageError: if the run has inferred the poses.
        """
        if particles.data_hash != posterior.provenance.get("data_hash"):
            raise DataError(f"{particles!r}: these are not the particles of the run, or they are cropped otherwise.")
        if not str(posterior.provenance.get("pose", "Known")).startswith("Known"):
            raise UsageError("kernel: the reconstruction needs the file's poses, and this run has inferred its own.")
        problem = make_problem(
            Homogeneous(), particles, pose=Known(), noise=Radial(), contrast=None, outliers=None, halves=False,
            holdout=0.0, start=None, given={"noise": posterior.value("noise")},
        )  # fmt: skip
        assert isinstance(problem, ParticleProblem)
        return cls(problem)

    @cached_property
    def _first(self) -> Sites:
        return dict(self.problem.starting(jax.random.key(0)))

    def __call__(self, weights: np.ndarray, free: bool = False) -> np.ndarray:
        """The map of weighted least squares, (N, N, N).

        Args:
            weights: of all particles, (particles,).
            free: hardly regularise; otherwise the prior spectrum is estimated.
        """
        given, first = self.problem.given, self._first
        if free:
            power = first["map_tau2"]
            given = given | {"map_tau2": FREE * jnp.maximum(power, power.max() * 1e-6)}
        fields = {f.name: getattr(self.problem, f.name) for f in dataclasses.fields(ParticleProblem)}
        task = Weighted(**(fields | {"given": given}), weights=weights, first=first | given, plain=self.problem)
        engine = Moments(batch_size=ROWS, iterations=100, tolerance=1e-4)
        return np.asarray(run(engine, task, key=jax.random.key(0)).state.map)


def coarse_latents(posterior: Posterior, particles: Particles, resolution: float) -> Posterior:
    """The same run with each particle's latents inferred from its coarse shells only.

    A reconstruction from particles chosen by these latents owes nothing to the model in the finer shells: what it
    shows there, the images say by themselves.

    Args:
        posterior: of a linear family at known poses.
        particles: the run's data.
        resolution: of the finest shell that counts [Å].

    Raises:
        DataError: if the particles are not those of the run.
        UsageError: if no shell is that coarse.
    """
    Reconstruction.of(posterior, particles)  # the same refusals
    limit = int(particles.size * particles.spacing / resolution)
    if limit < 1:
        raise UsageError(f"latents: no Fourier shell is as coarse as {resolution:g} Å; give a finer resolution.")
    problem = make_problem(
        posterior.family, particles, pose=Known(), noise=Radial(), contrast=contrast_of(posterior), outliers=None,
        halves=False, holdout=0.0, start=None, given={"noise": posterior.value("noise")},
    )  # fmt: skip
    assert isinstance(problem, ParticleProblem)
    shared = posterior.shared_point()
    noise = problem.given["noise"]
    shared["noise"] = jnp.where(jnp.arange(noise.shape[1]) <= limit, noise, UNSEEN)
    infer, parts = jax.jit(problem.infer), []
    for batch in problem.every(ROWS):
        keep, found = np.asarray(batch.weight) > 0, infer(jax.random.key(0), shared, batch)
        parts.append((np.asarray(found.mean)[keep], np.asarray(found.covariance)[keep]))
    mean, covariance = (np.concatenate(column) for column in zip(*parts, strict=True))
    return dataclasses.replace(posterior, local=posterior.local | {"mean": mean, "covariance": covariance})


def contrast_of(posterior: Posterior) -> Contrast | None:
    """The prior of the contrast that a run had, which its provenance states in words."""
    text = str(posterior.provenance.get("contrast", "None"))
    found = re.fullmatch(r"Contrast\(sd=([-+.\deE]+)\)", text)
    return Contrast(float(found[1])) if found else None
