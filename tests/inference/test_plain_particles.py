"""Particles of a model function: the evidence of each is the integral over its sites in the plate."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from simulated import simulated

from hetmodels.data.phantom import phantom
from hetmodels.model import Observed, image_ratio, observe, per_particle, render
from hetmodels.observation import Contrast, FixedNoise, Observation
from hetmodels.posterior import Posterior
from hetmodels.problem import ParticleProblem
from hetmodels.volumes.gaussians import Gaussians
from inference.plain_particles import groups_of


def test_it_is_the_integral_and_goes_to_the_groups_of_arviz():
    """A latent that scales the image is the contrast, whose integral is known in closed form."""
    volume, data = phantom(1, 12, 12.0)[0], simulated(n=40, size=12, pixel=12.0, snr=0.5, contrast_sd=0.2)

    def model(batch):
        scale = numpyro.sample("scale", dist.LogNormal(0, 1))
        with batch.plate():
            z = numpyro.sample("z", dist.Normal(1, 0.2))
            build = lambda z: Gaussians(volume.centres, scale * z * volume.weights, volume.widths)  # noqa: E731
            observe("images", per_particle(build, z), batch)

    true = tuple((data.noise_sd**2 / np.maximum(data.particles.reference[0], 1e-9)).tolist())
    obs = Observation(data.particles.disc, 12.0, 1, 36, noise=FixedNoise((true,)))
    task = ParticleProblem.of(model, data.particles, obs)
    noise = obs.noise.variance(1, obs.disc.shells)
    draws = [{"scale": jnp.asarray(s), "noise": noise} for s in (0.7, 1.0, 1.2)]
    found = groups_of(task, draws, jax.random.key(0))
    batch, closed = task.whole(), Observation(obs.disc, 12.0, 1, 36, contrast=Contrast(0.2))
    for number, shared in enumerate(draws):
        same = Gaussians(volume.centres, shared["scale"] * volume.weights, volume.widths)
        measured = Observed(batch, closed, noise, None)
        exact = image_ratio(measured, render(same, measured, {}))
        exact = exact - obs.zero_ratio(batch.images, obs.pixel_variance(noise, batch.group))
        assert np.abs(found["log_likelihood/training"][0, number] - exact).max() < 0.3
        assert abs((found["log_likelihood/training"][0, number] - exact).mean()) < 0.03
    shared = {"scale": np.array([[0.7, 1.0, 1.2]])}
    container = Posterior(None, shared, False, extra=found).to_arviz()
    held = np.flatnonzero(data.particles.held_out)
    assert container["log_likelihood"]["held_out"].shape == (1, 3, len(held))
    assert np.array_equal(container["log_likelihood"]["held_out"].coords["held_out_particle"], held)
    seen, made = (container[g]["shell_power"] for g in ("observed_data", "posterior_predictive"))
    assert made.shape == (1, 3, *seen.shape)
    ratio = np.asarray(seen).mean(0)[2:] / np.asarray(made)[0, 1].mean(0)[2:]
    assert 0.5 < ratio.min() and ratio.max() < 2
