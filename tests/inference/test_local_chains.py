"""Chains of one particle each: their draws have the particles' exact posteriors, and batches share one program."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from simulated import problem, simulated

from hetmodels.data.phantom import phantom
from hetmodels.model import per_particle, render
from hetmodels.observation import FixedNoise
from hetmodels.tree import pytree
from hetmodels.volumes.gaussians import Gaussians
from inference.local_chains import LocalHMC

SIZE, PIXEL = 12, 12.0
BODY, ARM = np.arange(120) < 84, np.arange(120) >= 84


@pytree
class TwoWeights:
    """Body and arm, each of an unknown weight: the image is linear in the latent, whose posterior is normal."""

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(1, 0.5).expand([2]).to_event(1)

    def volume(self, shared, z):
        one = phantom(1, SIZE, PIXEL)[0]
        return Gaussians(one.centres, one.weights * (z[0] * BODY + z[1] * ARM), one.widths)


@pytest.mark.slow
def test_linear_latents_are_drawn_from_their_normal_posterior_without_compiling_again():
    data = simulated(n=24, size=SIZE, pixel=PIXEL, snr=0.3)
    task = problem(data.particles.with_holdout(0.0), TwoWeights(), noise=FixedNoise())
    shared = {"noise": jnp.full((1, task.observation.disc.shells), 0.7)}
    program = LocalHMC(draws=400, warmup=100, chains=2, leapfrog=6).program(task)
    build = lambda z: TwoWeights().volume({}, z)  # noqa: E731
    column = jax.jit(lambda z, batch: render(per_particle(build, z), task.observed(shared, batch), {}))
    for number in range(2):
        batch = task.batch(np.arange(12 * number, 12 * number + 12))
        found = program(jax.random.key(number), shared, batch)
        x = np.stack([column(jnp.tile(e, (12, 1)), batch) for e in jnp.eye(2)], -1).astype(complex)
        weight = 2 / 0.7
        precision = 4 * np.eye(2) + weight * np.einsum("bml,bmn->bln", x.conj(), x).real
        slope = 4 + weight * np.einsum("bml,bm->bl", x.conj(), np.asarray(batch.images)).real
        covariance = np.linalg.inv(precision)
        mean, sd = np.einsum("bij,bj->bi", covariance, slope), np.sqrt(covariance[:, [0, 1], [0, 1]])
        z = np.asarray(found.latents["z"], float).reshape(12, -1, 2)
        assert np.abs((z.mean(1) - mean) / sd).max() < 0.25
        assert np.abs(z.std(1) / sd - 1).mean() < 0.05 and 0.6 < float(found.acceptance.mean()) < 0.98
    assert program._cache_size() == 1
