"""What surrounds a command: the device, the compilation cache, errors and warnings in one line."""

import contextlib
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from learned_opt import devices

# What a user can mend. Whatever else is raised is a mistake of ours, and shows its traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, RuntimeError)

INTERRUPTED = 130
WRONG_USE = 2


@contextlib.contextmanager
def errors_in_one_line(traceback: bool = False) -> Iterator[None]:
  """Ends the process with one line on stderr for errors, and quietly on Ctrl-C.

  Args:
    traceback: whether errors are to show where they came from.

  Raises:
    SystemExit: with code 2 for an error that a user can mend, 130 on Ctrl-C.
  """
  try:
    with warnings.catch_warnings():
      warnings.showwarning = _show_warning
      yield
  except KeyboardInterrupt:
    say("interrupted")
    raise SystemExit(INTERRUPTED) from None
  except USER_ERRORS as error:
    if traceback:
      raise
    say(f"error: {_message(error)}")
    raise SystemExit(WRONG_USE) from None


def say(words: str) -> None:
  """Prints one line to stderr."""
  print(f"learned-opt: {' '.join(words.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def on_device(name: str | None, num_devices: int | None = None) -> Iterator[None]:
  """Runs the block on a device or several, which should not be preceded by other uses of JAX.

  Args:
    name: a platform such as ``gpu``, whose devices share the work, or one of its devices, such as
      ``cpu:0``; None leaves the platform to JAX. Each core of a CPU is a device.
    num_devices: among how many devices of the platform the work is shared; None means all.

  Raises:
    ValueError: if there is no such device, those that are there are named; if there are not so
      many; or if a number of devices is given together with one of them.

  Example:
    >>> import jax.numpy as jnp
    >>> from learned_opt.cli._session import on_device
    >>> with on_device("cpu:0"):
    ...   [device.platform for device in jnp.zeros(()).devices()]
    ['cpu']
  """
  platform, _, index = (name or "").partition(":")
  if platform == "cpu":
    # JAX would otherwise start, and take the memory of, the accelerators that are there.
    jax.config.update("jax_platforms", "cpu")
  if index:
    if num_devices is not None:
      raise ValueError(f"--num-devices {num_devices} needs a platform, got --device {name}")
    with jax.default_device(_find_device(platform, index)):
      yield
    return
  if num_devices is not None and num_devices < 1:
    raise ValueError(f"--num-devices must be at least 1, got {num_devices}")
  devices.use_cores(num_devices)
  if platform and platform != jax.default_backend():
    jax.config.update("jax_default_device", _find_device(platform, "0"))
  with devices.use(devices.mesh(num_devices)):
    yield


def _find_device(platform: str, index: str) -> Any:
  try:
    return jax.devices(platform)[int(index)]
  except (RuntimeError, ValueError, IndexError) as error:
    there = ", ".join(f"{device.platform}:{device.id}" for device in jax.devices())
    raise ValueError(
      f"--device {platform}:{index}: there is no such device here; there are: {there}"
    ) from error


def use_compilation_cache() -> None:
  """Has JAX keep what it compiles in the user's cache folder.

  JAX's own environment variables go before: ``JAX_COMPILATION_CACHE_DIR`` names another folder,
  ``JAX_ENABLE_COMPILATION_CACHE=false`` turns the cache off.
  """
  if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # An evaluation compiles many programs that take less than JAX's threshold of a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def cache_folder() -> pathlib.Path:
  """Where files are kept that may be deleted at any time, by the custom of the system.

  Example:
    >>> from learned_opt.cli._session import cache_folder
    >>> cache_folder().name
    'learned_opt'
  """
  if sys.platform == "win32":
    root = pathlib.Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
  elif sys.platform == "darwin":
    root = pathlib.Path("~/Library/Caches")
  else:
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
  return root.expanduser() / "learned_opt"


def _message(error: BaseException) -> str:
  if isinstance(error, OSError) and error.strerror and error.filename is None:
    return error.strerror  # Without the number, as it stands in a sentence of ours.
  return str(error) or type(error).__name__


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
  del filename, lineno, file, line
  say(
    f"warning: {message}"
    if issubclass(category, UserWarning)
    else f"{category.__name__}: {message}"
  )
