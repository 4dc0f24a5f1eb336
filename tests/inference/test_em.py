"""Laws of expectation-maximisation: it never descends, it recovers what theory says, halves do not leak."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated, truth_fsc

from hetmodels.analysis.metrics import ari
from hetmodels.errors import UsageError
from hetmodels.families.classes import Classes
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.observation import Contrast, Outliers
from inference.em import EM
from inference.engine import run
from inference.fitting import _noise_of, fit
from inference.updates import matched

FIXED = {"learn_spectrum": False, "learn_noise": False, "tolerance": -1.0, "mixture_tolerance": -1.0}


class Double:
    """A problem whose batches are in double precision."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def batches(self, *args):
        for batch in self.inner.batches(*args):
            images = jnp.asarray(np.asarray(batch.images), jnp.complex128)
            yield dataclasses.replace(
                batch, images=images, **{f: jnp.asarray(np.asarray(getattr(batch, f)), jnp.float64)
                for f in ("ctf", "rotation", "shift", "stretch", "weight")}
            )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "states", "choices"),
    [
        pytest.param(Homogeneous(), 1, {}, marks=pytest.mark.slow),
        (Homogeneous(order=3), 1, {}),
        (Classes(classes=2), 2, {"contrast": Contrast(0.2)}),
    ],
)
def test_log_posterior_never_falls(family, states, choices):
    data = simulated(n=150, states=states, contrast_sd=0.1 if choices else 0.0)
    with jax.enable_x64(True):
        engine = EM(iterations=50, anneal=0 if states == 1 else 2, solver_steps=2, **FIXED)
        result = run(engine, Double(problem(data.particles, family, **choices)), key=jax.random.key(0))
    value = np.array([row["objective"] for row in result.trace])[3:]
    assert len(value) > 40
    assert np.all(np.diff(value) >= -1e-8 * np.abs(value[1:]))
    assert value[-1] > value[0]


def test_map_reaches_the_accuracy_of_theory():
    data = simulated(n=3000, size=32, pixel=6.0, snr=0.05, seed=1)
    task = problem(data.particles, Homogeneous())
    state = run(EM(), task, key=jax.random.key(0)).state
    found = truth_fsc(np.asarray(state.maps[0, 0]), data.truth[0])
    expected = predicted_fsc(data, task.size)
    use = (expected > 0.3) & (np.arange(16) >= 1)
    assert use.sum() >= 10
    assert np.abs(found - expected)[use].max() < 0.05


def predicted_fsc(data, n):
    """sqrt(SSNR/(SSNR+1)), SSNR(k) = n <C^2> tau2 / (2 k sigma2) of the truth."""
    disc, particles = data.particles.disc, data.particles
    size = disc.size
    line = np.fft.fftfreq(size, 1 / size)
    shell = np.rint(np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2)).astype(int).ravel()
    power = np.abs(np.fft.fftn(data.truth[0]) / size).ravel() ** 2
    tau2 = np.bincount(shell, power)[: disc.shells] / np.bincount(shell)[: disc.shells]
    transfer = np.asarray(particles.ctf.transfer(disc.grid(particles.spacing).points)) ** 2
    c2 = np.bincount(disc.shell, transfer.mean(0), disc.shells) / np.maximum(disc.shell_counts, 1)
    ssnr = n * c2 * tau2 / (2 * np.maximum(np.arange(disc.shells), 1) * data.noise_sd**2)
    return np.sqrt(ssnr / (1 + ssnr))


def test_noise_spectrum_is_recovered():
    data = simulated(n=1500, size=32, pixel=6.0, snr=0.1, seed=2)
    state = run(EM(), problem(data.particles, Homogeneous()), key=jax.random.key(0)).state
    relative = np.asarray(state.noise)[0, 1:] * data.particles.reference[0, 1:] / data.noise_sd**2
    assert np.all(np.abs(relative - 1) < 0.1)
    assert abs(relative[4:].mean() - 1) < 0.01


def test_shuffled_poses_give_uncorrelated_halves():
    data = simulated(n=1500, size=32, pixel=6.0, snr=0.02, seed=3, shuffled=True)
    result = run(EM(iterations=6), problem(data.particles, Homogeneous(), halves=True), key=jax.random.key(0))
    fsc = np.asarray(result.state.fsc)[4:]
    independent = 2 * np.pi * np.arange(4, 16) ** 2
    assert np.all(np.abs(fsc) < 3 * np.sqrt(2 / (2 * independent)) + 0.03)


def test_two_classes_are_told_apart():
    data = simulated(n=1500, size=24, pixel=8.0, snr=0.3, states=2, seed=4)
    task = problem(data.particles, Classes(classes=2))
    engine = EM()
    state = run(engine, task, key=jax.random.key(0)).state
    local = task.infer(jax.random.key(0), engine.draw(None, task, state), task.batch(np.arange(len(data.particles))))
    assert ari(np.asarray(local.responsibilities).argmax(1), data.states) > 0.95


def test_classes_started_from_one_map_do_not_stay_alike():
    data = simulated(n=300, size=16, snr=0.5, states=2, seed=6)
    task = problem(data.particles, Classes(classes=2))
    shared = task.shared(task.initial(jax.random.key(0)))
    start = {"maps": jnp.broadcast_to(jnp.asarray(data.truth.mean(0)), (2, 16, 16, 16))}
    task = dataclasses.replace(task, start=shared | start)
    maps = run(EM(iterations=2), task, key=jax.random.key(0)).state.maps[0]
    assert np.abs(maps[0] - maps[1]).max() > 1e-3 * np.abs(maps).max()


