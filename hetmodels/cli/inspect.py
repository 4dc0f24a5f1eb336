"""`hetmodels inspect PARTICLES`: what is in a particle file, and what is wrong with it."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hetmodels.cli.common import emit, json_option, particle_options, read_table
from hetmodels.errors import DataError, UsageError

if TYPE_CHECKING:
    from hetmodels.data.checks import Problem
    from hetmodels.data.metadata import Metadata


@dataclasses.dataclass(frozen=True)
class Images:
    """What the stacks say, or that they are not there.

    Attributes:
        found: whether all stacks were found.
        stacks: number of stack files that the table names.
        box: image edge in pixels, None if unknown.
        text: a sentence.
        problem: what is wrong with the stacks, or ''.
        notes: odd but harmless things.
    """

    found: bool
    stacks: int
    box: int | None
    text: str
    problem: str = ""
    notes: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("particles", type=Path, metavar="PARTICLES", help="RELION .star, cryoSPARC .cs, or .mrcs stack")
    particle_options(parser)
    parser.add_argument(
        "--check", action="store_true",
        help="try by a short back-projection whether contrast, shifts, CTF and pixel size are what the file says",
    )  # fmt: skip
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Read the table, look for its images, and report."""
    from hetmodels.data.checks import Problem, problems

    unused = [name for name in ("box", "window") if getattr(args, name) is not None]
    if unused:
        raise UsageError(f"inspect: --{unused[0]} has no use here: the file is shown as it is.")
    table = read_table(args)
    images = look_for_images(table, args.datadir)
    found = problems(table)
    if images.problem:
        found = [Problem("error", images.problem), *found]
    data = describe(table, images, found)
    if args.check:
        data["conventions"] = _conventions(table, images, args.datadir)
    emit(args, data, report(data))
    return 0


def look_for_images(table: "Metadata", datadir: Path | None) -> Images:
    """Open the headers of the stacks that the table names, if they are there."""
    from hetmodels.data.stacks import Stacks, find_stacks

    names = list(dict.fromkeys(table.stack.tolist()))
    folder = table.path.parent
    declared = None if table.box is None else int(table.box[0])
    try:
        find_stacks(names, folder, datadir)
    except DataError as error:
        return Images(False, len(names), declared, f"not found: {str(error).split('. ')[0]}.")
    try:
        stacks = Stacks.locate(table.stack, table.row, folder, datadir)
    except DataError as error:
        return Images(True, len(names), declared, "found, but they cannot be used", str(error))
    return Images(True, len(names), stacks.box, f"found, box {stacks.box}", notes=stacks.notes)


def _conventions(table: "Metadata", images: Images, datadir: Path | None) -> list[dict[str, Any]]:
    """What a back-projection says of the conventions.

    Raises:
        DataError: if the images are not there, or cannot be used.
    """
    from hetmodels.analysis.conventions import BOX, check_conventions
    from hetmodels.data.particles import Particles

    if not images.found or images.problem or images.box is None:
        raise DataError(f"inspect: --check reads the images, which are {images.text} Give their folder with --datadir.")
    box = min(images.box - images.box % 2, BOX)
    particles = Particles.from_metadata(table, datadir=datadir, box=box)
    found = [dataclasses.asdict(finding) for finding in check_conventions(particles)]
    return [{k: None if v != v else v for k, v in finding.items()} for finding in found]


