"""Learned optimizers on disk: what comes back, what is refused, and what survives an accident."""

import dataclasses
import errno
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import OPTIMIZERS, meta_params_of, tiny_lstm

import learned_opt
from learned_opt import _arrays, _card, artifacts, optimizees, optimizers
from learned_opt.artifacts import ArtifactError
from learned_opt.evaluate import Candidate, evaluate
from learned_opt.unroll import init_inner_state, unroll

ALL = pytest.mark.parametrize("case", OPTIMIZERS.values(), ids=OPTIMIZERS)


# --- Trees of arrays.


class Pair(NamedTuple):
  first: jax.Array
  second: jax.Array


def a_tree():
  rng = np.random.default_rng(0)
  return {
    "float32": rng.normal(size=(3, 2)).astype(np.float32),
    "float16": jnp.asarray(rng.normal(size=5), jnp.float16),
    "bfloat16": jnp.asarray(rng.normal(size=(2, 1, 3)), jnp.bfloat16),
    "float8": jnp.asarray(rng.normal(size=4), jnp.float8_e4m3fn),
    "float64": rng.normal(size=2),
    "pair": Pair(jnp.arange(3), np.array([True, False])),
    "list": [jnp.zeros(()), np.zeros((0, 4), np.uint8), None],
    "fortran": np.asfortranarray(rng.normal(size=(2, 3))),
    "nan": np.array([np.nan, np.inf, -0.0], np.float32),
    "key": jax.random.key(3),
    "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
  }


def assert_same_bits(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_arrays_come_back_bit_for_bit(tmp_path):
  tree = a_tree()
  digest = _arrays.save_arrays(tmp_path / "a.npz", tree)
  assert digest == _arrays.sha256_of(tmp_path / "a.npz")
  assert_same_bits(_arrays.load_arrays(tmp_path / "a.npz", tree, sha256=digest), tree)


def test_arrays_come_back_for_an_abstract_template_and_on_no_device(tmp_path):
  tree = a_tree()
  template = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, {**tree, "float64": None}))
  _arrays.save_arrays(tmp_path / "a.npz", {**tree, "float64": None})
  with pytest.raises(ValueError, match=r"fortran is float64\[2, 3\] instead of float32\[2, 3\]"):
    _arrays.load_arrays(tmp_path / "a.npz", template)
  tree["fortran"] = tree["fortran"].astype(np.float32)
  _arrays.save_arrays(tmp_path / "a.npz", {**tree, "float64": None})
  loaded = _arrays.load_arrays(tmp_path / "a.npz", template)
  assert_same_bits(loaded, {**tree, "float64": None})
  kinds = {type(leaf) for leaf in jax.tree.leaves({**loaded, "key": None, "keys": None})}
  assert kinds == {np.ndarray}


def test_a_single_array_is_a_tree(tmp_path):
  _arrays.save_arrays(tmp_path / "a.npz", np.arange(3))
  assert _arrays.load_arrays(tmp_path / "a.npz", np.zeros(3, int)).tolist() == [0, 1, 2]


def test_equal_trees_give_equal_files_that_numpy_reads(tmp_path):
  first, second = tmp_path / "first.npz", tmp_path / "second.npz"
  assert _arrays.save_arrays(first, a_tree()) == _arrays.save_arrays(second, a_tree())
  with np.load(first, allow_pickle=False) as file:
    np.testing.assert_array_equal(file["float32"], a_tree()["float32"])
    assert "bfloat16|bfloat16" in file.files
    assert "keys|rbg" in file.files


