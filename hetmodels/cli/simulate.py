"""`hetmodels simulate OUT.star …`: particle sets of known truth from structures, trajectories, maps or a phantom."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetmodels.cli.common import emit, json_option, number
from hetmodels.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from hetmodels.data.metadata import Metadata
    from hetmodels.data.views import Views

BLUR = 0.225  # standard deviation of a Gaussian low-pass filter in units of the resolution it stands for
BOX, PIXEL, COUNT = 64, 4.0, 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("out", type=Path, metavar="OUT.star", help="table to write; OUT.mrcs and OUT.truth/ beside it")
    _source_options(parser.add_argument_group("what is seen (one of the first four)"))
    _image_options(parser.add_argument_group("images"))
    _optics_options(parser.add_argument_group("optics"))
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    json_option(parser)


def _source_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--structure", type=Path, action="append", metavar="FILE", help="PDB or mmCIF file; once per state")
    add("--trajectory", type=Path, metavar="FILE", help="DCD, XTC, TRR, … or .npy (frames, atoms, 3) in Å")
    add("--volume", type=Path, action="append", metavar="MAP.mrc", help="map; once per state")
    add("--phantom", type=number(int, 1), metavar="K", help="K states of the built-in two-domain molecule")
    add("--topology", type=Path, metavar="FILE", help="PDB or mmCIF file with the atoms of the trajectory")
    add("--stride", type=number(int, 1), default=1, metavar="N", help="take every N-th frame of the trajectory")
    add("--all-models", action="store_true", help="every model of the structure files is a state, not only the first")
    add("--morph", type=number(int, 2), metavar="FRAMES", help="states on the straight way between two structures")
    add("--superpose", action="store_true", help="turn and shift every structure onto the first, by their common atoms")
    add("--beads", action="store_true", help="one Gaussian per residue in place of atoms")
    add(
        "--bfactor", type=_bfactor, default=0.0, metavar="B", help="B factor of the atoms in Å^2, or `file` (default 0)"
    )
    add("--resolution", type=number(float, above=0), metavar="A", help="blur of the atoms in Å (default: 2 pixels)")
    add("--weights", type=_numbers, metavar="W,W,…", help="relative numbers of the states (default: equal)")


def _image_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-n", type=number(int, 1), metavar="N", help=f"particles (default {COUNT}, or all rows of --like)")
    add("--box", type=number(int, 4), metavar="D", help=f"image edge in pixels (default {BOX}, or that of --like)")
    add("--pixel", type=number(float, above=0), metavar="A", help=f"pixel size in Å (default {PIXEL:g}, or of --like)")
    add("--snr", type=_snr, default=0.1, metavar="S", help="signal over noise variance in the box; inf: no noise")
    add("--noise", choices=("white", "coloured"), default="white", help="spectrum of the noise (default white)")
    add("--shift-sd", type=number(float, 0), default=0.0, metavar="A", help="sd of the shifts in Å (default 0)")
    add("--contrast-sd", type=number(float, 0), default=0.0, metavar="S", help="sd of the contrast about 1 (default 0)")
    add("--seed", type=number(int, 0), default=0, help="seed of all random numbers (default 0)")


def _optics_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--like", type=Path, metavar="PARTICLES", help="take poses and CTF from this particle file")
    add("--defocus", type=_range, metavar="LO:HI", help="range of defocus in Å (default 10000:25000)")
    add("--voltage", type=number(float, above=0), metavar="KV", help="acceleration voltage in kV (default 300)")
    add("--cs", type=number(float, 0), metavar="MM", help="spherical aberration in mm (default 2.7)")
    add("--amplitude-contrast", type=number(float, 0, 1), metavar="Q", help="amplitude contrast, 0 to 1 (default 0.1)")
    add("--no-ctf", action="store_true", help="images without CTF")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def _range(text: str) -> tuple[float, float]:
    low, high = (float(word) for word in text.split(":"))
    return low, high


def _bfactor(text: str) -> float | None:
    return None if text == "file" else number(float, 0)(text)


def _snr(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


for _convert, _name in ((_numbers, "numbers"), (_range, "range LO:HI"), (_bfactor, "B factor"), (_snr, "ratio")):
    _convert.__name__ = _name


def run(args: argparse.Namespace) -> int:
    """Simulate, write and report."""
    import numpy as np
    from tqdm import tqdm

    from hetmodels.data.simulate import Coloured, Recording, White, outputs, simulate

    _check(args)
    outputs(args.out, args.overwrite)
    template = _template(args)
    box, pixel = _geometry(args, template)
    noise = Coloured() if args.noise == "coloured" else White()
    recording = Recording(box, pixel, args.snr, noise, args.contrast_sd, args.weights)
    views = _views(args, template, np.random.default_rng([args.seed, 0]))
    volumes, latents, notes = _volumes(args, box, pixel)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = simulate(
        args.out,
        volumes,
        views,
        recording,
        seed=args.seed,
        latents=latents,
        overwrite=args.overwrite,
        track=lambda chunks: tqdm(chunks, unit="chunk", leave=False, disable=None),
    )
    notes = [*views.notes, *notes]
    data = {
        "star": str(result.star),
        "stack": str(result.stack),
        "truth": str(result.truth),
        "particles": len(views),
        "box": box,
        "pixel": pixel,
        "snr": args.snr if math.isfinite(args.snr) else None,
        "noise_sd": 1.0 if math.isfinite(args.snr) else 0.0,
        "states": list(result.counts),
        "no_ctf": views.ctf is None,
        "notes": notes,
    }
    emit(args, data, _report(data))
    return 0


def _report(data: dict[str, Any]) -> str:
    noise = "no noise" if data["snr"] is None else f"SNR {data['snr']:g} in the whole box, noise sd 1"
    counts = data["states"]
    family = "classes" if len(counts) > 1 else "homogeneous"
    shown = ", ".join(map(str, counts[:8])) + (", …" if len(counts) > 8 else "")
    return "\n".join(
        [
            f"{data['particles']} particles of {data['box']} x {data['box']} pixels of {data['pixel']:g} Å, {noise}",
            f"{len(counts)} state{'s' * (len(counts) > 1)}: {shown} particles",
            *(f"note: {note}" for note in data["notes"]),
            f"table  {data['star']}",
            f"images {data['stack']}",
            f"truth  {data['truth']}",
            f"next: hetmodels fit {data['star']} --family {family} -o RUN{' --no-ctf' * data['no_ctf']}",
        ]
    )


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    sources = [name for name in ("structure", "trajectory", "volume", "phantom") if getattr(args, name)]
    if len(sources) != 1:
        what = "none" if not sources else ", ".join(f"--{s}" for s in sources)
        raise UsageError(
            f"simulate: give exactly one of --structure, --trajectory, --volume, --phantom; got {what}. "
            "Without files of your own, try --phantom 3."
        )
    atoms = {"structure", "trajectory"}
    needs = {
        "topology": {"trajectory"},
        "all_models": {"structure"},
        "morph": {"structure"},
        "superpose": atoms,
        "beads": atoms,
        "bfactor": atoms,
        "resolution": atoms,
    }
    for option, kinds in needs.items():
        if getattr(args, option) not in (None, False, 0.0) and not kinds & set(sources):
            raise UsageError(f"simulate: --{option.replace('_', '-')} needs --{' or --'.join(sorted(kinds))}.")
    if args.stride != 1 and not args.trajectory:
        raise UsageError("simulate: --stride needs --trajectory.")
    if args.morph and len(args.structure) != 2:
        raise UsageError(f"simulate: --morph goes between two structures, got {len(args.structure)} --structure.")
    if args.beads and args.bfactor != 0:
        raise UsageError("simulate: --bfactor is for atoms; with --beads use --resolution.")
    optics = [o for o in ("defocus", "voltage", "cs", "amplitude_contrast") if getattr(args, o) is not None]
    if optics and (args.no_ctf or args.like):
        other = "--no-ctf" if args.no_ctf else "--like, which brings its own CTF"
        raise UsageError(f"simulate: --{optics[0].replace('_', '-')} has no use with {other}.")


def _template(args: argparse.Namespace) -> "Metadata | None":
    if args.like is None:
        return None
    from hetmodels.data.metadata import read_metadata

    return read_metadata(args.like)


def _geometry(args: argparse.Namespace, template: "Metadata | None") -> tuple[int, float]:
    """Box and pixel size: as typed, else those of the template if all its rows agree, else the default."""
    import numpy as np

    found: list[Any] = [args.box, args.pixel]
    for i, (name, default) in enumerate((("box", BOX), ("pixel", PIXEL))):
        values = None if template is None else getattr(template, name)
        if found[i] is None and values is not None and len(values):
            if np.ptp(values) > 1e-6 * np.max(values):
                raise UsageError(f"simulate: the rows of {args.like} differ in {name}; give --{name}.")
            found[i] = values[0]
        found[i] = default if found[i] is None else found[i]
    return int(found[0]), float(found[1])


def _views(args: argparse.Namespace, template: "Metadata | None", rng: "np.random.Generator") -> "Views":
    import dataclasses

    from hetmodels.data.views import Microscope, random_views, views_like

    if template is not None:
        return views_like(template, rng, args.n, args.shift_sd, args.no_ctf)
    if args.no_ctf:
        return random_views(rng, args.n or COUNT, None, args.shift_sd)
    given = {
        "defocus": args.defocus,
        "voltage": args.voltage,
        "spherical": None if args.cs is None else args.cs * 1e7,
        "amplitude": args.amplitude_contrast,
    }
    microscope = dataclasses.replace(Microscope(), **{k: v for k, v in given.items() if v is not None})
    return random_views(rng, args.n or COUNT, microscope, args.shift_sd)


def _volumes(args: argparse.Namespace, box: int, pixel: float) -> tuple[list, "np.ndarray | None", list[str]]:
    """One volume per state, coordinates of the states along a way if they lie on one, and notes."""
    import numpy as np

    notes: list[str] = []
    if args.volume:
        return _maps(args.volume, box, pixel, notes), None, notes
    if args.phantom:
        from hetmodels.data.phantom import phantom

        volumes = list(phantom(args.phantom, box, pixel))
    else:
        volumes = _molecules(args, box, pixel, notes)
    ordered = args.phantom or args.trajectory or args.morph
    way = np.linspace(0, 1, len(volumes))[:, None] if ordered and len(volumes) > 1 else None
    return volumes, way, notes


def _molecules(args: argparse.Namespace, box: int, pixel: float, notes: list[str]) -> list:
    """Structures or frames as Gaussians, in one common frame."""
    import numpy as np

    from hetmodels.data import structures as s

    if args.trajectory:
        found = s.read_trajectory(args.trajectory, args.topology, args.stride)
    elif args.all_models:
        found = [model for path in args.structure for model in s.read_models(path)]
    else:
        found = [s.read_structure(path) for path in args.structure]
    if args.superpose:
        found = [found[0], *(s.superposed(other, found[0]) for other in found[1:])]
    if args.morph:
        if len(found) != 2:
            raise UsageError(f"simulate: --morph goes between two structures, the files hold {len(found)} models.")
        before = [len(f) for f in found]
        found = s.morph(found[0], found[1], args.morph)
        notes.append(
            f"the morph moves the {len(found[0])} atoms that both structures share, of {before[0]} and {before[1]}."
        )
    found = s.centred(found)
    reach = max(float(np.linalg.norm(f.positions, axis=1).max()) for f in found)
    if reach > box * pixel / 2:
        notes.append(
            f"atoms lie up to {reach:.0f} Å from the centre, the box reaches {box * pixel / 2:.0f} Å; what lies "
            "outside wraps round. A larger --box or --pixel holds them."
        )
    blur = BLUR * (args.resolution or 2 * pixel)
    if args.beads:
        return [f.beads(blur) for f in found]
    return [f.gaussians(blur, args.bfactor, band=0.5 / pixel) for f in found]


def _maps(paths: list[Path], box: int, pixel: float, notes: list[str]) -> list:
    """Maps as they are; where a header has no voxel size, the pixel size of the images."""
    from hetmodels.data.maps import read_map

    maps = []
    for path in paths:
        found = read_map(path)
        if found.spacing <= 0:
            notes.append(f"{path}: the header has no voxel size; taken as {pixel:g} Å, the pixel size of the images.")
            found = found._replace(spacing=pixel)
        if max(found.values.shape) * found.spacing > 1.001 * box * pixel:
            notes.append(
                f"{path}: its box is {max(found.values.shape) * found.spacing:.0f} Å wide, the images "
                f"{box * pixel:.0f} Å; what lies outside wraps round."
            )
        maps.append(found)
    notes.append("maps are projected with prefiltered cubic splines on a three times padded Fourier grid.")
    return maps
