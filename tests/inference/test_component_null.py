"""T16: images of one map support no component of motion more often than once in twenty; images of a swing do."""

import jax
import numpy as np
import pytest
from simulated import problem, simulated

from hetmodels.families import Subspace
from inference import EM
from inference.component_null import SupportedComponents, components_supported


def test_components_count_until_the_first_that_noise_could_make():
    found = SupportedComponents(np.array([5.0, 3.0, 1.0, 4.0]), np.array([1.5, 2.0]))
    assert found.line == 2.0 and found.supported == 2
    assert SupportedComponents(np.array([1.0]), np.array([2.0])).supported == 0
    assert SupportedComponents(np.array([3.0]), np.array([2.0])).supported == 1
    with pytest.raises(ValueError, match="draws must be at least 1"):
        components_supported(jax.random.key(0), None, EM(), draws=0)


@pytest.mark.slow
def test_one_map_supports_no_component_and_a_swing_does():
    engine, above = EM(batch_size=400), 0
    for seed in range(20):
        task = problem(simulated(n=400, snr=0.3, seed=seed).particles.with_holdout(0.0), Subspace(dims=2))
        above += components_supported(jax.random.key(seed), task, engine, count=2).supported > 0
    assert above <= 3, above  # of twenty, each with probability 1/20: four or more have probability 0.016
    swing = problem(simulated(n=800, snr=0.3, states=7, seed=1).particles.with_holdout(0.0), Subspace(dims=2))
    assert components_supported(jax.random.key(0), swing, engine, count=4).supported in (1, 2)