def test_order_of_particles_does_not_matter():
    data = simulated(n=200)
    task = problem(data.particles, Homogeneous())
    engine = EM(iterations=4, batch_size=64)
    one = run(engine, task, key=jax.random.key(0)).state.maps
    other = run(dataclasses.replace(engine, batch_size=200), task, key=jax.random.key(1)).state.maps
    assert np.abs(one - other).max() < 1e-3 * np.abs(one).max()


@pytest.mark.slow
def test_junk_is_found():
    data = simulated(n=1200, size=24, pixel=8.0, snr=0.5, seed=5)
    images = data.particles.images(np.arange(1200)).copy()
    rng = np.random.default_rng(0)
    junk = np.arange(1200) % 10 == 3
    images[junk] = images[rng.permutation(1200)[: junk.sum()]][:, ::-1, ::-1] * 0.3 + data.noise_sd * rng.normal(
        size=(junk.sum(), 24, 24)
    )
    p = data.particles
    noisy = type(p).from_arrays(images, p.rotation, p.shift, p.ctf, p.spacing)
    task = problem(noisy, Homogeneous(), outliers=Outliers())
    engine = EM()
    state = run(engine, task, key=jax.random.key(0)).state
    local = task.infer(jax.random.key(0), engine.draw(None, task, state), task.batch(np.arange(1200)))
    score = np.asarray(local.outlier)
    assert np.mean(score[junk] > 0.5) > 0.8
    assert np.mean(score[~junk] > 0.5) < 0.05


def test_what_is_given_is_not_estimated_again():
    data = simulated(n=200)
    free = problem(data.particles, Homogeneous())
    given = {"noise": jnp.full((1, 8), 0.7), "map_tau2": jnp.linspace(1.0, 2.0, 8)}
    task = dataclasses.replace(free, given=given)
    engine = EM(iterations=3)
    found = engine.draw(None, task, run(engine, task, key=jax.random.key(0)).state)
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], value)


def test_noise_of_half_sets_serves_a_run_without_them_and_back():
    noise = jnp.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(_noise_of(noise, 2), (noise[:2] + noise[2:]) / 2)
    np.testing.assert_array_equal(_noise_of(noise, 8), jnp.concatenate([noise, noise]))
    with pytest.raises(UsageError, match="4 groups, this run has 3"):
        _noise_of(noise, 3)


@pytest.mark.slow
def test_a_window_does_not_empty_the_first_guess_of_the_noise():
    data = simulated(n=200, size=24, pixel=8.0)
    p = data.particles
    windowed = type(p).from_arrays(
        p.images(np.arange(200)), p.rotation, p.shift, p.ctf, p.spacing, window=0.8 * 24 * 8.0
    )
    task = problem(windowed, Homogeneous(), outliers=Outliers())
    engine = EM()
    state = run(engine, task, key=jax.random.key(0)).state
    local = task.infer(jax.random.key(0), engine.draw(None, task, state), task.batch(np.arange(200)))
    assert np.mean(np.asarray(local.outlier) > 0.5) < 0.2


@pytest.mark.slow
def test_a_hierarchical_prior_learns_how_far_classes_differ():
    """Three states that share a body: the differences keep their power, and held-out images are predicted better."""
    made = simulated(n=1200, size=16, snr=0.1, states=3, seed=1)
    score, power = [], []
    for hierarchical in (False, True):
        family = Classes(classes=3, hierarchical=hierarchical)
        result = fit(family, made.particles, EM(iterations=25), key=jax.random.key(1))
        rows = [row["objective"] for row in result.trace]
        assert min(np.diff(rows[9:])) > 0
        score.append(result.local["log_evidence"][result.local["held_out"]].mean())
        maps = result.shared["maps"][0, 0]
        power.append(((maps - maps.mean(0)) ** 2).sum())
    true = ((made.truth - made.truth.mean(0)) ** 2).sum()
    assert score[1] > score[0] and 0.5 < power[1] / true < 1.2


def test_classes_of_half_sets_are_matched():
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(4, 4, 4)), rng.normal(size=(3, 4, 4, 4))
    order = np.array([2, 0, 1])
    halves = jnp.asarray(np.stack([common + 0.3 * own, (common + 0.3 * own)[order]]))
    np.testing.assert_array_equal(order[matched(halves, 3)], [0, 1, 2])
    both = jnp.concatenate([jnp.zeros((2, 1, 4, 4, 4)), halves], axis=1)  # a common map stays first
    np.testing.assert_array_equal(matched(both, 3), [0, *(1 + matched(halves, 3))])


@pytest.mark.slow
def test_half_sets_that_begin_at_random_join_to_the_same_classes():
    made = simulated(n=1600, size=16, snr=0.3, states=2, seed=0)
    result = fit(Classes(classes=2), made.particles, EM(iterations=12), key=jax.random.key(0), halves=True)
    rows = [row["objective"] for row in result.trace]
    assert rows[-1] > rows[-4] - 0.01 * abs(rows[-4])  # joining the halves costs nothing
    assert ari(result.local["responsibilities"].argmax(1), made.states) > 0.8
