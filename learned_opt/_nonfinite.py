"""Where values along an unroll cease to be finite: the inner step and the tensor."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt._coordinates import path_name
from learned_opt.base import LearnedOptimizer, Optimizee
from learned_opt.unroll import init_inner_state, inner_step


class NonFinite(NamedTuple):
  """Values that are not finite along an unroll.

  Attributes:
    share: of the problems that have any.
    step: the updates before the first one, counted from 0; None if there is none.
    kind: ``"loss"``, ``"gradient"``, ``"state"`` of the optimizer, or ``"update"``, whichever comes
      first in that step.
    tensor: its place in the params or in the optimizer's state; empty for the loss.
    problem: the index of the problem.
  """

  share: float
  step: int | None = None
  kind: str | None = None
  tensor: str | None = None
  problem: int | None = None

  @property
  def where(self) -> str:
    """The place in words.

    Example:
      >>> from learned_opt.doctor import NonFinite
      >>> NonFinite(0.5, 3, "gradient", "layer.w", 0).where
      'the gradient of layer.w at inner step 3'
    """
    if self.step is None:
      return "nowhere"
    of = f" of {self.tensor}" if self.tensor else ""
    return f"the {self.kind}{of} at inner step {self.step}"


def find_nonfinite(
  optimizee: Optimizee,
  learned_optimizer: LearnedOptimizer,
  meta_params: chex.ArrayTree,
  *,
  num_steps: int,
  num_problems: int,
  key: chex.PRNGKey,
) -> NonFinite:
  """Optimizes problems and finds the first loss, gradient, state or update that is not finite.

  Args:
    optimizee: the problems.
    learned_optimizer: the architecture.
    meta_params: phi.
    num_steps: inner steps.
    num_problems: how many, side by side.
    key: draws them.

  Returns:
    The share of the problems, and the place of the first.

  Example:
    >>> import jax, jax.numpy as jnp, optax
    >>> from learned_opt import LearnedOptimizer, Optimizee, doctor
    >>> root = Optimizee.from_functions(
    ...   lambda key: {"a": jnp.ones(2), "b": jnp.ones(1)},
    ...   lambda x, key: jnp.sum(x["a"] ** 2) + jnp.sum(jnp.sqrt(x["b"])),
    ... )
    >>> sgd = LearnedOptimizer(lambda key: jnp.array(0.5), optax.sgd)
    >>> found = doctor.find_nonfinite(
    ...   root, sgd, jnp.array(0.9), num_steps=5, num_problems=1, key=jax.random.key(0)
    ... )
    >>> found.where
    'the loss at inner step 2'
  """
  bad = np.asarray(_bad(learned_optimizer, num_steps, num_problems, optimizee, meta_params, key))
  share = float(np.mean(np.any(bad, axis=(1, 2))))
  if not share:
    return NonFinite(0.0)
  # The earliest step of any problem, and what comes first in it.
  step = int(np.argmax(np.any(bad, axis=(0, 2))))
  problem = int(np.argmax(np.any(bad[:, step], axis=1)))
  kinds = _kinds(optimizee, learned_optimizer, meta_params, key)
  kind, tensor = kinds[int(np.argmax(bad[problem, step]))]
  return NonFinite(share, step, kind, tensor, problem)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _bad(learned_optimizer, num_steps, num_problems, optimizee, meta_params, key):
  """Bool ``[problems, steps + 1, kinds]``; after the last step there is the loss alone."""
  tx = _watched(learned_optimizer.optimizer(meta_params))

  def one(key: chex.PRNGKey) -> jax.Array:
    def body(state, _):
      state, loss = inner_step(optimizee, tx, state, horizon=num_steps)
      return state, jnp.append(~jnp.isfinite(loss), state.opt_state[1])

    return jax.lax.scan(body, init_inner_state(optimizee, tx, key), length=num_steps + 1)[1]

  bad = jax.vmap(one)(jax.random.split(key, num_problems))
  return bad.at[:, -1, 1:].set(False)


def _watched(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """The transformation, whose state tells what is not finite in gradients, state and updates."""
  tx = optax.with_extra_args_support(tx)

  def init(params):
    state = tx.init(params)
    return state, _flags(params, state, params)

  def update(updates, state, params=None, **extra):
    proposed, opt_state = tx.update(updates, state[0], params, **extra)
    return proposed, (opt_state, _flags(updates, opt_state, proposed))

  return optax.GradientTransformationExtraArgs(init, update)


def _flags(grads: Any, opt_state: Any, updates: Any) -> jax.Array:
  # A state may be infinite for good reasons, as that of the best loss so far.
  found = [
    _any(test, leaf)
    for test, tree in ((_not_finite, grads), (jnp.isnan, opt_state), (_not_finite, updates))
    for leaf in jax.tree.leaves(tree)
  ]
  return jnp.stack(found)


def _not_finite(leaf: jax.Array) -> jax.Array:
  return ~jnp.isfinite(leaf)


def _any(test: Callable[[jax.Array], jax.Array], leaf: jax.Array) -> jax.Array:
  is_number = jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact)
  return jnp.any(test(leaf)) if is_number else jnp.zeros((), bool)


def _kinds(optimizee, learned_optimizer, meta_params, key) -> list[tuple[str, str]]:
  """Kind and tensor of each column of `_bad`."""

  def start(optimizee: Optimizee, meta_params: chex.ArrayTree):
    state = init_inner_state(optimizee, learned_optimizer.optimizer(meta_params), key)
    return state.params, state.opt_state

  params, opt_state = jax.eval_shape(start, optimizee, meta_params)
  trees = (("gradient", params), ("state", opt_state), ("update", params))
  return [("loss", "")] + [
    (kind, path_name(path))
    for kind, tree in trees
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]
