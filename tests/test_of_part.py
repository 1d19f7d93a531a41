"""Training a part of the meta-params: what is estimated, and what stays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import bowl, meta_params_of, tiny_lstm

from learned_opt import LearnedOptimizer, estimators, meta_losses, meta_train

LSTM = tiny_lstm(num_layers=2)
PARTS = ("layer_1", "output/bias")


def estimate(estimator, architecture, meta_params):
  state = estimator.init(bowl(), architecture, meta_params, jax.random.key(1))
  return jax.jit(
    lambda meta_params, state: estimator.estimate(
      bowl(), architecture, meta_params, state, jax.random.key(2)
    )
  )(meta_params, state)


def split(tree):
  """The leaves of the parts, and all others."""
  return [tree["layer_1"], tree["output"]["bias"]], [tree["layer_0"], tree["output"]["kernel"]]


@pytest.mark.parametrize("path", ["autodiff", "single_gradient", "replay"])
def test_the_part_of_the_whole_gradient(path, x64):
  meta_params = meta_params_of(LSTM, dtype=np.float64)
  whole = estimators.truncated_backprop(3, 6, 2, path=path)
  expected, _, expected_info = estimate(whole, LSTM, meta_params)
  found, _, info = estimate(estimators.of_part(whole, PARTS), LSTM, meta_params)
  chex.assert_trees_all_close(split(found)[0], split(expected)[0], rtol=1e-10)
  assert not any(leaf.any() for leaf in jax.tree.leaves(split(found)[1]))
  assert all(leaf.any() for leaf in jax.tree.leaves(split(expected)[1]))
  np.testing.assert_allclose(info.losses, expected_info.losses, rtol=1e-12)


def test_evolution_strategies_perturb_the_part_alone():
  """As if the part were all that the architecture has."""
  meta_params = meta_params_of(LSTM)
  pes = estimators.pes(3, 6, 4, meta_losses.mean, staggered=False)

  def optimizer(part):
    bias_1, kernel_1, bias = part
    return LSTM.optimizer(
      {
        "layer_0": meta_params["layer_0"],
        "layer_1": {"gates": {"bias": bias_1, "kernel": kernel_1}},
        "output": {"kernel": meta_params["output"]["kernel"], "bias": bias},
      }
    )

  gates = meta_params["layer_1"]["gates"]
  part = gates["bias"], gates["kernel"], meta_params["output"]["bias"]
  expected, *_ = estimate(pes, LearnedOptimizer(lambda key: part, optimizer), part)
  found, *_ = estimate(estimators.of_part(pes, PARTS), LSTM, meta_params)
  gates = found["layer_1"]["gates"]
  chex.assert_trees_all_close(
    (gates["bias"], gates["kernel"], found["output"]["bias"]), expected, rtol=1e-5
  )
  assert all(leaf.any() for leaf in expected)
  assert not any(leaf.any() for leaf in jax.tree.leaves(split(found)[1]))


def test_a_training_leaves_the_rest_as_it_was():
  meta_params = meta_params_of(LSTM)
  training = meta_train.run(
    bowl(),
    LSTM,
    estimators.of_part(estimators.truncated_backprop(3, 6), PARTS),
    outer_optimizer=optax.adam(0.01),
    num_outer_steps=3,
    validate_every=3,
    num_validation_problems=2,
    key=jax.random.key(0),
    meta_params=meta_params,
  )
  before, after = split(meta_params), split(training.meta_params)
  chex.assert_trees_all_equal(before[1], after[1])
  moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), before[0], after[0])
  assert min(jax.tree.leaves(moved)) > 1e-3


def test_refuses_what_is_not_there():
  backprop = estimators.truncated_backprop(3, 6)
  with pytest.raises(TypeError, match="estimator must be a MetaGradientEstimator, got str"):
    estimators.of_part("pes", PARTS)
  with pytest.raises(TypeError, match="parts must be a sequence of names, got the string 'output'"):
    estimators.of_part(backprop, "output")
  with pytest.raises(ValueError, match="parts must name at least one"):
    estimators.of_part(backprop, [])
  with pytest.raises(ValueError, match="no part 'layer': there are layer_0/gates/bias, "):
    estimate(estimators.of_part(backprop, ["layer"]), LSTM, meta_params_of(LSTM))
