"""Fourier shell correlation between maps, what it says about resolution and signal, and its file.

Shells are round(|xi|) as in RELION, up to (N-1)//2, the last one that images carry. The curves and the area used by
CryoBench follow that benchmark's own shells, see `cryobench_curve`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from hetmodels.analysis import fourier
from hetmodels.errors import DataError
from hetmodels.run_directory import write_text


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where a curve first falls below a threshold.

    Attributes:
        resolution: [Å], interpolated linearly in frequency; the limit of the band if the curve never falls below
            the threshold, the box edge if it lies below it from the first shell on.
        crossed: whether there is such a crossing inside the band.
        recrossings: resolutions [Å] at which the curve comes up through the threshold again.
    """

    resolution: float
    crossed: bool
    recrossings: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Curve:
    """A Fourier shell correlation.

    Attributes:
        correlation: one value per shell, shell 0 (the mean, absent from the data) set to 1, (shells,).
        voxels: points of the full Fourier volume in each shell, (shells,).
        size: box edge [voxels].
        spacing: voxel size [Å].
        fraction: part of the box inside the mask, 1 without one.
    """

    correlation: np.ndarray
    voxels: np.ndarray
    size: int
    spacing: float
    fraction: float = 1.0

    @property
    def frequency(self) -> np.ndarray:
        """Frequency of each shell [1/Å], (shells,)."""
        return np.arange(len(self.correlation)) / (self.size * self.spacing)

    @property
    def independent(self) -> np.ndarray:
        """Independent complex voxels per shell: half of its points times the mask's part of the box, at least 1."""
        return np.maximum(0.5 * self.voxels * self.fraction, 1.0)

    def sd(self) -> np.ndarray:
        """Expected standard deviation (1 - F²)/√(2n), n = `independent`: each voxel brings two real pairs."""
        return (1.0 - np.minimum(self.correlation**2, 1.0)) / np.sqrt(2.0 * self.independent)

    def resolution(self, threshold: float) -> Crossing:
        """First crossing of the threshold and any return above it."""
        f, box = self.correlation, self.size * self.spacing
        below = f < threshold
        down = [k for k in range(2, len(f)) if below[k] and not below[k - 1]]
        up = [k for k in range(2, len(f)) if below[k - 1] and not below[k]]

        def at(k: int) -> float:
            return box / (k - 1 + (f[k - 1] - threshold) / (f[k - 1] - f[k]))

        if below[1]:
            return Crossing(box, False, tuple(at(k) for k in up))
        if not down:
            return Crossing(box / (len(f) - 1), False)
        return Crossing(at(down[0]), True, tuple(at(k) for k in up if k > down[0]))


@dataclasses.dataclass(frozen=True)
class HalfMaps:
    """The correlation of two half maps; the last four only with a mask.

    Attributes:
        unmasked: curve of the maps as they are.
        masked: curve of the maps times the mask.
        randomised: the same after the phases were randomised from shell `randomised_from` on.
        corrected: masked curve freed of the correlation that the mask itself brings.
        randomised_from: first shell with random phases.
    """

    unmasked: Curve
    masked: Curve | None = None
    randomised: Curve | None = None
    corrected: Curve | None = None
    randomised_from: int | None = None

    @property
    def final(self) -> Curve:
        """The corrected curve where there is one, else the unmasked one."""
        return self.corrected or self.unmasked


def correlation(a: np.ndarray, b: np.ndarray, index: np.ndarray, shells: int) -> np.ndarray:
    """Shell correlation of two half-volume transforms; 0 where a shell of either is empty, (shells,)."""
    cross = fourier.shell_sum((a * b.conj()).real, index, shells)
    power = [fourier.shell_sum(x.real**2 + x.imag**2, index, shells) for x in (a, b)]
    scale = np.sqrt(power[0] * power[1])
    return np.divide(cross, scale, out=np.zeros(shells), where=scale > 0)


