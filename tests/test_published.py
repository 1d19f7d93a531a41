"""Weights that others published: files, architectures, trajectories."""

import msgpack
import numpy as np
import pytest
from flax import serialization

from learned_opt import _flax_state

TREE = {"nn": {"~": {"w0": np.arange(6, dtype=np.float32).reshape(2, 3)}}, "b": np.zeros(())}


# --- Files.


@pytest.fixture
def state_file(tmp_path):
  path = tmp_path / "theta.state"
  path.write_bytes(serialization.to_bytes(TREE))
  return path


def test_reads_what_flax_writes(state_file):
  tree = _flax_state.read_state(state_file)
  assert tree["nn"]["~"]["w0"].flags.writeable
  np.testing.assert_array_equal(tree["nn"]["~"]["w0"], TREE["nn"]["~"]["w0"])
  assert (tree["b"].shape, tree["b"].dtype) == ((), np.float64)


def test_every_truncation_is_refused(state_file):
  content = state_file.read_bytes()
  for length in range(len(content)):
    state_file.write_bytes(content[:length])
    with pytest.raises(ValueError, match="damaged, truncated"):
      _flax_state.read_state(state_file)


def array_of(shape=(2,), dtype="float32", content=bytes(8), code=1):
  return {"w": msgpack.ExtType(code, msgpack.packb((shape, dtype, content)))}


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "ValueError"),
    (b"PK\x03\x04 not msgpack", "damaged"),
    (b"\x80\x80", "extra"),
    (msgpack.packb([1, 2]), "a list and no tree"),
    (msgpack.packb({"w": b"bytes"}), "w is a bytes"),
    (msgpack.packb({1: {}}), "not allowed for map key"),
    (msgpack.packb(array_of(code=42)), "code 42"),
    (msgpack.packb(array_of(code=2)), "code 2"),
    (msgpack.packb(array_of(dtype="object")), "dtype 'object'"),
    (msgpack.packb(array_of(shape=(-2,))), r"shape \[-2\]"),
    (msgpack.packb(array_of(shape=(10**9, 10**9))), "has 8 bytes"),
    (msgpack.packb(array_of(content="text")), "a str"),
    (msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb([1]))}), "shape, a dtype and bytes"),
    (msgpack.packb({"w": msgpack.ExtType(1, msgpack.packb(msgpack.ExtType(5, b"")))}), "code 5"),
    (b"\xdf\xff\xff\xff\xff", "ValueError"),
    (b"\x81\xa1a" * 30 + b"\x80", "no array"),
    (b"\x81\xa1a" * 30 + msgpack.packb(1), "more than 16 levels"),
    (b"\x81\xa1a" * 5000, "StackError"),
  ],
)
def test_what_is_no_tree_of_arrays_is_refused(state_file, content, message):
  state_file.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    _flax_state.read_state(state_file)


def test_npz_is_never_unpickled(tmp_path):
  path = tmp_path / "theta.npz"
  np.savez(path, **{"theta/w": np.array([{}], object)})
  with pytest.raises(ValueError, match="plain arrays"):
    _flax_state.read_npz(path)
  np.savez(path, w=np.zeros(2))
  with pytest.raises(ValueError, match="begin with 'theta/'"):
    _flax_state.read_npz(path)
