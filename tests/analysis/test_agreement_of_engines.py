"""Two posteriors of the same particles: what is a convention of the run does not count, what is said of them does."""

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from simulated import simulated

from hetmodels.analysis.agreement import agreement
from hetmodels.analysis.alignment import Alignment, mirror
from hetmodels.analysis.shared_values import differences
from hetmodels.data.phantom import phantom
from hetmodels.families import Classes, Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.posterior import Posterior
from inference import EM, MAP, SVI, Moments, fit

SIZE, PIXEL, N = 24, 6.0, 400
FRAME = Frame(SIZE, PIXEL, (1.0,) * 12)
MAPS = np.stack([np.asarray(v.density(SIZE, PIXEL)) for v in phantom(3, SIZE, PIXEL)])


def classes(nodes, order=(0, 1, 2), maps=MAPS, **facts):
    """A run by classes; its class k is class order[k] of the truth."""
    order = list(order)
    shared = {"maps": maps[order][None, None], "weights": np.full((1, 1, 3), 1 / 3)}
    local = {"mean": np.zeros((len(nodes), 0)), "responsibilities": nodes[:, order]}
    facts = {"box": SIZE, "spacing": PIXEL} | facts
    return Posterior(Classes(3, frame=FRAME), shared, True, local, provenance=facts)


def latents(mean, covariance):
    shared = {"maps": MAPS[None, None], "weights": np.full((1, 1, 3), 1 / 3)}
    local = {"mean": mean, "covariance": covariance, "responsibilities": np.ones((len(mean), 1))}
    return Posterior(LINE, shared, True, local, provenance={"box": SIZE, "spacing": PIXEL})


class Line(Classes):
    """Maps near the first, whatever the latent: only the latents matter here."""

    def conformation(self, shared):
        import numpyro.distributions as dist

        return dist.Normal(0, 1).expand([2]).to_event(1)

    def volume(self, shared, z):
        return super().volume(shared, 0)


LINE = Line(3, frame=FRAME)


def pair(a, b):
    return agreement(("a", a), ("b", b))


def test_the_order_of_classes_does_not_count_and_uncertainty_is_allowed_for():
    rng = np.random.default_rng(0)
    nodes = rng.dirichlet(np.full(3, 0.5), N)
    same = pair(classes(nodes), classes(nodes, (2, 0, 1)))
    assert same.same == 1 and same.classes == 1 and same.agree and same.common > 0.999
    assert same.table.sum() == N and (same.table > 0).sum() == 3
    sharp = np.eye(3)[nodes.argmax(1)]
    truth = np.array([rng.choice(3, p=p) for p in nodes])
    vague = pair(classes(nodes), classes(np.eye(3)[truth]))
    assert vague.same == pytest.approx(nodes.max(1).mean(), abs=0.06) and vague.agree
    assert vague.same > vague.expected - 0.05
    shuffled = pair(classes(sharp), classes(sharp[rng.permutation(N)]))
    assert shuffled.expected == 1 and any("matched classes" in text for text in shuffled.objections)


def test_linear_coordinates_do_not_count_and_uncertainty_is_compared_in_common_ones():
    rng = np.random.default_rng(1)
    z, turn = rng.normal(size=(N, 2)), np.array([[2.0, 0.3], [-1.0, 0.5]])
    spread = np.tile(np.diag([0.04, 0.09]), (N, 1, 1))
    a, b = latents(z, spread), latents(z @ turn, np.einsum("ik,nij,jl->nkl", turn, spread, turn))
    same = pair(a, b)
    assert same.neighbours == pytest.approx(1) and same.spread == pytest.approx(1) and min(same.latents) > 0.999
    wide = pair(a, latents(z @ turn, 4 * b.local["covariance"]))
    assert wide.spread == pytest.approx(2) and any("2.00 times as uncertain" in text for text in wide.objections)
    other = pair(a, latents(rng.normal(size=(N, 2)), spread))
    assert other.neighbours < 3 * other.chance and not other.agree


def test_maps_are_brought_together_in_both_hands_where_poses_were_inferred():
    turn = Alignment(Rotation.from_rotvec([0.3, -0.5, 0.9]).as_matrix(), np.array([4.0, -7.0, 5.0]), False, 1.0)
    moved = np.stack([mirror(turn.apply(m, PIXEL)) for m in MAPS])
    nodes = np.eye(3)[np.arange(N) % 3]
    found = pair(classes(nodes, pose="Unknown()"), classes(nodes, maps=moved, pose="Unknown()"))
    assert found.alignment.mirrored and found.maps > 0.9 and found.common > 0.8 and "opposite hands" in found.words
    assert pair(classes(nodes), classes(nodes, maps=moved)).maps < 0.5


def sampled(values, sd, draws=400, seed=0):
    rng = np.random.default_rng(seed)
    shared = {"weights": values + sd * rng.normal(size=(4, draws, 3))}
    return Posterior(Classes(3, frame=FRAME), shared, False)


def test_shared_values_are_compared_with_their_monte_carlo_error():
    centre, sd = np.array([0.2, 0.3, 0.5]), 0.01
    (same,) = differences(sampled(centre, sd), sampled(centre, sd, seed=1))
    assert same.error == pytest.approx(sd * np.sqrt(2 / 1600), rel=0.2) and same.spread == pytest.approx(1, abs=0.1)
    assert abs(same.mean_a - same.mean_b) < 4.5 * same.error and not same.clear
    (moved,) = differences(sampled(centre, sd), sampled(centre + [0, 0, sd], sd, seed=1))
    assert moved.name == "weights[2]" and moved.in_sd == pytest.approx(1, abs=0.15) and moved.clear
    (narrow,) = differences(sampled(centre, sd), sampled(centre, sd / 2, seed=1))
    assert narrow.clear and narrow.spread == pytest.approx(0.5, abs=0.05)
    (permuted,) = differences(sampled(centre, sd), sampled(centre[[1, 2, 0]], sd, seed=1), np.array([2, 0, 1]))
    assert not permuted.clear
    point = Posterior(Classes(3, frame=FRAME), {"weights": centre[None, None]}, True)
    (mixed,) = differences(sampled(centre, sd), point)
    assert not mixed.clear and np.isnan(mixed.spread) and not differences(point, point)
    given = {"noise": np.full((4, 400, 2), 0.3, np.float32)}
    both = [Posterior(Classes(3, frame=FRAME), sampled(centre, sd, seed=k).shared | given, False) for k in (0, 1)]
    assert [d.name.partition("[")[0] for d in differences(*both)] == ["weights"]  # what was given is no finding


@pytest.mark.slow
def test_engines_agree_on_one_map_and_on_classes():
    data = simulated(n=1500, size=16, snr=0.2, states=2)
    key = jax.random.key(0)
    em = fit(Homogeneous(), data.particles, EM(), key=key)
    for engine in (MAP(), SVI(iterations=600), Moments()):
        other = fit(Homogeneous(), data.particles, engine, key=key, given=em)
        found = pair(em, other)
        assert found.agree and found.maps > 0.9, (engine, found.words)
    first, second = (fit(Classes(2), data.particles, EM(), key=jax.random.key(k)) for k in (1, 2))
    found = pair(first, second)
    assert found.agree and found.classes > 0.9 and found.common > 0.9
