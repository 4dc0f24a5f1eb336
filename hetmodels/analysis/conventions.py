"""Whether the conventions of a particle file are what they claim: a short back-projection that tries the alternatives.

Each alternative is scored by prediction: the particles of either half set are reconstructed under it, and the map of
one half predicts the images of the other, log p(y | map) - log p(y | noise), in nats per particle. A wrong convention
cannot predict. What is tried: the shifts as they are, in pixels where they were taken for Å and the other way round,
of the other sign, and none; the pixel size, through the rings of the contrast transfer; phases flipped or not, and no
CTF; rotations turned about. The sign of the contrast changes nothing in a prediction and is read from the map, whose
density must have its long tail on the bright side.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from hetmodels.analysis import fourier
from hetmodels.data.particles import Particles
from hetmodels.imaging import accumulate
from hetmodels.imaging.grids import phase_ramp
from hetmodels.imaging.slices import Lattice

MOST, BOX = 2000, 64  # particles and box that are enough
CLEAR, SKEWED = 4.0, 0.5  # standard errors of a gain; skewness of a map from which its sign is sure
SHARE = 0.05  # of what poses tell, that other optics must gain: less may be the crude map's doing
SCALES = (0.25, 1 / 3, 0.5, 2 / 3, 0.8, 0.9, 0.95, 0.975, 1.0, 1.025, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
_NEAR = 0.03  # relative difference of pixel sizes that the rings of a small box cannot tell
_BATCH = 250


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """How the numbers of a file are to be read.

    Attributes:
        shift: factor on the shifts.
        pixel: factor on the pixel size, as the contrast transfer sees it.
        transfer: `signed`, `flipped` or `none`.
        turned: whether the rotations are the inverse ones.
        mixed: whether each particle has the rotation of another, as a control.
    """

    shift: float = 1.0
    pixel: float = 1.0
    transfer: str = "signed"
    turned: bool = False
    mixed: bool = False


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found about one convention.

    Attributes:
        name: of the convention.
        right: whether the file is right; None where the images cannot tell.
        words: what was found, in a sentence.
        cure: what to do, "" for nothing.
        gain, error: nats per particle by which the reading found is better than the file's, and its standard error;
            NaN where it is not read from a prediction.
    """

    name: str
    right: bool | None
    words: str
    cure: str = ""
    gain: float = float("nan")
    error: float = float("nan")