@pytest.mark.parametrize(
  ("tree", "error", "message"),
  [
    ({"a": 1.0}, TypeError, r"\['a'\] is a float, not an array"),
    ({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, ValueError, "two leaves .* 'a/b'"),
  ],
)
def test_what_is_no_tree_of_arrays_is_not_saved(tmp_path, tree, error, message):
  with pytest.raises(error, match=message):
    _arrays.save_arrays(tmp_path / "a.npz", tree)
  assert list(tmp_path.iterdir()) == []


def test_all_differences_are_named(tmp_path):
  _arrays.save_arrays(
    tmp_path / "a.npz",
    {"shape": np.ones((2, 3)), "dtype": np.ones(2), "extra": np.ones(1), "same": np.ones(1)},
  )
  like = {
    "shape": np.ones((3, 2)),
    "dtype": np.ones(2, np.float32),
    "missing": np.ones(1),
    "bits": jnp.ones(1, jnp.bfloat16),
    "same": np.ones(1),
  }
  with pytest.raises(ValueError, match="does not fit") as caught:
    _arrays.load_arrays(tmp_path / "a.npz", like)
  for difference in (
    "shape is float64[2, 3] instead of float64[3, 2]",
    "dtype is float64[2] instead of float32[2]",
    "missing is missing",
    "bits|bfloat16 is missing",
    "extra (float64[1]) is not expected",
  ):
    assert difference in str(caught.value)
  assert "same" not in str(caught.value)


class Trap:
  """An object whose unpickling would be noticed."""

  sprung = False

  def __reduce__(self):
    return (setattr, (Trap, "sprung", True))


def write_object_array(path):
  np.savez(path, w=np.array([Trap()], dtype=object))


def write_pickle(path):
  path.write_bytes(pickle.dumps({"w": Trap()}))


def write_zip_of_text(path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("w.txt", "1 2 3")


def write_too_much_data(path):
  with zipfile.ZipFile(path, "w") as archive, archive.open("w.npy", "w") as member:
    np.lib.format.write_array(member, np.ones(2))
    member.write(b"more")


def write_twice(path):
  with zipfile.ZipFile(path, "w") as archive:
    for _ in range(2):
      with pytest.MonkeyPatch.context() as patch, archive.open("w.npy", "w") as member:
        np.lib.format.write_array(member, np.ones(2))
        patch.setattr(archive, "NameToInfo", {})


def write_version_3(path):
  with zipfile.ZipFile(path, "w") as archive, archive.open("w.npy", "w") as member:
    np.lib.format.write_array(member, np.ones(2), version=(3, 0))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize(
  ("write", "message"),
  [
    (write_object_array, "w holds Python objects, which could run code"),
    (write_pickle, "not a readable .npz file of plain arrays"),
    (write_zip_of_text, "its member 'w.txt' is not an array"),
    (write_too_much_data, "w has more data than its shape says"),
    (write_twice, "two members of the same name"),
    (write_version_3, r"version \(3, 0\) of the .npy format"),
    (lambda path: path.write_text("w = 1"), "not a readable .npz file"),
    (lambda path: path.write_bytes(b""), "not a readable .npz file"),
  ],
)
def test_foreign_files_are_refused_and_nothing_of_them_is_run(tmp_path, write, message):
  write(tmp_path / "a.npz")
  with pytest.raises(ValueError, match=message):
    _arrays.load_arrays(tmp_path / "a.npz", {"w": np.ones(2)})
  assert not Trap.sprung


def test_a_huge_claimed_shape_takes_no_memory(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**15,)}
    with archive.open("w.npy", "w") as member:
      np.lib.format.write_array_header_1_0(member, header)
  with pytest.raises(ValueError, match=r"float64\[1000000000000000\] instead of float64\[2\]"):
    _arrays.load_arrays(tmp_path / "a.npz", {"w": np.ones(2)})


def test_a_flipped_bit_in_the_data_is_seen_without_a_digest(tmp_path):
  path, tree = tmp_path / "a.npz", {"w": np.arange(100.0)}
  _arrays.save_arrays(path, tree)
  content = path.read_bytes()
  start = content.index(np.arange(100.0).tobytes())
  for position in range(start, start + 800, 37):
    path.write_bytes(with_flipped_bit(content, position, position % 8))
    with pytest.raises(ValueError, match="Bad CRC-32"):
      _arrays.load_arrays(path, tree)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, failing):
  path = tmp_path / "a.npz"
  _arrays.save_arrays(path, {"w": np.ones(2)})
  monkeypatch.setattr(os, failing, fail_with(OSError(errno.ENOSPC, "No space left on device")))
  with pytest.raises(OSError, match="No space left"):
    _arrays.save_arrays(path, {"w": np.zeros(2)})
  monkeypatch.undo()
  assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]
  assert _arrays.load_arrays(path, {"w": np.ones(2)})["w"].tolist() == [1.0, 1.0]


def fail_with(error):
  def fail(*args, **kwargs):
    raise error

  return fail


def with_flipped_bit(content: bytes, position: int, bit: int) -> bytes:
  changed = bytearray(content)
  changed[position] ^= 1 << bit
  return bytes(changed)


# --- Artifacts: what comes back.


@pytest.fixture
def saved(tmp_path):
  """A small learned optimizer on disk."""
  architecture = tiny_lstm()
  return artifacts.save(tmp_path / "saved", architecture, meta_params_of(architecture))


def test_what_was_loaded_can_be_saved_again(tmp_path):
  lstm = tiny_lstm()
  first = learned_opt.load_artifact(learned_opt.save(tmp_path / "a", lstm, meta_params_of(lstm)))
  path = learned_opt.save(tmp_path / "b", first.learned_optimizer, first.meta_params)
  second = learned_opt.load_artifact(path)
  chex.assert_trees_all_equal(second.meta_params, first.meta_params)
  assert second.card["meta_params"] == first.card["meta_params"]


