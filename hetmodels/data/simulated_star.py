"""The tables of a simulated set: RELION 3.1 particles with optics groups, and the truth beside them."""

from collections.abc import Mapping, Sequence

import numpy as np

from hetmodels.data.views import Views


def particle_star(views: Views, stack: str, box: int, pixel: float) -> str:
    """Text of OUT.star.

    Args:
        views: poses, micrographs and CTF.
        stack: file name of the images, as the table is to write it.
        box: image edge in pixels.
        pixel: pixel size [Å].
    """
    optics, group = _optics_groups(views, box, pixel)
    particles = _views_columns(views, stack)
    particles["_rlnMicrographName"] = list(views.micrograph)
    particles["_rlnOpticsGroup"] = [str(g + 1) for g in group]
    particles |= _ctf_columns(views.ctf)
    return _block("optics", optics) + _block("particles", particles)


def truth_star(
    views: Views, stack: str, state: np.ndarray, contrast: np.ndarray, latents: np.ndarray | None = None
) -> str:
    """Text of truth.star: poses, state (from 1), contrast and latent coordinates of each particle.

    Args:
        views: poses.
        stack: file name of the images.
        state: state of each particle, counted from 0, (n,).
        contrast: contrast of each particle, (n,).
        latents: coordinates of the states, (states, dims).
    """
    columns = _views_columns(views, stack)
    columns["_hetTrueState"] = [str(s + 1) for s in state]
    for axis, values in enumerate([] if latents is None else np.asarray(latents, float).T, 1):
        columns[f"_hetTrueLatent{axis}"] = _numbers(values[state], 6)
    columns["_hetTrueContrast"] = _numbers(contrast, 6)
    return _block("particles", columns)


def _views_columns(views: Views, stack: str) -> dict[str, Sequence[str]]:
    import jax

    from hetmodels.imaging.rotations import to_euler

    with jax.enable_x64(True):
        angles = [np.rad2deg(np.asarray(a)) for a in to_euler(np.asarray(views.rotation, np.float64))]
    columns: dict[str, Sequence[str]] = {"_rlnImageName": [f"{i + 1:06d}@{stack}" for i in range(len(views))]}
    columns |= {f"_rlnAngle{n}": _numbers(a, 6) for n, a in zip(("Rot", "Tilt", "Psi"), angles, strict=True)}
    return columns | {f"_rlnOrigin{n}Angst": _numbers(-t, 6) for n, t in zip("XY", views.shift.T, strict=True)}


def _optics_groups(views: Views, box: int, pixel: float) -> tuple[dict[str, Sequence[str]], np.ndarray]:
    """The optics table, and the group of each particle counted from 0."""
    names, kinds, group = [], np.zeros((1, 0)), np.zeros(len(views), int)
    if views.ctf is not None:
        names = ["_rlnVoltage", "_rlnSphericalAberration", "_rlnAmplitudeContrast"]
        ctf = views.ctf
        rows = np.stack([ctf["voltage"], ctf["spherical"] / 1e7, ctf["amplitude"]], axis=1).round(6)
        kinds, group = np.unique(rows, axis=0, return_inverse=True)
    number = range(1, len(kinds) + 1)
    columns: dict[str, Sequence[str]] = {
        "_rlnOpticsGroup": [str(g) for g in number],
        "_rlnOpticsGroupName": [f"opticsGroup{g}" for g in number],
    }
    columns |= {name: _numbers(values, 6) for name, values in zip(names, kinds.T, strict=True)}
    columns["_rlnImagePixelSize"] = [f"{pixel:.8g}"] * len(kinds)
    columns["_rlnImageSize"] = [str(box)] * len(kinds)
    columns["_rlnImageDimensionality"] = ["2"] * len(kinds)
    return columns, group.reshape(-1)


def _ctf_columns(ctf: Mapping[str, np.ndarray] | None) -> dict[str, Sequence[str]]:
    if ctf is None:
        return {}
    columns = {"_rlnDefocusU": ctf["defocus_u"], "_rlnDefocusV": ctf["defocus_v"]}
    columns["_rlnDefocusAngle"] = np.rad2deg(ctf["azimuth"])
    if np.any(ctf["phase_shift"]):
        columns["_rlnPhaseShift"] = np.rad2deg(ctf["phase_shift"])
    if np.any(ctf["bfactor"]):
        columns["_rlnCtfBfactor"] = ctf["bfactor"]
    if np.any(ctf["scale"] != 1):
        columns["_rlnCtfScalefactor"] = ctf["scale"]
    return {name: _numbers(values, 6) for name, values in columns.items()}


def _numbers(values: np.ndarray, digits: int) -> list[str]:
    return [f"{v:.{digits}f}" for v in np.asarray(values, np.float64) + 0.0]


def _block(name: str, columns: Mapping[str, Sequence[str]]) -> str:
    head = [f"{label} #{i}" for i, label in enumerate(columns, 1)]
    rows = [" ".join(row) for row in zip(*columns.values(), strict=True)]
    return "\n".join(["", "# version 30001", "", f"data_{name}", "", "loop_", *head, *rows, "", ""])
