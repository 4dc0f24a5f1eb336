"""Particle sets with known truth: OUT.star, OUT.mrcs and OUT.truth/, all scaled so that the noise has variance 1.

Image = contrast x CTF x shift x projection + noise. The projections are those of `hetmodels.data.projectors`, never
those that fit. The signal-to-noise ratio is the variance of the noise-free images over all pixels of the box, mean
over the set, over the variance of the noise. The true maps carry the same scale as the images.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.fft

from hetmodels.data.maps import Map, write_map
from hetmodels.data.projectors import projector
from hetmodels.data.simulated_star import particle_star, truth_star
from hetmodels.data.stackfile import StackFile, stack_file
from hetmodels.data.views import Views
from hetmodels.errors import DataError, UsageError
from hetmodels.volumes.gaussians import Gaussians

CHUNK = 256  # images made at a time


@dataclasses.dataclass(frozen=True)
class White:
    """Noise of the same power at every frequency."""

    def power(self, frequency: np.ndarray) -> np.ndarray:
        """Relative power at frequencies [1/Å]."""
        return np.ones_like(frequency)


@dataclasses.dataclass(frozen=True)
class Coloured:
    """Noise that rises towards low frequencies, as that of ice and of a detector does: 1 + rise / (1 + (k d)^2).

    Attributes:
        rise: excess of power at zero frequency.
        distance: d, where the excess has fallen to half [Å].
    """

    rise: float = 4.0
    distance: float = 40.0

    def power(self, frequency: np.ndarray) -> np.ndarray:
        """Relative power at frequencies [1/Å]."""
        return 1 + self.rise / (1 + (frequency * self.distance) ** 2)


@dataclasses.dataclass(frozen=True)
class Recording:
    """How the images are recorded.

    Attributes:
        box: image edge in pixels.
        pixel: pixel size [Å].
        snr: signal-to-noise ratio; infinite for images without noise, whose mean variance is then 1.
        noise: spectrum of the noise.
        contrast_sd: standard deviation of the particles' contrast about 1.
        weights: relative numbers of the states; equal if None.
    """

    box: int
    pixel: float
    snr: float = 0.1
    noise: White | Coloured = White()
    contrast_sd: float = 0.0
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.box < 4 or not self.pixel > 0 or not np.isfinite(self.pixel):
            raise UsageError(
                f"simulate: needs a box of at least 4 pixels and a pixel size > 0, got {self.box} and {self.pixel:g} Å."
            )
        if not self.snr > 0 or not self.contrast_sd >= 0:
            raise UsageError(
                f"simulate: needs snr > 0 and contrast_sd >= 0, got {self.snr:g} and {self.contrast_sd:g}; "
                "an infinite snr gives images without noise."
            )


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What was written.

    Attributes:
        star: particle table.
        stack: images.
        truth: folder with truth.star and one map per state.
        counts: particles of each state, (states,).
        scale: factor between the volumes given and the ones in the images and true maps.
        signal: mean variance of the noise-free images as written.
    """

    star: Path
    stack: Path
    truth: Path
    counts: tuple[int, ...]
    scale: float
    signal: float


def simulate(
    out: str | Path,
    volumes: Sequence[Gaussians | Map],
    views: Views,
    recording: Recording,
    *,
    seed: int,
    latents: np.ndarray | None = None,
    overwrite: bool = False,
    track: Callable[[Iterable], Iterable] = iter,
) -> Simulated:
    """Write a particle set; the same arguments give the same files.

    Args:
        out: path of the particle table, *.star; the stack and the folder of the truth stand beside it.
        volumes: one density per state, centred in the box.
        views: pose, micrograph and CTF of each particle.
        recording: box, noise and contrast.
        seed: of the states, contrasts and noise.
        latents: coordinates of the states, (states, dims); None if they have none.
        overwrite: replace existing files.
        track: wraps the loops over chunks, for a progress bar.

    Raises:
        UsageError: if the output exists, or the weights or latents do not fit the volumes.
        DataError: if the images have no contrast.
    """
    star, stack, truth = outputs(out, overwrite)
    rng = np.random.default_rng([seed, 1])
    state = _states(rng, len(volumes), recording.weights, len(views))
    contrast = rng.normal(1, recording.contrast_sd, len(views))
    if latents is not None and len(latents) != len(volumes):
        raise UsageError(f"simulate: needs latents for each of {len(volumes)} states, got {len(latents)}.")
    partial = [p.with_name(f".{p.name}.{os.getpid()}") for p in (star, stack, truth)]
    box, pixel = recording.box, recording.pixel
    try:
        with stack_file(partial[1], len(views), box, pixel) as file:
            signal = _write_signals(file, volumes, views, state, contrast, track)
            scale = float(np.sqrt((recording.snr if np.isfinite(recording.snr) else 1.0) / signal))
            _add_noise(file, recording, scale, rng, track)
        partial[0].write_text(particle_star(views, stack.name, box, pixel))
        partial[2].mkdir()
        (partial[2] / "truth.star").write_text(truth_star(views, stack.name, state, contrast, latents))
        for number, volume in enumerate(volumes, 1):
            density = projector(volume, box, pixel).density() * np.float32(scale)
            write_map(partial[2] / f"state_{number:03d}.mrc", density, pixel)
        if truth.exists():
            shutil.rmtree(truth)
        for temporary, final in zip(reversed(partial), (truth, stack, star), strict=True):
            os.replace(temporary, final)
    finally:
        for temporary in partial:
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
    counts = tuple(int(n) for n in np.bincount(state, minlength=len(volumes)))
    return Simulated(star, stack, truth, counts, scale, signal * scale**2)


