"""The contracts: what an optimizee, a learned optimizer and a meta-gradient estimator are.

Everything in this package is one of these three values, or a function that takes them:

* an `Optimizee` is a distribution of problems: how one problem starts, and its loss;
* a `LearnedOptimizer` turns meta-params into an optax gradient transformation;
* a `MetaGradientEstimator` estimates the gradient of a meta-loss with respect to the meta-params.

They hold for all three: functions are pure; everything is written for **one problem** (the
estimator and the evaluation `vmap` once, over problems); arrays are arguments, never closures;
randomness is folded from ``(key, step)``; state is for the next step and `Info` is for people.

The words are those of the papers: theta are the optimizee's `params`, phi the `meta_params`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import FrozenDict

from learned_opt._compilation import RUNS_ONCE

Metrics = dict[str, jax.Array]
LossFn = Callable[[chex.ArrayTree, chex.ArrayTree, chex.ArrayTree, chex.PRNGKey], jax.Array]
MetaLoss = Callable[..., jax.Array]


class ImageDataset(NamedTuple):
  """Images and labels of one data set, split by split.

  Each split is a pair ``(images, labels)``: uint8 ``[N, height, width, channels]`` and
  int32 ``[N]``. Build one with `learned_opt.datasets.load`, or from arrays of your own.
  """

  train: tuple[chex.Array, chex.Array]
  validation: tuple[chex.Array, chex.Array]
  test: tuple[chex.Array, chex.Array]

  @property
  def num_classes(self) -> int:
    """One more than the largest training label."""
    return int(np.max(np.asarray(self.train[1]))) + 1


class TextDataset(NamedTuple):
  """A text, as the numbers of its characters, split by split.

  Each split is a piece of running text, uint8 ``[N]``. Build one with
  `learned_opt.datasets.load_text`, or from arrays of your own.

  Attributes:
    train: what the inner steps see.
    validation: for meta-losses and validation.
    test: for evaluation.
    vocabulary: uint8 ``[V]``, the byte that each number stands for.
  """

  train: chex.Array
  validation: chex.Array
  test: chex.Array
  vocabulary: chex.Array

  @property
  def num_characters(self) -> int:
    """V, how many different characters there are."""
    return int(np.size(self.vocabulary))


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["data"],
  meta_fields=["init", "loss", "outer_loss", "metrics"],
)
@dataclasses.dataclass(frozen=True)
class Optimizee:
  """A distribution of optimization problems, one of which is drawn by a key.

  A pytree: the functions are static, the arrays in `data` are leaves. It can therefore be an
  argument of a jitted function, and a data set never becomes a constant of the program.

  Attributes:
    init: ``(key, data) -> (params, constants)`` draws one problem: where it starts (theta_0, any
      pytree of floating point arrays), and the problem's own constants (any pytree, ``()`` if
      there are none), such as the W and y of one quadratic.
    loss: ``(params, constants, data, key) -> scalar``, what the inner steps minimise. `key` draws
      the minibatch or the noise.
    data: arrays shared by all problems, ``()`` if there are none.
    outer_loss: same signature as `loss`; what the meta-loss is made of, for example the loss on
      validation batches. None means the inner losses themselves, as in the paper.
    metrics: ``(params, constants, data) -> {name: scalar}``, what only evaluation sees, such as
      the loss and accuracy on a whole test split.

  Example:
    A user's own optimizee is two functions:

    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import Optimizee
    >>> def init(key):
    ...   return jax.random.normal(key, (3,))
    >>> def loss(params, key):
    ...   return jnp.sum(params**2)
    >>> optimizee = Optimizee.from_functions(init, loss)
    >>> params, constants = optimizee.init(jax.random.key(0), optimizee.data)
    >>> params.shape
    (3,)
  """

  init: Callable[[chex.PRNGKey, chex.ArrayTree], tuple[chex.ArrayTree, chex.ArrayTree]]
  loss: LossFn
  data: Any = ()
  outer_loss: LossFn | None = None
  metrics: Callable[[chex.ArrayTree, chex.ArrayTree, chex.ArrayTree], Metrics] | None = None

  @classmethod
  def from_functions(
    cls,
    init: Callable[[chex.PRNGKey], chex.ArrayTree],
    loss: Callable[..., jax.Array],
    data: chex.ArrayTree | None = None,
  ) -> Self:
    """Makes an optimizee of two plain functions, for problems without constants of their own.

    Args:
      init: ``key -> params``.
      loss: ``(params, key) -> scalar``, or ``(params, data, key) -> scalar`` if `data` is given.
      data: arrays that the loss reads, any pytree.

    Returns:
      The optimizee.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from learned_opt import Optimizee
      >>> points = jnp.arange(4.0)
      >>> mean = Optimizee.from_functions(
      ...   lambda key: jnp.zeros(()),
      ...   lambda params, data, key: jnp.mean((params - data) ** 2),
      ...   data=points,
      ... )
      >>> float(mean.loss(jnp.zeros(()), (), mean.data, jax.random.key(0)))
      3.5
    """
    for name, function in (("init", init), ("loss", loss)):
      if not callable(function):
        raise TypeError(f"{name} must be a function, got {type(function).__name__}")
    has_data = data is not None
    return cls(
      init=_InitWithoutConstants(init),
      loss=_LossWithoutConstants(loss, has_data),
      data=data if has_data else (),
    )


@dataclasses.dataclass(frozen=True)
class _InitWithoutConstants:
  """Adapts ``key -> params``; equal for equal functions, so that it does not retrace."""

  function: Callable[[chex.PRNGKey], chex.ArrayTree]

  def __call__(self, key, data):
    del data
    return self.function(key), ()


@dataclasses.dataclass(frozen=True)
class _LossWithoutConstants:
  """Adapts ``(params, [data,] key) -> scalar``; equal for equal functions."""

  function: Callable[..., jax.Array]
  has_data: bool

  def __call__(self, params, constants, data, key):
    del constants
    return self.function(params, data, key) if self.has_data else self.function(params, key)


class CoordinatewiseRule(NamedTuple):
  """A purely coordinatewise optimizer, for many coordinates side by side.

  What a `LearnedOptimizer` declares if the update of a coordinate depends on nothing but the
  gradients of that coordinate. Backpropagation can then replay the optimizer in blocks of
  coordinates. All leaves of the state have the coordinates as their last axis, so that a row is
  one feature of all coordinates.

  Attributes:
    init: ``(meta_params, num_coordinates) -> state`` with ``[..., num_coordinates]`` leaves.
    update: ``(meta_params, grads, state) -> (updates, state)`` for ``[coordinates]`` gradients;
      equal, to rounding, to what the optax form computes.
  """

  init: Callable[[chex.ArrayTree, int], Any]
  update: Callable[[chex.ArrayTree, jax.Array, Any], tuple[jax.Array, Any]]


class PartitionedRule(NamedTuple):
  """A purely coordinatewise optimizer for each group of tensors, such as one for kernels.

  What a `LearnedOptimizer` declares whose meta-params are a dict with those of each group.

  Attributes:
    rules: by the names of the groups, which are the keys of the meta-params.
    group_of: ``tensor -> name``, where the tensor may be nothing but its shape and dtype.
  """

  rules: FrozenDict[str, CoordinatewiseRule]
  group_of: Callable[[Any], str]


class LearnedOptimizer(NamedTuple):
  """A learned-optimizer architecture: m_phi of the paper, before its weights are known.

  Attributes:
    init: ``key -> meta_params``, a pytree of float32 arrays.
    optimizer: ``meta_params -> optax.GradientTransformationExtraArgs``. Call it inside the traced
      function: a transformation built outside of `jit` bakes its weights into the program.
    name: the name of the factory in `learned_opt.optimizers`, by which a saved optimizer finds
      its architecture again; None for architectures that are not part of the library.
    config: the factory's arguments; values are numbers, strings, or dataclasses of them. It must
      be hashable, as a learned optimizer is a static argument of jitted functions.
    coordinatewise: the same optimizer as a `CoordinatewiseRule`, or as one for each group of
      tensors; None if it has no such form.
  """

  init: Callable[[chex.PRNGKey], chex.ArrayTree]
  optimizer: Callable[[chex.ArrayTree], optax.GradientTransformationExtraArgs]
  name: str | None = None
  config: FrozenDict[str, Any] | None = None
  coordinatewise: CoordinatewiseRule | PartitionedRule | None = None


class InnerState(NamedTuple):
  """One problem in the middle of its optimization; what the next inner step needs.

  Attributes:
    params: theta_t.
    opt_state: state of the bound transformation `tx`.
    constants: the problem's own constants.
    key: the problem's key; the key of step t is ``fold_in(key, t)``.
    step: int32 scalar, the number t of updates applied so far.
  """

  params: chex.ArrayTree
  opt_state: Any
  constants: chex.ArrayTree
  key: chex.PRNGKey
  step: jax.Array


class Trajectory(NamedTuple):
  """The losses along an unroll of U inner steps that began at step s.

  Attributes:
    losses: ``[U + 1]``, the inner losses f(theta_s), ..., f(theta_{s+U}), each on the minibatch
      that the inner step there sees.
    outer_losses: ``[U]``, what the meta-loss is made of: the outer loss at theta_{s+1}, ...,
      theta_{s+U}. Equal to ``losses[1:]`` for an optimizee without an `outer_loss`.
  """

  losses: jax.Array
  outer_losses: jax.Array


class Info(NamedTuple):
  """What people want to know of one meta-gradient estimate. No computation depends on it.

  Attributes:
    meta_loss: scalar, the mean meta-loss over the problems that did not diverge; NaN if all did.
    losses: ``[U + 1]``, the mean inner losses over the same problems.
    num_diverged: int32 scalar, the number of problems dropped by `drop_diverged`.
    meta_grad_norm: scalar, the global norm of the estimate, before any clipping.
  """

  meta_loss: jax.Array
  losses: jax.Array
  num_diverged: jax.Array
  meta_grad_norm: jax.Array


class MetaGradientEstimator(NamedTuple):
  """An estimator of the gradient of the meta-loss with respect to the meta-params.

  The three parts meet only here: an estimator is told neither the optimizee nor the learned
  optimizer when it is made.

  Attributes:
    init: ``(optimizee, learned_optimizer, meta_params, key) -> estimator_state``.
    estimate: ``(optimizee, learned_optimizer, meta_params, estimator_state, key) ->
      (meta_grads, estimator_state, Info)``. `meta_grads` has the structure of `meta_params`.
    horizon: inner steps of one problem, for which the optimizer is trained; validation uses it.
  """

  init: Callable[[Optimizee, LearnedOptimizer, chex.ArrayTree, chex.PRNGKey], Any]
  estimate: Callable[
    [Optimizee, LearnedOptimizer, chex.ArrayTree, Any, chex.PRNGKey],
    tuple[chex.ArrayTree, Any, Info],
  ]
  horizon: int


def check_params(params: chex.ArrayTree, argument: str = "params") -> None:
  """Checks that every leaf is a real floating point array.

  Args:
    params: any pytree.
    argument: how the error calls it.

  Raises:
    TypeError: if a leaf is integer, boolean, complex or not an array; the leaf is named.

  Example:
    >>> from learned_opt.base import check_params
    >>> check_params({"w": 1.0})
    >>> check_params({"w": 1})
    Traceback (most recent call last):
      ...
    TypeError: params['w'] has dtype int32: a learned optimizer updates real floating point \