def _transforms(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    a, b = fourier.check_map(a, "first map"), fourier.check_map(b, "second map")
    if a.shape != b.shape:
        raise DataError(f"FSC: both maps must have the same box, found {a.shape[0]} and {b.shape[0]} voxels.")
    if mask is not None:
        if mask.shape != a.shape:
            raise DataError(f"FSC: the mask must have the box of the maps, {a.shape[0]}, found {mask.shape[0]} voxels.")
        a, b = a * mask, b * mask
    return fourier.forward(a), fourier.forward(b)


def fsc(a: np.ndarray, b: np.ndarray, spacing: float, mask: np.ndarray | None = None) -> Curve:
    """Fourier shell correlation of two maps, multiplied by the mask if one is given.

    Args:
        a: map (N, N, N).
        b: map (N, N, N).
        spacing: voxel size [Å].
        mask: weights 0 … 1, (N, N, N).

    Raises:
        DataError: if boxes differ or voxels are not finite.
    """
    return from_transforms(*_transforms(a, b, mask), spacing, 1.0 if mask is None else float(mask.mean()))


def from_transforms(fa: np.ndarray, fb: np.ndarray, spacing: float, fraction: float = 1.0) -> Curve:
    """`fsc` of two half-volume transforms; `fraction` is the mask's part of the box."""
    size = fa.shape[0]
    shells, index = (size - 1) // 2 + 1, fourier.shell_index(size)
    values = correlation(fa, fb, index, shells)
    values[0] = 1.0
    voxels = fourier.shell_sum(np.ones(index.shape), index, shells)
    return Curve(values, voxels, size, spacing, fraction)


def randomise_phases(volume: np.ndarray, first: int, seed: int) -> np.ndarray:
    """The map with its amplitudes kept and its phases drawn anew in the shells from `first` on."""
    size = volume.shape[0]
    noise = fourier.forward(np.random.default_rng(seed).standard_normal(volume.shape, dtype=np.float32))
    transform = fourier.forward(volume)
    beyond = fourier.shell_index(size) >= first
    transform[beyond] = (np.abs(transform) * noise / np.maximum(np.abs(noise), 1e-20))[beyond]
    return fourier.inverse(transform, size)


def half_map_fsc(
    a: np.ndarray, b: np.ndarray, spacing: float, mask: np.ndarray | None = None, *, seed: int = 0, below: float = 0.8
) -> HalfMaps:
    """Correlation of two half maps, corrected for the mask by random phases (Chen et al. 2013).

    F_true = (F_masked - F_random)/(1 - F_random), from two shells after the first with an unmasked F < `below`;
    closer to it the mask still spreads true phases into the randomised shells.

    Args:
        a: half map (N, N, N).
        b: half map (N, N, N).
        spacing: voxel size [Å].
        mask: weights 0 … 1, (N, N, N).
        seed: of the random phases.
        below: unmasked correlation from which phases are randomised.

    Raises:
        DataError: if boxes differ or voxels are not finite.
    """
    unmasked = fsc(a, b, spacing)
    if mask is None:
        return HalfMaps(unmasked)
    masked = fsc(a, b, spacing, mask)
    low = np.flatnonzero(unmasked.correlation < below)
    if not low.size:
        return HalfMaps(unmasked, masked, None, masked, None)
    first = int(low[0])
    randomised = fsc(randomise_phases(a, first, seed), randomise_phases(b, first, seed + 1), spacing, mask)
    total, random = masked.correlation, randomised.correlation
    values = total.copy()
    values[first + 2 :] = ((total - random) / np.maximum(1.0 - random, 1e-6))[first + 2 :]
    return HalfMaps(unmasked, masked, randomised, dataclasses.replace(masked, correlation=values), first)


def reference_correlation(half: np.ndarray) -> np.ndarray:
    """C_ref = sqrt(2F/(1+F)), the correlation of the joined map with the truth; 0 where F < 0.

    >>> round(float(reference_correlation(np.array(1 / 7))), 12)
    0.5
    """
    half = np.clip(half, 0.0, 1.0)
    return np.sqrt(2.0 * half / (1.0 + half))


def ssnr_from_half(half: np.ndarray) -> np.ndarray:
    """Spectral signal-to-noise ratio of the joined map, 2F/(1-F), from the correlation of its halves."""
    half = np.clip(half, 0.0, 1.0 - 1e-12)
    return 2.0 * half / (1.0 - half)


def half_from_ssnr(ssnr: np.ndarray) -> np.ndarray:
    """Correlation of the halves, (S/2)/(1 + S/2), where the joined map has the signal-to-noise ratio S."""
    return ssnr / (2.0 + ssnr)


def truth_from_ssnr(ssnr: np.ndarray) -> np.ndarray:
    """Correlation with the noise-free map, sqrt(S/(1+S)), of a map with the signal-to-noise ratio S."""
    return np.sqrt(ssnr / (1.0 + ssnr))


def cryobench_curve(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The correlation in CryoBench's shells: entry i holds i-1 <= |xi| < i and stands for frequency i/N; entry 0 is 1.

    Args:
        a: map (N, N, N).
        b: map (N, N, N).
        mask: weights 0 … 1, (N, N, N).

    Returns:
        Entries 0 … N//2 - 1, not clipped.
    """
    return cryobench_correlation(*_transforms(a, b, mask))


def cryobench_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`cryobench_curve` of two half-volume transforms."""
    size = a.shape[0]
    values = correlation(a, b, np.floor(fourier.radius(size)).astype(np.int32) + 1, size // 2)
    values[0] = 1.0
    return values


def area(curve: np.ndarray, size: int) -> float:
    """Area under |FSC| over i/N by trapezoids, as CryoBench scores single images: at best (N//2 - 1)/N.

    >>> area(np.ones(64), 128)
    0.4921875
    """
    return float(np.trapezoid(np.abs(curve), dx=1.0 / size))


def write_fsc_star(path: str | Path, halves: HalfMaps) -> None:
    """Write the curves under RELION's names, with the expected standard deviation; replaces the file at once.

    Args:
        path: file to write.
        halves: curves of `half_map_fsc`.
    """
    final = halves.final
    box = final.size * final.spacing
    shells = np.arange(len(final.correlation))
    columns = {
        "rlnSpectralIndex": [f"{k:d}" for k in shells],
        "rlnResolution": [f"{k / box:.6f}" for k in shells],
        "rlnAngstromResolution": [f"{box / k:.4f}" if k else "999.0000" for k in shells],
        "rlnFourierShellCorrelationCorrected": _text(final.correlation),
        "rlnFourierShellCorrelationUnmaskedMaps": _text(halves.unmasked.correlation),
    }
    if halves.masked is not None:
        columns["rlnFourierShellCorrelationMaskedMaps"] = _text(halves.masked.correlation)
    if halves.randomised is not None:
        columns["rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps"] = _text(halves.randomised.correlation)
    columns["hetFourierShellCorrelationSd"] = _text(final.sd())
    head = ["", "data_fsc", "", "loop_", *(f"_{name} #{i}" for i, name in enumerate(columns, 1))]
    rows = ["  ".join(f"{cell:>10}" for cell in row) for row in zip(*columns.values(), strict=True)]
    write_text(Path(path), "\n".join([*head, *rows, ""]) + "\n")


def _text(values: np.ndarray) -> list[str]:
    return [f"{v:.6f}" for v in values]
