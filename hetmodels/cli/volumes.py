"""`hetmodels volumes RUN -o DIR --classes / --particles 0,17`: maps of a run and a ChimeraX script that opens them."""

import argparse
from pathlib import Path

from hetmodels.cli.common import emit, json_option, new_folder
from hetmodels.errors import UsageError
from hetmodels.run_directory import RunDirectory, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("run_path", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the maps")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--classes", action="store_true", help="the map of every class")
    which.add_argument(
        "--particles", type=rows, metavar="0,17,40", help="the map of each of these particles, counted from 0"
    )
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


def run(args: argparse.Namespace) -> int:
    """Write the maps and the script."""
    from hetmodels.data.maps import read_map, write_map

    source = RunDirectory.open(args.run_path)
    chosen = class_files(source) if args.classes else particle_files(source, args.particles)
    folder = new_folder(args.output, args.overwrite)
    for name, path in chosen.items():
        found = read_map(path)
        write_map(folder / name, found.values, found.spacing, found.origin)
    script = folder / "volumes.cxc"
    write_text(script, chimerax(list(chosen)))
    data = {"folder": folder, "maps": list(chosen), "script": script.name}
    emit(args, data, f"{len(chosen)} maps in {folder}; open them with: chimerax {script}")
    return 0


def class_files(source: RunDirectory) -> dict[str, Path]:
    """Class maps of the run by the name they get, class_001.mrc ….

    Raises:
        UsageError: if the run has no classes.
    """
    paths = sorted(source.volumes.glob("class_[0-9]*.mrc"))
    if not paths:
        raise UsageError(f"{source.path}: --classes needs a run with classes; its map is {source.map}.")
    return {path.name: path for path in paths}


def particle_files(source: RunDirectory, particles: tuple[int, ...]) -> dict[str, Path]:
    """The map of each particle, by the name it gets: that of its most probable class, else the run's one map.

    Raises:
        UsageError: if there is no such particle, or particles have continuous latents.
    """
    from hetmodels.analysis.evaluation import particle_maps
    from hetmodels.analysis.rows import Rows

    table = Rows.read(source.particles)
    if table.numbered("hetLatent") is not None:
        raise UsageError(
            f"{source.path}: --particles takes runs whose particles share maps, as classes do; this one has continuous "
            "latents (_hetLatent1)."
        )
    numbers, paths = particle_maps(source, table)
    if max(particles) >= len(numbers):
        raise UsageError(
            f"--particles: rows are counted from 0 and {source.particles} has {len(numbers)}, got {max(particles)}."
        )
    return {f"particle_{p:06d}.mrc": paths[int(numbers[p])] for p in particles}


def chimerax(names: list[str]) -> str:
    """A ChimeraX script that opens maps at the same contour; several appear one at a time, chosen by a slider."""
    ids = f"#1-{len(names)}" if len(names) > 1 else "#1"
    lines = [*(f"open {name}" for name in names), f"volume {ids} sdLevel 3 step 1", "view"]
    if len(names) > 1:
        lines += ["color bymodel", f"mseries slider {ids}"]
    return "\n".join(lines) + "\n"