@ALL
def test_round_trip(case, tmp_path):
  architecture = case.make()
  meta_params = meta_params_of(architecture)
  folder = learned_opt.save(tmp_path / "new" / "folder", architecture, meta_params)
  learned_optimizer, loaded, card = learned_opt.load_artifact(folder)
  assert_same_bits(loaded, jax.device_get(meta_params))
  assert learned_optimizer.config == architecture.config
  assert [type(value) for value in learned_optimizer.config.values()] == [
    type(value) for value in architecture.config.values()
  ]
  assert card["meta_params"]["number"] == case.num_meta_params
  assert sorted(entry.name for entry in folder.iterdir()) == [
    "card.json",
    card["meta_params"]["file"],
  ]


@ALL
def test_the_optax_form_equals_the_meta_training_form(case, tmp_path):
  architecture, optimizee, num_steps = case.make(), optimizees.quadratic(), 20
  meta_params = meta_params_of(architecture)
  tx = learned_opt.load(learned_opt.save(tmp_path / "saved", architecture, meta_params))
  start = init_inner_state(optimizee, tx, jax.random.key(7))

  @jax.jit
  def meta_training_form(meta_params, start):
    tx = architecture.optimizer(meta_params)
    return unroll(optimizee, tx, start, num_steps)[1].losses

  @jax.jit
  def step(params, opt_state):
    loss, grads = jax.value_and_grad(optimizee.loss)(params, start.constants, (), start.key)
    updates, opt_state = tx.update(grads, opt_state, params, value=loss)
    return optax.apply_updates(params, updates), opt_state, loss

  params, opt_state, losses = start.params, tx.init(start.params), []
  for _ in range(num_steps + 1):
    params, opt_state, loss = step(params, opt_state)
    losses.append(loss)
  optax_form = np.array(losses)

  # XLA rounds differently where the weights are constants of the program instead of arguments.
  np.testing.assert_allclose(optax_form, meta_training_form(meta_params, start), rtol=5e-6)
  same_constants = jax.jit(lambda start: unroll(optimizee, tx, start, num_steps)[1].losses)(start)
  # A loop and a single step are two programs still: of RNNprop, XLA rounds the last bit apart.
  maxulp = 2 if architecture.name == "rnnprop" else 0
  np.testing.assert_array_max_ulp(optax_form, same_constants, maxulp=maxulp)


TRAJECTORY = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import learned_opt

tx = learned_opt.load(sys.argv[1])
# JAX refuses this once it has started on a device: loading has not made it start.
jax.config.update("jax_num_cpu_devices", 2)
assert len(jax.devices("cpu")) == 2

params = {"w": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "b": jnp.array([0.5, 3.0])}
state = tx.init(params)
loss = lambda params: jnp.sum(jnp.cos(3 * params["w"] @ jnp.array([[1.0], [2.0], [0.5]])
                                      - params["b"][:, None]) ** 2)

@jax.jit
def step(params, state):
  grads = jax.grad(loss)(params)
  updates, state = tx.update(grads, state, params, value=loss(params))
  return optax.apply_updates(params, updates), state

for _ in range(30):
  params, state = step(params, state)
  print(*(np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves((params, state))))
