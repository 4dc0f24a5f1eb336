"""`hetmodels volumes RUN -o DIR --at 0.5,0 / --along 1 -n 10 / --particles 0,17 / --classes`: maps of a run."""

import argparse
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmodels.cli.common import emit, json_option, new_folder, number
from hetmodels.errors import UsageError
from hetmodels.run_directory import RunDirectory, write_text

if TYPE_CHECKING:
    from hetmodels.data.maps import Map
    from hetmodels.posterior import Posterior

Maps = dict[str, Callable[[], "Map"]]  # file name -> what makes the map
TAIL = 0.05  # share of the particles beyond either end of a path along an axis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # lets -0.5,0 follow an option, as in Python 3.14
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the maps")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--at", type=point, action="append", metavar="Z1,Z2", help="the map at these latents; may be repeated"
    )
    which.add_argument("--along", type=number(int, 1), metavar="AXIS", help="maps along a latent axis, counted from 1")
    which.add_argument("--classes", action="store_true", help="the map of every class")
    which.add_argument(
        "--particles", type=rows, metavar="0,17,40", help="the map of each of these particles, counted from 0"
    )
    parser.add_argument(
        "--kernel", action="store_true",
        help="with --at: also reconstruct from the particles around each point (at_001_kernel.mrc, its half maps, and "
        "a control from as many particles at random), which reads the images",
    )  # fmt: skip
    parser.add_argument(
        "--latents-to", type=number(float, above=0), metavar="A",
        help="with --kernel: choose particles by latents inferred from shells coarser than A Å, so that finer ones owe "
        "nothing to the model",
    )  # fmt: skip
    parser.add_argument(
        "--sd", action="store_true", help="with --at, --along, --particles: also maps of the standard deviation"
    )
    parser.add_argument("-n", type=number(int, 2), metavar="N", help="maps along the axis (default 10)")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    json_option(parser)


