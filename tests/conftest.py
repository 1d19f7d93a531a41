"""What holds in every test: strict numerics, quick compilation; and where shared data lie."""

import gc
import os
import pathlib

REPO_ROOT = pathlib.Path(__file__).resolve().parent.parent

# The environment, and not `jax.config`, so that the processes which tests start inherit it. It must
# be set before JAX is imported. Most of the time goes into compilation: these flags make it take
# less than a third as long. XLA refuses to start with a flag that it does not know.
_FLAGS = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1"
)
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPO_ROOT / "tests" / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

import chex  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from learned_opt import _costs  # noqa: E402


def pytest_collection_finish():
  """Imported modules and collected tests stay; JAX's traces make and drop millions of objects."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def key() -> jax.Array:
  """A random key; tests that need several split it."""
  return jax.random.key(0)


@pytest.fixture(autouse=True)
def fresh_trace_counts():
  """`chex.assert_max_traces` counts by source line; each case of a test starts anew."""
  chex.clear_trace_counter()


@pytest.fixture(autouse=True)
def costs_are_measured_briefly(monkeypatch):
  """No test is about how long an update takes."""
  monkeypatch.setattr(_costs, "_MAX_REPETITIONS", _costs._MIN_REPETITIONS)


@pytest.fixture
def x64():
  """64-bit arithmetic for the whole test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope="session")
def repo_root() -> pathlib.Path:
  return REPO_ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder with real data beside the repository; tests that need it skip without it.

  If LEARNED_OPT_SHARED names the folder, as on CI, its absence is a failure.
  """
  named = os.environ.get("LEARNED_OPT_SHARED")
  path = pathlib.Path(named or REPO_ROOT.parent / "shared")
  if not (path / "data").is_dir():
    reason = f"no real data at {path}: set LEARNED_OPT_SHARED to the folder that holds data/"
    pytest.fail(reason) if named else pytest.skip(reason)
  return path
