"""A hinge with an unknown axis: a plain NumPyro model of images under SVI, NUTS and SMC, and as a Family under EM.

The plain model knows the molecule and asks for the axis and the angles. The family `multibody` knows only a mask of the
arm and its pivot: EM finds the maps of both parts and, on a grid of rotation vectors, the turn of every particle.
"""

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
from hetmodels.families import Multibody
from hetmodels.imaging.rotations import from_rotvec
from hetmodels.model import observe, per_particle
from hetmodels.observation import FixedNoise
from hetmodels.volumes.gaussians import Gaussians
from inference import EM, MCMC, SMC, SVI, fit

ARM = 84  # the beads from here on swing


def swung(molecule, axis, angle):
    """The molecule with its arm turned about an axis through the arm's first bead, by an angle [rad]."""
    centres = molecule.centres
    turn = from_rotvec(angle * axis / jnp.linalg.norm(axis))
    arm = (centres[ARM:] - centres[ARM]) @ turn.T + centres[ARM]
    return Gaussians(jnp.concatenate([centres[:ARM], arm]), molecule.weights, molecule.widths)


def hinge(molecule):
    """The model of a molecule's images: one axis for all, an angle for each particle."""

    def model(data):
        axis = numpyro.sample("axis", dist.Normal(0, 1).expand([3]).to_event(1))
        spread = numpyro.sample("spread", dist.HalfNormal(0.5))
        with data.plate():
            angle = numpyro.sample("angle", dist.Normal(0, 1))
            observe("images", per_particle(lambda z: swung(molecule, axis, spread * z), angle), data)

    return model


def main() -> None:
    """Run at the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    smoke = parser.parse_args().smoke
    count, box, pixel, draws, depth = (8, 16, 16.0, 4, 2) if smoke else (100, 32, 8.0, 500, 10)
    nuts = MCMC(draws=draws, warmup=draws, chains=2, kernel=partial(NUTS, max_tree_depth=depth), block=draws)
    smc = SMC(draws=draws, chains=2, ess=0.1 if smoke else 0.7, moves=depth, leapfrog=depth)
    states = phantom(5, box, pixel)
    with tempfile.TemporaryDirectory() as folder:
        views = random_views(np.random.default_rng(0), count, Microscope())
        made = simulate(Path(folder) / "p.star", states, views, Recording(box, pixel, snr=0.2), seed=0)
        particles = Particles.open(made.star)
        middle = Gaussians(states[2].centres, states[2].weights * made.scale, states[2].widths)
        for engine in (SVI(iterations=4 * draws, draws=2 * draws), nuts, smc):
            found = fit(hinge(middle), particles, engine, key=jax.random.key(0), noise=FixedNoise())
            axis = np.linalg.svd(found.shared["axis"].reshape(-1, 3))[2][0]  # up to a sign, which the angle can take
            print(type(engine).__name__, "axis", np.round(axis, 2), "spread", np.round(found.value("spread"), 2))
        arm = Gaussians(middle.centres[ARM:], middle.weights[ARM:], 2 * middle.widths[ARM:]).density(box, pixel)
        family = Multibody(
            supports=jnp.clip(4 * arm / arm.max(), 0, 1)[None], turn=0.35, pivots=tuple(middle.centres[ARM].tolist())
        )
        found = fit(family, particles, EM(iterations=depth), key=jax.random.key(0))
        turns = found.local["mean"]  # every particle's rotation vector
        print("EM axis", np.round(np.linalg.svd(turns)[2][0], 2), "spread", np.round(turns.std(0), 2))


if __name__ == "__main__":
    main()
