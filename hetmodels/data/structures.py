"""Atomic structures and trajectories from files, and the Gaussians that stand for their electron scattering.

An atom scatters electrons as f(k) = sum_i a_i exp(-b_i k^2 / 4), five terms per element (International Tables C,
table 4.3.2.2); each term is a Gaussian of variance b_i / 8 pi^2.
"""

import contextlib
import ctypes
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hetmodels.errors import DataError
from hetmodels.volumes.gaussians import Gaussians

VARIANCE = 8 * np.pi**2  # B factor of a Gaussian of unit variance
TOLERANCE = 0.01  # error of the form factor, as a part of f(0), below which one Gaussian stands for an atom


@dataclasses.dataclass(frozen=True)
class Structure:
    """Atoms without hydrogens and waters.

    Attributes:
        positions: (x, y, z) [Å], float64 (n, 3).
        elements: element symbols, (n,).
        bfactors: isotropic B factors of the file [Å^2], (n,).
        chains: chain names, (n,).
        residues: residue numbers with their insertion codes, (n,).
        names: atom names, (n,).
    """

    positions: np.ndarray
    elements: np.ndarray
    bfactors: np.ndarray
    chains: np.ndarray
    residues: np.ndarray
    names: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, index: np.ndarray) -> "Structure":
        """Some of the atoms, by index or mask."""
        return Structure(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    def at(self, positions: np.ndarray) -> "Structure":
        """The same atoms at other positions [Å], (n, 3)."""
        return dataclasses.replace(self, positions=np.asarray(positions, np.float64))

    def centre_of_mass(self) -> np.ndarray:
        """Mass centre [Å], (3,)."""
        import gemmi

        kinds, which = np.unique(self.elements, return_inverse=True)
        mass = np.array([gemmi.Element(kind).weight for kind in kinds])[which]
        return mass @ self.positions / mass.sum()

    def gaussians(self, blur: float, bfactor: float | None = 0.0, band: float = np.inf) -> Gaussians:
        """The scattering density of the atoms.

        Args:
            blur: standard deviation added to every Gaussian [Å].
            bfactor: B factor of every atom [Å^2]; None takes those of the file.
            band: highest frequency of interest [1/Å]: where the form factors allow it up to there, an atom is one
                Gaussian with the same integral and variance in place of five.

        Raises:
            DataError: if an element has no electron form factor.
        """
        kinds, which = np.unique(self.elements, return_inverse=True)
        a, variance = _form_factors(kinds)
        mean = (a * variance).sum(1, keepdims=True) / a.sum(1, keepdims=True)
        if np.isfinite(band):
            exact = (a * np.exp(-2 * np.pi**2 * band**2 * variance)).sum(1) / a.sum(1)
            if np.abs(exact - np.exp(-2 * np.pi**2 * band**2 * mean[:, 0])).max() < TOLERANCE:
                a, variance = a.sum(1, keepdims=True), mean
        wide = (self.bfactors if bfactor is None else np.full(len(self), bfactor)) / VARIANCE + blur**2
        widths = np.sqrt(variance[which] + wide[:, None])
        return _gaussians(np.repeat(self.positions, a.shape[1], axis=0), a[which].ravel(), widths.ravel())

    def beads(self, blur: float) -> Gaussians:
        """One Gaussian per residue, with the integral, centre and mean variance of its atoms, and `blur` [Å] added."""
        keys = [f"{chain}/{residue}" for chain, residue in zip(self.chains, self.residues, strict=True)]
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        kinds, kind = np.unique(self.elements, return_inverse=True)
        a, variance = _form_factors(kinds)
        weight, spread = a.sum(1)[kind], ((a * variance).sum(1) / a.sum(1))[kind]
        total = np.bincount(which, weight)
        mean = [np.bincount(which, weight * x) / total for x in self.positions.T]
        centres = np.stack(mean, axis=1)
        apart = ((self.positions - centres[which]) ** 2).mean(1)
        widths = np.sqrt(np.bincount(which, weight * (apart + spread)) / total + blur**2)
        order = np.argsort(first)
        return _gaussians(centres[order], total[order], widths[order])


def _gaussians(centres: np.ndarray, weights: np.ndarray, widths: np.ndarray) -> Gaussians:
    import jax.numpy as jnp

    return Gaussians(*(jnp.asarray(x, jnp.float32) for x in (centres, weights, widths)))


def _form_factors(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients a [Å] and variances [Å^2] of the five terms of each element, (kinds, 5) each."""
    import gemmi

    rows = [gemmi.Element(kind).c4322 for kind in kinds]
    for kind, row in zip(kinds, rows, strict=True):
        if row is None or kind == "X":
            raise DataError(f"Structure: element {str(kind)!r} has no electron form factor; name or remove its atoms.")
    a, b = np.array([r.a for r in rows]), np.array([r.b for r in rows])
    return a, b / VARIANCE


def read_structure(path: str | Path) -> Structure:
    """First model of a PDB or mmCIF file; see `read_models`."""
    return _heavy(*_atoms(_open(Path(path))[0]), Path(path))


def read_models(path: str | Path) -> list[Structure]:
    """All models of a PDB or mmCIF file, each without hydrogens, waters and all but the first alternative location.

    Raises:
        DataError: if the file is missing, unreadable or holds no atoms but hydrogens and waters.
    """
    return [_heavy(*_atoms(model), Path(path)) for model in _open(Path(path))]


def _open(path: Path):  # noqa: ANN202 (gemmi.Structure, imported late)
    import gemmi

    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path}: not a readable PDB or mmCIF file ({error}).") from error
    structure.remove_alternative_conformations()
    if not len(structure):
        raise DataError(f"{path}: the file holds no atoms; a structure is a PDB or mmCIF coordinate file.")
    return structure


def _atoms(model) -> tuple[Structure, np.ndarray]:  # noqa: ANN001 (gemmi.Model)
    """All atoms of a model in file order, and which of them scatter for us."""
    rows = [(c.atom, c.residue, c.chain.name) for c in model.all()]
    keep = np.array([not (atom.is_hydrogen() or residue.is_water()) for atom, residue, _ in rows], bool)
    structure = Structure(
        np.array([atom.pos.tolist() for atom, _, _ in rows], np.float64).reshape(-1, 3),
        np.array([atom.element.name for atom, _, _ in rows], str),
        np.array([atom.b_iso for atom, _, _ in rows], np.float64),
        np.array([chain for _, _, chain in rows], str),
        np.array([str(residue.seqid) for _, residue, _ in rows], str),
        np.array([atom.name for atom, _, _ in rows], str),
    )
    return structure, keep


def _heavy(structure: Structure, keep: np.ndarray, path: Path) -> Structure:
    if not keep.any():
        raise DataError(f"{path}: the file holds no atoms but hydrogens and waters, {len(keep)} in all.")
    if not np.isfinite(structure.positions).all():
        raise DataError(f"{path}: an atom's coordinates are not finite.")
    return structure.take(keep)


def read_trajectory(path: str | Path, topology: str | Path | None = None, stride: int = 1) -> list[Structure]:
    """Every `stride`-th frame of a trajectory (DCD, XTC, TRR, NetCDF, … or .npy of shape (frames, atoms, 3) in Å).

    Args:
        path: the trajectory.
        topology: PDB or mmCIF file with the same atoms in the same order; needed for all but .npy files, whose
            points count as carbon atoms, one per residue, without it.
        stride: frames to go on by.

    Raises:
        DataError: if a file cannot be read, or the numbers of atoms differ.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    frames = (_npy_frames if path.suffix == ".npy" else _frames)(path)[::stride]
    if not np.isfinite(frames).all():
        raise DataError(f"{path}: a frame has coordinates that are not finite.")
    if topology is not None:
        structure, keep = _atoms(_open(Path(topology))[0])
    elif path.suffix == ".npy":
        structure, keep = _trace(frames.shape[1]), np.ones(frames.shape[1], bool)
    else:
        raise DataError(f"{path}: a trajectory has no element names; give its topology, a PDB or mmCIF file.")
    if len(structure) != frames.shape[1]:
        raise DataError(
            f"{path}: has {frames.shape[1]} atoms but its topology {topology} has {len(structure)}; both must list the "
            "same atoms in the same order (alternative locations count once)."
        )
    first = _heavy(structure, keep, Path(topology or path))
    return [first.at(frame[keep]) for frame in frames]


def _trace(count: int) -> Structure:
    each = np.full(count, "C")
    residues = np.arange(1, count + 1).astype(str)
    return Structure(np.zeros((count, 3)), each, np.zeros(count), np.full(count, "A"), residues, np.full(count, "CA"))


def _npy_frames(path: Path) -> np.ndarray:
    try:
        frames = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}).") from error
    if frames.ndim != 3 or frames.shape[2] != 3 or 0 in frames.shape or frames.dtype.kind != "f":
        raise DataError(
            f"{path}: a trajectory is an array of reals (frames, atoms, 3), got {frames.dtype} {frames.shape}."
        )
    return frames.astype(np.float64)


