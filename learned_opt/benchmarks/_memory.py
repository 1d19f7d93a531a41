"""The memory that a computation takes on top of what was there before."""

import contextlib
import ctypes
import gc
import os
import re
import sys
from typing import Any

_STATUS = "/proc/self/status"


class PeakMemory:
  """The growth of a process's, or of a GPU's, memory since this object was made.

  On Linux the peak of the resident set, which is reset here. Elsewhere the peak since the process
  began, so that a computation which stays below it seems to take nothing.
  """

  def __init__(self, device: Any):
    self._device = device
    gc.collect()
    # What a compilation has freed and the allocator kept would hide what comes.
    with contextlib.suppress(OSError, AttributeError):
      ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
      file.write("5")
    self._before = self._current()

  def growth(self) -> int:
    """Bytes, at their peak so far."""
    return max(0, self._peak() - self._before)

  def _current(self) -> int:
    if self._device.platform != "cpu":
      return self._of_device("bytes_in_use")
    return _of_status("VmRSS") or _max_rss()

  def _peak(self) -> int:
    if self._device.platform != "cpu":
      return self._of_device("peak_bytes_in_use")
    return _of_status("VmHWM") or _max_rss()

  def _of_device(self, name: str) -> int:
    return (self._device.memory_stats() or {}).get(name, 0)


def available_bytes(device: Any) -> int | None:
  """What can still be allocated, None if the system does not say."""
  if device.platform != "cpu":
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
  return _in_file("/proc/meminfo", "MemAvailable")


def _of_status(name: str) -> int | None:
  return _in_file(_STATUS, name)


def _in_file(path: str, name: str) -> int | None:
  if not os.path.exists(path):
    return None
  with open(path) as file:
    match = re.search(rf"^{name}:\s+(\d+) kB", file.read(), re.M)
  return int(match[1]) * 1024 if match else None


def _max_rss() -> int:
  if sys.platform == "win32":
    return 0
  import resource

  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024
