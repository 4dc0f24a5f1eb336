import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planes import Plane

from hetmodels.analysis.uncertainty import map_sd
from hetmodels.errors import UsageError
from hetmodels.families import Homogeneous
from hetmodels.imaging.ball import Ball
from hetmodels.posterior import Posterior
from inference import Moments
from inference.engine import run
from inference.fitting import local_posterior

sys.path.append(str(Path(__file__).parents[1] / "inference"))
from simulated import problem, simulated  # noqa: E402

SIZE = 12
MAPS = np.random.default_rng(0).normal(size=(3, SIZE, SIZE, SIZE)).astype(np.float32)


def posterior(draws):
    box = {"box": SIZE, "spacing": 3.0}
    return Posterior(Plane(), {"maps": draws[None]}, False, {"mean": np.zeros((4, 2))}, provenance=box)


def test_draws_of_the_maps_and_the_spread_of_the_latent_add_as_variances():
    draws = MAPS + 0.1 * np.random.default_rng(1).normal(size=(20, *MAPS.shape)).astype(np.float32)
    z = np.array([0.5, -1.0])
    own = draws[:, 0] + z[0] * draws[:, 1] + z[1] * draws[:, 2]
    np.testing.assert_allclose(map_sd(posterior(draws), z), own.std(0, ddof=1), rtol=1e-3)
    covariance = np.array([[0.3, 0.1], [0.1, 0.2]])
    mean = draws.mean(0)[1:].reshape(2, -1)
    latent = np.einsum("iv,ij,jv->v", mean, covariance, mean).reshape(own.shape[1:])
    expected = np.sqrt(own.var(0, ddof=1) + latent)
    np.testing.assert_allclose(map_sd(posterior(draws), z, covariance), expected, rtol=1e-3)


def test_a_point_estimate_without_linear_structure_does_not_know():
    with pytest.raises(UsageError, match="does not tell how well"):
        map_sd(dataclasses.replace(posterior(MAPS[None]), point=True), np.zeros(2))


def test_the_error_of_a_map_drawn_from_its_prior_is_the_standard_deviation_stated():
    data = simulated(n=400, size=16, snr=0.1).particles
    task = problem(data, Homogeneous())
    shared = task.shared(task.initial(jax.random.key(0)))
    ball = Ball(16)
    truth = ball.colour(jax.random.normal(jax.random.key(1), (ball.coordinates,)), shared["map_tau2"])
    batch, _, _ = task.simulate(jax.random.key(2), shared | {"map": truth}, task.whole())
    given = {name: shared[name] for name in ("noise", "map_tau2")}
    task = dataclasses.replace(task, given=given)
    object.__setattr__(task, "batches", lambda *args, **options: iter([batch]))
    engine = Moments(batch_size=len(batch.weight))
    found = run(engine, task, key=jax.random.key(3)).state.map
    local, _, extra = local_posterior(task, [shared], jax.random.key(0))
    made = {"map": np.asarray(found)[None, None], "map_tau2": np.asarray(shared["map_tau2"])[None, None]}
    stated = map_sd(Posterior(task.family, made, True, local, extra=extra))
    error = float(jnp.sqrt(jnp.mean((found - truth) ** 2)))
    assert error == pytest.approx(float(stated.mean()), rel=0.15)
    prior = float(np.sqrt((np.asarray(truth) ** 2).mean()))
    assert error < 0.8 * prior
