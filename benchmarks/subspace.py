"""A swinging arm from images of 64 x 64 at SNR 0.1 and known poses: CPU seconds, order along the motion, maps.

    python benchmarks/subspace.py FOLDER [IMAGES] [--dims D] [--engine E]

The ceiling of the rank correlation is the posterior mean state under the true maps; that of the maps is the true maps
filtered like ours, their floor the consensus map. The arm of the built-in molecule swings through 70 degrees in 20
states.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import mrcfile
import numpy as np
import starfile
from common import child, record, simulate

from hetmodels.analysis.metrics import latent_spearman
from hetmodels.data import Particles
from hetmodels.families import Classes
from hetmodels.observation import Known, Radial
from hetmodels.posterior import Posterior
from inference.fitting import local_posterior, make_problem

STATES = 20


def oracle(star, folder, noise):
    """Posterior mean of the true state under the true maps."""
    choices = {"contrast": None, "outliers": None, "halves": False, "holdout": 0.0, "start": None, "given": None}
    problem = make_problem(Classes(classes=STATES), Particles.open(star), pose=Known(), noise=Radial(), **choices)
    maps = np.stack([mrcfile.read(path) for path in sorted((folder / "set.truth").glob("state_*.mrc"))])
    shared = problem.starting(jax.random.key(0)) | {"maps": jax.numpy.asarray(maps), "noise": noise}
    found = local_posterior(problem, [shared], jax.random.key(0))[0]["responsibilities"]
    return found @ np.arange(STATES)


def true_states(folder):
    tables = starfile.read(folder / "set.truth" / "truth.star", always_dict=True)
    return np.concatenate([t["hetTrueState"].to_numpy() for t in tables.values() if "hetTrueState" in t]).astype(float)


def main(folder, images, dims, engine):
    shape = ("--box", "64", "--pixel", "4", "--snr", "0.1", "--shift-sd", "4")
    star = simulate(folder, "--phantom", str(STATES), "-n", str(images), *shape)
    program, run = [sys.executable, "-m", "hetmodels.cli"], folder / f"run_{engine}_{dims}"
    options = ["--family", "subspace", "--engine", engine, "--set", f"family.dims={dims}", "--holdout", "0"]
    spent = child([*program, "fit", star.name, *options, "-o", run.name, "--overwrite"], folder)
    words = [*program, "evaluate", str(run), "--truth", str(folder / "set.truth"), "--json"]
    scores = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    posterior, truth = Posterior.load(run / "posterior.nc"), true_states(folder)
    ours = latent_spearman(truth, posterior.local["mean"])
    best = latent_spearman(truth, oracle(star, folder, posterior.shared_point()["noise"])[:, None])
    keep = ("fsc_auc_per_image", "fsc_auc_floor", "fsc_auc_ceiling")
    record(
        f"subspace, {images:,} x 64^2", engine=engine, dims=dims, ours=spent, passes=len(posterior.trace),
        spearman=ours, spearman_oracle=best, share=ours / best, **{name: scores.get(name) for name in keep},
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=int, nargs="?", default=10_000)
    parser.add_argument("--dims", type=int, default=4)
    parser.add_argument("--engine", default="em", choices=("em", "moments"))
    given = parser.parse_args()
    main(given.folder, given.images, given.dims, given.engine)
