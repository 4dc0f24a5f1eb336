"""`hetmodels doctor`: whether this installation and this machine are fit for work."""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import hetmodels
from hetmodels.cli.common import emit, json_option


@dataclasses.dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        ok: whether it is as it should be.
        found: what was found.
        cure: what to do where it is not.
    """

    name: str
    ok: bool
    found: str
    cure: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print all findings; status 1 if something needs a cure."""
    checks = [*_versions(), _inference_name(), *_devices(), *_machine(), _netcdf()]
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{'ok     ' if check.ok else 'PROBLEM'} {check.name:<{width}}  {check.found}")
        if not check.ok:
            lines.append(f"        {'':<{width}}  cure: {check.cure}")
    healthy = all(check.ok for check in checks)
    lines.append("all is well" if healthy else "some things need a cure, see above")
    emit(args, {"ok": healthy, "checks": [dataclasses.asdict(check) for check in checks]}, "\n".join(lines))
    return 0 if healthy else 1


def _versions() -> list[Check]:
    """Versions of Python, this package and what it requires."""
    checks = [
        Check("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer"),
        Check("hetmodels", True, f"{hetmodels.__version__} in {Path(hetmodels.__file__).parent}"),
    ]
    for requirement in importlib.metadata.requires("hetmodels") or []:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0]
        try:
            checks.append(Check(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, False, "not installed", f"pip install '{requirement}'"))
    return checks


def _inference_name() -> Check:
    """Whether `import inference` gives our engines, and not another package of that name."""
    name = "import inference"
    spec = importlib.util.find_spec("inference")
    if spec is None or spec.origin is None:
        return Check(name, False, "not found", "install hetmodels again: pip install --force-reinstall hetmodels")
    cure = (
        "another package or folder called `inference` is in the way: uninstall or rename it, or use a new environment"
    )
    text = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    if "ENGINES" not in text:
        return Check(name, False, f"{spec.origin} is not part of hetmodels", cure)
    owners = importlib.metadata.packages_distributions().get("inference", [])
    others = sorted(set(owners) - {"hetmodels"})
    if others:
        return Check(name, False, f"also installed by {', '.join(others)}", cure)
    return Check(name, True, spec.origin)


def _devices() -> list[Check]:
    """What JAX computes on."""
    import jax

    devices = jax.devices()
    kinds = ", ".join(f"{device.id}: {device.device_kind}" for device in devices)
    checks = [Check("jax devices", True, f"{devices[0].platform} ({kinds})")]
    if shutil.which("nvidia-smi") and devices[0].platform == "cpu":
        cure = "pip install 'hetmodels[cuda12]' or 'hetmodels[cuda13]', by the driver that nvidia-smi shows"
        checks.append(Check("GPU", False, "there is an NVIDIA driver, but JAX sees the CPU only", cure))
    return checks


def _machine() -> list[Check]:
    """Threads, memory and free disk."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES") / 1e9
    free = page * os.sysconf("SC_AVPHYS_PAGES") / 1e9
    checks = [
        Check("threads", True, f"{threads}"),
        Check("memory", True, f"{total:.1f} GB, {free:.1f} GB of it untouched"),
    ]
    for name, folder in (("disk here", Path.cwd()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        space = shutil.disk_usage(folder).free / 1e9
        checks.append(
            Check(name, space > 1, f"{space:.1f} GB free in {folder}", "free some space: a run needs about 1 GB")
        )
    return checks


def _netcdf() -> Check:
    """Write a netCDF file and read it back, which `posterior.nc` needs."""
    import numpy as np
    import xarray

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.nc"
        values: Any = np.arange(3.0)
        try:
            xarray.Dataset({"x": ("n", values)}).to_netcdf(path, engine="h5netcdf")
            with xarray.open_dataset(path, engine="h5netcdf") as back:
                same = bool((back["x"].values == values).all())
        except (OSError, ImportError, ValueError) as error:
            return Check("netCDF", False, str(error), "pip install --upgrade h5netcdf h5py xarray")
    return Check("netCDF", same, "written and read back", "pip install --upgrade h5netcdf h5py xarray")
