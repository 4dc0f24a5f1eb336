import dataclasses
import subprocess
import sys
from collections.abc import Callable

import arviz as az
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray as xr

from hetmodels import recipe
from hetmodels.errors import DataError, UsageError
from hetmodels.families import Classes, Homogeneous
from hetmodels.families.protocol import Frame
from hetmodels.imaging.grids import Disc
from hetmodels.posterior import Posterior
from hetmodels.tree import pytree, static
from hetmodels.volumes.gaussians import Gaussians

SIZE, SPACING, N, K = 12, 5.0, 40, 3
FRAME = Frame(SIZE, SPACING, tuple(np.geomspace(1, 1e-3, 6).tolist()))
NEW = int(az.__version__.split(".")[0]) >= 1


@pytree
class Bend:
    """Two latents, by name, of a molecule given as an array of the family."""

    molecule: Gaussians
    stiff: float = static(default=np.inf)
    activation: Callable = static(default=jax.nn.relu)

    def shared(self):
        return {}

    def conformation(self, shared):
        return {"turn": dist.Normal(0, 1), "move": dist.Normal(0, 1).expand([2]).to_event(1)}

    def volume(self, shared, z):
        moved = self.molecule.centres * z["turn"] + jnp.pad(z["move"], (0, 1)) * shared["scale"]
        return dataclasses.replace(self.molecule, centres=moved)


def rng():
    return np.random.default_rng(0)


def local(dims=0, nodes=1):
    r = rng()
    return {
        "mean": r.normal(size=(N, dims)), "covariance": r.normal(size=(N, dims, dims)),
        "responsibilities": r.dirichlet(np.ones(nodes), N).astype(np.float32), "contrast": np.ones(N, np.float32),
        "outlier": np.zeros(N), "log_evidence": r.normal(size=N), "log_evidence_se": np.zeros(N),
        "held_out": np.arange(N) % 8 == 0, "half": (np.arange(N) % 2).astype(np.int8),
        "rotation": r.normal(size=(N, 3, 3)), "shift": r.normal(size=(N, 2)).astype(np.float32),
    }  # fmt: skip


def classes(chains=1, draws=1):
    r = rng()
    shared = {
        "maps": r.normal(size=(chains, draws, K, SIZE, SIZE, SIZE)).astype(np.float32),
        "maps_tau2": r.gamma(1, size=(chains, draws, K, 6)).astype(np.float32)[:, :, 0],
        "weights": r.dirichlet(np.ones(K), (chains, draws)).astype(np.float32),
        "noise": r.gamma(9, size=(chains, draws, 2, 6)).astype(np.float32),
    }
    stats = {"diverging": r.random((chains, draws)) < 0.1, "energy": r.normal(size=(chains, draws))}
    point = chains * draws == 1
    return Posterior(
        Classes(classes=K, frame=FRAME), shared, point, local(0, K), {} if point else stats,
        [{"pass": 0, "objective": -1.25, "occupancy": [0.5, 0.5]}], {"engine": "EM()", "versions": {"jax": "1"}},
        {"half_maps": r.normal(size=(2, K, SIZE, SIZE, SIZE)).astype(np.float32), "fsc": np.array([np.nan, *range(5)])},
    )  # fmt: skip


