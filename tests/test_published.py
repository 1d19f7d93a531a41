"""Weights that others published: files, architectures, trajectories."""

import functools

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import optax
import pytest
from flax import serialization

import learned_opt
from learned_opt import _flax_state, artifacts, cli, optimizers
from learned_opt.optimizers import _published

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


# --- Trajectories. One program for each architecture; its trees hold every rank from 0 to 4 but 3.

LEAVES = ("a", "b", "conv", "s")
NUM_STEPS = 30


class Recorded:
  """A published trajectory, and the learned optimizer that is to follow it."""

  def __init__(self, path, **config):
    self.arrays = np.load(path)
    name, sizes, self.meta_params = _published.from_published(_flax_state.read_npz(path))
    self.architecture = getattr(optimizers, name)(**sizes, **config)
    tx = self.architecture.optimizer(self.meta_params)
    self.init, self.update = tx.init, jax.jit(functools.partial(tx.update, num_steps=NUM_STEPS))

  def tree(self, kind, step):
    return {leaf: jnp.asarray(self.arrays[f"{kind}{step:03d}/{leaf}"]) for leaf in LEAVES}

  def follow(self, *, from_recorded):
    """For each step the params before it, the update and the recorded params after it."""
    params = self.tree("params", 0)
    state = self.init(params)
    for step in range(NUM_STEPS):
      if from_recorded:
        params = self.tree("params", step)
      updates, state = self.update(
        self.tree("grads", step), state, params, value=self.arrays[f"loss{step:03d}"]
      )
      yield params, updates, self.tree("params", step + 1)
      params = optax.apply_updates(params, updates)


RECORDED = {
  "celo_published": {},
  "celo_adam_published": {},
  "velo_small": {"output_scale": 1e-6},
}


@pytest.fixture(params=RECORDED, scope="module")
def recorded(request, shared):
  return Recorded(shared / "fixtures" / f"{request.param}.npz", **RECORDED[request.param])


def test_each_update_is_the_published_one(recorded):
  for params, updates, expected in recorded.follow(from_recorded=True):
    for leaf in LEAVES:
      # The recorded params tell their update only to their last digit.
      atol = 1.2e-7 * np.abs(expected[leaf]).max()
      update = np.asarray(expected[leaf], np.float64) - params[leaf]
      np.testing.assert_allclose(updates[leaf], update, rtol=1e-5, atol=atol)
      assert np.abs(update).max() > 10 * atol


def test_run_ends_where_the_published_one_does(recorded):
  start = recorded.tree("params", 0)
  for params, updates, expected in recorded.follow(from_recorded=False):
    last = params, updates, expected
  for leaf in LEAVES:
    params, updates, expected = (np.asarray(tree[leaf], np.float64) for tree in last)
    travelled = np.linalg.norm(expected - start[leaf])
    assert np.linalg.norm(params + updates - expected) <= 1e-3 * travelled


# --- Architectures.


@pytest.mark.parametrize(
  ("file", "name", "sizes"),
  [
    ("celo_theta.state", "celo", {"num_layers": 2, "hidden_size": 4, "lstm_size": 64}),
    ("celo_adam_theta.state", "celo_adam", {"lstm_size": 64}),
    ("velo_small.npz", "velo", {"bank_size": 8, "lstm_size": 16}),
    ("small_fc_mlp.npz", "adafac_mlp", {"num_layers": 2, "hidden_size": 4}),
    ("mlp_lopt.npz", "mlp", {"num_layers": 2, "hidden_size": 32}),
    ("scale_by_celo2.npz", "celo2", {"num_layers": 2, "hidden_size": 8}),
  ],
)
def test_architecture_is_recognised(shared, file, name, sizes):
  artifact = learned_opt.load_artifact(shared / "fixtures" / file)
  assert artifact.learned_optimizer.name == name
  assert sizes.items() <= dict(artifact.learned_optimizer.config).items()
  assert artifact.card["recipe"]["converted_from"]["file"] == file


def test_state_and_trajectory_hold_the_same_weights(shared):
  folder = shared / "fixtures"
  for name in ("celo", "celo_adam"):
    state = learned_opt.load_artifact(folder / f"{name}_theta.state").meta_params
    arrays = learned_opt.load_artifact(folder / f"{name}_published.npz").meta_params
    jax.tree.map(np.testing.assert_array_equal, state, arrays)


def published_tree(lstm_size=3, num_inputs=18, bank_size=1):
  """Of Celo or, with a controller of more inputs, VeLO."""
  rng = np.random.default_rng(0)
  sizes = {
    "linear": (num_inputs, lstm_size),
    "linear_1": (num_inputs, lstm_size),
    "linear_2": (num_inputs, lstm_size),
    "rnn/linear": (2 * lstm_size, 4 * lstm_size),
    "rnn_to_controls": (lstm_size, bank_size),
    "step_size": (lstm_size, 1),
  }
  rnn = {name: {"w": rng.normal(size=size), "b": np.zeros(size[1])} for name, size in sizes.items()}
  groups = (1, 1, 1, 3, 1, 3, 1, 3, 1, 3, 3, 3, 3, 3)
  stack = {f"w0__{i}": rng.normal(size=(bank_size, n, 4)) for i, n in enumerate(groups)}
  stack |= {"w1": np.ones((bank_size, 4, 4)), "w2": np.ones((bank_size, 4, 3))}
  stack |= {"b0": np.ones((bank_size, 4)), "b1": np.ones((bank_size, 4))}
  stack["b2"] = np.zeros((bank_size, 3))
  start = {name: np.zeros((1, lstm_size)) for name in ("hidden", "cell")}
  return {"lstm_init_state": start, "rnn_params": rnn, "ff_mod_stack": {"~": stack}}