arrays. Cast it, or leave it out with optax.masked.
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    where = argument + jax.tree_util.keystr(path)
    try:
      dtype = jnp.result_type(leaf)
    except TypeError:
      raise TypeError(f"{where} is a {type(leaf).__name__}, not an array") from None
    if not jnp.issubdtype(dtype, jnp.floating):
      raise TypeError(
        f"{where} has dtype {dtype}: a learned optimizer updates real floating point arrays. "
        "Cast it, or leave it out with optax.masked."
      )


def check_optimizee(optimizee: Optimizee, key: chex.PRNGKey) -> None:
  """Draws one problem and checks that it can be optimized.

  Args:
    optimizee: the optimizee to check.
    key: draws the problem.

  Raises:
    TypeError: if `optimizee` is no `Optimizee`, a parameter is not real floating point, or the
      loss is not a floating point scalar.
    FloatingPointError: if the loss or its gradient is not finite where the problem starts.

  Example:
    >>> import jax
    >>> from learned_opt import optimizees
    >>> from learned_opt.base import check_optimizee
    >>> check_optimizee(optimizees.quadratic(), jax.random.key(0))
  """
  if not isinstance(optimizee, Optimizee):
    raise TypeError(f"optimizee must be a learned_opt.Optimizee, got {type(optimizee).__name__}")

  def start(optimizee: Optimizee, key: chex.PRNGKey):
    params, constants = optimizee.init(key, optimizee.data)
    return params, optimizee.loss(params, constants, optimizee.data, key)

  params, loss = jax.eval_shape(start, optimizee, key)
  check_params(params, "the optimizee's params")
  if loss.shape or not jnp.issubdtype(loss.dtype, jnp.floating):
    raise TypeError(
      "the optimizee's loss must return a floating point scalar, "
      f"got shape {loss.shape} and dtype {loss.dtype}"
    )

  @functools.partial(jax.jit, compiler_options=RUNS_ONCE)
  def first_gradient(optimizee: Optimizee, key: chex.PRNGKey):
    params, constants = optimizee.init(key, optimizee.data)
    return jax.value_and_grad(optimizee.loss)(params, constants, optimizee.data, key)

  loss, grads = first_gradient(optimizee, key)
  if not np.isfinite(loss):
    raise FloatingPointError(f"the optimizee's loss is {loss} where the problem starts")
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    if not np.all(np.isfinite(np.asarray(leaf, np.float64))):
      raise FloatingPointError(
        f"the gradient of the optimizee's loss is not finite at params{jax.tree_util.keystr(path)} "
        "where the problem starts; jax.config.update('jax_debug_nans', True) finds the operation"
      )