def _frames(path: Path) -> np.ndarray:
    """Coordinates [Å] of all frames, (frames, atoms, 3)."""
    import mdtraj

    try:
        with _silent(), mdtraj.open(str(path)) as file:
            read, unit = file.read(), file.distance_unit
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable trajectory ({error}).") from error
    frames = np.asarray(read if isinstance(read, np.ndarray) else read[0], np.float64)
    if not len(frames):
        raise DataError(f"{path}: the trajectory holds no frames.")
    return frames * {"angstroms": 1.0, "nanometers": 10.0}[unit]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what C readers print out of standard output."""
    sys.stdout.flush()
    saved = os.dup(1)
    with open(os.devnull, "w") as sink:
        os.dup2(sink.fileno(), 1)
        try:
            yield
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(saved, 1)
            os.close(saved)


def centred(structures: Sequence[Structure]) -> list[Structure]:
    """Move all structures by one common vector, so that the mean of their mass centres is the origin.

    One vector for all keeps the states in register with each other.
    """
    centre = np.mean([s.centre_of_mass() for s in structures], axis=0)
    return [s.at(s.positions - centre) for s in structures]


def matched(first: Structure, second: Structure) -> tuple[Structure, Structure]:
    """The atoms that two structures share by chain, residue number and atom name, in the same order.

    Chain names are ignored where both have a single chain.

    Raises:
        DataError: if fewer than three atoms match.
    """
    alone = all(len(np.unique(s.chains)) == 1 for s in (first, second))
    one, two = np.array(_keys(first, not alone)), np.array(_keys(second, not alone))
    _, one, two = np.intersect1d(one, two, return_indices=True)
    if len(one) < 3:
        raise DataError(
            f"Two structures of {len(first)} and {len(second)} atoms share {len(one)} atoms by chain, residue number "
            "and atom name; at least 3 must match. Rename the chains or renumber the residues of one of them."
        )
    order = np.argsort(one)
    return first.take(one[order]), second.take(two[order])


def _keys(structure: Structure, chains: bool) -> list[str]:
    """What tells the atoms apart: chain (if wanted), residue and name."""
    columns = zip(structure.chains, structure.residues, structure.names, strict=True)
    return [f"{chain if chains else ''}/{residue}/{name}" for chain, residue, name in columns]


def superposed(moving: Structure, fixed: Structure) -> Structure:
    """`moving` turned and shifted so that the atoms it shares with `fixed` lie closest (Kabsch 1976)."""
    a, b = (s.positions for s in matched(moving, fixed))
    u, _, v = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
    u[:, -1] *= np.sign(np.linalg.det(u @ v))
    return moving.at((moving.positions - a.mean(0)) @ u @ v + b.mean(0))


def morph(first: Structure, last: Structure, frames: int) -> list[Structure]:
    """`frames` structures from one to the other along straight lines, of the atoms that both share.

    Raises:
        DataError: if fewer than two frames are asked for, or fewer than three atoms match.
    """
    if frames < 2:
        raise DataError(f"morph: a way between two structures has at least 2 frames, got {frames}.")
    start, stop = matched(first, last)
    return [start.at((1 - t) * start.positions + t * stop.positions) for t in np.linspace(0, 1, frames)]
