"""Weights of particles around a point of the latent space, for a reconstruction that does not use the model's maps.

A particle counts by how probable the point is for it, omega_i = N(z*; m_i, S_i + h² C): m_i and S_i are its posterior,
C the covariance of the latents over particles (so that the bandwidth h does not depend on their units). A small h keeps
few particles, a large one blurs over conformations. h is chosen shell by shell by cross-validation: the map of one half
set with bandwidth h is compared with the map of the other half with the narrowest one, whose noise is independent
(Gilles and Singer 2025, PNAS 122).
"""

import dataclasses
from typing import Protocol

import numpy as np

from hetmodels.analysis import fourier
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior

FEWEST = 100  # particles that the narrowest bandwidth keeps
BANDWIDTHS = 6
NEGLIGIBLE = 1e-3  # of the largest weight


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """Particles around a point.

    Attributes:
        z: the point, (dims,).
        mean: posterior means of all particles, (N, dims).
        covariance: their posterior covariances, (N, dims, dims).
        spread: covariance of the means over particles, (dims, dims).
        usable: particles that may count, bool (N,).
    """

    z: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    spread: np.ndarray
    usable: np.ndarray

    @classmethod
    def of(cls, posterior: Posterior, z: np.ndarray) -> "Kernel":
        """Around a latent of a run; held-out particles and junk do not count.

        Raises:
            UsageError: if there are no continuous latents, or z has not their number.
        """
        local = posterior.local
        dims = local["mean"].shape[1] if local else 0
        if not dims or np.size(z) != dims:
            raise UsageError(f"kernel: the point needs the {dims} coordinates of the run's latents, got {np.size(z)}.")
        usable = ~local["held_out"].astype(bool)
        if "outlier" in local:
            usable &= local["outlier"] < 0.5
        mean = np.asarray(local["mean"], float)
        spread = np.atleast_2d(np.cov(mean[usable].T)) + 1e-12 * np.eye(dims)
        return cls(np.ravel(z).astype(float), mean, np.asarray(local["covariance"], float), spread, usable)

    def weights(self, bandwidth: float) -> np.ndarray:
        """omega of all particles, the largest 1, negligible ones 0, (N,)."""
        wide = self.covariance + bandwidth**2 * self.spread
        apart = self.z - self.mean
        distance = np.einsum("ni,ni->n", apart, np.linalg.solve(wide, apart[..., None])[..., 0])
        log = -0.5 * (distance + np.linalg.slogdet(wide)[1])
        log = np.where(self.usable, log, -np.inf)
        found = np.exp(log - log.max())
        return np.where(found < NEGLIGIBLE, 0, found)

    def bandwidths(self, count: int = BANDWIDTHS) -> np.ndarray:
        """Bandwidths with effective numbers of particles in a geometric series, narrowest first.

        From as narrow as keeps `FEWEST` particles, or as the posteriors themselves are wide, to half of all.
        """
        grid = np.geomspace(1e-3, 30, 60)
        numbers = np.maximum.accumulate([effective_number(self.weights(h)) for h in grid])
        most = 0.5 * self.usable.sum()
        fewest = min(max(FEWEST, numbers[0]), most)
        wanted = np.geomspace(fewest, max(most, fewest * 1.01), count)
        return np.interp(np.log(wanted), np.log(numbers), grid)


def effective_number(weights: np.ndarray) -> float:
    """(sum omega)² / sum omega²."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def permuted(weights: np.ndarray, half: np.ndarray, usable: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same weights on other particles of the same half set at random: the control of equal size."""
    out = np.zeros_like(weights)
    for side in (0, 1):
        rows = np.flatnonzero(usable & (half == side))
        out[rows] = weights[rng.permutation(rows)]
    return out


def choose_by_shell(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each shell the number of the bandwidth whose map predicts the other half best.

    Args:
        first: maps of the first half, narrowest bandwidth first, (bandwidths, N, N, N), hardly regularised.
        second: of the second half.

    Returns:
        (shells,) numbers of bandwidths.
    """
    size = first.shape[-1]
    index, shells = fourier.shell_index(size), (size - 1) // 2 + 1
    a, b = (np.stack([fourier.forward(m) for m in maps]) for maps in (first, second))
    losses = [
        fourier.shell_sum(np.abs(one - b[0]) ** 2, index, shells)
        + fourier.shell_sum(np.abs(other - a[0]) ** 2, index, shells)
        for one, other in zip(a, b, strict=True)
    ]
    return np.argmin(losses, axis=0)


def joined(maps: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """A map that has each shell from the bandwidth chosen for it.

    Args:
        maps: (bandwidths, N, N, N).
        chosen: numbers of bandwidths, (shells,).
    """
    size = maps.shape[-1]
    index = fourier.shell_index(size)
    out = np.zeros(index.shape, complex)
    for number in np.unique(chosen):
        inside = (index < len(chosen)) & (chosen[np.minimum(index, len(chosen) - 1)] == number)
        out[inside] = fourier.forward(maps[number])[inside]
    return fourier.inverse(out, size).astype(np.float32)


class Solver(Protocol):
    """What makes a map of weighted particles, such as `inference.weighted.Reconstruction`."""

    def __call__(self, weights: np.ndarray, free: bool = False) -> np.ndarray:
        """The map (N, N, N) of particles with weights (particles,); `free` of regularisation as far as possible."""


@dataclasses.dataclass(frozen=True, eq=False)
class KernelMap:
    """The reconstruction at a point.

    Attributes:
        map: from both halves, each shell with the bandwidth chosen for it.
        half1, half2: of the half sets.
        control: the same weights on particles taken at random.
        bandwidths: those tried, in standard deviations of the latents.
        numbers: effective number of particles of each.
        chosen: number of the bandwidth of each shell.
    """

    map: np.ndarray
    half1: np.ndarray
    half2: np.ndarray
    control: np.ndarray
    bandwidths: np.ndarray
    numbers: np.ndarray
    chosen: np.ndarray


def kernel_map(posterior: Posterior, z: np.ndarray, solve: Solver, seed: int = 0) -> KernelMap:
    """Reconstruct the map at a latent from the particles around it.

    Args:
        posterior: of a run with continuous latents.
        z: the point, (dims,).
        solve: makes the maps.
        seed: of the control.

    Raises:
        UsageError: see `Kernel.of`.
    """
    kernel, half = Kernel.of(posterior, z), posterior.local["half"]
    widths = kernel.bandwidths()
    weights = [kernel.weights(h) for h in widths]
    tried = np.stack([[solve(w * (half == side), free=True) for w in weights] for side in (0, 1)])
    chosen = choose_by_shell(*tried)
    random = [permuted(w, half, kernel.usable, np.random.default_rng(seed)) for w in weights]

    def best(parts: list[np.ndarray]) -> np.ndarray:
        maps = np.zeros((len(widths), *tried.shape[-3:]), np.float32)
        for number in np.unique(chosen):
            maps[number] = solve(parts[number])
        return joined(maps, chosen)

    first, second = (best([w * (half == side) for w in weights]) for side in (0, 1))
    numbers = np.array([effective_number(w) for w in weights])
    return KernelMap(best(weights), first, second, best(random), widths, numbers, chosen)
