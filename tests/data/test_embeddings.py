"""Latents of other programs are read, and nothing else is."""

import pickle

import numpy as np
import pytest

from hetmodels.data.embeddings import read_latents
from hetmodels.errors import DataError

Z = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def test_cryodrgn_and_recovar(tmp_path):
    (tmp_path / "z.9.pkl").write_bytes(pickle.dumps(Z))
    np.save(tmp_path / "latent_coords.npy", Z)
    for name in ("z.9.pkl", "latent_coords.npy"):
        np.testing.assert_array_equal(read_latents(tmp_path / name), Z)


def test_cryosparc_modes_in_the_order_of_their_numbers(tmp_path):
    names = [f"components_mode_{k}/value" for k in (10, 2, 0)]
    table = np.zeros(7, [("uid", "u8"), ("components_mode_0/component", "u4"), *((n, "f4") for n in names)])
    for name, column in zip(names, Z.T, strict=True):
        table[name] = column
    with open(tmp_path / "J1_particles.cs", "wb") as file:
        np.save(file, table)
    np.testing.assert_array_equal(read_latents(tmp_path / "J1_particles.cs"), Z[:, ::-1])


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def write(path, value):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(value))
    else:
        np.save(path, value, allow_pickle=True)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("z.pkl", Evil(), "refused"),
        ("z.npy", np.array([Evil()]), "no array of numbers"),
        ("z.pkl", Z[0], "one array of numbers"),
        ("z.pkl", (Z, Z), "found tuple"),
        ("z.txt", None, "from .pkl, .npy and .cs"),
    ],
)
def test_anything_else_is_refused_and_not_executed(tmp_path, capsys, name, value, words):
    path = tmp_path / name
    if value is not None:
        write(path, value)
    with pytest.raises(DataError, match=words):
        read_latents(path)
    assert "executed" not in capsys.readouterr().out


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_latents(tmp_path / "latents.npy")
    with pytest.raises(DataError, match="is a folder"):
        read_latents(tmp_path)
    with open(tmp_path / "a.cs", "wb") as file:
        np.save(file, np.zeros(3, [("uid", "u8")]))
    with pytest.raises(DataError, match="components_mode_0"):
        read_latents(tmp_path / "a.cs")
