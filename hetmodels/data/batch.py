"""What an engine receives of some particles: arrays of one fixed shape, ready for the likelihood."""

from jax import Array

from hetmodels.imaging.poses import Support
from hetmodels.tree import pytree


@pytree
class Batch:
    """Particles on the device; the last batch of a pass is padded with rows of weight 0.

    The model of a row is  images = ctf * exp(-2 pi i k·shift) * slice(points @ stretch) + noise,
    noise complex Gaussian with E|n|^2 = rho[group, shell].

    Attributes:
        images: whitened Fourier pixels (divided by the root of the reference spectrum; contrast sign and
            aberration phases removed), complex64 (rows, pixels).
        ctf: contrast transfer divided by the same root, with the gain of a Fourier crop, float32 (rows, pixels).
        rotation: rotation matrices A of the file, float32 (rows, 3, 3).
        shift: content shift t = -origin [Å], float32 (rows, 2).
        stretch: in-plane frequency map of anisotropic magnification and pixel size, float32 (rows, 2, 2): a
            pixel at row vector k is found at k @ stretch.
        group: optics group, int32 (rows,).
        half: half set 0 or 1, int32 (rows,).
        held_out: 1 where the particle must not train, int32 (rows,).
        weight: 1, or 0 for padding, float32 (rows,).
        index: row of the particle table, int32 (rows,).
        poses: the poses to sum over in place of the file's, where an engine has searched for them; else None.
    """

    images: Array
    ctf: Array
    rotation: Array
    shift: Array
    stretch: Array
    group: Array
    half: Array
    held_out: Array
    weight: Array
    index: Array
    poses: Support | None = None
