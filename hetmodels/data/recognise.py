"""What a file is, if it is no particle table, and what to give in its place."""

import json
from pathlib import Path

from hetmodels.data.block import Block
from hetmodels.data.star import StarFile
from hetmodels.errors import DataError

PARTICLES = "Give a particle table: RELION .star, cryoSPARC .cs, or an image stack with --poses and --ctf."


def refuse(path: Path, what: str, cure: str = PARTICLES) -> DataError:
    """The error that says what a file is instead of a particle table."""
    return DataError(f"{path}: this is {what}, not a particle table. {cure}")


def foreign(path: Path, data: bytes) -> DataError | None:
    """The error for content that is certainly no particle table, from its first bytes; None if it may be one."""
    head = data[:4096]
    for magic, what in (
        (b"PK\x03\x04", "a zip archive"),
        (b"\x94CSDAT", "a cryoSPARC data set in its compressed form"),
        (b"\x89HDF", "an HDF5 or netCDF file"),
        (b"%PDF", "a PDF document"),
        (b"BZh", "a bzip2 archive"),
    ):
        if data.startswith(magic):
            cure = "Export it from cryoSPARC as .cs, or save it in NUMPY_FORMAT." if b"CSDAT" in magic else PARTICLES
            return refuse(path, what, cure)
    if head[4:8] == b"CORD":
        return refuse(path, "a molecular trajectory (DCD)")
    if b"\0" in head:
        return refuse(path, f"a binary file of {len(data)} bytes in no format known here")
    return _foreign_text(path, data)


def _foreign_text(path: Path, data: bytes) -> DataError | None:
    lines = [line.strip() for line in data[: 1 << 17].splitlines()]
    filled = [line for line in lines if line]
    if not filled:
        return refuse(path, "an empty file")
    if filled[0].startswith(b"# XMIPP_STAR"):
        return refuse(path, "Xmipp metadata", "Convert it to a RELION .star file (in Scipion: export particles).")
    if any(line.startswith(b"_atom_site.") or line.startswith(b"_entry.id") for line in lines):
        return refuse(path, "an atomic model in mmCIF format")
    if any(line.startswith((b"ATOM  ", b"HETATM")) for line in lines):
        return refuse(path, "an atomic model in PDB format")
    if filled[0][:1] in (b"{", b"["):
        try:
            json.loads(data)
        except ValueError:
            return None
        return refuse(path, "a JSON file")
    if not any(line.startswith(b"data_") for line in data.split(b"\n")):
        return refuse(
            path, f"a text file without STAR blocks (it begins {filled[0][:40].decode('utf-8', 'replace')!r})"
        )
    return None


def particle_block(star: StarFile) -> Block:
    """The block of particles: the one with image names, `particles` before others.

    Raises:
        DataError: saying what the file is, if no block lists 2-D particle images.
    """
    images = [block for block in star.blocks if "_rlnImageName" in block]
    general = star.find("general")
    if (
        general is not None
        and "_rlnTomoSubTomosAre2DStacks" in general
        or any("_rlnTomoVisibleFrames" in b for b in images)
    ):
        raise refuse(
            star.path,
            "a RELION 5 tomography table, whose images are tilt stacks of each particle",
            "Export the particles as a series of single tilt images (one row each), as Warp and M do.",
        )
    if any("_rlnCtfImage" in b and "_rlnCoordinateZ" in b for b in images) or _three_dimensional(star):
        raise refuse(
            star.path, "a table of subtomograms (3-D images)", "Export the particles as 2-D tilt images, one row each."
        )
    if not images:
        raise refuse(star.path, _what(star))
    named = [block for block in images if block.name == "particles"]
    block = (named or images)[0]
    if not named and len(images) > 1:
        listed = ", ".join(f"data_{b.name}" for b in images)
        raise DataError(
            f"{star.path}: several blocks list images ({listed}), and none is called data_particles. Keep one."
        )
    if not len(block):
        raise DataError(f"{block.where}: the table has no particles; at least one row is needed.")
    return block


def _three_dimensional(star: StarFile) -> bool:
    optics = star.find("optics")
    return (
        optics is not None
        and "_rlnImageDimensionality" in optics
        and bool((optics.number("_rlnImageDimensionality") == 3).any())
    )


def _what(star: StarFile) -> str:
    """A STAR file without particle images, in words."""
    names = [block.name for block in star.blocks]
    labels = {label for block in star.blocks for label in block.labels}
    if any(name.startswith(("model_general", "model_class")) for name in names):
        return "a RELION model file (_model.star: reference maps and noise spectra)"
    known = {
        "optimiser_general": "a RELION optimiser file (_optimiser.star)",
        "sampling_general": "a RELION sampling file (_sampling.star)",
        "pipeline_general": "a RELION pipeline file",
        "job": "a RELION job file (job.star)",
    }
    for name in names:
        if name in known:
            return known[name]
    by_label = (
        ("_rlnTomoParticlesFile", "a RELION optimisation set (names of a particle and a tomogram file)"),
        ("_rlnTomoTiltSeriesStarFile", "a RELION table of tomograms"),
        ("_rlnTomoNominalStageTiltAngle", "a RELION table of the tilt images of one series"),
        ("_rlnFourierShellCorrelation", "a table of Fourier shell correlations"),
        ("_rlnReferenceImage", "a table of reference maps"),
    )
    for label, what in by_label:
        if label in labels:
            return what
    if "_rlnCoordinateX" in labels:
        return "a table of particle coordinates (no image was extracted)"
    if labels & {"_rlnMicrographName", "_rlnMicrographMovieName"}:
        return "a table of micrographs"
    listed = ", ".join(f"data_{name}" for name in names[:5])
    found = f" with columns such as {', '.join(sorted(labels)[:4])}" if labels else ""
    return f"a STAR file ({listed}){found}, without _rlnImageName"
