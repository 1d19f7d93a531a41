"""Programs are forgotten before a process has more memory maps than the system allows."""

import jax
import jax.numpy as jnp
import pytest

from learned_opt import _compilation


@pytest.fixture
def cleared(monkeypatch):
  """How often the caches were cleared, without doing so to all other tests."""
  calls = []
  monkeypatch.setattr(jax, "clear_caches", lambda: calls.append(1))
  return calls


def test_few_programs_are_kept(cleared):
  assert not _compilation.make_room()
  assert not cleared


def test_many_programs_are_forgotten(cleared, monkeypatch, tmp_path):
  maps = tmp_path / "maps"
  maps.write_text("one map\n" * (_compilation._MAX_MAPS + 1))
  monkeypatch.setattr(_compilation, "_MAPS", maps)
  assert _compilation.make_room()
  assert cleared == [1]


def test_systems_without_a_list_of_maps_keep_all(cleared, monkeypatch, tmp_path):
  monkeypatch.setattr(_compilation, "_MAPS", tmp_path / "none")
  assert not _compilation.make_room()
  assert not cleared


def test_forgetting_gives_maps_back():
  """What the limit stands for: a program has maps, and loses them."""
  if not _compilation._MAPS.exists():
    pytest.skip("this system does not list a process's memory maps")

  def number():
    return _compilation._MAPS.read_text().count("\n")

  before = number()
  programs = [jax.jit(lambda x, k=k: jnp.sin(x) + k) for k in range(20)]
  for program in programs:
    jax.block_until_ready(program(jnp.ones(3)))
  with_programs = number()
  assert with_programs > before
  for program in programs:
    program.clear_cache()
  assert number() < with_programs