def bend(**fields):
    molecule = Gaussians(jnp.asarray(rng().normal(size=(4, 3)), jnp.float32), jnp.ones(4), 4 * jnp.ones(4))
    shared = {"scale": np.full((1, 1), 2.0, np.float32)}
    return Posterior(Bend(molecule, **fields), shared, True, local(3), provenance={"box": SIZE, "spacing": SPACING})


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("posterior", [classes(), classes(2, 5), bend()], ids=["point", "draws", "atoms"])
def test_round_trip_is_exact(posterior, tmp_path):
    path = tmp_path / "new" / "posterior.nc"
    posterior.save(path)
    again = Posterior.load(path)
    for part in ("shared", "local", "stats", "extra"):
        same(getattr(posterior, part), getattr(again, part))
    assert (again.point, again.trace, again.provenance) == (posterior.point, posterior.trace, posterior.provenance)
    assert type(again.family) is type(posterior.family)
    for a, b in zip(jax.tree.leaves(again.family), jax.tree.leaves(posterior.family), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(again.family) == jax.tree.structure(posterior.family)
    assert [p.name for p in path.parent.iterdir()] == ["posterior.nc"]


@pytest.mark.parametrize(("posterior", "z"), [(classes(2, 3), 2), (bend(), [0.3, -4.0, 1.2])], ids=["classes", "atoms"])
def test_load_rebuilds_the_volumes(posterior, z, tmp_path):
    posterior.save(tmp_path / "p.nc")
    again, grid, turn = Posterior.load(tmp_path / "p.nc"), Disc(SIZE).grid(SPACING), jnp.eye(3)[jnp.array([1, 2, 0])]
    expected, found = (p.volume_at(z) for p in (posterior, again))
    np.testing.assert_array_equal(found.project(turn, grid), expected.project(turn, grid))
    np.testing.assert_array_equal(again.map_at(z), posterior.map_at(z))
    assert again.map_at(z).shape == (SIZE,) * 3


def test_point_is_the_mean_of_the_draws():
    posterior = classes(2, 3)
    np.testing.assert_allclose(posterior.value("maps"), posterior.shared["maps"].mean((0, 1)), rtol=1e-5, atol=1e-6)
    assert posterior.value("maps").dtype == np.float32 and posterior.shared_point()["weights"].shape == (K,)
    np.testing.assert_array_equal(classes().value("weights"), classes().shared["weights"][0, 0])
    with pytest.raises(UsageError, match="Did you mean 'weights'"):
        posterior.value("weigths")


def test_latents_take_the_form_of_the_family():
    z = bend().latent([1, 2, 3])  # move before turn, as in local["mean"]
    np.testing.assert_array_equal(z["move"], [1, 2])
    assert z["turn"].shape == () and z["turn"] == 3 and z["turn"].dtype == jnp.float32
    again = bend().latent({"turn": 3.0, "move": [1.0, 2.0]})
    assert jax.tree.all(jax.tree.map(jnp.array_equal, z, again))
    np.testing.assert_array_equal(bend().latent(bend().latent_of(7))["turn"], np.float32(bend().local["mean"][7, 2]))
    best = classes().local["responsibilities"][5].argmax()
    assert classes().latent(classes().latent_of(5)) == best and classes().latent([1]).shape == ()
    many = jax.vmap(lambda k: classes().volume_at(k).values)(jnp.arange(K))
    np.testing.assert_array_equal(many[2], classes().volume_at(2).values)


@pytest.mark.parametrize(
    ("posterior", "z", "words"),
    [
        (classes(), 3, "must lie in its support"),
        (classes(), 0.5, "must lie in its support"),
        (classes(), None, r"Give z, z \(1 number\)"),
        (bend(), [1.0], r"move \(2 numbers\) and turn \(1 number\), got 1 numbers"),
        (bend(), {"turn": 1.0}, "got turn"),
        (Posterior(Homogeneous(frame=FRAME), {}, True), 1.0, "there is no latent"),
        (Posterior(None, {"mu": np.zeros((4, 9))}, False), None, "need a family"),
    ],
)
def test_latents_that_do_not_fit(posterior, z, words):
    with pytest.raises(UsageError, match=words):
        posterior.volume_at(z)


def test_rows_of_particles_are_checked():
    with pytest.raises(UsageError, match="there are 40, got 40"):
        classes().latent_of(N)


# ---- the file


def edited(path, change):
    """The file with the description of its family changed."""
    with h5py.File(path, "a") as file:
        text = file["family"][()].decode()
        del file["family"]
        file["family"] = change(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.replace(r"\"concentration\"", r"\"concentrations\""),
            "has no field 'concentrations'.*Did you mean",
        ),
        (lambda t: t.replace("families.classes:", "families.klasses:"), "cannot be found there now"),
        (lambda t: t.replace("classes:Classes", "classes:Ball"), "no field"),
        (lambda t: t.replace("classes:Classes", "classes:need_frame"), "must be a dataclass"),
        (lambda t: t.replace(r"\"size\": 12, ", ""), "needs size in the version installed"),
        (lambda t: t.replace(r"\"classes\": 3", r"\"classes\": 0"), "at least one class"),
    ],
)
def test_a_family_of_another_version_is_refused_in_words(change, words, tmp_path):
    path = tmp_path / "posterior.nc"
    classes().save(path)
    edited(path, change)
    with pytest.raises(DataError, match=words) as caught:
        Posterior.load(path)
    assert str(path) in str(caught.value) and "Posterior.load(path, family=...)" in str(caught.value)
    same(Posterior.load(path, family=classes().family).shared, classes().shared)


