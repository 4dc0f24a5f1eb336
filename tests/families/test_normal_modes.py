"""Elastic networks against finite differences, block modes against free ones; the family against its protocol."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import winding_chain

from hetmodels.data.particles import Particles
from hetmodels.errors import DataError, UsageError
from hetmodels.families import NormalModes
from hetmodels.families.elastic_network import block_basis, energy, hessian, normal_modes
from hetmodels.families.protocol import Frame
from hetmodels.imaging.ctf import Ctf
from hetmodels.imaging.grids import Disc
from hetmodels.imaging.rotations import uniform
from hetmodels.laplace import marginal
from hetmodels.model import per_particle, render
from hetmodels.observation import Known, Radial
from hetmodels.smooth import laplace_ratio
from hetmodels.testing import check_family
from inference import MAP, fit
from inference.fitting import make_problem


def test_hessian_is_that_of_the_energy():
    """Central differences of the energy, to 1e-6 of the largest element."""
    rest, step = winding_chain(12), 1e-3
    cutoff = 12.0
    moves = step * np.eye(36).reshape(36, 12, 3)
    u = lambda *m: energy(rest + sum(m), rest, cutoff)  # noqa: E731
    found = np.array([
        [(u(a, b) - u(a, -b) - u(-a, b) + u(-a, -b)) / (4 * step**2) for b in moves] for a in moves
    ])  # fmt: skip
    exact = hessian(rest, cutoff)
    assert np.abs(found - exact).max() < 1e-6 * np.abs(exact).max()


def test_modes_are_the_softest_motions_that_cost_energy():
    rest = winding_chain()
    values, modes = normal_modes(rest, 5)
    assert np.all(values > 0) and np.all(np.diff(values) >= 0)
    flat = modes.reshape(5, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(5), atol=1e-10)
    np.testing.assert_allclose(hessian(rest, 15.0) @ flat.T, flat.T * values, atol=1e-9)
    assert np.abs(modes.sum(1)).max() < 1e-9 and np.abs(np.cross(rest, modes).sum(1)).max() < 1e-8
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    again, turned = normal_modes(rest @ turn.T, 5)
    np.testing.assert_allclose(again, values, rtol=1e-8)
    overlap = np.einsum("kni,kni->k", turned, modes @ turn.T)
    np.testing.assert_allclose(np.abs(overlap), 1, atol=1e-6)


def test_blocks_of_one_are_free_atoms():
    rest = winding_chain()
    values, modes = normal_modes(rest, 5)
    again, same = normal_modes(rest, 5, blocks=np.arange(len(rest)))
    np.testing.assert_allclose(again, values, rtol=1e-10)
    np.testing.assert_allclose(same, modes, atol=1e-8)


@pytest.mark.parametrize("size", [2, 5, 10])
def test_blocks_are_rigid_and_never_softer(size):
    rest = winding_chain()
    values, _ = normal_modes(rest, 5)
    blocks = np.arange(len(rest)) // size
    stiff, modes = normal_modes(rest, 5, blocks=blocks)
    assert np.all(stiff >= values * (1 - 1e-9)) and stiff[0] < 3 * values[0]
    expected = {2: 5, 5: 6, 10: 6}[size] * len(np.unique(blocks))
    assert block_basis(rest, blocks).shape == (3 * len(rest), expected)
    first = blocks == 0
    a, move = rest[first], modes[0][first]
    apart, speed = a[:, None] - a, move[:, None] - move
    assert np.abs((apart * speed).sum(-1)).max() < 1e-9  # distances inside a block do not change


def test_what_hangs_loose_is_refused():
    loose = np.concatenate([winding_chain(), [[200.0, 0, 0]]])
    with pytest.raises(DataError, match="9 motions cost no energy.*raise the cutoff"):
        normal_modes(loose, 3)
    with pytest.raises(DataError, match="modes are asked for"):
        normal_modes(winding_chain(20), 100)


def write_pdb(path, positions):
    lines = [
        f"ATOM  {i + 1:5d}  CA  ALA A{i + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C"
        for i, (x, y, z) in enumerate(positions)
    ]
    path.write_text("\n".join([*lines, "END"]) + "\n")
    return path


BOX, PIXEL, SPREAD, SNR = 16, 6.0, 2.0, 4.0


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Images of a chain whose first two modes have amplitudes of about 2 Å, drawn atom by atom; with the truth."""
    path = write_pdb(tmp_path_factory.mktemp("modes") / "a.pdb", winding_chain(30))
    family = NormalModes(dims=2, structure=str(path), width=5.0)
    rng, disc, count = np.random.default_rng(0), Disc(BOX), 40
    _, modes = normal_modes(winding_chain(30), 2)
    softness = np.asarray(family.laid_out(Frame(BOX, PIXEL, (1.0,) * disc.shells)).softness)
    z = SPREAD * softness * rng.normal(size=(count, 2))
    moved = winding_chain(30) + np.sqrt(30) * np.einsum("pk,kni->pni", z, modes)
    rotation = np.asarray(uniform(jax.random.key(0), count))
    seen = np.einsum("pij,pnj->pni", rotation, moved)[..., :2]
    line = (np.arange(BOX) - BOX // 2) * PIXEL
    each = [np.exp(-0.5 * ((line - seen[..., i, None]) / 5.0) ** 2) for i in (1, 0)]
    clean = np.einsum("pny,pnx->pyx", *each)
    sd = clean.std() / np.sqrt(SNR)
    images = (clean + sd * rng.normal(size=clean.shape)).astype(np.float32)
    particles = Particles.from_arrays(images, rotation, np.zeros((count, 2)), Ctf.ideal(count), PIXEL)
    return family, particles, z, sd


def test_family_obeys_its_protocol(task):
    check_family(task[0])


@pytest.fixture(scope="module")
def known(task):
    """The problem, its shared values as drawn (the grey scale by maximum likelihood), and the amplitudes."""
    family, particles, z, sd = task
    problem = make_problem(
        family, particles, pose=Known(), noise=Radial(), contrast=None, outliers=None, halves=False, holdout=0.0,
        start=None, given=None,
    )  # fmt: skip
    noise = jnp.asarray(sd**2 / particles.reference, jnp.float32)
    shared = {"grey": jnp.asarray(1.0), "spread": jnp.asarray(SPREAD), "noise": noise}
    batch, true = problem.whole(), jnp.asarray(z, jnp.float32)
    fits = jax.jit(lambda grey: problem.log_joint(shared | {"grey": grey}, true, {}, batch).sum())
    greys = jnp.linspace(0.5, 1.5, 41)
    return problem, shared | {"grey": greys[int(np.argmax([fits(grey) for grey in greys]))]}, z


def test_amplitudes_have_the_errors_they_are_said_to_have(known):
    """Standardised errors are of unit size, and so is their distance from zero in the space of the prior."""
    problem, shared, z = known
    found = jax.jit(problem.infer)(jax.random.key(0), shared, problem.whole())
    error = np.asarray(found.mean) - z
    standard = np.einsum("pi,pij,pj->p", error, np.linalg.inv(np.asarray(found.covariance)), error)
    assert abs(standard.mean() / 2 - 1) < 4 / np.sqrt(2 * len(z) / 2)
    assert (standard < 4.605).mean() > 0.8  # 90 % of a chi-square of two degrees
    bound = np.sqrt(np.einsum("pii->", np.linalg.inv(information(problem, shared, z))))
    assert abs(np.linalg.norm(error) / bound - 1) < 0.2


def information(problem, shared, z):
    """Fisher's, of each image about its amplitudes at the truth, by differences of noise-free images, plus prior's."""
    data, family = problem.observed(shared, problem.whole()), problem.family
    images = lambda z: np.asarray(  # noqa: E731
        render(per_particle(lambda one: family.volume(shared, one), jnp.asarray(z, jnp.float32)), data, {})
    )
    slope = [(images(z + step) - images(z - step)) / 0.2 for step in 0.1 * np.eye(2)]
    fisher = 2 * np.einsum("apm,bpm->pab", np.conj(slope), slope / np.asarray(data.variance)).real
    return fisher + np.diag(1 / (SPREAD * np.asarray(family.softness)) ** 2)


@pytest.mark.slow
def test_collapsed_likelihood_agrees_with_importance_sampling(known):
    problem, shared, _ = known
    batch = problem.whole()
    sampled = jax.jit(problem.infer)(jax.random.key(1), shared, batch)
    data = problem.observed(shared, batch)
    found = jax.jit(lambda: laplace_ratio(problem.family, shared, data))()
    off = np.asarray(found - problem.observation.zero_ratio(batch.images, data.variance) - sampled.log_evidence)
    assert np.median(np.abs(off)) < 0.15 and np.abs(off).mean() < 0.4


@pytest.mark.slow
def test_spread_is_found_by_the_mode_of_the_collapsed_likelihood(task):
    family, particles, z, _ = task
    found = fit(family, particles, MAP(iterations=60), key=jax.random.key(0), holdout=0.0)
    assert abs(found.value("spread") / np.sqrt(np.mean(z[:, 0] ** 2)) - 1) < 0.35
    assert np.corrcoef(found.local["mean"][:, 0], z[:, 0])[0, 1] > 0.7
    assert found.extra["posterior_predictive/shell_power"].shape[-1] == particles.disc.shells


def test_marginal_is_exact_for_normals_and_so_is_its_gradient():
    """log of the integral of N(y; a u, 1) N(u; 0, s^2): differentiable in a and s though the mode moves with them."""

    def joint(given, u):
        a, s = given
        return -0.5 * jnp.sum((jnp.array([1.0, -2.0]) - a * u) ** 2) - 0.5 * jnp.sum(u**2) / s**2 - 2 * jnp.log(s)

    def exact(given):
        variance = 1 + (given[0] * given[1]) ** 2
        return -0.5 * 5.0 / variance - jnp.log(variance) + jnp.log(2 * jnp.pi)

    with jax.enable_x64(True):
        given = (jnp.asarray(0.7), jnp.asarray(1.3))
        found, slope = jax.value_and_grad(lambda g: marginal(joint, g, jnp.zeros(2)))(given)
        np.testing.assert_allclose(found, exact(given), rtol=1e-7)
        np.testing.assert_allclose(slope, jax.grad(exact)(given), rtol=1e-6)


def test_a_structure_is_needed(task):
    with pytest.raises(UsageError, match="family.structure=FILE"):
        NormalModes().laid_out(Frame(BOX, PIXEL, (1.0,) * 8))
