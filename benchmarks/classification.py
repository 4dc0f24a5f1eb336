"""Three classes with alignment, 2,000 images of 64 x 64, poses unknown: CPU seconds per iteration, ARI and FSC.

    python benchmarks/classification.py FOLDER [--iterations 3] [--relion 3] [--images 2000]

Both programs see the same images without their poses, start from the same maps (the true ones, low-passed to 40 Å)
and search the same grid: HEALPix order 2 split once (7.5 degrees), shifts up to 5 pixels in steps of 2 split once. One
record per iteration. RELION runs one iteration at a time, so that each is timed alone; its first one reads the images
for a first noise spectrum too, ours compiles.
With --free ours refines its grid as `fit` does.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import mrcfile
import numpy as np
import starfile
from common import child, record, simulate, truth_fsc

from hetmodels.analysis import fourier
from hetmodels.analysis.metrics import ari
from hetmodels.data import Particles
from hetmodels.families import Classes
from hetmodels.observation import Radial, Unknown
from inference import EM
from inference.engine import Log, run
from inference.fitting import local_posterior, make_problem
from inference.pose_step import first_table

NAME = "classes K=3 with alignment, 64^2"
START = 40.0
SET = ("--phantom", "3", "--box", "64", "--pixel", "4", "--snr", "0.1", "--shift-sd", "4")


@dataclasses.dataclass(frozen=True)
class AtOneSampling(Unknown):
    """The search at the grid it is given, however much the images could tell apart."""

    def plan(self, batch, pixel, levels, limit):
        return super().plan(batch, pixel, self.oversampling, limit)

    def refresh(self, key, templates, batch, table, copy):
        plan = self.plan(batch, templates.observation.spacing, self.oversampling, int(table.limit))
        return plan.moved(key).run(templates, batch, copy)


def truth_of(folder):
    """States of the particles, and the maps."""
    tables = starfile.read(folder / "set.truth" / "truth.star", always_dict=True)
    states = np.concatenate([t["hetTrueState"].to_numpy() for t in tables.values() if "hetTrueState" in t])
    return states, np.stack([mrcfile.read(path) for path in sorted((folder / "set.truth").glob("state_*.mrc"))])


def blind(folder, images):
    """The set without its poses, and the maps to start from."""
    tables = starfile.read(folder / "set.star", always_dict=True)
    poses = [name for name in tables["particles"] if name.startswith(("rlnAngle", "rlnOrigin"))]
    tables["particles"] = tables["particles"].drop(columns=poses).iloc[:images]
    starfile.write(tables, folder / "blind.star")
    pixel, truth = 4.0, truth_of(folder)[1]
    gain = fourier.lowpass_gain(truth.shape[-1], pixel, START)
    maps = np.stack([fourier.filtered(values, gain) for values in truth]).astype(np.float32)
    for number, values in enumerate(maps, 1):
        with mrcfile.new(folder / f"start_{number}.mrc", values, overwrite=True) as file:
            file.voxel_size = pixel
    names = [f"start_{number}.mrc" for number in range(1, len(maps) + 1)]
    (folder / "starts.star").write_text("data_\n\nloop_\n_rlnReferenceImage\n" + "\n".join(names) + "\n")
    return folder / "blind.star", maps


def scores(classes, maps, states, truth):
    """ARI, FSC with the truth by class, and the shell where their mean falls below 1/2."""
    fsc = np.stack([truth_fsc(found, true) for found, true in zip(maps, truth, strict=True)])
    mean = fsc.mean(0)
    below = np.flatnonzero(mean[1:] < 0.5)
    shell = int(below[0]) + 1 if len(below) else len(mean)
    return {"ari": ari(classes, states), "shell_05": shell, "fsc": mean.round(4).tolist()}


def ours(star, maps, states, truth, iterations, pose):
    """Our iterations, one record each."""
    choices = {"contrast": None, "outliers": None, "halves": False, "holdout": 0.0, "start": maps, "given": None}
    family, particles = Classes(classes=len(maps)), Particles.open(star)
    problem = make_problem(family, particles, pose=pose, noise=Radial(), **choices)
    engine = EM(iterations=iterations, anneal=0, mixture_tolerance=-1.0)
    spent, passes, bands = [time.process_time()], [], [int(first_table(problem, maps).limit)]

    def after(row):
        spent.append(time.process_time())
        passes.append(row)
        seen = {"search_order": row["search_order"], "search_band": bands[-1], "discarded": row["discarded"]}
        bands.append(row["search_band"])  # of the pass to come
        record(NAME, program="ours", iteration=len(passes), cpu_s=spent[-1] - spent[-2], **seen)

    result = run(engine, problem, key=jax.random.key(0), log=Log(record=after))
    shared = engine.draw(jax.random.key(0), problem, result.state)
    local = local_posterior(problem, [shared], jax.random.key(0))[0]
    found = scores(local["responsibilities"].argmax(1), np.asarray(shared["maps"]), states, truth)
    record(NAME, program="ours", iteration=len(passes), **found)


def _written(folder, number):
    """What files of an iteration begin with, relative to the folder; a continued run is named after where it began."""
    found = sorted((folder / "relion").glob(f"run*_it{number:03d}_data.star"))
    return found[-1].relative_to(folder).as_posix().removesuffix("_data.star") if found else "relion/run"


def relion(folder, states, truth, iterations):
    """RELION's iterations, one record each."""
    first = ["--i", "blind.star", "--ref", "starts.star", "--ini_high", str(START), "--ctf", "--tau2_fudge", "4",
             "--pad", "2", "--particle_diameter", "230", "--zero_mask", "--flatten_solvent", "--healpix_order", "2",
             "--oversampling", "1", "--offset_range", "5", "--offset_step", "2", "--random_seed", "1"]  # fmt: skip
    (folder / "relion").mkdir(exist_ok=True)
    for number in range(1, iterations + 1):
        last = str(_written(folder, number - 1)) + "_optimiser.star"
        words = first if number == 1 else ["--continue", last]
        spent = child(["relion_refine", "--o", "relion/run", "--iter", str(number), "--j", "1", *words], folder)
        stem = _written(folder, number)
        table = starfile.read(f"{folder / stem}_data.star", always_dict=True)["particles"]
        order = [int(name.split("@")[0]) - 1 for name in table["rlnImageName"]]
        maps = np.stack([mrcfile.read(f"{folder / stem}_class{k:03d}.mrc") for k in range(1, len(truth) + 1)])
        found = scores(table["rlnClassNumber"].to_numpy(), maps, states[order], truth)
        record(NAME, program="RELION 3.1", iteration=number, cpu_s=spent["cpu_s"], **found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--iterations", type=int, default=3, help="of ours; 0: none")
    parser.add_argument("--relion", type=int, default=0, metavar="N", help="iterations of relion_refine")
    parser.add_argument("--free", action="store_true", help="let ours refine its grid as `fit` does")
    args = parser.parse_args()
    simulate(args.folder, "-n", str(args.images), *SET)
    star, maps = blind(args.folder, args.images)
    states, truth = truth_of(args.folder)
    states = states[: args.images]
    if args.iterations:
        pose = (Unknown if args.free else AtOneSampling)(order=2, oversampling=1, shift_range=5.0, shift_step=2.0)
        ours(star, maps, states, truth, args.iterations, pose)
    if args.relion:
        relion(args.folder, states, truth, args.relion)


if __name__ == "__main__":
    main()
