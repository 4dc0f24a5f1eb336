import numpy as np
import pytest

from hetmodels.analysis.flags import flags
from hetmodels.families import Classes
from hetmodels.families.protocol import Frame
from hetmodels.posterior import Posterior

N, SIZE = 500, 12


@pytest.fixture
def posterior():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, SIZE, SIZE, SIZE)).astype(np.float32)
    local = {
        "mean": np.zeros((N, 0)), "responsibilities": np.eye(3)[np.arange(N) % 3], "outlier": np.zeros(N),
        "contrast": np.ones(N), "log_evidence": 40 + 5 * rng.normal(size=N),
    }  # fmt: skip
    shared = {"maps": maps[None, None], "weights": np.full((1, 1, 3), 1 / 3)}
    return Posterior(Classes(3, frame=Frame(SIZE, 5.0, (1.0,) * 6)), shared, True, local)


def test_a_plain_run_has_none(posterior):
    assert flags(posterior) == []


def test_each_reason_names_its_particles_and_each_particle_its_gravest_reason(posterior):
    local = posterior.local
    local["outlier"][:5] = 0.9
    local["log_evidence"][3:12] = -10.0
    local["log_evidence"][20] = 5.0
    local["contrast"][30:] += 0.02 * np.random.default_rng(1).normal(size=N - 30)
    local["contrast"][40] = 1.6
    found = {flag.name: np.flatnonzero(flag.rows).tolist() for flag in flags(posterior)}
    assert found == {
        "junk": [0, 1, 2, 3, 4],
        "worse than noise": list(range(5, 12)),
        "improbable": [20],
        "contrast": [40],
    }


def test_optics_groups_are_judged_apart(posterior):
    group = np.arange(N) % 2
    posterior.local["log_evidence"][group == 1] += 300
    assert flags(posterior, group) == []
    posterior.local["log_evidence"][9] = 250
    (flag,) = flags(posterior, group)
    assert flag.name == "improbable" and np.flatnonzero(flag.rows).tolist() == [9]


def test_a_class_of_little_power_is_named(posterior):
    posterior.shared["maps"][:, :, 1] *= 0.3
    (flag,) = flags(posterior)
    assert flag.name == "weak class" and np.flatnonzero(flag.rows).tolist() == list(range(1, N, 3))
