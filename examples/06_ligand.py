"""A ligand that not every particle has bound: a plain NumPyro model of images under SVI, NUTS and SMC."""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import NUTS

from hetmodels.data import Particles
from hetmodels.data.phantom import phantom
from hetmodels.data.simulate import Recording, simulate
from hetmodels.data.views import Microscope, random_views
from hetmodels.model import image_ratio, render
from hetmodels.observation import FixedNoise
from hetmodels.volumes.gaussians import Gaussians
from inference import MCMC, SMC, SVI, fit


def bound(receptor, place):
    """The receptor with a ligand of a tenth of its weight at a place [Å]."""
    return Gaussians(
        jnp.concatenate([receptor.centres, place[None]]),
        jnp.append(receptor.weights, receptor.weights.sum() / 10),
        jnp.append(receptor.widths, 1.5 * receptor.widths[0]),
    )


def ligand(receptor, guess):
    """The model of a receptor's images: where the ligand binds and how often; whether it does is summed over."""

    def model(data):
        place = numpyro.sample("place", dist.Normal(guess, 15.0).to_event(1))
        occupancy = numpyro.sample("occupancy", dist.Beta(1, 1))
        with data.plate():
            with_it = image_ratio(data, render(bound(receptor, place), data, {}))
            without = image_ratio(data, render(receptor, data, {}))
            both = jnp.logaddexp(jnp.log(occupancy) + with_it, jnp.log1p(-occupancy) + without)
            numpyro.factor("images", both)

    return model


def main() -> None:
    """Run at the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    smoke = parser.parse_args().smoke
    count, box, pixel, draws, depth = (8, 16, 16.0, 4, 2) if smoke else (200, 32, 8.0, 500, 10)
    nuts = MCMC(draws=draws, warmup=draws, chains=2, kernel=partial(NUTS, max_tree_depth=depth), block=draws)
    smc = SMC(draws=draws, chains=2, ess=0.1 if smoke else 0.7, moves=depth, leapfrog=depth)

    receptor = phantom(1, box, pixel)[0]
    place = jnp.array([40.0, -30.0, 20.0])
    with_it = bound(receptor, place)
    with tempfile.TemporaryDirectory() as folder:
        views = random_views(np.random.default_rng(0), count, Microscope())
        made = simulate(Path(folder) / "p.star", (with_it, with_it, receptor), views, Recording(box, pixel), seed=0)
        scaled = Gaussians(receptor.centres, receptor.weights * made.scale, receptor.widths)
        for engine in (SVI(iterations=4 * draws, draws=2 * draws), nuts, smc):
            model, key = ligand(scaled, place + 10), jax.random.key(0)
            found = fit(model, Particles.open(made.star), engine, key=key, noise=FixedNoise())
            share, off = found.shared["occupancy"], np.linalg.norm(found.value("place") - place)
            print(
                f"{type(engine).__name__}: occupancy {share.mean():.2f} ± {share.std():.2f}, {off:.0f} Å from the site"
            )


if __name__ == "__main__":
    main()