def test_a_family_that_has_no_text_costs_nothing_but_itself(tmp_path):
    with pytest.warns(UserWarning, match="activation .* has no name that can be imported"):
        bend(activation=lambda x: x).save(tmp_path / "p.nc")
    with pytest.raises(DataError, match="was not written as text"):
        Posterior.load(tmp_path / "p.nc")
    same(Posterior.load(tmp_path / "p.nc", family=bend().family).local, bend().local)


def test_files_that_are_no_posterior(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        Posterior.load(tmp_path / "none.nc")
    classes().save(tmp_path / "whole.nc")
    content = (tmp_path / "whole.nc").read_bytes()
    (tmp_path / "cut.nc").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.nc").write_text("data_\n")
    for name in ("cut.nc", "text.nc"):
        with pytest.raises(DataError, match="not a readable netCDF file"):
            Posterior.load(tmp_path / name)
    xr.Dataset({"a": 1}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    with pytest.raises(DataError, match="holds no posterior"):
        Posterior.load(tmp_path / "other.nc")


def test_the_file_holds_names_and_text_and_no_pickle(tmp_path):
    classes(2, 5).save(tmp_path / "p.nc")
    content = (tmp_path / "p.nc").read_bytes()
    assert b"numpy.core.multiarray" not in content and b"cnumpy" not in content and b"\x80\x04\x95" not in content
    with xr.open_datatree(tmp_path / "p.nc", engine="h5netcdf") as tree:
        maps = tree["posterior/maps"]
        assert maps.dims == ("chain", "draw", "class", "z", "y", "x")
        np.testing.assert_array_equal(maps["class"], [1, 2, 3])
        np.testing.assert_array_equal(maps["x"], (np.arange(SIZE) - SIZE // 2) * SPACING)
        assert tree["posterior/maps_tau2"].dims == ("chain", "draw", "shell")
        assert tree["posterior/noise"].dims == ("chain", "draw", "group", "shell")
        assert tree["extra/half_maps"].dims == ("half", "class", "z", "y", "x")
        assert tree["local/responsibilities"].dims == ("particle", "class")
        assert all(v.dtype.kind != "O" for node in tree.subtree for k, v in node.data_vars.items())
    bend().save(tmp_path / "b.nc")
    with xr.open_datatree(tmp_path / "b.nc", engine="h5netcdf") as tree:
        np.testing.assert_array_equal(tree["local/mean"]["latent"], [1, 2, 3])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.nc"
    classes().save(path)
    before = path.read_bytes()

    def full(self, place, **options):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", full)
    with pytest.raises(OSError, match="No space"):
        classes(2, 2).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_names_that_netcdf_does_not_take(tmp_path):
    shared = {"net/layer%2F": np.ones((1, 1, 2)), "z": np.ones((1, 1, 3)), "w": np.ones((1, 1), jnp.bfloat16)}
    maps = {"map": np.ones((1, 1, *(SIZE,) * 3)), "map_tau2": np.ones((1, 1, 6))}
    Posterior(Homogeneous(frame=FRAME), shared | maps, True).save(tmp_path / "p.nc")
    again = Posterior.load(tmp_path / "p.nc").shared
    assert again.pop("w").dtype == np.float32
    same(again, {k: v for k, v in (shared | maps).items() if k != "w"})


def test_equinox_like_classes_are_filled_without_their_own_constructor():
    layer = Layer(3)
    again = recipe.rebuild(*recipe.describe(layer))
    np.testing.assert_array_equal(again.weight, layer.weight)
    assert isinstance(again.weight, np.ndarray) and again.note == {"a": [1, (2.5, None)]}


@dataclasses.dataclass(frozen=True)
class Layer:
    weight: np.ndarray
    note: dict

    def __init__(self, size):
        object.__setattr__(self, "weight", np.arange(size) / 3)
        object.__setattr__(self, "note", {"a": [1, (2.5, None)]})


# ---- ArviZ


def group(container, name):
    found = container[name]
    return found.to_dataset() if NEW else found


def test_arviz_reads_it_with_named_coordinates():
    posterior = classes(4, 50)
    held = rng().normal(size=(4, 50, 5))
    loo = {"log_likelihood/training": rng().normal(size=(4, 50, 35)), "log_likelihood/held_out": held}
    loo["observed_data/y"] = np.ones(3)
    posterior = dataclasses.replace(posterior, extra=posterior.extra | loo)
    data = posterior.to_arviz()
    table = az.summary(data)
    assert "weights[1]" in table.index and "maps_tau2[0]" in table.index and len(table) == K + 6 + 12
    assert set(group(data, "posterior").data_vars) == {"maps_tau2", "weights", "noise"}
    assert set(group(data, "sample_stats").data_vars) == {"diverging", "energy"}
    assert "maps" in group(posterior.to_arviz(maps=True), "posterior")
    for function in (az.rhat, az.ess):
        assert np.isfinite(function(group(data, "posterior"))["weights"]).all()
    found = az.loo(data, var_name="training", pointwise=True)
    assert found.n_data_points == 35 and np.isfinite(found.se)
    assert group(data, "log_likelihood")["held_out"].dims == ("chain", "draw", "held_out_particle")
    assert group(data, "constant_data")["half"].dims == ("particle",)
    assert group(data, "observed_data")["y"].shape == (3,)


def test_evidence_of_a_point_estimate_is_split_into_training_and_held_out():
    posterior = classes()
    found, held = group(posterior.to_arviz(), "log_likelihood"), posterior.local["held_out"]
    np.testing.assert_array_equal(found["held_out"].values[0, 0], posterior.local["log_evidence"][held])
    np.testing.assert_array_equal(found["training"].values[0, 0], posterior.local["log_evidence"][~held])
    np.testing.assert_array_equal(found["held_out_particle"], np.flatnonzero(held))


def test_draws_of_latents_are_named_by_their_particles():
    training = np.flatnonzero(~local()["held_out"])
    shared = {
        "scale": np.ones((2, 4)),
        "turn": np.ones((2, 4, len(training))),
        "move": np.ones((2, 4, len(training), 2)),
    }
    found = group(dataclasses.replace(bend(), shared=shared, point=False).to_arviz(), "posterior")
    np.testing.assert_array_equal(found["training_particle"], training)
    assert found["turn"].dims == ("chain", "draw", "training_particle")


# ---- manners


def test_it_prints_what_it_is():
    text = repr(classes(2, 5))
    assert "2 chains of 5 draws" in text and "40, 5 held out" in text and "maps (3, 12, 12, 12)" in text
    assert "point estimate" in repr(classes()) and "a model function" in repr(Posterior(None, {}, True))
    page = Posterior(None, {"<a>": np.zeros((1, 1))}, True)._repr_html_()
    assert page.startswith("<table>") and "&lt;a&gt;" in page


def test_importing_loads_neither_arviz_nor_xarray():
    code = "import sys, hetmodels.posterior, hetmodels.container, hetmodels.arviz_bridge, inference.diagnostics\n"
    code += "print({'arviz', 'xarray', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
