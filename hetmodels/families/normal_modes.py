"""A known structure that moves along its normal modes: per-particle amplitudes with a Gaussian prior."""

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from hetmodels.errors import UsageError
from hetmodels.families.elastic_network import normal_modes
from hetmodels.families.protocol import Frame, Shared
from hetmodels.families.screws import Screws
from hetmodels.imaging.ball import Ball
from hetmodels.tree import pytree, static
from hetmodels.volumes.gaussians import Gaussians


@pytree
class NormalModes:
    """r(z) = r0 + sqrt(n) sum_k z_k e_k: C-alpha atoms moved along the softest modes of their elastic network.

    An amplitude z_k is the RMSD [Å] of the structure moved along mode k alone. Its prior is that of thermal motion,
    N(0, s^2 lambda_1 / lambda_k), with the spread s of the softest mode unknown (Jin et al. 2014, Structure 22, for
    the model; Atilgan et al. 2001 for the network). Motions of more than about 4 Å stretch bonds, but for those inside
    rigid blocks, which move by screws (`hetmodels.families.screws`): their amplitudes are lengths of arcs, and the RMSD
    of a large one is a little smaller.

    Attributes:
        dims: number of modes.
        structure: PDB or mmCIF file, read when `fit` lays the family out.
        cutoff: largest distance of neighbours in the network [Å].
        block: residues per rigid block; 1 moves every residue freely.
        width: standard deviation of the Gaussian that stands for a residue [Å].
        spread: scale of the half-normal prior of s [Å].
        frame: box and pixel size, set by `fit`.
        atoms: the residues at rest, set by `fit`.
        modes: unit modes, (dims, residues, 3), set by `fit`.
        softness: sqrt(lambda_1 / lambda_k), (dims,), set by `fit`.
        screws: the motions of rigid blocks, set by `fit`; none where every residue moves freely.
    """

    dims: int = static(default=3)
    structure: str | None = static(default=None)
    cutoff: float = static(default=15.0)
    block: int = static(default=1)
    width: float = static(default=3.0)
    spread: float = static(default=3.0)
    frame: Frame | None = static(default=None)
    atoms: Gaussians | None = None
    modes: Any = None
    softness: Any = None
    screws: Screws | None = None

    def __post_init__(self) -> None:
        if self.dims < 1 or self.block < 1:
            raise ValueError(f"NormalModes: dims and block must be at least 1, got {self.dims} and {self.block}.")

    def laid_out(self, frame: Frame) -> "NormalModes":
        """On the data's grid, with the structure read, its modes computed and its grey scale guessed from the data.

        Raises:
            UsageError: if no structure is given.
            DataError: if it cannot be read or hangs together too loosely.
        """
        if self.structure is None:
            raise UsageError("NormalModes: which structure? Give family.structure=FILE (PDB or mmCIF).")
        centres, values, modes, blocks = _network(str(Path(self.structure)), self.dims, self.cutoff, self.block)
        unit = Gaussians(
            jnp.asarray(centres, jnp.float32), jnp.ones(len(centres)), jnp.full(len(centres), float(self.width))
        )
        atoms = dataclasses.replace(unit, weights=unit.weights * _grey(unit, frame))
        softness = jnp.asarray(np.sqrt(values[0] / values), jnp.float32)
        screws = None if blocks is None else Screws.of(centres, modes, blocks)
        return dataclasses.replace(
            self, frame=frame, atoms=atoms, modes=jnp.asarray(modes, jnp.float32), softness=softness, screws=screws
        )

    def shared(self) -> Shared:
        """Sites `grey` (weight of a residue, relative to the guess) and `spread` [Å], which it returns."""
        grey = numpyro.sample("grey", dist.LogNormal(0.0, 0.5))
        spread = numpyro.sample("spread", dist.HalfNormal(self.spread))
        return {"grey": grey, "spread": spread}

    def conformation(self, shared: Shared) -> dist.Distribution:
        """Amplitudes [Å RMSD], (dims,)."""
        return dist.Normal(jnp.zeros(self.dims), shared["spread"] * self.softness).to_event(1)

    def origin(self, shared: Shared) -> Array:
        """The structure at rest, from where a particle's amplitudes are sought."""
        return jnp.zeros(self.dims)

    def volume(self, shared: Shared, z: Array) -> Gaussians:
        """The structure moved along its modes."""
        atoms = self.atoms
        assert atoms is not None, "NormalModes: `fit` lays the family out."
        far = jnp.sqrt(1.0 * len(atoms.centres)) * z
        if self.screws is not None:
            moved = self.screws.moved(atoms.centres, far)
        else:
            moved = atoms.centres + jnp.tensordot(far, self.modes, axes=1)
        return Gaussians(moved, shared["grey"] * atoms.weights, atoms.widths)

    def sites(self, shared: Shared) -> Shared:
        """Values of the sites that give these shared values."""
        return {"grey": shared["grey"], "spread": shared["spread"]}


@lru_cache(maxsize=4)
def _network(path: str, dims: int, cutoff: float, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    """Centred C-alpha atoms, eigenvalues, modes, and the number of each atom's block or None."""
    from hetmodels.data.structures import read_structure

    structure = read_structure(path)
    structure = structure.take(structure.names == "CA")
    if len(structure) < 3:
        raise UsageError(f"NormalModes: {path} has {len(structure)} C-alpha atoms; give a protein of 3 or more.")
    rest = structure.positions - structure.positions.mean(0)
    blocks = None
    if block > 1:
        chain = np.unique(structure.chains, return_inverse=True)[1]
        place = np.concatenate([np.arange(n) for n in np.bincount(chain)])[np.argsort(np.argsort(chain, kind="stable"))]
        blocks = chain * len(structure) + place // block
    values, modes = normal_modes(rest, dims, cutoff, blocks)
    return rest, values, modes, blocks


def _grey(unit: Gaussians, frame: Frame) -> float:
    """Weight of a residue with which the structure has as much power as the data's map is guessed to have."""
    own = np.asarray(Ball(frame.size).power(unit.density(frame.size, frame.spacing)))[: len(frame.power)]
    shell = np.arange(len(own))
    total = float(shell**2 @ own)
    return float(np.sqrt(shell**2 @ np.asarray(frame.power)[: len(own)] / total)) if total > 0 else 1.0
