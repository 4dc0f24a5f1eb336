"""Several starts of a classification: the best is chosen, and disagreement between sure starts is told."""

import numpy as np
import pytest

from hetmodels.analysis.starts import compare_starts
from hetmodels.posterior import Posterior


def start(labels, objective, sure=0.98, classes=3):
    nodes = np.full((len(labels), classes), (1 - sure) / (classes - 1))
    nodes[np.arange(len(labels)), labels] = sure
    trace = [{"objective": objective - 1}, {"objective": objective}]
    return Posterior(None, {}, True, {"responsibilities": nodes}, {}, trace, {}, {})


def test_starts_that_agree_up_to_names_are_reproducible():
    labels = np.random.default_rng(0).integers(0, 3, 500)
    found = compare_starts([start(labels, 1.0), start((labels + 1) % 3, 2.0), start((labels + 2) % 3, 1.5)])
    assert found.best == 1 and found.reproduced == pytest.approx(1) and found.warning is None
    assert found.confidence == pytest.approx(0.98)


def test_sure_starts_that_disagree_are_warned_of_and_unsure_ones_are_not():
    rng = np.random.default_rng(1)
    sure = [start(rng.integers(0, 3, 500), float(i)) for i in range(3)]
    found = compare_starts(sure)
    assert found.best == 2 and abs(found.reproduced) < 0.05 and "not reproducible" in found.warning
    unsure = [start(rng.integers(0, 3, 500), float(i), sure=0.5) for i in range(3)]
    assert compare_starts(unsure).warning is None


def test_one_start_or_one_class_cannot_be_compared():
    labels = np.zeros(5, int)
    with pytest.raises(ValueError, match="at least two"):
        compare_starts([start(labels, 0.0)])
