"""Checkpoints: the leaves of a state as named arrays in one file, replaced atomically."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hetmodels.errors import DataError


class Checkpoint:
    """A folder with the newest state of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "state.npz"

    def exists(self) -> bool:
        """Whether there is a state to go on from."""
        return self.path.exists()

    def rows(self) -> int:
        """Rows of the trace that the state there comes after."""
        with np.load(self.path, allow_pickle=False) as stored:
            return len(json.loads(str(stored["place"]))["trace"])

    def save(self, state: Any, place: str, draws: dict[str, np.ndarray]) -> None:
        """Write a state with its place in the run; a kill leaves the former one untouched."""
        self.folder.mkdir(parents=True, exist_ok=True)
        leaves, _ = jax.tree.flatten_with_path(state)
        arrays = {f"state{jax.tree_util.keystr(path)}": _plain(leaf) for path, leaf in leaves}
        temporary = self.folder / "state.tmp.npz"
        with open(temporary, "wb") as stream:
            np.savez(stream, **{"place": np.asarray(place)}, **arrays, **draws)  # type: ignore[arg-type]
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self.path)

    def load(self, example: Any) -> tuple[Any, str, dict[str, np.ndarray]]:
        """Read a state of the structure of an example, whatever its shapes; also its place and the draws kept so far.

        Raises:
            DataError: if the file belongs to a run of another structure.
        """
        leaves, structure = jax.tree.flatten_with_path(example)
        with np.load(self.path, allow_pickle=False) as stored:
            values = []
            for path, leaf in leaves:
                name = f"state{jax.tree_util.keystr(path)}"
                if name not in stored:
                    raise DataError(
                        f"resume: {self.path} does not fit this run (no {name}); start anew with --overwrite."
                    )
                values.append(_like(leaf, stored[name]))
            draws = {k[5:]: stored[k] for k in stored.files if k.startswith("draw/")}
            place = str(stored["place"])
        return jax.tree.unflatten(structure, values), place, draws


def shapes(state: Any) -> dict[str, list]:
    """Shape and type of each leaf of a state, by its path; as JSON gives it back."""
    leaves, _ = jax.tree.flatten_with_path(state)
    plain = {jax.tree_util.keystr(path): _plain(leaf) for path, leaf in leaves}
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in plain.items()}


def _plain(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    return np.asarray(leaf)


def _like(leaf: Any, value: np.ndarray) -> Any:
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(jax.numpy.asarray(value))
        return jax.numpy.asarray(value)
    return value if isinstance(leaf, np.ndarray) else type(leaf)(value.item())
