"""VeLO (Metz et al. 2022): an LSTM for each tensor makes the network that updates it."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from learned_opt.base import LearnedOptimizer
from learned_opt.kernels.lstm import CellState
from learned_opt.optimizers import _features, _scheduler, _velo_rule
from learned_opt.optimizers._mlp import check_mlp_options
from learned_opt.optimizers._tensors import (
  check_tensors,
  filled_positions,
  init_tree,
  row_numbers,
  update_tree,
)

# Of the running averages: mean and variance of each momentum, mean square, its distance to them.
_NUM_MOMENTA = len(_features.INITIAL_DECAYS["momenta"])
_MAX_RANK = 4
_NUM_INPUTS = (
  _scheduler.NUM_PROGRESS + _scheduler.NUM_LOSSES + 1 + (_MAX_RANK + 1) + 2 * _NUM_MOMENTA
)
# Half-lives of the running means of the losses in checkpoints with bugged_loss_features.
_BUGGED_NUM_STEPS = 10


class TensorState(NamedTuple):
  """What is kept of one tensor.

  Attributes:
    accumulators: the running averages of its gradients.
    momentum_variances: ``[3]``, the variances of the momenta over the tensor.
    square_mean: ``[1]``, the mean of the squares.
    square_variances: ``[3]``, the mean squared distances of the squares to each momentum's mean.
  """

  accumulators: _features.Accumulators
  momentum_variances: jax.Array
  square_mean: jax.Array
  square_variances: jax.Array


class VeLOState(NamedTuple):
  """Optimizer state.

  Attributes:
    step: int32 scalar, the number of updates so far.
    tensors: the params' tree, with a `TensorState` in the place of a tensor.
    cells: of the LSTM, ``[tensors, lstm_size]`` arrays; tensors without coordinates have none.
    losses: what was seen of the losses.
  """

  step: jax.Array
  tensors: Any
  cells: CellState
  losses: _scheduler.LossState


class _Options(NamedTuple):
  lstm_size: int
  bank_size: int
  num_layers: int
  hidden_size: int
  bank_scale: float
  exp_scale: float
  output_scale: float
  num_steps: int | None
  bugged_lstm_state: bool
  bugged_loss_features: bool


def velo(
  lstm_size: int = 512,
  bank_size: int = 256,
  num_layers: int = 2,
  hidden_size: int = 4,
  bank_scale: float = 100.0,
  exp_scale: float = 1e-3,
  output_scale: float = 1e-3,
  num_steps: int | None = None,
  bugged_lstm_state: bool = False,
  bugged_loss_features: bool = False,
) -> LearnedOptimizer:
  """VeLO: a hypernetwork; for each tensor an LSTM mixes a small network out of a bank of them.

  The LSTM sees how much of the training is done, how the losses fall, the rank of the tensor and
  statistics of its running averages, relative to the size of its parameters; and the largest of a
  linear map of all tensors' features. It gives a rate r and a control c_k for each of K networks.
  The network whose weights are bank_scale mean_k(c_k w_k) sees 30 numbers of each coordinate: those
  of `adafac_mlp` without the time, the clipped gradient, and the gradient that RMSprop would take;
  each is divided by its root mean square over the tensor. Of its outputs d and s,

      update = -r output_scale RMS(tensor) d exp(exp_scale s).

  Source: Metz et al. (2022), "VeLO: training versatile learned optimizers by scaling up"; the
  constants are those of its released code. Gradients are clipped to +-1000, as there.

  Args:
    lstm_size: units of the LSTM.
    bank_size: K, the number of networks.
    num_layers: hidden layers of each.
    hidden_size: units of each.
    bank_scale: factor of the mixed weights; 100 in the paper, 1 in later work on small problems.
    exp_scale: factor of the output in the exponent.
    output_scale: factor of the update.
    num_steps: for how many steps the optimizer plans; None if each update is told.
    bugged_lstm_state: whether the LSTM forgets its state after each step, as the oldest published
      weights were trained.
    bugged_loss_features: whether the half-lives of the means of the losses are all 10 steps, as
      some published weights were trained.

  Returns:
    The architecture. Its transformations read the params and the loss: ``tx.update(grads, state,
    params, value=loss)``; ``num_steps=n`` there goes before the factory's. They keep four arrays of
    the size of the params, and few smaller ones.

  Raises:
    ValueError: if a size or `num_steps` is not positive or a factor not finite.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from learned_opt import optimizers
    >>> architecture = optimizers.velo(lstm_size=8, bank_size=4, num_steps=100)
    >>> def first_update(key, params):
    ...   tx = architecture.optimizer(architecture.init(key))
    ...   return tx.update(params, tx.init(params), params, value=1.0)[0]
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> jax.eval_shape(first_update, jax.random.key(0), params)["w"].shape
    (3, 2)
  """
  check_mlp_options(
    num_layers,
    hidden_size,
    bank_scale=bank_scale,
    exp_scale=exp_scale,
    output_scale=output_scale,
  )
  for name, size in (("lstm_size", lstm_size), ("bank_size", bank_size)):
    if size < 1:
      raise ValueError(f"{name} must be at least 1, got {size}")
  return _velo(
    _Options(
      lstm_size=lstm_size,
      bank_size=bank_size,
      num_layers=num_layers,
      hidden_size=hidden_size,
      bank_scale=float(bank_scale),
      exp_scale=float(exp_scale),
      output_scale=float(output_scale),
      num_steps=_scheduler.check_num_steps(num_steps),
      bugged_lstm_state=bool(bugged_lstm_state),
      bugged_loss_features=bool(bugged_loss_features),
    )
  )


# Equal arguments give the same object, however they are passed: no second compilation for it.
@functools.cache
def _velo(options: _Options) -> LearnedOptimizer:
  def init(key: chex.PRNGKey) -> chex.ArrayTree:
    bank_key, scheduler_key = jax.random.split(key)
    network = functools.partial(
      _velo_rule.init_network,
      num_layers=options.num_layers,
      hidden_size=options.hidden_size,
    )
    heads = {"controls": options.bank_size, "rate": 1}
    return {
      "bank": jax.vmap(network)(jax.random.split(bank_key, options.bank_size)),
      "scheduler": _scheduler.init_scheduler(
        scheduler_key, _NUM_INPUTS, options.lstm_size, **heads
      ),
    }

  def of_tensor(rows, tensor):
    """Of arrays with a row for each tensor, that of one."""
    return jax.tree.map(lambda leaf: leaf[tensor], rows)

  rule = _velo_rule.make_rule(
    options.exp_scale,
    network=lambda shared, tensor: of_tensor(shared[0], tensor),
    rate=lambda shared, tensor: of_tensor(shared[1], tensor),
  )

  def update(shared, inputs, state: TensorState):
    update, accumulators = rule.update(shared, inputs, state.accumulators)
    return update, _with_statistics(accumulators)

  def update_group(shared, inputs, states: Sequence[TensorState]):
    accumulators = [state.accumulators for state in states]
    results = rule.update_group(shared, inputs, accumulators, shared[1].dtype)
    return results and (results[0], [_with_statistics(state) for state in results[1]])

  def optimizer(meta_params) -> optax.GradientTransformationExtraArgs:
    scheduler, bank = meta_params["scheduler"], meta_params["bank"]
    dtype = scheduler["lstm"]["bias"].dtype

    def init_tensor(shape):
      decays = _velo_rule.fixed_decays(dtype)
      return _zero_state(_features.init_accumulators(shape, decays, dtype))

    def init_fn(params):
      tensors = init_tree(init_tensor, params)
      cells = _scheduler.start_cells(scheduler, len(filled_positions(params)))
      step = jnp.zeros((), jnp.int32)
      return VeLOState(step, tensors, cells, _scheduler.init_losses(dtype))

    def update_fn(updates, state: Any, params: Any = None, **extra_args):
      tensors = check_tensors(updates, params, state.tensors, init_tensor, _shape, "velo")
      loss = _scheduler.scalar_loss("velo", extra_args.get("value"), dtype)
      planned = extra_args.get("num_steps")
      planned = _scheduler.planned_steps("velo", options.num_steps, planned, dtype)
      longest = jnp.asarray(_BUGGED_NUM_STEPS, dtype)
      longest = longest if options.bugged_loss_features else planned
      losses, loss_features = _scheduler.observe_loss(state.losses, loss, state.step, longest)
      progress = _scheduler.progress_features(state.step, planned)
      cells, shared = state.cells, ()
      if filled := filled_positions(params):
        rows = [
          _tensor_features(jax.tree.leaves(params)[i], tensors[i], progress, loss_features)
          for i in filled
        ]
        cells = _scheduler.run_scheduler(scheduler, jnp.stack(rows), cells)
        shared = _mixed_networks(scheduler, bank, cells, options)
      updates, tensors = update_tree(
        update,
        shared,
        updates,
        params,
        state.tensors,
        _shape,
        dtype=dtype,
        name="velo",
        init=init_tensor,
        extras=row_numbers(updates),
        group_function=update_group,
      )
      if options.bugged_lstm_state:
        cells = state.cells
      return updates, VeLOState(state.step + 1, tensors, cells, losses)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

  return LearnedOptimizer(init, optimizer, "velo", FrozenDict(options._asdict()))


def _shape(tensor: TensorState) -> tuple[int, ...]:
  return tensor.accumulators.momenta.shape[1:]


def _mixed_networks(
  scheduler: Any, bank: Any, cells: CellState, options: _Options
) -> tuple[Any, jax.Array]:
  """The network of each tensor, and the rate of each, with one row a tensor."""
  controls = _scheduler.affine(scheduler["controls"], cells.h)
  scale = options.bank_scale / options.bank_size
  networks = jax.tree.map(lambda leaf: scale * jnp.tensordot(controls, leaf, 1), bank)
  rates = _scheduler.affine(scheduler["rate"], cells.h)[:, 0]
  return networks, options.output_scale * rates


def _zero_state(accumulators: _features.Accumulators) -> TensorState:
  zeros = functools.partial(jnp.zeros, dtype=accumulators.momenta.dtype)
  return TensorState(accumulators, zeros(_NUM_MOMENTA), zeros(1), zeros(_NUM_MOMENTA))


def _with_statistics(accumulators: _features.Accumulators) -> TensorState:
  """Computes what the LSTM will see of the averages in the next step, while they are at hand."""
  means, variances = _moments(accumulators.momenta)
  square_mean, square_variance = _moments(accumulators.squares)
  # As published: the distance of the squares to the momenta's means, not to their own.
  distances = square_variance + jnp.square(square_mean - means)
  return TensorState(accumulators, variances, square_mean, distances)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Means and variances over all axes but the first."""
  axes = tuple(range(1, x.ndim))
  means = jnp.mean(x, axes, keepdims=True)
  return means.reshape(-1), jnp.mean(jnp.square(x - means), axes)


def _tensor_features(
  param: jax.Array, state: TensorState, progress: jax.Array, losses: jax.Array
) -> jax.Array:
  """What the LSTM sees of one tensor, ``[30]``."""
  param = _velo_rule.clip_param(jnp.asarray(param, progress.dtype))
  scale = jax.lax.rsqrt(jnp.maximum(1e-9, jnp.mean(jnp.square(param))))
  rank = sum(size > 1 for size in param.shape)
  # In the alphabetical order of the published names.
  parts = [
    progress,
    losses,
    _log_magnitude(state.square_mean * scale),
    jax.nn.one_hot(rank, _MAX_RANK + 1, dtype=param.dtype),
    _log_magnitude(state.momentum_variances * scale**2),
    _log_magnitude(state.square_variances * scale**2),
  ]
  return jnp.concatenate(parts)


def _log_magnitude(x: jax.Array) -> jax.Array:
  return 0.5 * jnp.clip(jnp.log(1e-8 + jnp.abs(10.0 * x)), -5.0, 5.0)
