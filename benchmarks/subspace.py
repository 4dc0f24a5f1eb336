"""A large continuous motion from images of 64 x 64 at SNR 0.1 and known poses: CPU seconds, order, maps.

    python benchmarks/subspace.py FOLDER [IMAGES] [--dims D] [--engine E] [--trajectory FILE.npy] [--mask MASK|none]

By default the arm of the built-in molecule swings through 70 degrees in 20 states; with --trajectory (frames, atoms, 3)
[Å] its frames are the states, such as the opening of Hsp90 in 20 models (3.5 Å pixels). Beside our scores stand their
bounds: the rank correlation of the posterior mean state under the true maps, and the FSC area of the best linear
estimate of the maps from as many images with the true state of each image known (`bound`). The phantom has so little
signal in its last shells that this bound is hardly above the area of the true mean map; a structure of atoms has more.
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

from hetmodels.analysis import masks
from hetmodels.analysis.metrics import latent_spearman
from hetmodels.data import Particles
from hetmodels.families import Classes
from hetmodels.imaging.ball import Ball
from hetmodels.observation import Known, Radial
from hetmodels.posterior import Posterior
from inference.fitting import local_posterior, make_problem

STATES = 20


def true_maps(folder):
    return np.stack([mrcfile.read(path) for path in sorted((folder / "set.truth").glob("state_*.mrc"))])


def oracle(star, folder, noise):
    """Posterior mean of the true state under the true maps."""
    choices = {"contrast": None, "outliers": None, "halves": False, "holdout": 0.0, "start": None, "given": None}
    problem = make_problem(Classes(classes=STATES), Particles.open(star), pose=Known(), noise=Radial(), **choices)
    maps = jax.numpy.asarray(true_maps(folder))
    shared = problem.starting(jax.random.key(0)) | {"maps": maps, "noise": noise}
    found = local_posterior(problem, [shared], jax.random.key(0))[0]["responsibilities"]
    return found @ np.arange(STATES)


def bound(star, folder, noise):
    """FSC areas inside the mask: of the best linear estimate with the states known, and of the true mean map.

    Per shell the true maps have the covariance S over states, each state is measured with the noise variance
    f 2 k sigma^2 / (n/K <C^2>), f the part of the box that the mask keeps; then E[estimate x truth] is S (S + N)^-1 S.
    """
    particles, maps = Particles.open(star), true_maps(folder).astype(float)
    size, count = maps.shape[-1], len(maps)
    inside = (masks.from_map(maps.mean(0).astype(np.float32), particles.spacing) ** 2).mean()
    batch = next(iter(particles.batches(np.arange(min(len(particles), 500)), 500)))
    disc, ball = particles.disc, Ball(size)
    power = (np.asarray(particles.reference)[0] * np.asarray(noise)[0])[disc.shell]
    seen = np.bincount(disc.shell, (np.asarray(batch.ctf) ** 2).mean(0) / power) / np.maximum(
        np.bincount(disc.shell), 1
    )
    half = np.stack([np.fft.rfftn(np.fft.ifftshift(m)) / size for m in maps])
    best, flat = [], []
    for k in range(1, disc.shells):
        at = (ball.shell == k) & (ball.mask > 0)
        values = half[:, at] * np.sqrt(ball.multiplicity[at])
        signal = (values.conj() @ values.T).real / ball.multiplicity[at].sum()
        errors = inside * 2 * k * count / (len(particles) * seen[k]) * np.eye(count)
        kept = np.diag(signal @ np.linalg.solve(signal + errors, signal))
        best.append(np.sqrt(kept / np.diag(signal)).mean())
        flat.append((signal.mean(0) / np.sqrt(signal.mean() * np.diag(signal))).mean())
    return tuple(float(np.sum(v) / size) for v in (best, flat))


def true_states(folder):
    tables = starfile.read(folder / "set.truth" / "truth.star", always_dict=True)
    return np.concatenate([t["hetTrueState"].to_numpy() for t in tables.values() if "hetTrueState" in t]).astype(float)


def source(trajectory):
    """What is simulated, and the pixel size that shows it."""
    if trajectory is None:
        return ["--phantom", str(STATES), "--pixel", "4"]
    return ["--trajectory", str(trajectory), "--pixel", "3.5"]


def main(folder, images, dims, engine, trajectory, mask):
    shape = ("--box", "64", "--snr", "0.1", "--shift-sd", "4")
    star = simulate(folder, *source(trajectory), "-n", str(images), *shape)
    program, run = [sys.executable, "-m", "hetmodels.cli"], folder / f"run_{engine}_{dims}"
    options = ["--family", "subspace", "--engine", engine, "--set", f"family.dims={dims}", "--holdout", "0"]
    options += ["--mask", mask] if mask else []
    spent = child([*program, "fit", star.name, *options, "-o", run.name, "--overwrite"], folder)
    words = [*program, "evaluate", str(run), "--truth", str(folder / "set.truth"), "--json"]
    scores = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
    posterior, truth = Posterior.load(run / "posterior.nc"), true_states(folder)
    noise = posterior.shared_point()["noise"]
    ours = latent_spearman(truth, posterior.local["mean"])
    best = latent_spearman(truth, oracle(star, folder, noise)[:, None])
    keep = [name for name in scores if name.startswith("fsc_auc")]
    with_states, mean_map = bound(star, folder, noise)
    record(
        f"subspace, {images:,} x 64^2" + ("" if trajectory is None else f", {Path(trajectory).stem}"), engine=engine,
        dims=dims, mask=mask or "from the data", ours=spent, passes=len(posterior.trace), spearman=ours,
        spearman_oracle=best, share=ours / best, bound_with_true_states=with_states, bound_mean_map=mean_map,
        **{name: scores[name] for name in keep},
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("images", type=int, nargs="?", default=10_000)
    parser.add_argument("--dims", type=int, default=4)
    parser.add_argument("--engine", default="em", choices=("em", "moments"))
    parser.add_argument("--trajectory", type=Path)
    parser.add_argument("--mask", help="none, or a mask file; made from the data if left out")
    given = parser.parse_args()
    main(given.folder, given.images, given.dims, given.engine, given.trajectory, given.mask)
