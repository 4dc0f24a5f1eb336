"""A family of one's own: a known molecule whose arm swings by an unknown angle; infer the axis and every angle."""

import argparse
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from hetmodels.data import Particles
from hetmodels.data.phantom import phantom
from hetmodels.data.simulate import Recording, simulate
from hetmodels.data.star import read_star
from hetmodels.data.views import Microscope, random_views
from hetmodels.imaging.rotations import from_rotvec
from hetmodels.tree import pytree
from hetmodels.volumes.gaussians import Gaussians
from inference import SVI, fit

ARM = 84  # the beads from here on swing


@pytree
class Swing:
    """A molecule whose last beads turn about an unknown axis through their first bead, by angle z [rad].

    Attributes:
        molecule: all beads, at angle 0.
    """

    molecule: Gaussians

    def shared(self):
        """The axis; its length does not matter."""
        return {"axis": numpyro.sample("axis", dist.Normal(0, 1).expand([3]).to_event(1))}

    def conformation(self, shared):
        """The angle."""
        return dist.Normal(0.0, 0.5)

    def volume(self, shared, z):
        """The molecule at that angle."""
        centres = self.molecule.centres
        turn = from_rotvec(z * shared["axis"] / jnp.linalg.norm(shared["axis"]))
        arm = (centres[ARM:] - centres[ARM]) @ turn.T + centres[ARM]
        return Gaussians(jnp.concatenate([centres[:ARM], arm]), self.molecule.weights, self.molecule.widths)


def main() -> None:
    """Run at the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    smoke = parser.parse_args().smoke
    count, passes, box = (30, 5, 16) if smoke else (1000, 40, 32)
    pixel = 256.0 / box

    states = phantom(5, box, pixel)
    with tempfile.TemporaryDirectory() as folder:
        views = random_views(np.random.default_rng(0), count, Microscope())
        made = simulate(Path(folder) / "p.star", states, views, Recording(box, pixel, snr=0.2), seed=0)
        truth = read_star(made.truth / "truth.star")["particles"]["_hetTrueState"].to_numpy().astype(int)
        middle = states[2]
        scaled = Gaussians(middle.centres, middle.weights * made.scale, middle.widths)
        posterior = fit(Swing(scaled), Particles.open(made.star), SVI(iterations=passes), key=jax.random.key(0))

    angle = posterior.local["mean"][:, 0]
    axes = posterior.shared["axis"].reshape(-1, 3)  # draws of it
    unit = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    print("axis", np.round(unit.mean(0), 2), "+-", np.round(unit.std(0), 2))
    for state in np.unique(truth):
        print(f"state {state}: mean angle {np.rad2deg(angle[truth == state].mean()):6.1f} degrees")


if __name__ == "__main__":
    main()
