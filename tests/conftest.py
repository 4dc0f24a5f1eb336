"""Settings of the whole suite: compiled programs are shared between workers and the commands that tests start."""

import os
import warnings
from pathlib import Path

import pytest

_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the workers share the processors
os.environ.setdefault("JAX_PLATFORMS", os.environ.get("HETMODELS_TEST_PLATFORM", "cpu"))

_MOST = 2_500_000_000  # bytes that a worker may hold when it begins a file


def pytest_configure(config: pytest.Config) -> None:
    """Import ArviZ before the workers start: on the first import of a day it renames a file, which one must win."""
    if not hasattr(config, "workerinput"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            import arviz  # noqa: F401


@pytest.fixture(scope="module", autouse=True)
def memory():
    """Forget compiled programs of former files before they fill the memory; the folder above keeps them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    if pages * os.sysconf("SC_PAGESIZE") > _MOST:
        import jax

        jax.clear_caches()
