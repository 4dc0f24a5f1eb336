"""`hetmodels project MAP.mrc PARTICLES -o OUT.mrcs`: noise-free images at the poses of a particle file."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hetmodels.cli.common import emit, json_option, new_output, particle_options, read_table
from hetmodels.errors import DataError, UsageError

if TYPE_CHECKING:
    from jax import Array

    from hetmodels.data.maps import Map
    from hetmodels.data.metadata import Metadata
    from hetmodels.imaging.ctf import Ctf

MEMORY = 2**28  # bytes for the samples around the pixels of the images made at a time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("map", type=Path, metavar="MAP.mrc", help="the map")
    parser.add_argument("particles", type=Path, metavar="PARTICLES", help="particle file with poses; no image is read")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.mrcs", help="stack to write")
    particle_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Project, write and report."""
    from hetmodels.data.maps import read_map

    unused = [name for name in ("box", "window") if getattr(args, name) is not None]
    if unused:
        raise UsageError(f"project: --{unused[0]} has no use here: the images of the particle file are not read.")
    output = new_output(args.output, args.overwrite)
    table = read_table(args)
    if table.rotation is None:
        raise DataError(f"{table.path}: has no poses ({table.pose_reason}); give them with --poses.")
    if table.ctf is None and not args.no_ctf:
        raise DataError(f"{table.path}: has no CTF ({table.ctf_reason}); give it with --ctf, or add --no-ctf.")
    density, box, pixel, notes = _geometry(args, table, read_map(args.map))
    ctf = None if args.no_ctf else table.ctf
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        _write(temporary, table, ctf, density, box, pixel, notes)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    count = len(table.rotation)
    data = {
        "output": str(output),
        "particles": count,
        "box": box,
        "pixel": pixel,
        "ctf": not args.no_ctf,
        "notes": notes,
    }
    lines = [f"{count} images of {box} x {box} pixels of {pixel:g} Å, {'without' if args.no_ctf else 'with'} CTF"]
    emit(args, data, "\n".join([*lines, *(f"note: {note}" for note in notes), f"images {output}"]))
    return 0


def _geometry(args: argparse.Namespace, table: "Metadata", density: "Map") -> tuple["Map", int, float, list[str]]:
    """The map with its voxel size on a cube, box and pixel size of the images, and notes."""
    from hetmodels.data.maps import cubed

    notes: list[str] = []
    density = density._replace(values=cubed(density.values))
    size = density.values.shape[0]
    pixel = _common(table, "pixel") or density.spacing
    if pixel <= 0:
        raise DataError(f"{args.map}: neither the map nor {table.path} has a pixel size; give it with --pixel.")
    if density.spacing <= 0:
        notes.append(f"{args.map}: the header has no voxel size; taken as {pixel:g} Å, the pixel size of the table.")
        density = density._replace(spacing=pixel)
    elif abs(density.spacing / pixel - 1) < 1e-3:
        density = density._replace(spacing=pixel)  # rounding in the header
    else:
        notes.append(f"the map has voxels of {density.spacing:g} Å, the images get pixels of {pixel:g} Å.")
    box = int(_common(table, "box") or size)
    if size * density.spacing > 1.001 * box * pixel:
        notes.append(
            f"the map is {size * density.spacing:.0f} Å wide, the images {box * pixel:.0f} Å; "
            "what lies outside wraps round."
        )
    return density, box, float(pixel), notes


def _common(table: "Metadata", name: str) -> float | None:
    """The one box or pixel size of all rows; None where the table has none."""
    import numpy as np

    values = getattr(table, name)
    if values is None or not len(values):
        return None
    if np.ptp(values) > 1e-6 * np.max(values):
        raise DataError(
            f"{table.path}: one stack holds images of one {name}, the rows have {np.min(values):g} to "
            f"{np.max(values):g}; project the optics groups one by one."
        )
    return float(values[0])


def _write(
    path: Path, table: "Metadata", fields: dict | None, density: "Map", box: int, pixel: float, notes: list[str]
) -> None:
    """Write the stack, chunk after chunk."""
    import jax
    import numpy as np
    from tqdm import tqdm

    from hetmodels.data.stackfile import stack_file
    from hetmodels.imaging.ctf import Ctf

    rotation = np.asarray(table.rotation, np.float32)
    shift = np.zeros((len(rotation), 2)) if table.shift is None else np.asarray(table.shift)
    if box % 2 and table.kind.startswith("relion"):
        shift = shift + pixel
        notes.append(f"the box is odd: the image centre is pixel {box // 2 + 1}, where RELION has it, not {box // 2}.")
    if table.contrast_sign == -1:
        notes.append("the particles are dark on a light ground in this file; the images are written alike.")
    ctf = Ctf.ideal(len(shift)) if fields is None else Ctf(**fields)
    project, chunk = _projector(density, box, pixel)
    sign = np.float32(-1 if table.contrast_sign == -1 else 1)
    with stack_file(path, len(shift), box, pixel) as file:
        for start in tqdm(range(0, len(shift), chunk), unit="chunk", leave=False, disable=None):
            rows = np.arange(start, min(start + chunk, len(shift)))
            full = np.resize(rows, min(chunk, len(shift)))  # one shape, compiled once
            optics = jax.tree.map(lambda leaf, full=full: np.asarray(leaf[full], np.float32), ctf)
            images = project(rotation[full], np.asarray(shift[full], np.float32), optics)
            file.put(rows, sign * np.asarray(images[: len(rows)]))


def _projector(density: "Map", box: int, pixel: float) -> tuple[Callable, int]:
    """A compiled function (rotations, shifts, ctf) -> images, and the number of images to give it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from hetmodels.imaging.grids import Disc, Grid, phase_ramp
    from hetmodels.volumes.voxels import Voxels

    disc = Disc(box)
    points = jnp.asarray(np.concatenate([np.zeros((1, 2)), disc.index / (box * pixel)]), jnp.float32)
    values = jnp.asarray(density.values)

    def slices(voxels: "Array", rotations: "Array", stretch: "Array") -> "Array":
        moved = Voxels(voxels, density.spacing)
        seen = jnp.matmul(points, stretch, precision=jax.lax.Precision.HIGHEST)
        return jax.vmap(lambda a, k: moved.project(a, Grid(k, box, pixel)))(rotations, seen)

    @jax.jit
    def images(voxels: "Array", rotations: "Array", shifts: "Array", ctf: "Ctf") -> "Array":
        transfer = ctf.transfer(points) * jnp.exp(1j * ctf.aberration(points)) * phase_ramp(points, shifts)
        coefficients = transfer * slices(voxels, rotations, jnp.asarray(ctf.stretch))
        return disc.inverse(coefficients[:, 1:]) + coefficients[:, :1, None].real / box

    chunk = max(1, min(256, MEMORY // (64 * 16 * len(points))))
    return lambda *arguments: images(values, *arguments), chunk
