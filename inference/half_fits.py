"""A model fitted to each half of the particles alone, and read on all of them: the ground of half-set validation."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax import Array

from hetmodels.data.particles import Particles
from hetmodels.errors import DataError, UsageError
from hetmodels.observation import Known, Radial
from hetmodels.posterior import Posterior
from hetmodels.problem import ParticleProblem
from inference.fitting import fit, local_posterior, make_problem, thinned

_CHOICES = ("pose", "noise", "contrast", "outliers", "holdout", "given")


def half_fits(
    family: Any, particles: Particles, engine: Any, *, key: Array, **options: Any
) -> tuple[Posterior, Posterior]:
    """Two fits that share nothing but the settings, each read on all particles (`hetmodels.analysis.half_sets`).

    The half sets are those of the particles, by micrograph or by `rlnRandomSubset`. Held-out particles train neither.

    Args:
        family: the family; its mask, if it has one, serves for both.
        particles: all particles.
        engine: how to infer.
        key: random key.
        options: of `fit`, without `halves`.

    Returns:
        The posteriors of half 0 and of half 1, with `local` of all particles in the order of the table.

    Raises:
        UsageError: if poses are searched with nothing to start from: the two maps would have no common frame.
        DataError: if one half is empty.
    """
    pose = options.get("pose", Known())
    if hasattr(pose, "refresh") and options.get("start") is None:
        raise UsageError(
            "half_fits: poses that are searched from nothing give each half a frame of its own. Give both a start, "
            "on the command line --reference with --ini-high."
        )
    half = np.asarray(particles.half)
    if len(np.unique(half)) < 2:
        raise DataError("half_fits: all particles are in one half set; see rlnRandomSubset in the table.")
    return _of(family, particles, engine, key, options, half == 0), _of(
        family, particles, engine, key, options, half == 1
    )


def _of(
    family: Any, particles: Particles, engine: Any, key: Array, options: dict[str, Any], mine: np.ndarray
) -> Posterior:
    key_fit, key_local = jax.random.split(key)
    found = fit(family, particles.subset(np.flatnonzero(mine)), engine, key=key_fit, **options)
    choices: dict[str, Any] = {
        "pose": Known(),
        "noise": Radial(),
        "contrast": None,
        "outliers": None,
        "holdout": 0.1,
        "given": None,
    }
    choices |= {name: options[name] for name in _CHOICES if name in options}
    whole = make_problem(found.family, particles, halves=False, start=None, **choices)
    assert isinstance(whole, ParticleProblem)
    local, _, seen = local_posterior(whole, thinned(found.shared), key_local)
    facts = {"particles": len(particles), "data_hash": particles.data_hash}
    return dataclasses.replace(
        found, local=local, provenance=found.provenance | facts, extra={"information": seen["information"]}
    )
