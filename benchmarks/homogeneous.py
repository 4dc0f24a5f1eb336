"""One map from 10,000 images of 64 x 64 at known poses, beside `relion_reconstruct --ctf` where it is installed.

    python benchmarks/homogeneous.py FOLDER

The time is that of reading the file and running to the stopping rule; start-up and compilation are left out by doing
it once before. Maps are cut to the inscribed sphere before comparison, as RELION does.
"""

import shutil
import sys
from pathlib import Path

import jax
import mrcfile
import numpy as np
from common import child, record, simulate, timed, truth_fsc

from hetmodels.analysis.masks import cosine_edge
from hetmodels.data import Particles
from hetmodels.families import Homogeneous
from hetmodels.observation import Known, Radial
from inference import EM
from inference.engine import run
from inference.fitting import make_problem


def ours(star):
    particles = Particles.open(star)
    choices = {"contrast": None, "outliers": None, "halves": False, "holdout": 0.0, "start": None, "given": None}
    problem = make_problem(Homogeneous(), particles, pose=Known(), noise=Radial(), **choices)
    result = run(EM(), problem, key=jax.random.key(0))
    return np.asarray(result.state.maps[0, 0]), len(result.trace)


def sphere(values):
    size = values.shape[-1]
    line = np.arange(size) - size // 2
    radius = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)
    shell = (radius > 0.42 * size) & (radius < 0.5 * size)
    return (values - values[shell].mean()) * cosine_edge(radius - (size / 2 - 3), 3.0)


def main(folder):
    options = ("--phantom", "1", "-n", "10000", "--box", "64", "--pixel", "4", "--snr", "0.05", "--shift-sd", "4")
    star = simulate(folder, *options)
    truth = mrcfile.read(Path(folder) / "set.truth" / "state_001.mrc")
    ours(star)
    relion = shutil.which("relion_reconstruct")
    for repeat in range(3):
        with timed() as spent:
            values, passes = ours(star)
        found = truth_fsc(sphere(values), truth)
        row = {"repeat": repeat, "ours": spent, "passes": passes, "fsc": np.round(found, 4).tolist()}
        if relion:
            out = Path(folder) / "relion.mrc"
            words = [relion, "--i", star.name, "--o", out.name, "--ctf"]
            row["relion"] = child(words, folder)
            other = truth_fsc(mrcfile.read(out), truth)
            use = other > 0.143
            use[0] = False
            row |= {
                "wall_ratio": spent["wall_s"] / row["relion"]["wall_s"],
                "worst_fsc_difference": float((found - other)[use].min()),
            }
        record("homogeneous 10,000 x 64^2", **row)


if __name__ == "__main__":
    main(sys.argv[1])
