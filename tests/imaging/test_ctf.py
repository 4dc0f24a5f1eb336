"""Laws of the contrast transfer: RELION's formula term by term, signs, aberrations, magnification."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import eval_jacobi

from hetmodels.imaging.ctf import (
    Ctf,
    even_index,
    odd_index,
    wavelength,
    zernike,
)
from hetmodels.imaging.grids import Disc, phase_ramp

CS = 2.7e7  # 2.7 mm in Å


def ctf(**fields):
    """One 300 kV particle with Cs 2.7 mm, amplitude contrast 0.1, defocus 1 um, changed as given."""
    start = {"defocus_u": 1e4, "defocus_v": 1e4, "spherical": CS, "amplitude": 0.1} | fields
    arrays = {name: np.asarray(value, float)[None] for name, value in start.items()}
    return dataclasses.replace(Ctf.ideal(1), **arrays)


def scalar(x, y, *, u, v, azimuth, kv, cs, q, shift, b, scale):
    """The formula for one frequency, written out with math only."""
    volts = 1000 * kv
    lam = 12.2643247 / math.sqrt(volts * (1 + volts * 0.978466e-6))
    s2 = x * x + y * y
    defocus = (u + v) / 2 + (u - v) / 2 * math.cos(2 * (math.atan2(y, x) - azimuth))
    chi = math.pi * lam * defocus * s2 - math.pi / 2 * cs * lam**3 * s2**2 + shift + math.asin(q)
    return scale * math.sin(chi) * math.exp(-b * s2 / 4)


def test_against_the_scalar_formula():
    rng = np.random.default_rng(0)
    rows = [
        {
            "u": rng.uniform(5e3, 3e4),
            "v": rng.uniform(5e3, 3e4),
            "azimuth": rng.uniform(-3, 3),
            "kv": rng.choice([100, 200, 300]),
            "cs": rng.uniform(0, 4e7),
            "q": rng.uniform(0, 1),
            "shift": rng.uniform(0, 3),
            "b": rng.uniform(0, 100),
            "scale": rng.uniform(0.5, 2),
        }
        for _ in range(4)
    ]
    names = (
        "defocus_u",
        "defocus_v",
        "azimuth",
        "voltage",
        "spherical",
        "amplitude",
        "phase_shift",
        "bfactor",
        "scale",
    )
    fields = {name: np.array([row[key] for row in rows]) for name, key in zip(names, rows[0], strict=True)}
    points = rng.uniform(-0.25, 0.25, (50, 2))
    expected = np.array([[scalar(x, y, **row) for x, y in points] for row in rows])
    with jax.enable_x64(True):
        many = dataclasses.replace(Ctf.ideal(4), **fields)
        found = many.transfer(jnp.asarray(points))
        assert np.abs(found - expected).max() < 1e-11
        assert np.array_equal(many.take(np.array([2, 0])).transfer(jnp.asarray(points)), found[jnp.array([2, 0])])
    single = many.transfer(jnp.asarray(points, jnp.float32))
    assert single.dtype == jnp.float32 and np.abs(single - expected).max() < 1e-3


def test_sign_at_zero_frequency_and_ideal():
    with jax.enable_x64(True):
        zero, points = jnp.zeros((1, 2)), Disc(16).index / 32
        assert float(ctf().transfer(zero)[0, 0]) == pytest.approx(0.1, abs=1e-15)
        assert float(ctf().transfer(jnp.array([[0.01, 0.0]]))[0, 0]) > 0.1
        assert np.allclose(Ctf.ideal(3).transfer(points), 1, atol=1e-15)
        assert np.array_equal(Ctf.ideal(3).aberration(points), np.zeros((3, len(points))))


def test_zeros_lie_where_the_argument_is_a_multiple_of_pi():
    """Without Cs, the n-th zero is at s^2 = (n pi - asin Q) / (pi lam D): 300 kV, 1 um, Q = 0.1, first at 14.3 Å."""
    with jax.enable_x64(True):
        lam = float(wavelength(300.0))
        assert lam == pytest.approx(0.0196875, abs=1e-6)
        n = np.arange(1, 6)
        s = np.sqrt((n - math.asin(0.1) / math.pi) / (lam * 1e4))
        assert 1 / s[0] == pytest.approx(14.26, abs=0.01)
        points = jnp.asarray(np.stack([s * np.cos(n), s * np.sin(n)], 1))
        assert np.abs(ctf(spherical=0).transfer(points)).max() < 1e-12


def test_astigmatism_axis():
    """Along the azimuth the defocus is U, across it V."""
    with jax.enable_x64(True):
        angle, s = 0.6, 0.1
        points = s * jnp.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        both = ctf(defocus_u=2e4, defocus_v=1e4, azimuth=angle).transfer(points)[0]
        radial = jnp.array([[s, 0.0]])
        assert float(both[0]) == pytest.approx(
            float(ctf(defocus_u=2e4, defocus_v=2e4).transfer(radial)[0, 0]), abs=1e-12
        )
        assert float(both[1]) == pytest.approx(float(ctf().transfer(radial)[0, 0]), abs=1e-12)


def test_beam_tilt_is_the_coma_of_relions_zernike_pair():
    """RELION turns a tilt t [mrad] into odd coefficients: -c t / 3 and twice that, with c = 2e4 pi Cs lam^2."""
    with jax.enable_x64(True):
        tilt = np.array([1.3, -0.4])  # mrad
        lam = float(wavelength(300.0))
        third = -(2.7 * 20000 * lam**2 * math.pi) * tilt / 3
        odd = [2 * third[1], 2 * third[0], 0, third[1], third[0]]
        points = jnp.asarray(np.random.default_rng(1).uniform(-0.3, 0.3, (30, 2)))
        tilted = ctf(beam_tilt=tilt * 1e-3).aberration(points)
        assert np.abs(tilted).max() > 1
        assert np.allclose(tilted, ctf(odd=odd).aberration(points), atol=1e-12)
        assert float(ctf(beam_tilt=[1e-3, 0.0]).aberration(jnp.array([[0.2, 0.0]]))[0, 0]) < 0
        assert np.allclose(ctf(beam_tilt=tilt).aberration(-points), -ctf(beam_tilt=tilt).aberration(points))


def test_first_order_odd_aberration_is_a_shift():
    """The coefficients (-2 pi t_y, -2 pi t_x) move the content by t: they are a phase ramp."""
    with jax.enable_x64(True):
        shift = np.array([3.0, -1.5])
        points = jnp.asarray(np.random.default_rng(5).uniform(-0.2, 0.2, (10, 2)))
        phase = ctf(odd=-2 * math.pi * shift[::-1]).aberration(points)[0]
        assert np.allclose(jnp.exp(1j * phase), phase_ramp(points, shift), atol=1e-12)


def test_even_aberrations_enter_the_sine_with_relions_sign():
    with jax.enable_x64(True):
        points = jnp.asarray(np.random.default_rng(2).uniform(-0.3, 0.3, (20, 2)))
        lam = float(wavelength(300.0))
        r2 = (points**2).sum(1)
        # CTF = -sin(gamma + even), gamma = -(pi lam D s^2 + …): the polynomial (2, 0) = 2 r^2 - 1 acts like -defocus
        change = 500.0
        c = math.pi * lam * change / 2
        less = ctf(defocus_u=1e4 - change, defocus_v=1e4 - change).argument(points)
        assert np.allclose(ctf(even=[c, 0, c]).argument(points), less, atol=1e-12)
        fourth = ctf(even=np.eye(9)[6]).argument(points) - ctf().argument(points)
        assert np.allclose(fourth, -(6 * r2**2 - 6 * r2 + 1), atol=1e-12)


def test_order_of_the_zernike_polynomials():
    assert [even_index(i) for i in range(9)] == [(0, 0), (2, -2), (2, 0), (2, 2), *((4, m) for m in (-4, -2, 0, 2, 4))]
    assert [odd_index(i) for i in range(6)] == [(1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3)]
    assert odd_index(6) == (5, -5) and odd_index(11) == (5, 5) and even_index(15) == (6, 6)


@pytest.mark.parametrize(("n", "m"), [(0, 0), (1, -1), (2, -2), (3, 1), (4, -2), (6, 0), (7, -5)])
def test_zernike_polynomials_are_the_standard_ones(n, m):
    rng = np.random.default_rng(3)
    r, phi = rng.uniform(0, 1, 20), rng.uniform(-np.pi, np.pi, 20)
    order, degree = abs(m), (n - abs(m)) // 2
    radial = (-1) ** degree * r**order * eval_jacobi(degree, order, 0, 1 - 2 * r**2)
    expected = radial * (np.cos(m * phi) if m >= 0 else np.sin(-m * phi))
    with jax.enable_x64(True):
        assert np.allclose(zernike(n, m, r * np.cos(phi), r * np.sin(phi)), expected, atol=1e-12)
        assert float(zernike(n, order, jnp.array(1.0), jnp.array(0.0))) == pytest.approx(1, abs=1e-12)


def test_zernike_polynomials_are_orthogonal():
    with jax.enable_x64(True):
        table = [odd_index(i) for i in range(6)] + [even_index(i) for i in range(6)]
        r, weight = np.polynomial.legendre.leggauss(12)
        r, weight = (r + 1) / 2, weight / 2
        phi = 2 * np.pi * np.arange(24) / 24
        x, y = np.outer(r, np.cos(phi)), np.outer(r, np.sin(phi))
        values = np.array([zernike(n, m, x, y) for n, m in table])
        gram = np.einsum("aij,bij,i->ab", values, values, weight * r) * 2 * np.pi / 24
        norms = [np.pi / (2 * n + 2) * (2 if m == 0 else 1) for n, m in table]
        assert np.allclose(gram, np.diag(norms), atol=1e-12)


def test_magnification_maps_frequencies_by_relions_matrix():
    """A pixel at k belongs to frequency M k of the undistorted image, in CTF and aberration alike."""
    with jax.enable_x64(True):
        m = np.array([[1.02, 0.013], [-0.004, 0.97]])
        points = np.random.default_rng(4).uniform(-0.2, 0.2, (10, 2))
        tilt = {"beam_tilt": [1e-3, 2e-3], "defocus_u": 1.5e4, "azimuth": 0.4, "even": [0, 3.0], "odd": [1.0]}
        bent, straight = ctf(stretch=m.T, **tilt), ctf(**tilt)
        assert np.allclose(bent.transfer(points), straight.transfer((m @ points.T).T), atol=1e-13)
        assert np.allclose(bent.aberration(points), straight.aberration((m @ points.T).T), atol=1e-13)


def test_gradient_is_finite_at_the_centre():
    with jax.enable_x64(True):

        def total(defocus):
            one = dataclasses.replace(ctf(even=[0.0, 1.0], odd=[1.0, 1.0, 1.0]), defocus_u=defocus)
            return jnp.sum(one.transfer(jnp.array([[0.0, 0.0], [0.1, 0.05]])))

        step, at = 1e-2, jnp.array([1.2e4])
        slope = (total(at + step) - total(at - step)) / (2 * step)
        assert float(jax.grad(total)(at)[0]) == pytest.approx(float(slope), rel=1e-6)
