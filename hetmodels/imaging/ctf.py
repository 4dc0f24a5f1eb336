"""Contrast transfer of the microscope: RELION's model, complete, one row per particle.

With frequency s at azimuth a, wavelength lam and effective defocus D(a) = (U+V)/2 + (U-V)/2 cos 2(a - azimuth),

    CTF(s) = scale exp(-B s^2/4) sin(pi lam D s^2 - pi/2 Cs lam^3 s^4 + phase shift + asin(amplitude) - even(s)),

so that CTF(0) = +amplitude for white particles. Odd aberrations multiply the image by exp(i odd(s)).
"""

from collections.abc import Callable
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from hetmodels.tree import pytree

Values = Array | np.ndarray


@pytree
class Ctf:
    """Contrast transfer of n particles. All arrays have n rows; they may be numpy or JAX arrays.

    Attributes:
        defocus_u, defocus_v: defocus along the azimuth and across it [Å], positive underfocus, (n,).
        azimuth: direction of defocus_u, from the x axis towards y [rad], (n,).
        voltage: acceleration voltage [kV], (n,).
        spherical: spherical aberration Cs [Å], (n,).
        amplitude: amplitude contrast, 0 … 1, (n,).
        phase_shift: phase plate [rad], (n,).
        bfactor: B [Å^2] of the envelope exp(-B s^2 / 4), (n,).
        scale: factor of the whole transfer, (n,).
        beam_tilt: beam tilt (x, y) [rad], (n, 2).
        odd: coefficients [rad] of antisymmetric Zernike polynomials of s in 1/Å, in RELION's order, (n, any).
        even: coefficients [rad] of symmetric ones, (n, any).
        stretch: in-plane frequency map; a pixel at row vector k is found at k @ stretch, (n, 2, 2). For RELION's
            magnification matrix M (rlnMagMat00 … 11) this is M transposed: k @ stretch = M k.
    """

    defocus_u: Values
    defocus_v: Values
    azimuth: Values
    voltage: Values
    spherical: Values
    amplitude: Values
    phase_shift: Values
    bfactor: Values
    scale: Values
    beam_tilt: Values
    odd: Values
    even: Values
    stretch: Values

    @classmethod
    def ideal(cls, count: int) -> "Ctf":
        """A microscope that transfers everything: the transfer is 1 at every frequency."""
        zero, one = np.zeros(count), np.ones(count)
        return cls(
            defocus_u=zero,
            defocus_v=zero,
            azimuth=zero,
            voltage=300 * one,
            spherical=zero,
            amplitude=one,
            phase_shift=zero,
            bfactor=zero,
            scale=one,
            beam_tilt=np.zeros((count, 2)),
            odd=np.zeros((count, 0)),
            even=np.zeros((count, 0)),
            stretch=np.broadcast_to(np.eye(2), (count, 2, 2)),
        )

    def take(self, index: Values) -> "Ctf":
        """The given rows."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    def transfer(self, points: Values) -> Array:
        """The real CTF at frequencies [1/Å], before the stretch: (pixels, 2) -> (n, pixels)."""
        x, y = _seen(points, self.stretch)
        square = x * x + y * y
        return _rows(self.scale) * jnp.exp(-_rows(self.bfactor) / 4 * square) * jnp.sin(self._argument(x, y))

    def argument(self, points: Values) -> Array:
        """Argument of the sine [rad] at frequencies [1/Å]: (pixels, 2) -> (n, pixels)."""
        return self._argument(*_seen(points, self.stretch))

    def aberration(self, points: Values) -> Array:
        """Phase [rad] of the antisymmetric aberrations, beam tilt and odd Zernike: (pixels, 2) -> (n, pixels).

        The image of the model is CTF exp(i aberration) times the slice. A tilt t of the beam gives
        -2 pi Cs lam^2 |s|^2 (s·t).
        """
        x, y = _seen(points, self.stretch)
        tilt = jnp.asarray(self.beam_tilt)
        coma = -2 * jnp.pi * _rows(self.spherical) * _rows(wavelength(self.voltage)) ** 2 * (x * x + y * y)
        return coma * (x * tilt[:, :1] + y * tilt[:, 1:]) + _polynomial(self.odd, odd_index, x, y)

    def _argument(self, x: Array, y: Array) -> Array:
        lam = _rows(wavelength(self.voltage))
        u, v, azimuth = _rows(self.defocus_u), _rows(self.defocus_v), _rows(self.azimuth)
        square = x * x + y * y
        astigmatism = jnp.cos(2 * azimuth) * (x * x - y * y) + jnp.sin(2 * azimuth) * 2 * x * y
        defocus = (u + v) / 2 * square + (u - v) / 2 * astigmatism
        spherical = _rows(self.spherical) * lam**3 / 2 * square**2
        offset = _rows(self.phase_shift) + jnp.arcsin(_rows(self.amplitude))
        return jnp.pi * (lam * defocus - spherical) + offset - _polynomial(self.even, even_index, x, y)


def wavelength(voltage: Values) -> Array:
    """Relativistic electron wavelength [Å] at a voltage [kV], with RELION's constants.

    >>> round(float(wavelength(300.0)), 5)
    0.01969
    """
    volts = 1e3 * jnp.asarray(voltage)
    return 12.2643247 / jnp.sqrt(volts * (1 + 0.978466e-6 * volts))


def even_index(position: int) -> tuple[int, int]:
    """(n, m) of the symmetric Zernike polynomial at a place in RELION's list: (0,0), (2,-2), (2,0), (2,2) and so on."""
    level = int(np.sqrt(position))
    return 2 * level, 2 * (position - level * (level + 1))


