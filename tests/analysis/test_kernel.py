import numpy as np
import pytest

from hetmodels.analysis.kernel import Kernel, choose_by_shell, effective_number, joined, kernel_map, permuted
from hetmodels.errors import UsageError
from hetmodels.posterior import Posterior

N, SIZE = 1200, 12


def posterior(seed=0, sd=0.2):
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=(N, 2)) @ np.array([[2.0, 0.3], [0.0, 0.5]])
    local = {
        "mean": mean, "covariance": np.tile(sd**2 * np.eye(2), (N, 1, 1)), "held_out": np.arange(N) % 10 == 0,
        "half": np.arange(N) // 2 % 2, "outlier": np.where(np.arange(N) % 7 == 0, 0.9, 0.0),
    }  # fmt: skip
    return Posterior(None, {"map": np.zeros((1, 1, 1))}, True, local)


def test_particles_near_the_point_count_and_those_held_out_or_junk_do_not():
    run = posterior()
    kernel = Kernel.of(run, np.array([1.0, 0.2]))
    weights = kernel.weights(0.1)
    assert weights.max() == 1 and not weights[run.local["held_out"] | (run.local["outlier"] > 0.5)].any()
    cov = 0.04 * np.eye(2) + 0.01 * kernel.spread
    apart = kernel.z - run.local["mean"]
    expected = np.exp(-0.5 * np.einsum("ni,ij,nj->n", apart, np.linalg.inv(cov), apart))
    used = weights > 0
    np.testing.assert_allclose(weights[used], expected[used] / expected[used].max(), rtol=1e-6)
    turn = np.array([[0.0, -3.0], [0.2, 0.5]])
    local = run.local | {"mean": run.local["mean"] @ turn, "covariance": turn.T @ run.local["covariance"] @ turn}
    other = Kernel.of(Posterior(None, run.shared, True, local), kernel.z @ turn)
    np.testing.assert_allclose(other.weights(0.1), weights, atol=1e-6)  # whatever the coordinates


def test_bandwidths_keep_from_few_to_half_of_the_particles():
    kernel = Kernel.of(posterior(sd=0.05), np.zeros(2))
    numbers = [effective_number(kernel.weights(h)) for h in kernel.bandwidths()]
    assert numbers[0] == pytest.approx(100, rel=0.1) and numbers[-1] == pytest.approx(kernel.usable.sum() / 2, rel=0.1)
    assert np.all(np.diff(numbers) > 0)
    assert effective_number(np.array([1.0, 1, 1, 0])) == pytest.approx(3)


def test_the_control_has_the_same_weights_in_each_half():
    run = posterior()
    kernel = Kernel.of(run, np.zeros(2))
    weights, half = kernel.weights(0.3), run.local["half"]
    random = permuted(weights, half, kernel.usable, np.random.default_rng(1))
    for side in (0, 1):
        np.testing.assert_allclose(np.sort(random[half == side]), np.sort(weights[half == side]))
    assert not random[~kernel.usable].any() and abs(np.corrcoef(random, weights)[0, 1]) < 0.2


class Analytic:
    """Maps whose Fourier shells move with the latent up to a shell, with noise that falls with the particles used."""

    def __init__(self, run, noise=1.0):
        self.run, self.noise, self.rng, self.calls = run, noise, np.random.default_rng(5), 0
        self.base, self.motion = self.rng.normal(size=(2, SIZE, SIZE, SIZE))
        ball = np.fft.rfftn(self.motion)
        line = np.fft.fftfreq(SIZE, 1 / SIZE)
        radius = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + np.arange(SIZE // 2 + 1) ** 2)
        self.motion = np.fft.irfftn(np.where(radius < 2.5, ball, 0), s=(SIZE,) * 3, axes=(0, 1, 2))

    def truth(self, z):
        return self.base + z * self.motion

    def __call__(self, weights, free=False):
        self.calls += 1
        mean = weights @ self.run.local["mean"][:, 0] / weights.sum()
        return self.truth(mean) + self.noise / np.sqrt(effective_number(weights)) * self.rng.normal(size=(SIZE,) * 3)


def test_shells_that_move_take_a_narrow_bandwidth_and_shells_that_do_not_a_wide_one():
    run = posterior(sd=0.02)
    found = kernel_map(run, np.array([3.0, 0.4]), Analytic(run, noise=6.0))
    assert found.chosen[1:3].max() < found.chosen[3:].mean() and np.median(found.chosen[3:]) >= 3
    assert found.map.shape == (SIZE,) * 3 and found.numbers[0] < found.numbers[-1]
    solver = Analytic(run, noise=6.0)
    wide = solver(Kernel.of(run, np.array([3.0, 0.4])).weights(found.bandwidths[-1]))
    banded = lambda m: joined(m[None], np.zeros(6, int))  # noqa: E731
    error = lambda m: np.linalg.norm(banded(m) - banded(solver.truth(3.0)))  # noqa: E731
    assert error(found.map) < error(wide)
    assert error(found.control) > error(found.map)


def test_shells_are_put_together():
    maps = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, SIZE))
    chosen = np.array([0, 0, 0, 1, 1, 1])
    whole = np.fft.rfftn(np.fft.ifftshift(joined(maps, chosen)))
    parts = [np.fft.rfftn(np.fft.ifftshift(m)) for m in maps]
    np.testing.assert_allclose(whole[0, 0, 2], parts[0][0, 0, 2], rtol=1e-4)
    np.testing.assert_allclose(whole[0, 0, 4], parts[1][0, 0, 4], rtol=1e-4)
    assert np.all(choose_by_shell(maps, maps[::-1])[1:] == 1)


def test_a_point_needs_all_coordinates():
    with pytest.raises(UsageError, match="needs the 2 coordinates"):
        Kernel.of(posterior(), np.zeros(3))
