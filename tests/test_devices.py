"""Work shared among several devices: the same results, and a set-up that respects the user's."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import meta_params_of, tiny_lstm

from learned_opt import _blocks, devices

# Run in a process of its own, as JAX's devices are those with which it started. Odd numbers of
# coordinates, with one problem and with one for each device; the validation; learning curves.
SCRIPT = """
import json, sys
from learned_opt import devices
number = int(sys.argv[1])
set_up = devices.use_cores(number)
import jax, numpy as np, optax
from learned_opt import LearnedOptimizer, Optimizee, estimators, evaluate, meta_train
from learned_opt import optimizers, population
import jax.numpy as jnp

def init(key):
  return {"a": jax.random.normal(key, (5,)), "b": jnp.ones((3, 2))}

def loss(params, key):
  noise = jax.random.normal(key, (5,))
  return jnp.sum((params["a"] - 0.1 * noise) ** 2) + jnp.sum(jnp.cosh(params["b"]))

bowl = Optimizee.from_functions(init, loss)
architecture = optimizers.lstm(num_layers=1, hidden_size=3)
results = {}
with devices.use(devices.mesh()):
  for path, problems in (("replay", 1), ("single_gradient", 2)):
    estimator = estimators.truncated_backprop(3, 6, problems, path=path)
    result = meta_train.run(
      bowl, architecture, estimator, num_outer_steps=3, validate_every=3,
      num_validation_problems=2, key=jax.random.key(0),
    )
    results[f"{path} {problems}"] = np.concatenate(
      [np.ravel(leaf) for leaf in jax.tree.leaves(result.meta_params)]
      + [result.history.meta_loss, result.history.validation_loss]
    ).tolist()
  members = population.run(
    bowl, architecture, estimators.truncated_backprop(3, 6, 1, path="single_gradient"),
    keys=jax.random.split(jax.random.key(2), 2), hyperparams=jnp.array([1e-3, 1e-2]),
    num_outer_steps=2, validate_every=2, num_validation_problems=1,
  ).members
  results["population"] = np.concatenate(
    [np.ravel(leaf) for member in members for leaf in jax.tree.leaves(member.meta_params)]
  ).tolist()
  one_rate = LearnedOptimizer(lambda key: jnp.array(0.1), optax.sgd)
  estimator = estimators.pes(3, (4, 6), 2, sigma=0.1)
  def persistent(key):
    state = estimator.init(bowl, one_rate, jnp.array(0.1), key)
    def body(state, key):
      return estimator.estimate(bowl, one_rate, jnp.array(0.1), state, key)[1::-1]
    state, grads = jax.lax.scan(body, state, jax.random.split(key, 3))
    return jnp.append(grads, state.problems.params["b"])
  results["pes"] = jax.jit(persistent)(jax.random.key(0)).tolist()
  curves = evaluate.learning_curves(
    bowl, architecture.optimizer, result.meta_params, jax.random.split(jax.random.key(1), 4), 5
  )
  results["curves"] = curves.losses.ravel().tolist()
  results["updates"] = np.asarray(
    jax.jit(lambda g: architecture.optimizer(result.meta_params).update(
      g, architecture.optimizer(result.meta_params).init(g))[0])(jnp.linspace(-1, 1, 4096))
  ).tolist()
print(json.dumps({"set_up": set_up, "devices": jax.device_count(), "results": results}))
"""


def run(code, *arguments, **environment):
  names = ("JAX_NUM_CPU_DEVICES",)
  inherited = {name: value for name, value in os.environ.items() if name not in names}
  done = subprocess.run(
    [sys.executable, "-c", code, *arguments],
    env=inherited | environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_results_do_not_depend_on_the_number_of_devices():
  one, two = run(SCRIPT, "1"), run(SCRIPT, "2")
  assert (one["set_up"], one["devices"]) == (False, 1)
  assert (two["set_up"], two["devices"]) == (True, 2)
  for name, values in one["results"].items():
    np.testing.assert_allclose(values, two["results"][name], rtol=2e-4, atol=2e-6, err_msg=name)


# Of a single problem, or of several under `vmap`: the values, and whether sums go over devices.
MINIBATCHES = """
import json, sys
from learned_opt import devices
devices.use_cores(int(sys.argv[1]))
import jax, numpy as np
from learned_opt import datasets, optimizees

problems = optimizees.conv_classifier(datasets.load("digits"), (2,), 3, batch_size=4)

def gradient(key):
  params, constants = problems.init(key, problems.data)
  return jax.grad(problems.loss)(params, constants, problems.data, key)

values, sums = {}, {}
with devices.use(devices.mesh()):
  for name, function, number in (
    ("plain", lambda keys: gradient(keys[0]), 2),
    ("one", jax.vmap(gradient), 1),
    ("two", lambda keys: jax.vmap(gradient)(devices.share(keys)), 2),
    ("three", jax.vmap(gradient), 3),
    ("one of two", lambda keys: jax.vmap(jax.vmap(gradient))(devices.share(keys[:, None])), 2),
  ):
    program = jax.jit(function).lower(jax.random.split(jax.random.key(0), number)).compile()
    leaves = jax.tree.leaves(program(jax.random.split(jax.random.key(0), number)))
    values[name] = np.concatenate([np.ravel(leaf) for leaf in leaves]).tolist()
    sums[name] = "all-reduce" in program.as_text()