def odd_index(position: int) -> tuple[int, int]:
    """(n, m) of the antisymmetric polynomial at a place in RELION's list: (1,-1), (1,1), (3,-3), (3,-1) and so on."""
    level = int((np.sqrt(1 + 4 * position) - 1) / 2)
    return 2 * level + 1, 2 * (position - level * (level + 1)) - (2 * level + 1)


def zernike(n: int, m: int, x: Array, y: Array) -> Array:
    """Zernike polynomial R_n^|m|(r) times cos(m phi) for m >= 0, sin(|m| phi) for m < 0; R(1) = 1, not normalised.

    Evaluated as a polynomial in x and y, hence smooth at the origin.
    """
    order = abs(m)
    square = x * x + y * y
    radial = jnp.zeros_like(square)
    for k in range((n - order) // 2 + 1):
        top = (-1) ** k * factorial(n - k)
        bottom = factorial(k) * factorial((n + order) // 2 - k) * factorial((n - order) // 2 - k)
        radial = radial + (top // bottom) * square ** ((n - order) // 2 - k)
    cosine, sine = jnp.ones_like(x), jnp.zeros_like(x)  # r^|m| times cos and sin of |m| phi
    for _ in range(order):
        cosine, sine = cosine * x - sine * y, cosine * y + sine * x
    return radial * (cosine if m >= 0 else sine)


def _rows(values: Values) -> Array:
    return jnp.asarray(values)[:, None]


def _seen(points: Values, stretch: Values) -> tuple[Array, Array]:
    """Both coordinates of the pixels after the stretch, each (n, pixels)."""
    seen = jnp.einsum("mi,nij->njm", points, stretch, precision=jax.lax.Precision.HIGHEST)
    return seen[:, 0], seen[:, 1]


def _polynomial(coefficients: Values, index: Callable[[int], tuple[int, int]], x: Array, y: Array) -> Array:
    """Sum of Zernike polynomials with coefficients (n, terms) in RELION's order."""
    total = jnp.zeros_like(x)
    for position in range(coefficients.shape[1]):
        total = total + jnp.asarray(coefficients)[:, position, None] * zernike(*index(position), x, y)
    return total