def write(path, tree):
  path.write_bytes(serialization.to_bytes(jax.tree.map(np.float32, tree)))
  return path


def test_checkpoints_of_a_meta_training_are_read(tmp_path):
  """A generation and a step stand beside the weights."""
  tree = published_tree(num_inputs=30, bank_size=2)
  checkpoint = {"params": jax.tree.map(np.float32, tree), "gen_id": "a", "step": np.int64(7)}
  path = tmp_path / "params"
  path.write_bytes(serialization.to_bytes(checkpoint))
  loaded = learned_opt.load_artifact(path)
  assert loaded.learned_optimizer.name == "velo"
  assert loaded.learned_optimizer.config["bank_size"] == 2
  bank = loaded.meta_params["bank"]["layer_0"]["kernel"]
  assert bank.shape == (2, 30, 4)
  np.testing.assert_array_equal(bank[:, 3:6], tree["ff_mod_stack"]["~"]["w0__3"].astype(np.float32))


def test_input_for_the_validation_loss_is_left_out(tmp_path):
  """It is zero where the training loss is meant."""
  tree = published_tree(num_inputs=19)
  loaded = learned_opt.load_artifact(write(tmp_path / "theta.state", tree))
  kernel = loaded.meta_params["scheduler"]["mix"]["kernel"]
  np.testing.assert_array_equal(kernel, tree["rnn_params"]["linear_1"]["w"][:18].astype("f"))


def without(tree, *path):
  *parents, last = path
  node = tree
  for name in parents:
    node = node[name]
  del node[last]
  return tree


@pytest.mark.parametrize(
  ("tree", "message"),
  [
    ({"dense": {"kernel": np.ones(3)}}, r"no known architecture has the arrays dense\|kernel"),
    ({**published_tree(), "extra": np.ones(2)}, "no known architecture"),
    (without(published_tree(), "rnn_params", "step_size"), "cannot be converted: 'rnn_params|step"),
    (
      without(published_tree(), "ff_mod_stack", "~", "w0__13"),
      r"layer_0/kernel is float32\[27, 4\]",
    ),
    (published_tree(bank_size=3), "a bank of several networks"),
    (published_tree(num_inputs=24), r"mix/kernel is float32\[24, 3\] instead of float32\[30, 3\]"),
  ],
)
def test_other_trees_are_refused(tmp_path, tree, message):
  with pytest.raises(artifacts.ArtifactError, match=message):
    learned_opt.load_artifact(write(tmp_path / "theta.state", tree))


# --- Use.


def test_published_weights_run_in_a_chain(shared):
  """Clipped, decayed, compiled, with the loss; a flat quadratic is followed downhill."""
  path = shared / "fixtures" / "celo_theta.state"
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    learned_opt.load(path, num_steps=20),
    optax.add_decayed_weights(-1e-6),
  )

  @jax.jit
  def train(params):
    def step(carry, _):
      params, state = carry
      loss, grads = jax.value_and_grad(lambda p: jnp.sum(p["w"] ** 2) + p["b"] ** 2)(params)
      updates, state = tx.update(grads, state, params, value=loss)
      return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, tx.init(params)), length=20)[1]

  losses = train({"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.array(0.5)})
  assert losses[-1] < 0.95 * losses[0]
  assert np.all(np.diff(losses[3:]) < 0)


def test_number_of_steps_of_an_update_goes_before_that_of_load(shared):
  path = shared / "fixtures" / "celo_adam_theta.state"
  params = jnp.ones(2)

  @functools.partial(jax.jit, static_argnums=0)
  def second_update(configured, **options):
    tx = learned_opt.load(path, num_steps=configured)
    # In the first step nothing of the training is done, however long it is.
    _, state = tx.update(params, tx.init(params), params, value=1.0, **options)
    return tx.update(params, state, params, value=1.0, **options)[0]

  short, long = second_update(5), second_update(5000)
  assert not np.allclose(short, long)
  np.testing.assert_allclose(second_update(5, num_steps=jnp.array(5000)), long, rtol=1e-6)
  with pytest.raises(ValueError, match=r"learned_opt.load\(path, num_steps=n\)"):
    second_update(None)
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    learned_opt.load(path, num_steps=0)


def test_conversion_keeps_the_weights_and_says_where_they_are_from(shared, tmp_path, capsys):
  path = shared / "fixtures" / "celo_theta.state"
  assert cli.main(["convert", str(path), str(tmp_path / "celo"), "--config", "phase=2"]) == 0
  assert "arXiv:2501.12670" in capsys.readouterr().out
  original, converted = (
    learned_opt.load_artifact(path),
    learned_opt.load_artifact(tmp_path / "celo"),
  )
  jax.tree.map(np.testing.assert_array_equal, converted.meta_params, original.meta_params)
  assert converted.card["recipe"] == original.card["recipe"]
  assert converted.card["recipe"]["license"] == "MIT"
  assert converted.learned_optimizer == optimizers.celo(phase=2)


@pytest.mark.parametrize(
  ("config", "message"),
  [("phase", "--config phase: give NAME=VALUE"), ("phse=1", "no argument 'phse'. Do you mean")],
)
def test_command_refuses(shared, tmp_path, capsys, config, message):
  path = shared / "fixtures" / "celo_theta.state"
  assert cli.main(["convert", str(path), str(tmp_path / "celo"), "--config", config]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "celo").exists()
