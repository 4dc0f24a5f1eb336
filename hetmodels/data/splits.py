"""Which particles form the two half sets, and which are held out of training.

Images of one micrograph share ice, drift and defocus errors, so whole micrographs go to one side. The splits depend
on nothing but the identity of the images, so that all runs on the same data share them.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from hetmodels.errors import UsageError

FEWEST = 20  # micrographs; with fewer, splitting by micrograph would leave the parts too unequal


HOLDOUT = 0.1  # fraction of the particles that do not train, unless another is asked for


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """The splits of a table.

    Attributes:
        unit: number of the group of particles that stays together, (N,).
        half: half set 0 or 1, int8 (N,).
        held_out: True where the particle must not train, bool (N,).
        seed: text that fixed the random order.
        note: a sentence that says how the splits were made.
    """

    unit: np.ndarray
    half: np.ndarray
    held_out: np.ndarray
    seed: str
    note: str

    def with_holdout(self, fraction: float) -> "Split":
        """The same half sets with another fraction held out; a larger one contains a smaller one.

        Raises:
            UsageError: if the fraction is not in 0 … 0.5.
        """
        if not 0 <= fraction <= 0.5:
            raise UsageError(f"--holdout: the held-out fraction must lie in 0 … 0.5, got {fraction}.")
        return dataclasses.replace(self, held_out=held_out(self.unit, self.half, fraction, self.seed))


def split(image: np.ndarray, micrograph: np.ndarray | None, subset: np.ndarray | None, seed: str) -> Split:
    """Half sets and held-out particles of a table.

    Args:
        image: number of the image that a row shows, (N,).
        micrograph: micrograph numbers, (N,), or None.
        subset: half sets 1 and 2 of the table, (N,), or None.
        seed: text that stands for the identity of the images.
    """
    unit, how = units(image, micrograph)
    half = half_sets(unit, subset, seed)
    halves = "the table's own" if subset is not None else how
    note = f"half sets: {halves}; held-out particles: {how}."
    return Split(unit, half, held_out(unit, half, HOLDOUT, seed), seed, note)


def number(labels: Sequence) -> np.ndarray:
    """Labels as numbers in order of appearance, int64 (N,)."""
    seen: dict = {}
    return np.fromiter((seen.setdefault(label, len(seen)) for label in labels), np.int64, len(labels))


def units(image: np.ndarray, micrograph: np.ndarray | None) -> tuple[np.ndarray, str]:
    """The groups of particles that a split keeps together, and words that say what they are.

    Args:
        image: numbers of the images, (N,); equal where two rows show the same image.
        micrograph: numbers of the micrographs, (N,), or None if unknown.

    Returns:
        Unit numbers from 0, int64 (N,), and the words.
    """
    if micrograph is None:
        return np.unique(image, return_inverse=True)[1], "by particle (the table names no micrographs)"
    count = len(np.unique(micrograph))
    if count < FEWEST:
        why = f"by particle (too few micrographs: {count})"
        return np.unique(image, return_inverse=True)[1], why
    return np.unique(micrograph, return_inverse=True)[1], f"by micrograph ({count} of them)"


def half_sets(unit: np.ndarray, subset: np.ndarray | None, seed: str) -> np.ndarray:
    """Half set 0 or 1 of each particle: the table's own (1, 2) where it has them, else whole units at random.

    Units go one after the other, in random order, to the half that is smaller at that moment; the halves then
    differ by at most the largest unit.

    Args:
        unit: unit numbers from 0, (N,).
        subset: half set 1 or 2 of the table (rlnRandomSubset), (N,), or None.
        seed: text that fixes the random order.

    Returns:
        int8 (N,).
    """
    if subset is not None:
        return (subset - 1).astype(np.int8)
    sizes = np.bincount(unit)
    order = _random("halves", seed).permutation(len(sizes))
    balance, sides = 0, []
    for size in sizes[order].tolist():
        sides.append(balance > 0)
        balance += -size if balance > 0 else size
    side = np.empty(len(sizes), np.int8)
    side[order] = sides
    return side[unit]


def held_out(unit: np.ndarray, half: np.ndarray, fraction: float, seed: str) -> np.ndarray:
    """Particles that must not train: whole units, a fraction as near as they allow to the one asked for.

    Units are taken in one random order that alternates between the halves; a larger fraction therefore contains a
    smaller one.

    Args:
        unit: unit numbers from 0, (N,).
        half: half set of each particle, (N,).
        fraction: wanted fraction, 0 <= fraction < 1.
        seed: text that fixes the random order.

    Returns:
        bool (N,).
    """
    sizes = np.bincount(unit)
    mostly = np.bincount(unit, half) * 2 > sizes
    place = _random("held out", seed).permutation(len(sizes))
    rank = np.empty(len(sizes), np.int64)
    for side in (False, True):
        members = np.flatnonzero(mostly == side)
        rank[members[np.argsort(place[members])]] = np.arange(len(members))
    order = np.lexsort((mostly, rank))
    total = np.r_[0, np.cumsum(sizes[order])]
    take = int(np.argmin(np.abs(total[:-1] - fraction * len(unit))))
    chosen = np.zeros(len(sizes), bool)
    chosen[order[:take]] = True
    return chosen[unit]


def _random(what: str, seed: str) -> np.random.Generator:
    """A generator that depends on the text only."""
    return np.random.default_rng(list(hashlib.sha256(f"{what}:{seed}".encode()).digest()))
