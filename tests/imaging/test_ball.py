"""Coordinates of band-limited maps: inverse pairs, the spectrum they claim, the prior's density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hetmodels.imaging.ball import Ball


@pytest.mark.parametrize("size", [8, 9])
def test_colour_and_whiten_are_inverse(size):
    with jax.enable_x64(True):
        ball = Ball(size)
        white = jnp.asarray(np.random.default_rng(0).normal(size=(2, ball.coordinates)))
        spectrum = jnp.linspace(0.5, 2.0, ball.shells)
        values = ball.colour(white, spectrum)
        assert np.allclose(ball.whiten(values, spectrum), white, atol=1e-10)
        assert np.allclose(ball.filter(values, jnp.ones(ball.shells)), values, atol=1e-10)
        assert ball.degrees.sum() == ball.coordinates


def test_spectrum_is_the_mean_power():
    ball = Ball(12)
    spectrum = jnp.linspace(1.0, 3.0, ball.shells)
    maps = ball.colour(jax.random.normal(jax.random.key(0), (200, ball.coordinates)), spectrum)
    assert np.allclose(ball.power(maps).mean(0)[1:], spectrum[1:], rtol=0.12)


def test_log_prior_is_the_density_of_the_scaled_coordinates():
    with jax.enable_x64(True):
        ball = Ball(8)
        spectrum = jnp.linspace(0.5, 2.0, ball.shells)
        rng = np.random.default_rng(1)
        white = jnp.asarray(rng.normal(size=(2, ball.coordinates)))
        values = ball.colour(white, spectrum)
        # two maps under one law: the Jacobian cancels
        expected = -0.5 * (white[0] @ white[0] - white[1] @ white[1])
        got = ball.log_prior(values[0], spectrum) - ball.log_prior(values[1], spectrum)
        assert abs(got - expected) < 1e-9
