"""Laws of the first maps: blobs of the prior's power, bands that widen, and maps found from noise alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import problem, simulated, truth_fsc, uneven

from hetmodels.analysis.alignment import align
from hetmodels.families.classes import Classes
from hetmodels.families.homogeneous import Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.imaging.ball import Ball
from hetmodels.observation import Unknown
from inference.ab_initio import AbInitio, _blobs, _coarse, _soft_ball, _Start
from inference.em import EM
from inference.expectation import _random
from inference.fitting import fit


def aligned_fsc(values, truth, pixel):
    """Correlation with the truth after alignment, of the better hand."""
    size = len(truth)
    place = align(values, truth, pixel, hands=True, coarse=5, fine=size // 4 + 1, starts=6)
    return truth_fsc(place.apply(values, pixel), truth)


def test_blobs_have_the_power_of_the_prior_inside_the_ball_and_differ():
    ball, hold = Ball(16), _soft_ball(16)
    family = Classes(classes=2, frame=Frame(16, 10.0, tuple(np.linspace(4, 1, 8))))
    shared = {"maps": jnp.zeros((2, 16, 16, 16)), "maps_tau2": jnp.linspace(4, 1, 8), "weights": jnp.full(2, 0.5)}
    maps = np.asarray(_blobs(jax.random.key(0), ball, family, shared, hold, 4))
    wanted = (np.linspace(4, 1, 8) * ball.degrees)[1:5].sum()
    np.testing.assert_allclose(16 * (maps**2).sum((1, 2, 3)), wanted, rtol=1e-4)  # Parseval: transforms divide by N
    assert np.asarray(ball.power(maps))[:, 5:].max() < 1e-6
    outside = hold < 0.5  # more than half of the box, where only what the low-pass rings may be
    assert outside.mean() > 0.5 and (maps**2)[:, outside].sum() < 0.1 * (maps**2).sum()
    assert abs(np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1]) < 0.5


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="rates lie in"):
        AbInitio(rate=0.1, slowest=0.2)
    with pytest.raises(ValueError, match="at least 1"):
        AbInitio(starts=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_map_is_found_from_noise(seed):
    """T8: FSC with the truth above 0.5 beyond shell 8 of 15, SNR 0.1, 2,000 images, one start."""
    data = simulated(n=2000, size=32, pixel=6.0, snr=0.1, seed=seed, volumes=(uneven(32, 6.0, seed=100 + seed),))
    pose = Unknown(shift_range=3.0, shift_step=1.5, shift_sd=1.0).framed(6.0)
    task = _coarse(problem(data.particles, Homogeneous(), pose=pose))
    maps, evidence = _Start(AbInitio(), EM(), task).run(jax.random.key(seed))
    found = aligned_fsc(np.asarray(maps[0]), data.truth[0], 6.0)
    assert found[1:9].min() > 0.5 and evidence > 0


@pytest.mark.slow
def test_em_goes_on_from_first_maps_where_none_is_given():
    data = simulated(n=500, size=16, pixel=12.0, snr=0.5, seed=1, volumes=(uneven(16, 12.0),))
    pose = Unknown(shift_range=2.0, shift_step=1.0, shift_sd=1.0)
    posterior = fit(Homogeneous(), data.particles, EM(iterations=6), key=jax.random.key(0), pose=pose, halves=True)
    found = aligned_fsc(np.asarray(posterior.shared["map"])[0, 0], data.truth[0], 12.0)
    assert found[1:6].min() > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("hierarchical", [False, True])
def test_classes_from_nothing_begin_from_one_map(hierarchical, caplog):
    data = simulated(n=200, size=16, pixel=12.0, snr=0.5, seed=1, states=2)
    pose = Unknown(order=1, shift_range=2.0, shift_step=1.0, shift_sd=1.0).framed(12.0)
    family = Classes(classes=3, hierarchical=hierarchical)
    task = problem(data.particles, family, pose=pose)
    maps = AbInitio(steps=2, particles=50, starts=1).find(jax.random.key(0), EM(), task)
    shared = task.family.updated(task.shared(task.initial(jax.random.key(0))), maps,
                                 jnp.ones((len(maps), 8)), jnp.ones(3))  # fmt: skip
    assert shared["maps"].shape == (3, 16, 16, 16) and jnp.abs(shared["maps"]).max() > 0
    np.testing.assert_array_equal(shared["maps"], jnp.broadcast_to(shared["maps"][0], (3, 16, 16, 16)))
    assert "--reference once per class" in caplog.text


def test_an_image_is_at_one_class_at_all_its_poses_when_classes_begin_alike():
    index = jnp.asarray([3, 3, 3, 7, 7, 8] + list(range(100, 500)))
    given = np.asarray(_random(jnp.zeros((len(index), 3)), jax.random.key(0), index))
    assert np.all(given[:3] == given[0]) and np.all(given[3] == given[4]) and np.all(given.sum(1) == 1)
    assert np.all(np.abs(given.mean(0) - 1 / 3) < 0.1)