def rows(text: str) -> tuple[int, ...]:
    """Particle numbers of a comma-separated list.

    >>> rows("0,17")
    (0, 17)
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be particle numbers, counted from 0 and joined by commas, got {text!r}")
    return tuple(dict.fromkeys(int(part) for part in parts))


def point(text: str) -> tuple[float, ...]:
    """Coordinates of a comma-separated list.

    >>> point("-0.5,0")
    (-0.5, 0.0)
    """
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"must be finite numbers joined by commas, got {text!r}")
    return values


def run(args: argparse.Namespace) -> int:
    """Write the maps and the script."""
    from hetmodels.analysis.masks import automatic_threshold
    from hetmodels.cli.chimerax import movie
    from hetmodels.data.maps import write_map

    if args.n is not None and args.along is None:
        raise UsageError("volumes: -n is the number of maps along an axis; it needs --along.")
    if args.kernel and not args.at:
        raise UsageError("volumes: --kernel reconstructs the map at points; it needs --at Z1,Z2.")
    if args.latents_to and not args.kernel:
        raise UsageError("volumes: --latents-to is about the particles of --kernel; it needs that.")
    if args.sd and args.classes:
        raise UsageError("volumes: --sd goes with --at, --along or --particles.")
    source = RunDirectory.open(args.run_path)
    chosen = _chosen(source, args)
    folder, level = new_folder(args.output, args.overwrite), 0.0
    for name, make in chosen.items():
        found = make()
        write_map(folder / name, found.values, found.spacing, found.origin)
        level = level or automatic_threshold(found.values)
    script = folder / "volumes.cxc"
    write_text(script, chimerax(list(chosen), level))
    if len(series := [name for name in chosen if not name.endswith("_sd.mrc")]) > 1:
        write_text(folder / "movie.cxc", movie(series, level))
    data: dict[str, Any] = {"folder": folder, "maps": list(chosen), "script": script.name}
    text = f"{len(chosen)} maps in {folder}; open them with: chimerax {script}"
    if args.kernel:
        from hetmodels.cli.kernel_maps import write_kernel_maps

        reports = write_kernel_maps(source, args.at, folder, args.latents_to)
        data["kernel"] = [report.facts for report in reports]
        text = "\n".join([text, *(report.words for report in reports)])
    emit(args, data, text)
    return 0


def _chosen(source: RunDirectory, args: argparse.Namespace) -> Maps:
    if args.classes:
        return class_maps(source)
    if args.particles:
        found = maps_of_particles(source, args.particles)
        return found | (particle_sd_maps(source, args.particles) if args.sd else {})
    from hetmodels.posterior import Posterior

    if not source.posterior.is_file():
        raise UsageError(f"{source.path}: --at and --along need posterior.nc, which the run lacks. Did it end?")
    posterior = Posterior.load(source.posterior)
    if not posterior.local or not posterior.local["mean"].shape[1]:
        raise UsageError(
            f"{source.path}: --at and --along need continuous latents, which {type(posterior.family).__name__} has "
            "not. Its maps are given by --classes or --particles."
        )
    points = points_at(posterior, args.at) if args.at else points_along(posterior, args.along, args.n or 10)
    return maps_of(posterior, points) | (sd_maps_of(posterior, points) if args.sd else {})


def class_maps(source: RunDirectory) -> Maps:
    """Maps of the classes of a run, class_001.mrc ….

    Raises:
        UsageError: if the run has no classes.
    """
    from hetmodels.analysis.particle_maps import particle_maps

    found = particle_maps(source)
    if not found.classes:
        raise UsageError(f"{source.path}: --classes needs a run with classes, this one has none.")
    return {f"class_{k:03d}.mrc": partial(found.read, k) for k in found.classes}


def maps_of_particles(source: RunDirectory, particles: tuple[int, ...]) -> Maps:
    """The map of each particle: at its latents, of its most probable class, or the one map of the run.

    Raises:
        UsageError: if there is no such particle, or its latents are known but not the maps that belong to them.
    """
    from hetmodels.analysis.particle_maps import particle_maps
    from hetmodels.analysis.rows import Rows

    table = Rows.read(source.particles)
    found = particle_maps(source, table)
    if table.numbered("hetLatent") is not None and not found.continuous:
        raise UsageError(
            f"{source.path}: particles with continuous latents (_hetLatent1) have maps of their own, for which the run "
            f"needs its {source.posterior.name}."
        )
    if max(particles) >= len(found.numbers):
        count = len(found.numbers)
        raise UsageError(
            f"--particles: rows are counted from 0 and {source.particles} has {count}, got {max(particles)}."
        )
    return {f"particle_{p:06d}.mrc": partial(found.read, int(found.numbers[p])) for p in particles}


def points_at(posterior: "Posterior", points: list[tuple[float, ...]]) -> dict[str, Any]:
    """Points of the latent space by the names of their maps, at_001 ….

    Raises:
        UsageError: if a point has not as many coordinates as the latents, or lies outside their support.
    """
    for z in points:
        posterior.latent(z)
    return {f"at_{i:03d}": z for i, z in enumerate(points, 1)}


def points_along(posterior: "Posterior", axis: int, count: int) -> dict[str, Any]:
    """Points along a latent axis by the names of their maps, latent_1_00 …: 5th to 95th percentile of the particles.

    The other coordinates stay at the particles' means.

    Args:
        posterior: of a family with continuous latents.
        axis: counted from 1.
        count: number of points, evenly spaced.

    Raises:
        UsageError: if there is no such axis.
    """
    import numpy as np

    mean = posterior.local["mean"]
    if axis > mean.shape[1]:
        raise UsageError(f"--along: latent axes are counted from 1 and there are {mean.shape[1]}, got {axis}.")
    points = np.tile(mean.mean(0), (count, 1))
    low, high = np.quantile(mean[:, axis - 1], [TAIL, 1 - TAIL])
    points[:, axis - 1] = np.linspace(low, high, count)
    name = RunDirectory("").latent_map
    return {name(axis, i).stem: z for i, z in enumerate(points)}


def maps_of(posterior: "Posterior", points: dict[str, Any]) -> Maps:
    """The map at each point."""
    from hetmodels.analysis.particle_maps import map_at

    return {f"{name}.mrc": partial(map_at, posterior, z) for name, z in points.items()}


def sd_maps_of(posterior: "Posterior", points: dict[str, Any]) -> Maps:
    """The standard deviation of the map at each point."""
    return {f"{name}_sd.mrc": partial(_sd_map, posterior, z) for name, z in points.items()}


def particle_sd_maps(source: RunDirectory, particles: tuple[int, ...]) -> Maps:
    """The standard deviation of the map of each particle, that of its latent included.

    Raises:
        UsageError: if the run has no posterior.
    """
    from hetmodels.posterior import Posterior

    if not source.posterior.is_file():
        raise UsageError(f"{source.path}: --sd needs posterior.nc, which the run lacks. Did it end?")
    posterior = Posterior.load(source.posterior)
    covariance = posterior.local["covariance"]
    return {
        f"particle_{p:06d}_sd.mrc": partial(_sd_map, posterior, posterior.latent_of(p), covariance[p])
        for p in particles
    }


def _sd_map(posterior: "Posterior", z: Any, covariance: Any = None) -> "Map":
    import numpy as np

    from hetmodels.analysis.uncertainty import map_sd
    from hetmodels.data.maps import Map

    return Map(map_sd(posterior, z, covariance), posterior.box()[1], np.zeros(3))


def chimerax(names: list[str], level: float) -> str:
    """A ChimeraX script that opens maps at the same density; several appear one at a time, chosen by a slider."""
    ids = f"#1-{len(names)}" if len(names) > 1 else "#1"
    lines = [*(f"open {name}" for name in names), f"volume {ids} level {level:.4g} step 1", "view"]
    if len(names) > 1:
        lines += ["color bymodel", f"mseries slider {ids}"]
    return "\n".join(lines) + "\n"