def describe(table: "Metadata", images: Images, found: "list[Problem]") -> dict[str, Any]:
    """Everything that the report says, for programs."""
    box = images.box
    notes = [*table.notes, *images.notes]
    if box is not None and table.box is not None and np.any(table.box != box):
        other = sorted({int(b) for b in table.box if b != box})
        notes.append(f"the table declares a box of {other[0]} pixels, the stacks have {box}: the stacks are believed.")
    if box is not None and box % 2:
        notes.append(f"the box is odd: fit needs an even one, --box {box - 1} crops to it.")
    return {
        "path": str(table.path),
        "kind": table.kind,
        "particles": len(table),
        "box": box,
        "pixel": None if table.pixel is None else _range(table.pixel),
        "contrast": {1: "protein bright", -1: "protein dark"}.get(table.contrast_sign or 0, "not stated"),
        "phase_flipped": table.phase_flipped,
        "premultiplied": table.premultiplied,
        "images": {"found": images.found, "stacks": images.stacks, "text": images.text},
        "optics_groups": _groups(table),
        "poses": _poses(table),
        "ctf": _ctf(table),
        "micrographs": None if table.micrograph is None else len(set(table.micrograph.tolist())),
        "half_sets": _counts(table.subset),
        "classes": _counts(table.class_number),
        "notes": notes,
        "problems": [dataclasses.asdict(problem) for problem in found],
    }


def _range(values: np.ndarray) -> list[float]:
    return [float(values.min()), float(values.max())]


def _counts(values: np.ndarray | None) -> dict[str, int] | None:
    if values is None:
        return None
    distinct, counts = np.unique(values, return_counts=True)
    return {str(value): int(count) for value, count in zip(distinct.tolist(), counts.tolist(), strict=True)}


def _groups(table: "Metadata") -> list[dict[str, Any]]:
    groups = []
    for number, name in enumerate(table.group_names):
        rows = table.group == number
        entry: dict[str, Any] = {"name": name, "particles": int(rows.sum())}
        if table.pixel is not None:
            entry["pixel"] = float(table.pixel[rows][0])
        for field, label, scale in (
            ("voltage", "voltage_kv", 1.0),
            ("spherical", "cs_mm", 1e-7),
            ("amplitude", "q", 1.0),
        ):
            if table.ctf is not None:
                entry[label] = round(float(np.median(table.ctf[field][rows])) * scale, 6)
        groups.append(entry)
    return groups


def _poses(table: "Metadata") -> dict[str, Any]:
    from hetmodels.data.fields import euler_angles

    if table.rotation is None:
        return {"found": False, "reason": table.pose_reason}
    angles = euler_angles(table.rotation)
    ranges = {name: _range(angles[:, i]) for i, name in enumerate(("rot", "tilt", "psi"))}
    shift = np.zeros(0) if table.shift is None else np.linalg.norm(table.shift, axis=1)
    size = {"median": float(np.median(shift)), "largest": float(shift.max())} if len(shift) else None
    return {"found": True, **ranges, "shift": size}


def _ctf(table: "Metadata") -> dict[str, Any]:
    if table.ctf is None:
        return {"found": False, "reason": table.ctf_reason}
    ctf = table.ctf
    low, high = np.minimum(ctf["defocus_u"], ctf["defocus_v"]), np.maximum(ctf["defocus_u"], ctf["defocus_v"])
    found: dict[str, Any] = {"found": True, "defocus": [float(low.min()), float(high.max())]}
    found["astigmatism"] = _range(high - low)
    shown: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
        ("phase_shift", "phase_shift_deg", np.rad2deg),
        ("bfactor", "bfactor", np.asarray),
        ("scale", "scale", np.asarray),
    )
    found |= {label: _range(convert(ctf[name])) for name, label, convert in shown}
    tilt = np.linalg.norm(ctf["beam_tilt"], axis=1)
    found["beam_tilt_mrad"] = float(1e3 * tilt.max(initial=0))
    found["aberrations"] = {"odd": ctf["odd"].shape[1], "even": ctf["even"].shape[1]}
    found["anisotropic_magnification"] = bool(np.any(ctf["stretch"] != np.eye(2)))
    return found


