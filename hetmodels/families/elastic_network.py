"""Normal modes of an elastic network of atoms, whole (ANM) or in rigid blocks (RTB), in double precision."""

import numpy as np
from numpy.typing import NDArray

from hetmodels.errors import DataError

Floats = NDArray[np.float64]

_ZERO = 1e-6  # of the largest eigenvalue: below it a motion costs no energy


def energy(positions: Floats, rest: Floats, cutoff: float) -> float:
    """Half the squared change of all distances that were below the cutoff at rest [Å^2] (Tirion 1996, PRL 77).

    Args:
        positions: atoms [Å], (n, 3).
        rest: atoms at rest [Å], (n, 3).
        cutoff: largest distance of neighbours [Å].
    """
    i, j = _neighbours(rest, cutoff)
    stretch = np.linalg.norm(positions[i] - positions[j], axis=1) - np.linalg.norm(rest[i] - rest[j], axis=1)
    return float(0.5 * (stretch**2).sum())


def _neighbours(rest: Floats, cutoff: float) -> tuple[NDArray, NDArray]:
    from scipy.spatial import cKDTree

    pairs = cKDTree(rest).query_pairs(cutoff, output_type="ndarray")
    return pairs[:, 0], pairs[:, 1]


def hessian(rest: Floats, cutoff: float) -> Floats:
    """Second derivatives of `energy` at rest, (3n, 3n) (Atilgan et al. 2001, Biophys. J. 80).

    Args:
        rest: atoms [Å], (n, 3).
        cutoff: largest distance of neighbours [Å].
    """
    count = len(rest)
    i, j = _neighbours(rest, cutoff)
    apart = rest[j] - rest[i]
    unit = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    springs = unit[:, :, None] * unit[:, None, :]
    full = np.zeros((count, count, 3, 3))
    full[i, j], full[j, i] = -springs, -springs
    np.add.at(full, (i, i), springs)
    np.add.at(full, (j, j), springs)
    return full.transpose(0, 2, 1, 3).reshape(3 * count, 3 * count)


def block_basis(rest: Floats, blocks: NDArray) -> Floats:
    """Orthonormal rigid motions of blocks of atoms, (3n, motions): three for one atom, five on a line, else six.

    Args:
        rest: atoms [Å], (n, 3).
        blocks: number of the block of each atom, (n,).
    """
    count, columns = len(rest), []
    for block in np.unique(blocks):
        mine = np.flatnonzero(blocks == block)
        about = rest[mine] - rest[mine].mean(0)
        moves = [np.tile(axis, (len(mine), 1)) for axis in np.eye(3)]
        moves += [np.cross(axis, about) for axis in np.eye(3)]
        u, s, _ = np.linalg.svd(np.stack([m.ravel() for m in moves], axis=1), full_matrices=False)
        wide = np.zeros((count, 3, int((s > 1e-8 * s[0]).sum())))
        wide[mine] = u[:, : wide.shape[2]].reshape(len(mine), 3, -1)
        columns.append(wide.reshape(3 * count, -1))
    return np.concatenate(columns, axis=1)


def normal_modes(
    rest: Floats, count: int, cutoff: float = 15.0, blocks: NDArray | None = None
) -> tuple[Floats, Floats]:
    """The softest motions that change distances: those of the smallest eigenvalues that are not zero.

    Args:
        rest: atoms [Å], (n, 3).
        count: number of modes.
        cutoff: largest distance of neighbours [Å].
        blocks: number of the rigid block of each atom (Tama et al. 2000, Proteins 41); none moves every atom freely.

    Returns:
        Eigenvalues (count,), rising, and unit modes (count, n, 3), the largest component positive.

    Raises:
        DataError: if parts of the network hang loose, so that more than six motions cost nothing, or there are not as
            many modes.
    """
    stiffness, basis = hessian(rest, cutoff), None
    if blocks is not None:
        basis = block_basis(rest, blocks)
        stiffness = basis.T @ stiffness @ basis
    values, vectors = np.linalg.eigh((stiffness + stiffness.T) / 2)
    zeros = int((values < _ZERO * values[-1]).sum())
    if zeros != 6:
        raise DataError(
            f"elastic network: {zeros} motions cost no energy, and 6, those of a rigid body, must. Parts of the "
            f"structure hang loose at a cutoff of {cutoff:g} Å: raise the cutoff, or remove what floats."
        )
    if count > len(values) - 6:
        raise DataError(f"elastic network: {count} modes are asked for, there are {len(values) - 6}; ask for fewer.")
    modes = vectors[:, 6 : 6 + count]
    modes = (modes if basis is None else basis @ modes).T
    largest = np.take_along_axis(modes, np.abs(modes).argmax(1)[:, None], axis=1)
    return values[6 : 6 + count], (modes * np.sign(largest)).reshape(count, -1, 3)