class Prober:
    """The particles of both half sets, ready to be reconstructed under any hypothesis."""

    def __init__(self, particles: Particles, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(len(particles))[: min(MOST, len(particles))])
        self.particles, self.count = particles, len(rows)
        self.half = np.arange(len(rows)) % 2
        disc, self.points = particles.disc, jnp.asarray(particles.disc.grid(particles.spacing).points)
        root = np.sqrt(particles.reference)[particles.group[rows]][:, disc.shell]
        self.images = particles.coefficients(rows) / np.maximum(root, 1e-30)
        self.root = (root / particles.gain).astype(np.float32)
        assert particles.rotation is not None
        self.rotation = np.asarray(particles.rotation[rows], np.float32)
        known = particles.shift
        self.shift = np.zeros((len(rows), 2)) if known is None else np.asarray(known[rows])
        self.ctf = None if particles.table.ctf is None or particles.table.no_ctf else particles.ctf.take(rows)
        self.lattice = Lattice(particles.size, particles.spacing, 1)
        self._kept: dict[Hypothesis, np.ndarray] = {}

    @cached_property
    def stated(self) -> Hypothesis:
        """The file as it stands."""
        if self.ctf is None:
            return Hypothesis(transfer="none")
        return Hypothesis(transfer="flipped" if self.particles.correction.flipped else "signed")

    def _transfer(self, about: Hypothesis) -> np.ndarray:
        """Of all images in units of the noise, (n, pixels)."""
        if self.ctf is None or about.transfer == "none":
            return 1 / self.root
        found = np.asarray(self.ctf.transfer(self.points / about.pixel))
        found = np.abs(found) if about.transfer == "flipped" else found
        return (found**2 if self.particles.correction.premultiplied else found) / self.root

    def _parts(self, about: Hypothesis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        moved = np.asarray(phase_ramp(self.points, jnp.asarray(-about.shift * self.shift, jnp.float32)))
        rotation = np.swapaxes(self.rotation, 1, 2) if about.turned else self.rotation
        rotation = np.roll(rotation, len(rotation) // 2, axis=0) if about.mixed else rotation
        return self.images * moved, self._transfer(about), rotation

    def halves(self, about: Hypothesis) -> np.ndarray:
        """Tables of both half maps, regularised by what they agree on, (2, rows, 2)."""
        images, transfer, rotation = self._parts(about)
        found = []
        for side in (0, 1):
            total = accumulate.empty(self.lattice, 1, 3)
            mine = np.flatnonzero(self.half == side)
            for rows in np.array_split(mine, max(len(mine) // _BATCH, 1)):
                cells = self.lattice.cells(jnp.asarray(rotation[rows]), self.points)
                back = images[rows] * transfer[rows]
                columns = [back.real, back.imag * np.asarray(cells.sign), transfer[rows] ** 2]
                total = accumulate.add(self.lattice, total, cells, jnp.asarray(np.stack(columns, axis=-1), jnp.float32))
            found.append(np.asarray(accumulate.table(total, 3), float))
        tables = np.stack(found)
        floor = 0.05 * np.median(tables[tables[..., 2] > 0, 2])
        one, other = tables[..., :2] / (tables[..., 2:] + floor)
        prior = self._prior(one, other, tables[..., 2].mean(0))
        return tables[..., :2] / (tables[..., 2] + prior)[..., None]

    @cached_property
    def _shell(self) -> np.ndarray:
        """Shell of each row of the table; those outside the band share the last."""
        edge, _, across = self.lattice._shape
        margin, half = self.lattice._margin, self.lattice.padded // 2
        line = np.arange(edge) - half - margin
        x = np.arange(across) - margin
        radius = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + x**2)
        return np.minimum(np.rint(radius).astype(int), self.particles.disc.shells).ravel()

    def _prior(self, one: np.ndarray, other: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Precision of the map's prior in the shell of each row, from the correlation F of two half maps.

        F = H / (H + 1/tau²) with the weight H that a half has in the shell on average.
        """
        count = np.maximum(np.bincount(self._shell), 1)
        both, first, second, weight = (
            np.bincount(self._shell, values) / count
            for values in ((one * other).sum(1), (one**2).sum(1), (other**2).sum(1), seen)
        )
        correlation = np.clip(both / np.maximum(np.sqrt(first * second), 1e-30), 1e-3, 1 - 1e-3)
        prior = weight * (1 - correlation) / correlation
        prior[-1] = 1e3 * seen.max()
        return prior[self._shell]

    def score(self, about: Hypothesis) -> np.ndarray:
        """Nats per particle of each image's prediction by the other half, (n,)."""
        if about in self._kept:
            return self._kept[about]
        tables, (images, transfer, rotation) = self.halves(about), self._parts(about)
        score = np.empty(self.count)
        for side in (0, 1):
            table = jnp.asarray(tables[1 - side], jnp.float32)
            mine = np.flatnonzero(self.half == side)
            for rows in np.array_split(mine, max(len(mine) // _BATCH, 1)):
                model = transfer[rows] * np.asarray(
                    _slices(self.lattice, table, jnp.asarray(rotation[rows]), self.points)
                )
                score[rows] = (2 * (images[rows].conj() * model).real - np.abs(model) ** 2).sum(1)
        self._kept[about] = score
        return score

    def control(self, about: Hypothesis) -> tuple[float, float]:
        """Nats per particle by which a hypothesis predicts better than with poses mixed, and the standard error."""
        return _mean(self.score(about) - self.score(dataclasses.replace(about, mixed=True)))

    def skewness(self, about: Hypothesis) -> tuple[float, float]:
        """Skewness of the map's density inside the inscribed sphere, and how far the halves differ in it."""
        size = self.particles.size
        line = np.arange(size) - size // 2
        inside = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2 < (0.48 * size) ** 2
        found = []
        for table in (*(tables := self.halves(about)), tables.mean(0)):
            half = np.stack([np.asarray(self.lattice.interior(jnp.asarray(c))) for c in table.T])
            centred = np.fft.ifftshift(half[0] + 1j * half[1], axes=(0, 1))
            found.append(float(scipy.stats.skew(fourier.inverse(centred, size)[inside])))
        return found[2], abs(found[0] - found[1]) / 2


@partial(jax.jit, static_argnums=0)
def _slices(lattice: Lattice, table: jax.Array, rotation: jax.Array, points: jax.Array) -> jax.Array:
    """Slices of a map given by its table, (n, pixels)."""
    return lattice.gather(table, lattice.cells(rotation, points))[..., 0]


def check_conventions(particles: Particles, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Try the conventions of a set with known poses.

    Args:
        particles: at best some hundreds, in a box of about `BOX`.
        say: told what is being tried.

    Raises:
        DataError: if there are no poses, or images cannot be read.
    """
    particles.require_even()
    particles.require_poses()
    probe = Prober(particles)
    best = _search(probe, say)
    gain, error = probe.control(best)
    if gain < CLEAR * error:
        words = (
            f"under no reading of the file does one half of {probe.count} particles predict the other better than with "
            f"poses exchanged between them ({gain:.2g} ± {error:.1g} nats each): the poses mean nothing, or the images "
            "are too few or too noisy"
        )
        return [Finding("poses", None, words, "", gain, error)]
    words = f"one half of {probe.count} particles predicts the other, {gain:.2g} nats each better than with poses mixed"
    return [
        Finding("poses", True, words, "", gain, error),
        _of_contrast(probe, best),
        _of_shifts(probe, best),
        *([] if probe.ctf is None else [_of_transfer(probe, best), _of_pixel(probe, best)]),
        *([_of_rotations(probe, best)] if best.turned else []),
    ]


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def _search(probe: Prober, say: Callable[[str], None]) -> Hypothesis:
    """Ascent from the file's own reading, a convention at a time, three times; a change must be clear to be made."""
    best = probe.stated
    pixel = probe.particles.spacing * probe.particles.size / probe.particles.packed.source.box
    optics: list[dict[str, Any]] = [{}]
    if probe.ctf is not None:
        optics = [{"transfer": name, "pixel": scale} for name in ("signed", "flipped") for scale in SCALES]
        optics.append({"transfer": "none", "pixel": 1.0})
    for _ in range(3):
        before, factors = best, {1.0, -1.0, 0.0, pixel, 1 / pixel, -pixel, -1 / pixel}
        for name in ("turned", "optics", "shift"):
            say(name)
            choices = {
                "turned": [{"turned": False}, {"turned": True}],
                "optics": optics,
                "shift": [{"shift": factor} for factor in sorted(factors | {1 / best.pixel})],
            }[name]
            first = max((dataclasses.replace(best, **c) for c in choices), key=lambda h: probe.score(h).sum())
            gain, error = _mean(probe.score(first) - probe.score(best))
            if gain > CLEAR * error and (name != "optics" or gain > SHARE * probe.control(best)[0]):
                best = first
        if best == before:
            break
    return best


def _against(probe: Prober, best: Hypothesis, field: str) -> tuple[float, float]:
    """Gain over the file's own reading of one field."""
    own = dataclasses.replace(best, **{field: getattr(probe.stated, field)})
    return _mean(probe.score(best) - probe.score(own))


def _of_contrast(probe: Prober, best: Hypothesis) -> Finding:
    skew, error = probe.skewness(best)
    if abs(skew) < max(SKEWED, 3 * error):
        return Finding("contrast", None, f"the map has no clear long tail (skewness {skew:.2f}), its sign is not sure")
    if skew > 0:
        return Finding("contrast", True, f"the map is bright as the file says (skewness {skew:.1f})")
    return Finding(
        "contrast", False, f"the map is dark where it should be bright (skewness {skew:.1f})",
        "change the sign of the images: --invert, or leave it out if you gave it",
    )  # fmt: skip


def _of_shifts(probe: Prober, best: Hypothesis) -> Finding:
    gain, error = _against(probe, best, "shift")
    none = dataclasses.replace(best, shift=0.0)
    over, over_error = _mean(probe.score(best) - probe.score(none))
    if best.shift in (1.0, 1 / best.pixel):
        if over > CLEAR * over_error:
            when = "as they are" if best.shift == 1 else "once the pixel size is right"
            return Finding("shifts", True, f"the shifts fit {when}, {over:.2g} nats better than none")
        return Finding("shifts", None, "the shifts are too small to tell in which unit they are")
    cure = f"multiply the origins of the file by {best.shift:.4g}"
    if best.shift == 0:
        return Finding("shifts", False, "no shifts fit better than those of the file", "set them to 0", gain, error)
    if best.shift < 0:
        cure += " (they have the other sign)"
    if not np.isclose(abs(best.shift), 1):
        cure += ": RELION's rlnOriginXAngst is in Å, rlnOriginX in pixels"
    return Finding("shifts", False, f"the shifts fit better times {best.shift:.4g}", cure, gain, error)


def _of_transfer(probe: Prober, best: Hypothesis) -> Finding:
    names = {"signed": "a CTF that changes sign", "flipped": "phases flipped", "none": "no CTF"}
    if best.transfer == probe.stated.transfer:
        others = [dataclasses.replace(best, transfer=name) for name in names if name != best.transfer]
        gain, error = min((_mean(probe.score(best) - probe.score(h)) for h in others), key=lambda pair: pair[0])
        if gain > CLEAR * error:
            return Finding("CTF", True, f"the images show {names[best.transfer]}, as the file says")
        return Finding("CTF", None, "the band is too narrow to tell how the CTF was treated")
    cure = {
        "flipped": "say that phases were flipped (rlnCtfDataAreCtfPhaseFlipped 1)",
        "signed": "say that phases were not flipped (rlnCtfDataAreCtfPhaseFlipped 0)",
        "none": "--no-ctf",
    }[best.transfer]
    gain, error = _against(probe, best, "transfer")
    return Finding("CTF", False, f"the images show {names[best.transfer]}", cure, gain, error)


def _of_pixel(probe: Prober, best: Hypothesis) -> Finding:
    if best.transfer == "none":
        return Finding("pixel size", None, "without a CTF nothing tells the pixel size")
    stated = float(probe.particles.table.pixel[probe.particles.rows].mean())
    factor = _peak(probe, best)
    if best.pixel != 1 and abs(factor - 1) > _NEAR:
        gain, error = _against(probe, best, "pixel")
        words = f"the rings of the CTF fit a pixel of {factor * stated:.3g} Å, the file says {stated:.4g} Å"
        return Finding("pixel size", False, words, f"--pixel {factor * stated:.3g}, or its true value", gain, error)
    wrong = [dataclasses.replace(best, pixel=f * best.pixel) for f in (0.8, 1.25)]
    gain, error = min((_mean(probe.score(best) - probe.score(h)) for h in wrong), key=lambda pair: pair[0])
    if gain < CLEAR * error:
        return Finding("pixel size", None, "the rings of the CTF do not reach far enough to tell the pixel size")
    words = f"the rings of the CTF fit the pixel size of {stated:.4g} Å (best {factor * stated:.3g} Å)"
    return Finding("pixel size", True, words)


def _peak(probe: Prober, best: Hypothesis) -> float:
    """Factor of the pixel size at the top of a parabola through the best one tried and its neighbours."""
    scales = np.array(SCALES)
    place = int(np.clip(np.argmin(np.abs(scales - best.pixel)), 1, len(scales) - 2))
    x = scales[place - 1 : place + 2]
    y = [probe.score(dataclasses.replace(best, pixel=float(s))).mean() for s in x]
    bend, slope, _ = np.polyfit(x - x[1], y, 2)
    return float(np.clip(x[1] - slope / (2 * bend), x[0], x[2])) if bend < 0 else float(x[1])


def _of_rotations(probe: Prober, best: Hypothesis) -> Finding:
    gain, error = _against(probe, best, "turned")
    words = "the images fit the inverse of the rotations"
    return Finding("rotations", False, words, "exchange rot and psi with their signs changed", gain, error)
