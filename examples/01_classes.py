"""Simulate a molecule in two states, sort its images into two classes, and see how many are right."""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np

from hetmodels.data import Particles
from hetmodels.data.phantom import phantom
from hetmodels.data.simulate import Recording, simulate
from hetmodels.data.star import read_star
from hetmodels.data.views import Microscope, random_views
from hetmodels.families import Classes
from inference import EM, fit


def main() -> None:
    """Run at the size asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny run, to see that it works")
    smoke = parser.parse_args().smoke
    count, passes = (200, 3) if smoke else (5000, 25)

    with tempfile.TemporaryDirectory() as folder:
        views = random_views(np.random.default_rng(0), count, Microscope())
        recording = Recording(box=32, pixel=8.0, snr=0.1)
        made = simulate(Path(folder) / "particles.star", phantom(2, 32, 8.0), views, recording, seed=0)
        truth = read_star(made.truth / "truth.star")["particles"]
        state = truth["_hetTrueState"].to_numpy().astype(int)
        particles = Particles.open(made.star)
        posterior = fit(Classes(classes=2), particles, EM(iterations=passes), key=jax.random.key(0))

    found = posterior.local["responsibilities"].argmax(1)
    right = np.mean(found == state - 1)
    print(f"{100 * max(right, 1 - right):.1f} % of {count} images are in the class of their state")


if __name__ == "__main__":
    main()
