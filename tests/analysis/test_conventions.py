"""Conventions broken on purpose are found, and correct ones are left alone."""

import dataclasses

import numpy as np
import pytest
from simulated import simulated, uneven

from hetmodels.analysis.conventions import check_conventions
from hetmodels.data.particles import Particles

PIXEL, SIZE, N = 4.0, 24, 400


@pytest.fixture(scope="module")
def good():
    return simulated(n=N, size=SIZE, pixel=PIXEL, snr=0.3, volumes=(uneven(SIZE, PIXEL),)).particles


def again(particles, images=lambda x: x, shift=1.0, rotation=lambda x: x, pixel=1.0, ctf=True):
    """The same set with something said or done wrongly."""
    seen = particles.images(np.arange(len(particles)))
    transfer = particles.ctf if ctf else dataclasses.replace(particles.ctf, defocus_u=0 * particles.ctf.defocus_u)
    return Particles.from_arrays(
        images(seen), rotation(particles.rotation), shift * particles.shift, transfer, pixel * particles.spacing
    )


def found(particles):
    return {finding.name: finding for finding in check_conventions(particles)}


def wrong(findings):
    return {name for name, finding in findings.items() if finding.right is False}


def test_a_correct_set_is_said_to_be_correct(good):
    findings = found(good)
    assert [findings[name].right for name in ("poses", "contrast", "shifts", "CTF", "pixel size")] == [True] * 5


def test_dark_protein_is_seen(good):
    findings = found(again(good, images=lambda x: -x))
    assert wrong(findings) == {"contrast"} and "--invert" in findings["contrast"].cure


@pytest.mark.parametrize(
    ("factor", "cure"),
    [
        (1 / PIXEL, "times 4"),
        pytest.param(PIXEL, "times 0.25", marks=pytest.mark.slow),
        pytest.param(-1.0, "other sign", marks=pytest.mark.slow),
    ],
)
def test_shifts_in_another_unit_or_of_the_other_sign(good, factor, cure):
    findings = found(again(good, shift=factor))
    assert wrong(findings) == {"shifts"}
    assert cure in findings["shifts"].words + findings["shifts"].cure
    assert findings["shifts"].gain > 4 * findings["shifts"].error


def test_a_binned_stack_under_the_old_pixel_size(good):
    findings = found(again(good, pixel=0.5))
    assert wrong(findings) == {"pixel size"} and "once the pixel size is right" in findings["shifts"].words
    assert findings["pixel size"].cure.startswith(("--pixel 4", "--pixel 3.9"))


@pytest.mark.slow
def test_a_pixel_size_that_is_a_tenth_off(good):
    findings = found(again(good, pixel=1.1))
    assert wrong(findings) == {"pixel size"}
    assert float(findings["pixel size"].cure.split()[1].rstrip(",")) == pytest.approx(PIXEL, rel=0.02)


def test_phases_flipped_without_saying_so(good):
    disc = good.disc

    def flip(images):
        sign = np.sign(np.asarray(good.ctf.transfer(disc.grid(PIXEL).points)))
        return np.asarray(disc.inverse(np.asarray(disc.forward(images)) * sign))

    findings = found(again(good, images=flip))
    assert wrong(findings) == {"CTF"} and "phases were flipped" in findings["CTF"].cure


def test_rotations_of_the_inverse_sense(good):
    findings = found(again(good, rotation=lambda r: np.swapaxes(r, 1, 2)))
    assert wrong(findings) == {"rotations"}


def test_poses_that_mean_nothing_are_said_so(good):
    order = np.random.default_rng(0).permutation(N)
    findings = found(again(good, rotation=lambda r: r[order]))
    assert list(findings) == ["poses"] and findings["poses"].right is None and "mean nothing" in findings["poses"].words