def outputs(out: str | Path, overwrite: bool) -> tuple[Path, Path, Path]:
    """Paths of the table, the stack and the folder of the truth.

    Raises:
        UsageError: if the name does not end in .star, or one of them exists and may not be replaced.
    """
    star = Path(out)
    if star.suffix != ".star":
        raise UsageError(f"{star}: the particle table to be written must be named *.star.")
    paths = star, star.with_suffix(".mrcs"), star.with_suffix(".truth")
    for path, folder in zip(paths, (False, False, True), strict=True):
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists. Add --overwrite to replace it, or give another name.")
        if path.exists() and path.is_dir() != folder:
            raise UsageError(f"{path} is in the way: it is not a {'folder' if folder else 'file'}. Give another name.")
    return paths


def _states(rng: np.random.Generator, states: int, weights: tuple[float, ...] | None, count: int) -> np.ndarray:
    """State of each particle, (count,)."""
    if states < 1:
        raise UsageError("simulate: needs at least one volume.")
    chance = np.ones(states) if weights is None else np.asarray(weights, float)
    if chance.shape != (states,) or not (chance >= 0).all() or not 0 < chance.sum() < np.inf:
        raise UsageError(f"simulate: needs {states} weights, none negative and not all zero, got {list(chance)}.")
    return rng.choice(states, size=count, p=chance / chance.sum())


def _write_signals(
    file: StackFile,
    volumes: Sequence[Gaussians | Map],
    views: Views,
    state: np.ndarray,
    contrast: np.ndarray,
    track: Callable[[Iterable], Iterable],
) -> float:
    """Write the noise-free images, state after state, so that one projector is held at a time; their mean variance."""
    order = np.argsort(state, kind="stable")
    current, project, total = -1, None, 0.0
    for rows in track([order[i : i + CHUNK] for i in range(0, len(order), CHUNK)]):
        transforms = _optics(views, rows, file.box, file.pixel)
        transforms *= contrast[rows, None, None].astype(np.float32)
        for number in np.unique(state[rows]):
            if number != current:
                current, project = number, projector(volumes[number], file.box, file.pixel)
            here = state[rows] == number
            transforms[here] *= project(views.rotation[rows[here]])  # type: ignore[misc]
        images = scipy.fft.irfft2(transforms, s=(file.box, file.box), norm="ortho")
        total += float(images.var(axis=(1, 2), dtype=np.float64).sum())
        file.put(rows, scipy.fft.fftshift(images, axes=(1, 2)))
    if not 0 < total < np.inf:
        raise DataError(
            f"simulate: the volumes give images of variance {total:g}; are they empty, or far outside the box?"
        )
    return total / len(views)


def _frequencies(box: int, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies kx and ky [1/Å] in the layout of rfft2, broadcastable."""
    return np.fft.rfftfreq(box, pixel)[None, :], np.fft.fftfreq(box, pixel)[:, None]


def _optics(views: Views, rows: np.ndarray, box: int, pixel: float) -> np.ndarray:
    """CTF times shift, complex64 (rows, box, box//2 + 1)."""
    kx, ky = _frequencies(box, pixel)
    tx, ty = views.shift[rows].T[:, :, None, None]
    factor = (np.exp(-2j * np.pi * kx * tx) * np.exp(-2j * np.pi * ky * ty)).astype(np.complex64)
    if views.ctf is None:
        return factor
    import jax.numpy as jnp

    points = np.stack(np.broadcast_arrays(kx, ky), axis=-1).reshape(-1, 2)
    full = np.resize(rows, CHUNK)  # one shape, compiled once
    transfer = np.asarray(views.optics(full).transfer(jnp.asarray(points, jnp.float32)))[: len(rows)]
    return factor * transfer.reshape(factor.shape).astype(np.float32)


def _add_noise(
    file: StackFile, recording: Recording, scale: float, rng: np.random.Generator, track: Callable[[Iterable], Iterable]
) -> None:
    """Scale the images in place and add noise of variance 1."""
    box = file.box
    power = recording.noise.power(np.hypot(*np.broadcast_arrays(*_frequencies(box, file.pixel))))
    gain = np.sqrt(power / _plane_mean(power, box)).astype(np.float32)
    file.restart()
    for start in track(range(0, file.count, CHUNK)):
        stop = min(start + CHUNK, file.count)
        images = file.get(start, stop) * np.float32(scale)
        if np.isfinite(recording.snr):
            noise = rng.standard_normal(images.shape, np.float32)
            if not isinstance(recording.noise, White):
                noise = scipy.fft.irfft2(scipy.fft.rfft2(noise) * gain, s=(box, box))
            images += noise
        file.put(np.arange(start, stop), images)


def _plane_mean(half: np.ndarray, box: int) -> float:
    """Mean over the whole plane of an even function given in the layout of rfft2."""
    columns = half.sum(0)
    alone = columns[0] + (columns[-1] if box % 2 == 0 else 0)
    return float(2 * columns.sum() - alone) / box**2
