"""Runs made by hand: a folder with a posterior, a particle table and a configuration, without a fit."""

import json

import numpy as np
import numpyro.distributions as dist
import pandas as pd
import starfile
from scipy.spatial.transform import Rotation

from hetmodels.data.phantom import phantom
from hetmodels.families import Classes
from hetmodels.families.protocol import Frame
from hetmodels.posterior import Posterior
from hetmodels.run_directory import RunDirectory
from hetmodels.tree import pytree, static
from hetmodels.volumes.voxels import Voxels

SIZE, PIXEL = 24, 6.0
FRAME = Frame(SIZE, PIXEL, (1.0,) * 12)


@pytree
class Line:
    """Maps on a straight way."""

    frame: Frame = static(default=FRAME)

    def shared(self):
        return {}

    def conformation(self, shared):
        return dist.Normal(0, 1).expand([2]).to_event(1)

    def volume(self, shared, z):
        maps = shared["maps"]
        return Voxels(maps[0] + z[0] * (maps[1] - maps[0]) + 0.2 * z[1] * (maps[2] - maps[0]), PIXEL)


def states(count=3):
    return np.stack([np.asarray(v.density(SIZE, PIXEL)) for v in phantom(count, SIZE, PIXEL)])


def local(count, rng, classes=0, dims=0):
    """Results of particles, every tenth held out."""
    nodes = rng.dirichlet(np.full(classes, 0.3), count) if classes else np.ones((count, 1))
    return {
        "mean": rng.normal(size=(count, dims)),
        "covariance": np.tile(0.04 * np.eye(dims), (count, 1, 1)),
        "responsibilities": nodes,
        "contrast": np.ones(count),
        "outlier": (np.arange(count) % 25 == 3) * 0.9,
        "log_evidence": 40 + 5 * rng.normal(size=count),
        "log_evidence_se": np.zeros(count),
        "held_out": np.arange(count) % 10 == 0,
        "rotation": Rotation.random(count, rng).as_matrix(),
        "shift": np.zeros((count, 2)),
    }


def table(count, rng):
    """The particle table that came in."""
    angles = rng.uniform(0, 180, (count, 3))
    return pd.DataFrame(
        {
            "rlnImageName": [f"{i + 1:06d}@images.mrcs" for i in range(count)],
            "rlnMicrographName": [f"m{i // 50:03d}.mrc" for i in range(count)],
            "rlnOpticsGroup": 1,
            "rlnAngleRot": angles[:, 0], "rlnAngleTilt": angles[:, 1], "rlnAnglePsi": angles[:, 2],
            "rlnOriginXAngst": 0.0, "rlnOriginYAngst": 0.0,
            "rlnDefocusU": rng.uniform(1e4, 2e4, count), "rlnDefocusV": 1.5e4, "rlnDefocusAngle": 0.0,
        }
    )  # fmt: skip


OPTICS = pd.DataFrame(
    {
        "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["one"], "rlnVoltage": [300.0], "rlnSphericalAberration": [2.7],
        "rlnAmplitudeContrast": [0.1], "rlnImagePixelSize": [PIXEL], "rlnImageSize": [SIZE],
        "rlnImageDimensionality": [2],
    }
)  # fmt: skip


def made_run(folder, count=200, classes=3, dims=0, **fields):
    """A run in a folder; `fields` are those of its Posterior."""
    rng = np.random.default_rng(1)
    run = RunDirectory(folder)
    run.volumes.mkdir(parents=True)
    run.config.write_text('particles = "/nowhere/particles.star"\n[family]\nname = "classes"\n[engine]\nname = "em"\n')
    family = Line() if dims else Classes(classes, frame=FRAME)
    shared = {"maps": states(3 if dims else classes)} | ({} if dims else {"weights": np.full(classes, 1 / classes)})
    facts = {"box": SIZE, "spacing": PIXEL, "pose": "Known()", "seconds": 12.0, "engine": "EM()", "outliers": "None"}
    trace = [{"pass": i, "objective": 30 - 20 / (i + 1), "resolution": 20.0 - i, "stage": "full"} for i in range(6)]
    draws = {name: np.asarray(value, np.float32)[None, None] for name, value in shared.items()}
    settings = {"point": True, "provenance": facts, "trace": trace} | fields
    result = Posterior(
        family, draws | settings.pop("shared", {}), local=local(count, rng, 0 if dims else classes, dims), **settings
    )
    result.save(run.posterior)
    rows = table(count, rng)
    starfile.write({"optics": OPTICS, "particles": rows}, folder / "input.star")
    if not dims:
        rows = rows.assign(hetClass=result.local["responsibilities"].argmax(1) + 1, hetOutlierProbability=0.0)
    starfile.write({"optics": OPTICS, "particles": rows}, run.particles)
    run.metrics.write_text(json.dumps({"particles": count}))
    return run, result
