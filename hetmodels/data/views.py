"""From where, and through which optics, simulated particles are seen: drawn at random or taken from a particle file."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import scipy.spatial.transform

from hetmodels.errors import UsageError

if TYPE_CHECKING:
    from hetmodels.data.metadata import Metadata
    from hetmodels.imaging.ctf import Ctf

SCALARS = ("defocus_u", "defocus_v", "azimuth", "voltage", "spherical", "amplitude", "phase_shift", "bfactor", "scale")


@dataclasses.dataclass(frozen=True)
class Microscope:
    """The range of optics to draw from.

    Attributes:
        defocus: lowest and highest defocus [Å], underfocus positive.
        astigmatism: standard deviation of defocus U - V over micrographs [Å].
        voltage: [kV].
        spherical: spherical aberration [Å].
        amplitude: amplitude contrast, 0 to 1.
    """

    defocus: tuple[float, float] = (10_000.0, 25_000.0)
    astigmatism: float = 200.0
    voltage: float = 300.0
    spherical: float = 2.7e7
    amplitude: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.defocus
        if not 0 < low <= high or high < 100:
            raise UsageError(
                f"Microscope: the defocus range must rise from above 0, in Å (1 µm = 10000 Å), got {low:g} to {high:g}."
            )
        if not (self.voltage > 0 and self.spherical >= 0 and 0 <= self.amplitude <= 1 and self.astigmatism >= 0):
            raise UsageError(
                f"Microscope: needs voltage > 0, Cs >= 0 and amplitude contrast in 0 … 1, got {self.voltage:g} kV, "
                f"{self.spherical / 1e7:g} mm, {self.amplitude:g}."
            )

    def draw(self, rng: np.random.Generator, micrograph: np.ndarray) -> dict[str, np.ndarray]:
        """CTF parameters, alike for the particles of a micrograph; defoci are spread evenly over the range.

        Args:
            rng: source of random numbers.
            micrograph: number of each particle's micrograph, (n,).
        """
        count = int(micrograph.max()) + 1
        low, high = self.defocus
        mean = low + (high - low) * (rng.permutation(count) + rng.uniform(size=count)) / count
        half = rng.normal(0, self.astigmatism / 2, count)
        azimuth = rng.uniform(0, np.pi, count)
        each = np.ones(len(micrograph))
        return {
            "defocus_u": (mean + np.abs(half))[micrograph],
            "defocus_v": (mean - np.abs(half))[micrograph],
            "azimuth": azimuth[micrograph],
            "voltage": self.voltage * each,
            "spherical": self.spherical * each,
            "amplitude": self.amplitude * each,
            "phase_shift": 0 * each,
            "bfactor": 0 * each,
            "scale": each,
        }


@dataclasses.dataclass(frozen=True)
class Views:
    """One pose, micrograph and CTF per particle.

    Attributes:
        rotation: RELION matrices A, (n, 3, 3).
        shift: content shift t [Å], (n, 2).
        micrograph: names, (n,).
        ctf: parameters by the names of `SCALARS`, (n,) each; None for images without CTF.
        notes: what was not taken over from a particle file.
    """

    rotation: np.ndarray
    shift: np.ndarray
    micrograph: np.ndarray
    ctf: dict[str, np.ndarray] | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rotation)

    def optics(self, rows: np.ndarray) -> "Ctf":
        """The CTF of some particles.

        Raises:
            UsageError: if these views have no CTF.
        """
        from hetmodels.imaging.ctf import Ctf

        if self.ctf is None:
            raise UsageError("Views: these particles are seen without CTF.")
        n = len(rows)
        empty = {"beam_tilt": np.zeros((n, 2)), "odd": np.zeros((n, 0)), "even": np.zeros((n, 0))}
        scalars = {name: self.ctf[name][rows] for name in SCALARS}
        return Ctf(**scalars, **empty, stretch=np.broadcast_to(np.eye(2), (n, 2, 2)))


def uniform_rotations(rng: np.random.Generator, count: int) -> np.ndarray:
    """Rotation matrices drawn uniformly from SO(3), (count, 3, 3)."""
    quaternions = rng.normal(size=(count, 4))
    return scipy.spatial.transform.Rotation.from_quat(quaternions).as_matrix()


def random_views(
    rng: np.random.Generator, count: int, microscope: Microscope | None, shift_sd: float = 0.0, per_micrograph: int = 50
) -> Views:
    """Uniform directions, Gaussian shifts, and micrographs of `per_micrograph` particles with a CTF each.

    Small sets get smaller micrographs, so that there are 20 of them and splits by micrograph remain possible.

    Args:
        rng: source of random numbers.
        count: number of particles.
        microscope: optics to draw from; None for images without CTF.
        shift_sd: standard deviation of the shifts along each axis [Å].
        per_micrograph: particles of a micrograph.
    """
    number = _micrographs(count, per_micrograph)
    rotation, shift = uniform_rotations(rng, count), rng.normal(0, 1, (count, 2)) * shift_sd
    ctf = None if microscope is None else microscope.draw(rng, number)
    return Views(rotation, shift, _names(number), ctf)


def _micrographs(count: int, per_micrograph: int) -> np.ndarray:
    if count < 1 or per_micrograph < 1:
        raise UsageError(f"simulate: the number of particles must be at least 1, got {count}.")
    return np.arange(count) // max(1, min(per_micrograph, count // 20))


def _names(number: np.ndarray) -> np.ndarray:
    return np.array([f"micrograph_{i + 1:05d}.mrc" for i in range(int(number.max()) + 1)])[number]


def views_like(
    metadata: "Metadata",
    rng: np.random.Generator,
    count: int | None = None,
    shift_sd: float = 0.0,
    no_ctf: bool = False,
) -> Views:
    """Poses, micrographs and CTF of a particle file; rows are repeated in order where more are asked for.

    Poses that the file lacks are drawn uniformly.

    Args:
        metadata: the particle table.
        rng: source of random numbers.
        count: number of particles; all rows of the file if None.
        shift_sd: standard deviation of shifts [Å], used where the file has no poses.
        no_ctf: leave the file's CTF out.

    Raises:
        UsageError: if the file has no CTF and `no_ctf` is not set.
    """
    size = len(metadata.row)
    rows = np.arange(size if count is None else count) % size
    notes = []
    if metadata.ctf is None and not no_ctf:
        raise UsageError(f"{metadata.path}: has no CTF to take over ({metadata.ctf_reason}); add --no-ctf.")
    drawn = random_views(rng, len(rows), None, shift_sd)
    rotation, shift = drawn.rotation, drawn.shift
    if metadata.rotation is None:
        notes.append(f"{metadata.path}: has no poses ({metadata.pose_reason}); they were drawn uniformly.")
    else:
        rotation = np.asarray(metadata.rotation, np.float64)[rows]
        shift = np.zeros((len(rows), 2)) if metadata.shift is None else np.asarray(metadata.shift, np.float64)[rows]
    names = drawn.micrograph if metadata.micrograph is None else np.asarray(metadata.micrograph)[rows]
    if no_ctf or metadata.ctf is None:
        return Views(rotation, shift, names, None, tuple(notes))
    notes += _left_out(metadata)
    ctf = {name: np.asarray(metadata.ctf[name], np.float64)[rows] for name in SCALARS}
    return Views(rotation, shift, names, ctf, tuple(notes))


def _left_out(metadata: "Metadata") -> list[str]:
    """What of the file's optics is not simulated."""
    ctf = metadata.ctf or {}
    kinds = {"beam_tilt": "beam tilt", "odd": "odd aberrations", "even": "even aberrations"}
    found = [text for name, text in kinds.items() if np.any(ctf.get(name, 0))]
    if "stretch" in ctf and not np.allclose(ctf["stretch"], np.eye(2)):
        found.append("anisotropic magnification or a differing pixel size")
    return [f"{metadata.path}: not taken over: {', '.join(found)}."] if found else []
