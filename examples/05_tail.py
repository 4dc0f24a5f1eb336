"""A flexible tail as a chain of stiff joints: a plain NumPyro model of images under SVI, NUTS and SMC."""

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
from hetmodels.imaging.rotations import from_rotvec
from hetmodels.model import observe, per_particle
from hetmodels.observation import FixedNoise
from hetmodels.volumes.gaussians import Gaussians
from inference import MCMC, SMC, SVI, fit

JOINTS, BODY = 3, 84  # of the tail; beads of the rigid body


def with_tail(body, bends, bond):
    """The body and its tail, whose bonds of a given length [Å] each turn by a rotation vector from the one before."""

    def step(carry, bend):
        end, turn = carry
        turn = turn @ from_rotvec(bend)
        end = end + bond * turn[:, 2]
        return (end, turn), end

    _, tail = jax.lax.scan(step, (body.centres[0], jnp.eye(3)), bends)
    weights = jnp.concatenate([body.weights, jnp.full(JOINTS, body.weights.sum() / 12)])
    widths = jnp.concatenate([body.widths, jnp.full(JOINTS, 1.5 * body.widths[0])])
    return Gaussians(jnp.concatenate([body.centres, tail]), weights, widths)


def tail(body, bond):
    """The model of the body's images with a tail: how flexible it is, and its joints in each particle."""

    def model(data):
        flexibility = numpyro.sample("flexibility", dist.HalfNormal(0.7))
        with data.plate():
            bends = numpyro.sample("bends", dist.Normal(0, 1).expand([JOINTS, 3]).to_event(2))
            observe("images", per_particle(lambda z: with_tail(body, flexibility * z, bond), bends), data)

    return model


def main() -> None:
    """Run at the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    smoke = parser.parse_args().smoke
    count, box, pixel, draws, depth = (8, 16, 16.0, 4, 2) if smoke else (60, 32, 8.0, 500, 10)
    nuts = MCMC(draws=draws, warmup=draws, chains=2, kernel=partial(NUTS, max_tree_depth=depth), block=draws)
    smc = SMC(draws=draws, chains=2, ess=0.1 if smoke else 0.7, moves=depth, leapfrog=depth)

    whole = phantom(1, box, pixel)[0]
    body = Gaussians(whole.centres[:BODY], whole.weights[:BODY], whole.widths[:BODY])
    bends = 0.4 * np.random.default_rng(1).normal(size=(6, JOINTS, 3))  # six shapes of the tail, flexibility 0.4
    states = [with_tail(body, jnp.asarray(bend, jnp.float32), 3 * pixel) for bend in bends]
    with tempfile.TemporaryDirectory() as folder:
        views = random_views(np.random.default_rng(0), count, Microscope())
        made = simulate(Path(folder) / "p.star", states, views, Recording(box, pixel, snr=0.5), seed=0)
        scaled = Gaussians(body.centres, body.weights * made.scale, body.widths)
        for engine in (SVI(iterations=4 * draws, draws=2 * draws), nuts, smc):
            model, key = tail(scaled, 3 * pixel), jax.random.key(0)
            found = fit(model, Particles.open(made.star), engine, key=key, noise=FixedNoise()).shared["flexibility"]
            print(f"{type(engine).__name__}: flexibility {found.mean():.2f} ± {found.std():.2f} rad per joint")


if __name__ == "__main__":
    main()