"""


def test_a_fresh_process_gives_the_same_trajectory_bit_for_bit(tmp_path, repo_root):
  architecture = optimizers.lstm()
  folder = learned_opt.save(tmp_path / "saved", architecture, meta_params_of(architecture, seed=5))
  fresh = subprocess.run(
    [sys.executable, "-c", TRAJECTORY, folder],
    capture_output=True,
    text=True,
    check=True,
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(repo_root), "JAX_PLATFORMS": "cpu"},
  )
  states = [line.split() for line in fresh.stdout.splitlines()]
  assert len(states) == 30
  np.testing.assert_array_equal(in_this_process(architecture, folder), states)


def in_this_process(architecture, folder):
  """The trajectory of `TRAJECTORY`, by weights that were never on a disk."""
  tx = architecture.optimizer(jax.device_get(meta_params_of(architecture, seed=5)))
  params = {"w": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "b": jnp.array([0.5, 3.0])}

  def loss(params):
    inner = 3 * params["w"] @ jnp.array([[1.0], [2.0], [0.5]])
    return jnp.sum(jnp.cos(inner - params["b"][:, None]) ** 2)

  @jax.jit
  def step(params, state):
    grads = jax.grad(loss)(params)
    updates, state = tx.update(grads, state, params, value=loss(params))
    return optax.apply_updates(params, updates), state

  state, lines = tx.init(params), []
  for _ in range(30):
    params, state = step(params, state)
    lines.append([np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves((params, state))])
  return lines


def test_weights_are_no_part_of_the_optimizer_state(saved):
  tx = learned_opt.load(saved)
  params = jnp.ones(7)
  hidden_size = 4
  assert sum(leaf.size for leaf in jax.tree.leaves(tx.init(params))) == 7 * 2 * 2 * hidden_size


@dataclasses.dataclass(frozen=True)
class Settings:
  seed: int
  out: pathlib.Path


def test_the_card_says_how_it_was_made(tmp_path):
  architecture = tiny_lstm()
  folder = learned_opt.save(
    tmp_path / "saved",
    architecture,
    meta_params_of(architecture),
    recipe={"settings": Settings(3, pathlib.Path("runs/one")), "horizon": np.int64(100)},
    evaluation={"adam": {"mean": jnp.float32(0.5), "curve": jnp.arange(3.0), "sum": np.inf}},
  )
  card = learned_opt.load_artifact(folder).card
  assert card["recipe"] == {
    "settings": {"type": "Settings", "seed": 3, "out": "runs/one"},
    "horizon": 100,
  }
  assert card["evaluation"] == {"adam": {"mean": 0.5, "curve": [0.0, 1.0, 2.0], "sum": None}}
  assert card["versions"]["jax"] == jax.__version__
  assert card["versions"]["learned_opt"] == learned_opt.__version__
  assert card["architecture"]["config"]["preprocessing"] == {"type": "LogAndSign", "p": 10.0}
  assert card["created"].startswith("20")


def git(*arguments, cwd):
  identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
  process = subprocess.run(
    ["git", *identity, *arguments], cwd=cwd, capture_output=True, text=True, check=True
  )
  return process.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_that_of_a_checkout(monkeypatch, tmp_path):
  source, installed = tmp_path / "source.py", tmp_path / "site-packages" / "installed.py"
  git("init", cwd=tmp_path)
  source.write_text("1")
  git("add", "source.py", cwd=tmp_path)
  git("commit", "-m", "first", cwd=tmp_path)
  head = git("rev-parse", "HEAD", cwd=tmp_path)
  monkeypatch.setattr(_card, "__file__", str(source))
  assert _card._git_commit() == head
  source.write_text("2")
  assert _card._git_commit() == f"{head}-dirty"
  installed.parent.mkdir()
  installed.write_text("1")
  monkeypatch.setattr(_card, "__file__", str(installed))
  assert _card._git_commit() is None


def test_without_git_or_a_repository_there_is_no_commit(monkeypatch, tmp_path):
  monkeypatch.setattr(_card, "__file__", str(tmp_path / "installed.py"))
  assert _card._git_commit() is None
  monkeypatch.setenv("PATH", str(tmp_path))
  assert _card._git_commit() is None


@pytest.mark.parametrize(
  ("recipe", "message"),
  [
    ({"problems": {"a", "b"}}, r"recipe\['problems'\] is a set"),
    ({"losses": [{1: 2.0}]}, r"recipe\['losses'\]\[0\] has the key 1"),
  ],
)
def test_a_recipe_that_is_not_json_is_refused(tmp_path, recipe, message):
  architecture = tiny_lstm()
  with pytest.raises(TypeError, match=message):
    learned_opt.save(tmp_path, architecture, meta_params_of(architecture), recipe=recipe)
  assert list(tmp_path.iterdir()) == []


# --- Artifacts: names and paths.


def test_the_folder_and_its_card_are_the_same_artifact(saved, monkeypatch):
  expected = learned_opt.load_artifact(saved).meta_params
  monkeypatch.chdir(saved.parent)
  for form in (str(saved), saved / "card.json", "saved", "saved/card.json", f"..{os.sep}{saved}"):
    if pathlib.Path(form).exists():
      assert_same_bits(learned_opt.load_artifact(form).meta_params, expected)
  monkeypatch.chdir(saved)
  assert_same_bits(learned_opt.load_artifact("card.json").meta_params, expected)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
  """A library that ships two optimizers, with the seeds 1 and 2."""
  folder = tmp_path / "shipped"
  for seed, name in enumerate(["lstm-quadratic", "lstm-mnist"], start=1):
    architecture = tiny_lstm()
    artifacts.save(folder / name, architecture, meta_params_of(architecture, seed=seed))
  (folder / "README.md").write_text("no artifact")
  (folder / "empty").mkdir()
  monkeypatch.setattr(artifacts, "_shipped", lambda: folder)
  monkeypatch.chdir(tmp_path)
  return folder


def seed_of(name_or_path):
  found = learned_opt.load_artifact(name_or_path).meta_params["output"]["kernel"]
  weights = {s: meta_params_of(tiny_lstm(), seed=s)["output"]["kernel"] for s in range(4)}
  return next(seed for seed, weight in weights.items() if np.array_equal(weight, found))


def test_shipped_optimizers_are_found_by_name(shipped):
  assert learned_opt.pretrained_names() == ("lstm-mnist", "lstm-quadratic")
  assert seed_of("lstm-quadratic") == 1
  assert seed_of("lstm-mnist") == 2


def test_a_local_artifact_goes_before_a_shipped_one(shipped, tmp_path):
  architecture = tiny_lstm()
  (tmp_path / "lstm-quadratic").mkdir()
  assert seed_of("lstm-quadratic") == 1
  learned_opt.save(tmp_path / "lstm-quadratic", architecture, meta_params_of(architecture, seed=3))
  assert seed_of("lstm-quadratic") == 3
  assert seed_of(shipped / "lstm-quadratic") == 1


@pytest.mark.parametrize(
  ("name", "error", "message"),
  [
    ("lstm-quadratics", FileNotFoundError, "Do you mean 'lstm-quadratic'.*lstm-mnist, lstm-quad"),
    ("zzz", FileNotFoundError, "no learned optimizer 'zzz'. Give the folder .* lstm-mnist, lstm"),
    ("runs/lstm-quadratic", FileNotFoundError, "no learned optimizer 'runs/lstm-quadratic'"),
    (pathlib.Path("lstm-quadratic"), FileNotFoundError, "no learned optimizer"),
    ("shipped", ArtifactError, r"shipped has no card.json.*Do you mean shipped/lstm-mnist\?"),
    ("shipped/empty", ArtifactError, "has no card.json.*learned_opt.save writes one"),
    ("shipped/README.md", ArtifactError, "README.md is not a file of weights"),
  ],
)
def test_what_is_not_found_is_said_with_a_remedy(shipped, name, error, message):
  with pytest.raises(error, match=message):
    learned_opt.load(name)


def test_without_shipped_optimizers_the_list_is_empty(tmp_path, monkeypatch):
  monkeypatch.setattr(artifacts, "_shipped", lambda: tmp_path / "none")
  assert learned_opt.pretrained_names() == ()
  with pytest.raises(FileNotFoundError, match="none are shipped"):
    learned_opt.load("lstm")


def test_every_shipped_optimizer_loads_and_tells_how_it_was_made():
  for name in learned_opt.pretrained_names():
    artifact = learned_opt.load_artifact(name)
    assert artifact.card["recipe"], name
    assert artifact.card["evaluation"], name
    plans = "num_steps" in artifact.learned_optimizer.config
    tx = learned_opt.load(name, num_steps=10 if plans else None)
    grads = jnp.linspace(-2.0, 2.0, 5)
    updates, _ = tx.update(grads, tx.init(grads), grads, value=jnp.float32(1.0))
    chex.assert_tree_all_finite(updates)


def test_every_shipped_optimizer_says_where_it_fails():
  for name in learned_opt.pretrained_names():
    assert learned_opt.load_artifact(name).card["limitations"], name


# --- Artifacts: where they fail.


def test_limitations_replace_earlier_ones_and_nothing_else(saved):
  before = learned_opt.load_artifact(saved)
  assert before.card["limitations"] == []
  learned_opt.annotate(saved, ["It fails with ReLU."])
  learned_opt.annotate(saved / "card.json", ["It fails with two layers.", "It is slow."])
  after = learned_opt.load_artifact(saved)
  assert after.card["limitations"] == ["It fails with two layers.", "It is slow."]
  unchanged = set(before.card) - {"limitations", "card_sha256"}
  assert {key: after.card[key] for key in unchanged} == {key: before.card[key] for key in unchanged}
  chex.assert_trees_all_equal(after.meta_params, before.meta_params)


@pytest.mark.parametrize(
  ("limitations", "error", "message"),
  [
    ("one string", TypeError, "must be a list of sentences, got the string 'one string'"),
    ([3], TypeError, "must be strings, got 3"),
    (["fine", " "], ValueError, "must say something"),
    (None, ValueError, "give limitations, an evaluation, or both"),
  ],
)
def test_limitations_are_checked_before_anything_is_written(saved, limitations, error, message):
  before = (saved / "card.json").read_bytes()
  with pytest.raises(error, match=message):
    learned_opt.annotate(saved, limitations)
  assert (saved / "card.json").read_bytes() == before


def test_an_evaluation_joins_the_card_and_leaves_the_limitations(saved):
  results = evaluate(
    optimizees.quadratic(),
    [Candidate.from_transformation("mine", optax.sgd(0.1))],
    num_steps=2,
    num_problems=2,
    key=jax.random.key(0),
    baselines=(),
  )
  learned_opt.annotate(saved, ["It was not trained."])
  learned_opt.annotate(saved, evaluation=results.summary())
  card = learned_opt.load_artifact(saved).card
  assert card["limitations"] == ["It was not trained."]
  assert card["evaluation"] == results.summary()
  assert [row["name"] for row in card["evaluation"]["rows"]] == ["mine"]
  with pytest.raises(TypeError, match="evaluation"):
    learned_opt.annotate(saved, evaluation={"loss": jnp})
  assert learned_opt.load_artifact(saved).card == card


def test_only_what_was_saved_has_limitations(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"there is no card.json in .*nothing"):
    learned_opt.annotate(tmp_path / "nothing", ["It is not there."])


# --- Artifacts: what is not saved.


def test_an_existing_artifact_is_replaced_only_on_request(saved):
  architecture = tiny_lstm(hidden_size=3)
  meta_params = meta_params_of(architecture, seed=1)
  before = contents(saved)
  with pytest.raises(FileExistsError, match="already: choose another folder, or overwrite=True"):
    learned_opt.save(saved, architecture, meta_params)
  assert contents(saved) == before
  (saved / "plot.png").write_bytes(b"a plot")
  learned_opt.save(saved, architecture, meta_params, overwrite=True)
  artifact = learned_opt.load_artifact(saved)
  assert_same_bits(artifact.meta_params, jax.device_get(meta_params))
  assert contents(saved).keys() == {"card.json", "plot.png", artifact.card["meta_params"]["file"]}


def contents(folder):
  return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def write_foreign_card(folder):
  (folder / "card.json").write_text("{}")


def write_run(folder):
  for name in ("config.json", "curve.png", "history.jsonl", "log.txt"):
    (folder / name).write_text("")


@pytest.mark.parametrize(
  ("prepare", "message"),
  [
    (write_run, "not empty and holds no .*, but config.json, curve.png, history.jsonl, ...: .*"),
    (write_foreign_card, "not the card of a learned optimizer. It is not overwritten: delete it"),
  ],
)
def test_other_files_are_never_overwritten(tmp_path, prepare, message):
  prepare(tmp_path)
  before, architecture = contents(tmp_path), tiny_lstm()
  with pytest.raises(FileExistsError, match=message):
    learned_opt.save(tmp_path, architecture, meta_params_of(architecture), overwrite=True)
  assert contents(tmp_path) == before


def test_unwritable_places_are_said(tmp_path, monkeypatch):
  architecture = tiny_lstm()
  meta_params = meta_params_of(architecture)
  (tmp_path / "file").write_text("")
  with pytest.raises(FileExistsError, match="is a file: a learned optimizer is saved as a folder"):
    learned_opt.save(tmp_path / "file", architecture, meta_params)
  with pytest.raises(NotADirectoryError, match=r"cannot save .*file/sub: Not a directory. Choose"):
    learned_opt.save(tmp_path / "file" / "sub", architecture, meta_params)
  denied = PermissionError(errno.EACCES, "Permission denied")
  monkeypatch.setattr(pathlib.Path, "mkdir", fail_with(denied))
  with pytest.raises(
    PermissionError, match=r"cannot save .*new: Permission denied. Choose a folder"
  ):
    learned_opt.save(tmp_path / "new", architecture, meta_params)


def misfit(change):
  meta_params = jax.device_get(meta_params_of(tiny_lstm()))
  change(meta_params)
  return meta_params


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda p: p["output"].pop("bias"), "output/bias is missing"),
    (lambda p: p.update(more=np.ones(2)), r"more \(float64\[2\]\) is not expected"),
    (lambda p: p["output"].update(bias=np.ones(2)), r"output/bias is float64\[2\] instead of "),
    (lambda p: p["output"].update(bias=np.ones(1)), r"float64\[1\] instead of float32\[1\]"),
    (lambda p: p["output"]["bias"].fill(np.nan), r"\['output'\]\['bias'\] is not finite"),
  ],
)
def test_meta_params_that_do_not_fit_are_not_saved(tmp_path, change, message):
  meta_params = jax.tree.map(np.array, misfit(lambda _: None))
  change(meta_params)
  with pytest.raises(ValueError, match=message):
    learned_opt.save(tmp_path / "new", tiny_lstm(), meta_params)
  assert not (tmp_path / "new").exists()


@dataclasses.dataclass(frozen=True)
class Halve:
  """A preprocessing that the library does not have."""


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"name": None}, "None is not part of learned_opt.optimizers"),
    ({"name": "my_lstm"}, "'my_lstm' is not part of learned_opt.optimizers"),
    ({"config": None}, "is not part of learned_opt.optimizers"),
    ({"config": {"preprocessing": Halve()}}, "the configuration type 'Halve' is unknown"),
    ({"config": {"forget_bias": np.nan}}, "'lstm' cannot be made with {'forget_bias': None}"),
    ({"config": {"num_layers": 2}}, "would not come back as it was saved"),
  ],
)
def test_an_architecture_that_could_not_be_found_again_is_not_saved(tmp_path, change, message):
  architecture = optimizers.lstm()
  meta_params = meta_params_of(architecture)
  with pytest.raises(ValueError, match=message):
    learned_opt.save(tmp_path / "new", architecture._replace(**change), meta_params)
  assert not (tmp_path / "new").exists()


# --- Artifacts: accidents.


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("at", [("fsync", 1), ("replace", 1), ("fsync", 3), ("replace", 2)])
def test_an_interrupted_save_leaves_the_old_artifact_whole(saved, monkeypatch, at, killed):
  """At each of the four moments: the weights written, renamed, the card written, renamed."""
  old = learned_opt.load_artifact(saved)
  architecture = tiny_lstm(hidden_size=3)
  new_meta_params = meta_params_of(architecture, seed=1)
  name, number = at
  fail_at_call(monkeypatch, name, number)
  if killed:
    # A killed process cannot tidy up.
    monkeypatch.setattr(pathlib.Path, "unlink", fail_with(OSError("killed")))
  with pytest.raises(OSError, match=r"cannot save the learned optimizer to .*: No space left"):
    learned_opt.save(saved, architecture, new_meta_params, overwrite=True)
  monkeypatch.undo()

  assert learned_opt.load_artifact(saved).card == old.card
  assert_same_bits(learned_opt.load_artifact(saved).meta_params, old.meta_params)
  assert any(entry.suffix == ".tmp" for entry in saved.iterdir()) == killed
  learned_opt.save(saved, architecture, new_meta_params, overwrite=True)
  new = learned_opt.load_artifact(saved)
  assert_same_bits(new.meta_params, jax.device_get(new_meta_params))
  assert contents(saved).keys() == {"card.json", new.card["meta_params"]["file"]}


def fail_at_call(monkeypatch, name, number):
  """The disk is full at the given call of a function of `os`."""
  original, calls = getattr(os, name), []

  def sometimes(*args, **kwargs):
    calls.append(args)
    if len(calls) == number:
      raise OSError(errno.ENOSPC, "No space left on device")
    return original(*args, **kwargs)

  monkeypatch.setattr(os, name, sometimes)


def test_an_interrupted_first_save_can_be_repeated(tmp_path, monkeypatch):
  architecture = tiny_lstm()
  meta_params = meta_params_of(architecture, seed=1)
  fail_at_call(monkeypatch, "replace", 2)
  with pytest.raises(OSError, match="No space left"):
    learned_opt.save(tmp_path / "new", architecture, meta_params)
  monkeypatch.undo()
  with pytest.raises(ArtifactError, match=r"has no card.json"):
    learned_opt.load(tmp_path / "new")
  learned_opt.save(tmp_path / "new", architecture, meta_params)
  assert_same_bits(
    learned_opt.load_artifact(tmp_path / "new").meta_params, jax.device_get(meta_params)
  )


def test_any_flipped_bit_of_the_card_is_an_error(saved):
  path = saved / "card.json"
  content, rng = path.read_bytes(), np.random.default_rng(0)
  for position, bit in enumerate(rng.integers(8, size=len(content))):
    path.write_bytes(with_flipped_bit(content, position, bit))
    with pytest.raises(ArtifactError, match=r"card.json"):
      learned_opt.load(saved)


def test_any_flipped_bit_of_the_weights_is_an_error(saved):
  (path,) = saved.glob("*.npz")
  content, rng = path.read_bytes(), np.random.default_rng(0)
  for position in rng.choice(len(content), 60, replace=False):
    path.write_bytes(with_flipped_bit(content, position, rng.integers(8)))
    with pytest.raises(ArtifactError, match=r"is damaged, or is another file .* sha256"):
      learned_opt.load(saved)


@pytest.mark.parametrize("pattern", ["card.json", "*.npz"])
def test_truncated_files_are_errors(saved, pattern):
  (path,) = saved.glob(pattern)
  content = path.read_bytes()
  for length in (0, 1, len(content) // 2, len(content) - 2):
    path.write_bytes(content[:length])
    with pytest.raises(ArtifactError, match=r"damaged"):
      learned_opt.load(saved)


def test_missing_weights_are_an_error(saved):
  (path,) = saved.glob("*.npz")
  path.unlink()
  with pytest.raises(ArtifactError, match=r"meta_params-.*npz is missing, and card.json names it"):
    learned_opt.load(saved)


def test_weights_of_another_artifact_are_an_error(saved, tmp_path):
  architecture = tiny_lstm()
  other = learned_opt.save(tmp_path / "other", architecture, meta_params_of(architecture, seed=1))
  (own,), (theirs,) = saved.glob("*.npz"), other.glob("*.npz")
  own.write_bytes(theirs.read_bytes())
  with pytest.raises(ArtifactError, match="is another file than the one that was saved"):
    learned_opt.load(saved)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "card.json is not JSON"),
    (b"\xff\xfe", "card.json is not JSON"),
    (b"[" * 100_000, "card.json is not JSON"),
    (b"9" * 10_000, "card.json is not JSON"),
    (b"[]", "not the card of a learned optimizer"),
    (b'{"model_type": "bert"}', "not the card of a learned optimizer"),
  ],
)
def test_json_that_is_no_card_is_refused(saved, content, message):
  (saved / "card.json").write_bytes(content)
  with pytest.raises(ArtifactError, match=message):
    learned_opt.load(saved)


def forge(folder, change):
  """Changes a card and signs it again, as a foreign program might."""
  path = folder / "card.json"
  card = json.loads(path.read_text())
  change(card)
  card["card_sha256"] = _card._digest(card)
  path.write_text(json.dumps(card))


def config(card):
  return card["architecture"]["config"]


FORGERIES = {
  "changed": (
    lambda card: card.update(card_sha256="0"),
    None,
  ),
  "newer version": (
    lambda card: card.update(format_version=2),
    "has format version 2, but this learned_opt reads version 1: a newer learned_opt may",
  ),
  "true is no version": (
    lambda card: card.update(format_version=True),
    "has format version True",
  ),
  "no field": (lambda card: card.pop("recipe"), "no usable field 'recipe'"),
  "field of another type": (lambda card: card.update(versions=3), "no usable field 'versions'"),
  "unknown architecture": (
    lambda card: card["architecture"].update(name="lsmt"),
    "the architecture 'lsmt' is unknown. Do you mean 'lstm'\\? Known are: .*lstm",
  ),
  "no architecture": (
    lambda card: card["architecture"].pop("name"),
    "the architecture has no name and configuration",
  ),
  "a function that is no architecture": (
    lambda card: card["architecture"].update(name="__import__"),
    "the architecture '__import__' is unknown",
  ),
  "unknown argument": (
    lambda card: config(card).update(hiden_size=3),
    "'lstm' has no argument 'hiden_size'. Do you mean 'hidden_size'\\? Its arguments are: num_",
  ),
  "unknown type": (
    lambda card: config(card)["preprocessing"].update(type="LogSign"),
    "the configuration type 'LogSign' is unknown. Do you mean 'LogAndSign'",
  ),
  "type of another kind": (
    lambda card: config(card)["preprocessing"].update(type=["Scale"]),
    "configuration type .* is unknown",
  ),
  "unknown field of a type": (
    lambda card: config(card)["preprocessing"].update(q=1),
    "'LogAndSign' has no argument 'q'",
  ),
  "a value out of range": (
    lambda card: config(card)["preprocessing"].update(p=-1.0),
    "'LogAndSign' cannot be made with {'p': -1.0}: p must be positive",
  ),
  "a value of another type": (
    lambda card: config(card).update(num_layers="two"),
    "'lstm' cannot be made with .*two",
  ),
  "a size that is no integer": (lambda card: config(card).update(num_layers=1.5), "card.json: "),
  "an unhashable value": (
    lambda card: config(card).update(preprocessing={"p": 1}),
    "'lstm' cannot be made with",
  ),
  "a list of values": (
    lambda card: config(card).update(num_layers=[2, 2]),
    r"'lstm' cannot be made with .*\(2, 2\)",
  ),
  "other shapes": (
    lambda card: config(card).update(hidden_size=5),
    r"layer_0/gates/bias is float32\[16\] instead of float32\[20\].*output/kernel is float32\[4, 1",
  ),
  "another number of layers": (
    lambda card: config(card).update(num_layers=1),
    r"layer_1/gates/kernel \(float32\[8, 16\]\) is not expected",
  ),
  "a path out of the folder": (
    lambda card: card["meta_params"].update(file="../other/meta_params-00000000.npz"),
    "names '../other/meta_params-00000000.npz' as the file of the weights, which cannot be",
  ),
  "no file": (lambda card: card["meta_params"].pop("file"), "names None as the file"),
  "no sha256": (lambda card: card["meta_params"].pop("sha256"), "has no sha256 of the weights"),
}


@pytest.mark.parametrize(("change", "message"), FORGERIES.values(), ids=FORGERIES)
def test_foreign_cards_are_refused(saved, change, message):
  if message is None:
    path = saved / "card.json"
    card = json.loads(path.read_text())
    config(card)["output_scale"] = 0.2
    path.write_text(json.dumps(card))
    message = "card.json is damaged, or was changed after it was saved: save it again"
  else:
    forge(saved, change)
  with pytest.raises(ArtifactError, match=message):
    learned_opt.load(saved)


def test_a_pickle_behind_a_valid_card_is_not_run(saved):
  path = saved / "meta_params-00000000.npz"
  write_object_array(path)
  forge(
    saved,
    lambda card: card["meta_params"].update(file=path.name, sha256=_arrays.sha256_of(path)),
  )
  with pytest.raises(ArtifactError, match=r"does not fit: .*is missing"):
    learned_opt.load(saved)
  write_pickle(path)
  forge(saved, lambda card: card["meta_params"].update(sha256=_arrays.sha256_of(path)))
  with pytest.raises(ArtifactError, match=r"not a readable .npz file"):
    learned_opt.load(saved)
  assert not Trap.sprung


def test_a_card_may_be_laid_out_anew(saved):
  path = saved / "card.json"
  card = json.loads(path.read_text())
  path.write_text(json.dumps(card, sort_keys=True).replace(": ", ":\r\n"))
  assert learned_opt.load_artifact(saved).card == card