def report(data: dict[str, Any]) -> str:
    """The same in words."""
    pixel = "unknown" if data["pixel"] is None else f"{_span(data['pixel'])} Å"
    lines = [
        f"{data['path']}: {data['kind']}",
        f"particles    {data['particles']}" + _added(data["micrographs"], " from {} micrographs"),
        f"images       {data['images']['stacks']} stacks, {data['images']['text']}",
        f"box          {data['box'] or 'unknown'}, pixel {pixel}, contrast {data['contrast']}",
    ]
    done = [
        text
        for key, text in (("phase_flipped", "phases flipped"), ("premultiplied", "multiplied by the CTF"))
        if data[key]
    ]
    lines += [f"processed    {', '.join(done)}"] if done else []
    lines += _group_lines(data["optics_groups"]) + [_pose_line(data["poses"])] + _ctf_lines(data["ctf"])
    for key, label in (("half_sets", "half sets"), ("classes", "classes")):
        if data[key]:
            listed = ", ".join(f"{name}: {count}" for name, count in list(data[key].items())[:8])
            lines.append(f"{label:<12} {listed}" + (", …" if len(data[key]) > 8 else ""))
    lines += [f"note: {note}" for note in data["notes"]]
    lines += [f"{problem['severity']}: {problem['text']}" for problem in data["problems"]]
    lines += [] if data["problems"] else ["no problems found"]
    return "\n".join([*lines, *(_checked(finding) for finding in data.get("conventions", []))])


def _checked(finding: dict[str, Any]) -> str:
    verdict = {True: "right", False: "WRONG", None: "open"}[finding["right"]]
    told = finding["right"] is False and finding["gain"] is not None
    gain = f", by {finding['gain']:.3g} ± {finding['error']:.1g} nats per particle" if told else ""
    cure = f". Cure: {finding['cure']}" if finding["cure"] else ""
    return f"check        {finding['name']} {verdict}: {finding['words']}{gain}{cure}"


def _added(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _span(bounds: list[float], form: str = "g") -> str:
    low, high = (format(bound, f".5{form}") for bound in bounds)
    return low if low == high else f"{low} … {high}"


def _group_lines(groups: list[dict[str, Any]]) -> list[str]:
    lines = []
    for entry in groups[:12]:
        line = f"optics       {entry['name']}: {entry['particles']} particles"
        line += _added(entry.get("voltage_kv"), ", {:g} kV") + _added(entry.get("cs_mm"), ", Cs {:g} mm")
        lines.append(
            line + _added(entry.get("q"), ", amplitude contrast {:g}") + _added(entry.get("pixel"), ", {:.5g} Å")
        )
    return lines + ([f"optics       … {len(groups) - 12} more groups"] if len(groups) > 12 else [])


def _pose_line(poses: dict[str, Any]) -> str:
    if not poses["found"]:
        return f"poses        none: {poses['reason']}"
    angles = ", ".join(f"{name} {_span(poses[name])}°" for name in ("rot", "tilt", "psi"))
    shift = poses["shift"]
    return f"poses        {angles}" + (
        f"; shift {shift['median']:.3g} Å, up to {shift['largest']:.3g} Å" if shift else ""
    )


def _ctf_lines(ctf: dict[str, Any]) -> list[str]:
    if not ctf["found"]:
        return [f"CTF          none: {ctf['reason']}"]
    line = f"CTF          defocus {_span(ctf['defocus'])} Å, astigmatism {_span(ctf['astigmatism'])} Å"
    more = [
        ("phase_shift_deg", "phase shift {}°", [0, 0]),
        ("bfactor", "B {} Å²", [0, 0]),
        ("scale", "scale {}", [1, 1]),
    ]
    line += "".join(", " + form.format(_span(ctf[key])) for key, form, usual in more if ctf[key] != usual)
    extras = [f"beam tilt up to {ctf['beam_tilt_mrad']:.3g} mrad"] if ctf["beam_tilt_mrad"] else []
    terms = ctf["aberrations"]
    extras += [f"{n} {kind} aberration terms" for kind, n in terms.items() if n]
    extras += ["anisotropic magnification"] if ctf["anisotropic_magnification"] else []
    return [line, *([f"aberrations  {', '.join(extras)}"] if extras else [])]
