"""Three classes from 10,000 images of 64 x 64 at known poses: CPU seconds and adjusted Rand index over seeds.

    python benchmarks/classes.py FOLDER [SEEDS] [--relion]

The ceiling is the posterior under the true maps. With --relion, `relion_refine --skip_align` runs 25 iterations from
a low-passed map of all images on the same set (several minutes).
"""

import shutil
import sys
from pathlib import Path

import jax
import mrcfile
import numpy as np
import starfile
from common import child, record, simulate, timed

from hetmodels.analysis.metrics import ari
from hetmodels.data import Particles
from hetmodels.families import Classes
from hetmodels.observation import Known, Radial
from inference import EM
from inference.engine import run
from inference.fitting import local_posterior, make_problem


def problem_of(star, start=None):
    choices = {"contrast": None, "outliers": None, "halves": False, "holdout": 0.0, "start": start, "given": None}
    return make_problem(Classes(classes=3), Particles.open(star), pose=Known(), noise=Radial(), **choices)


def assigned(problem, shared):
    return local_posterior(problem, [shared], jax.random.key(0))[0]["responsibilities"].argmax(1)


def ours(star, seed):
    problem, engine = problem_of(star), EM()
    result = run(engine, problem, key=jax.random.key(seed))
    return problem, engine.draw(jax.random.key(0), problem, result.state), len(result.trace)


def main(folder, seeds, with_relion):
    options = ("--phantom", "3", "-n", "10000", "--box", "64", "--pixel", "4", "--snr", "0.1", "--shift-sd", "4")
    star = simulate(folder, *options)
    truth = starfile.read(Path(folder) / "set.truth" / "truth.star", always_dict=True)
    states = np.concatenate([t["hetTrueState"].to_numpy() for t in truth.values() if "hetTrueState" in t])
    problem, shared, _ = ours(star, 0)
    true_maps = np.stack([mrcfile.read(p) for p in sorted((Path(folder) / "set.truth").glob("state_*.mrc"))])
    ceiling = ari(assigned(problem, shared | {"maps": jax.numpy.asarray(true_maps)}), states)
    for seed in range(seeds):
        with timed() as spent:
            problem, shared, passes = ours(star, seed)
        found = ari(assigned(problem, shared), states)
        record("classes K=3, 10,000 x 64^2", seed=seed, ours=spent, passes=passes, ari=found, ari_ceiling=ceiling)
    if with_relion and shutil.which("relion_refine"):
        child(["relion_reconstruct", "--i", star.name, "--o", "start.mrc", "--ctf"], folder)
        words = [
            "relion_refine",
            "--i",
            star.name,
            "--o",
            "relion",
            "--ref",
            "start.mrc",
            "--firstiter_cc",
            "--ini_high",
        ]
        words += [
            "40",
            "--K",
            "3",
            "--iter",
            "25",
            "--skip_align",
            "--ctf",
            "--tau2_fudge",
            "4",
            "--pad",
            "2",
            "--j",
            "1",
        ]
        words += [
            "--particle_diameter",
            "230",
            "--zero_mask",
            "--flatten_solvent",
            "--norm",
            "--scale",
            "--random_seed",
            "1",
        ]
        spent = child(words, folder)
        table = starfile.read(Path(folder) / "relion_it025_data.star", always_dict=True)["particles"]
        record("classes K=3, RELION", relion=spent, ari=ari(table["rlnClassNumber"].to_numpy(), states))


if __name__ == "__main__":
    numbers = [word for word in sys.argv[2:] if word.isdigit()]
    main(sys.argv[1], int(numbers[0]) if numbers else 10, "--relion" in sys.argv)