print(json.dumps({"values": values, "sums": sums}))
"""


def test_the_minibatch_of_a_single_problem_is_shared():
  one, two = (run(MINIBATCHES, number, JAX_ENABLE_X64="1") for number in "12")
  assert not any(one["sums"].values())
  assert two["sums"] == {
    "plain": True, "one": True, "two": False, "three": True, "one of two": False
  }  # fmt: skip
  for name, values in one["values"].items():
    np.testing.assert_allclose(values, two["values"][name], rtol=1e-10, atol=1e-12, err_msg=name)


COUNT = """
import json
from learned_opt import devices
set_up = devices.use_cores(3)
import jax
print(json.dumps([set_up, jax.device_count()]))
"""


def test_the_users_devices_stay():
  flag = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
  assert run(COUNT, XLA_FLAGS=flag) == [False, 2]
  assert run(COUNT, JAX_NUM_CPU_DEVICES="2") == [False, 2]
  assert run(COUNT) == [True, 3]


FLAGS = """
import json, os
from learned_opt import devices
devices.use_cores(2)
import jax
jax.devices()
print(json.dumps(os.environ["XLA_FLAGS"].split()))
"""


def test_the_users_flags_stay():
  mine = "--xla_cpu_prefer_vector_width=256"
  assert run(FLAGS, XLA_FLAGS=mine) == [mine, "--xla_cpu_multi_thread_eigen=false"]
  assert set(run(FLAGS, XLA_FLAGS="")) == {
    "--xla_cpu_multi_thread_eigen=false",
    "--xla_cpu_prefer_vector_width=512",
  }


def test_after_jax_has_started_nothing_changes():
  before = os.environ["XLA_FLAGS"]
  jax.devices()
  assert not devices.use_cores(2)
  assert os.environ["XLA_FLAGS"] == before
  assert devices.mesh() is None


def test_numbers_are_checked():
  with pytest.raises(ValueError, match="num_cores must be at least 1, got 0"):
    devices.use_cores(0)
  with pytest.raises(ValueError, match="num_devices must be between 1 and 1, got 2"):
    devices.mesh(2)


# --- Coordinates in blocks.


@pytest.mark.parametrize("number", [0, 1, 3, 4, 11, 12])
def test_blocks_of_coordinates_equal_the_whole(number, x64):
  architecture = tiny_lstm(num_layers=2)
  meta_params = meta_params_of(architecture, dtype=np.float64)
  grads = jax.random.normal(jax.random.key(0), (number,))
  tx = architecture.optimizer(meta_params)
  state = tx.init(grads)

  def two(update):
    updates, after = update(meta_params, grads, state)
    return update(meta_params, grads + updates, after)

  def whole(meta_params, grads, state):
    return architecture.optimizer(meta_params).update(grads, state)

  blocks = _blocks.in_blocks(whole, whole, block_size=4)
  run = jax.jit(two, static_argnums=0)
  for expected, found in zip(
    jax.tree.leaves(run(whole)), jax.tree.leaves(run(blocks)), strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def scale(weights, inputs, state):
  return weights * inputs + state[0], state + inputs[None]


# Blocks of: a part of a problem, one problem and a rest, two problems and a rest, all.
@pytest.mark.parametrize("block_size", [2, 3, 7, 100])
def test_vmapped_blocks_equal_the_whole_and_derivatives_are_the_plain_ones(block_size):
  blocks = _blocks.in_blocks(scale, lambda *args: scale(*args), block_size=block_size)
  inputs = jnp.arange(15.0).reshape(5, 3)
  state = jnp.arange(30.0).reshape(5, 2, 3)
  weights = jnp.arange(5.0)
  for axes, w in (((None, 0, 0), 2.0), ((0, 0, 0), weights)):
    found = jax.vmap(blocks, in_axes=axes)(w, inputs, state)
    expected = jax.vmap(scale, in_axes=axes)(w, inputs, state)
    for one, other in zip(found, expected, strict=True):
      np.testing.assert_array_equal(one, other)
  total = jax.grad(lambda w: jnp.sum(blocks(w, inputs[0], state[0])[0]))(2.0)
  assert float(total) == float(jnp.sum(inputs[0]))
  _, tangent = jax.jvp(lambda w: blocks(w, inputs[0], state[0])[0], (2.0,), (1.0,))
  np.testing.assert_array_equal(tangent, inputs[0])


def test_blocks_may_be_vmapped_twice():
  blocks = _blocks.in_blocks(scale, scale, block_size=4)
  inputs, state = jnp.arange(12.0).reshape(2, 2, 3), jnp.arange(24.0).reshape(2, 2, 2, 3)
  found, expected = (
    jax.vmap(jax.vmap(functools.partial(function, 2.0)))(inputs, state)
    for function in (blocks, scale)
  )
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, other)


def test_an_update_of_many_parameters_makes_nothing_large_on_the_way():
  architecture = tiny_lstm()
  meta_params = meta_params_of(architecture)
  grads = jax.ShapeDtypeStruct((100_000,), np.float32)
  state = jax.eval_shape(lambda g: architecture.optimizer(meta_params).init(g), grads)
  update = jax.jit(lambda phi, g, s: architecture.optimizer(phi).update(g, s), donate_argnums=2)
  plan = update.lower(meta_params, grads, state).compile().memory_analysis()
  state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  assert plan.temp_size_in_bytes <= 0.25 * state_bytes
