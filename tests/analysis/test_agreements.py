import numpy as np
import pytest
from planes import Plane

from hetmodels.analysis.agreement import agreements
from hetmodels.families import Classes, Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.posterior import Posterior

SIZE, N = 16, 60
FRAME = Frame(SIZE, 3.0, (1.0,) * 8)


def maps(seed, count=3):
    return np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, SIZE)).astype(np.float32)


def posterior(family, shared, mean=None, nodes=None):
    mean = np.empty((N, 0)) if mean is None else mean
    nodes = np.ones((N, 1)) if nodes is None else nodes
    shared = {name: value[None, None] for name, value in shared.items()}
    local = {"mean": mean, "responsibilities": nodes}
    return Posterior(family, shared, True, local, provenance={"box": SIZE, "spacing": 3.0})


def test_the_same_space_in_other_coordinates_agrees_entirely():
    z, turn = np.random.default_rng(0).normal(size=(N, 2)), np.array([[2.0, 1.0], [-0.5, 1.5]])
    one = maps(1)
    other = np.concatenate([one[:1], np.tensordot(np.linalg.inv(turn), one[1:], 1)])
    (found,) = agreements(
        {"a": posterior(Plane(), {"maps": one}, z), "b": posterior(Plane(), {"maps": other}, z @ turn)}
    )
    np.testing.assert_allclose(found.latents, 1, atol=1e-6)
    assert found.maps == pytest.approx(1, abs=1e-4) and found.common == pytest.approx(1, abs=1e-4)
    assert found.classes is None and "canonical correlations" in found.words


def test_a_common_mean_with_unrelated_motions_agrees_only_as_a_whole():
    z = np.random.default_rng(0).normal(size=(2, N, 2))
    one, other = maps(1), maps(2)
    other[0] = one[0]
    one[1:], other[1:] = 0.1 * one[1:], 0.1 * other[1:]
    runs = {"a": posterior(Plane(), {"maps": one}, z[0]), "b": posterior(Plane(), {"maps": other}, z[1])}
    (found,) = agreements(runs)
    assert found.maps > 0.95 and found.common < 0.3 and max(found.latents) < 0.5


def test_classes_against_classes_and_against_one_map():
    true = np.arange(N) % 3
    runs = {
        "a": posterior(Classes(3, frame=FRAME), {"maps": maps(1), "weights": np.ones(3) / 3}, nodes=np.eye(3)[true]),
        "b": posterior(
            Classes(3, frame=FRAME), {"maps": maps(1)[[2, 0, 1]], "weights": np.ones(3) / 3},
            nodes=np.eye(3)[(true + 1) % 3],
        ),
        "c": posterior(Homogeneous(frame=FRAME), {"map": maps(1).mean(0)}),
    }  # fmt: skip
    same, mixed, _ = agreements(runs)
    assert same.classes == 1 and same.maps == pytest.approx(1, abs=1e-4) and same.latents is None
    assert mixed.classes is None and mixed.common is None and mixed.maps < 0.8
