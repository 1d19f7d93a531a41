"""What a worker measures: built from a specification of JSON values.

A specification has ``task``, one of `TASKS`, ``cores``, whether the process is to be set up by
`learned_opt.devices` or left as JAX sets it up, ``device``, the user's choice or None, and what its
task takes.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from learned_opt import devices, estimators, meta_train, optimizees, optimizers
from learned_opt.base import Optimizee
from learned_opt.benchmarks import _cases, _host_fed, _memory, _updates

# Of the matrices, and products in one repetition.
MATRIX_SIZE = 1024
_PRODUCTS = 10

# Of products of one size, in one call, at least.
_PRODUCT_FLOPS = 10**9

# Of evolution strategies, in one dispatch.
_OUTER_STEPS = 5

# A repetition of many short calls takes about so long.
_SECONDS_OF_CALLS = 0.2
_MAX_CALLS = 10_000


# What a builder of a task gives beside its facts: it does what is measured so many times, and gives
# the seconds that it took.
Run: TypeAlias = Callable[[int], float]


class Task(NamedTuple):
  """A configuration that can be measured.

  Attributes:
    facts: JSON values; ``units`` is how often one repetition does what is measured.
    repeat: runs one repetition, gives ``seconds`` and ``peak_bytes``.
  """

  facts: dict[str, Any]
  repeat: Callable[[], dict[str, Any]]


def build(specification: Mapping[str, Any]) -> Task:
  """Sets up this process, builds and compiles what is specified, and runs it once."""
  arguments = dict(specification)
  task, mesh = arguments.pop("task"), set_up(arguments.pop("cores"), arguments.pop("device"))
  with devices.use(mesh):
    facts, run = TASKS[task](mesh=mesh, **arguments)
    memory = _memory.PeakMemory(_device())
    run(1)
    facts = {"units": 1, **facts}
    if facts["units"] is None:
      facts["units"] = _calls(run)

  def repeat() -> dict[str, Any]:
    with devices.use(mesh):
      seconds = run(facts["units"])
    return {"seconds": seconds, "peak_bytes": memory.growth()}

  return Task({**facts, **describe_device(mesh)}, repeat)


def set_up(cores: bool, device: str | None) -> jax.sharding.Mesh | None:
  """Chooses the devices before JAX starts; the mesh, if one is to be used."""
  platform, _, index = (device or "").partition(":")
  if platform == "cpu":
    jax.config.update("jax_platforms", "cpu")
  elif platform:
    jax.config.update("jax_default_device", jax.devices(platform)[int(index or "0")])
  if not cores:
    return None
  devices.use_cores()
  return devices.mesh()


def _device() -> Any:
  return jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]


def describe_device(mesh: jax.sharding.Mesh | None) -> dict[str, Any]:
  """The device in JSON values, and how many of them are used."""
  device = _device()
  return {
    "platform": device.platform,
    "device": device.device_kind,
    "devices": 1 if mesh is None else mesh.size,
    "jax": jax.__version__,
  }


def _matrix_product(mesh: jax.sharding.Mesh | None) -> tuple[dict[str, Any], Run]:
  del mesh
  left, right = (jax.random.normal(jax.random.key(i), (MATRIX_SIZE,) * 2) for i in range(2))
  product = jax.jit(jnp.matmul).lower(left, right).compile()

  def run(times: int) -> float:
    result = None
    start = time.perf_counter()
    for _ in range(times):
      result = product(left, right)
    jax.block_until_ready(result)
    return time.perf_counter() - start

  return {"flops": 2 * MATRIX_SIZE**3, "units": _PRODUCTS}, run


def _products_of(
  sizes: list[int], dtype: str, mesh: jax.sharding.Mesh | None
) -> tuple[dict[str, Any], Run]:
  """Products of one size, one after the other, on one device."""
  del mesh
  rows, inner, columns = sizes
  number = math.ceil(_PRODUCT_FLOPS / (2 * math.prod(sizes)))
  left, right = (
    jax.random.normal(jax.random.key(index), shape).astype(dtype)
    for index, shape in enumerate(((rows, inner), (number, inner, columns)))
  )

  @jax.jit
  def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    def add(total: jax.Array, one: jax.Array) -> tuple[jax.Array, None]:
      return total + jnp.matmul(left, one, preferred_element_type=jnp.float32), None

    return jax.lax.scan(add, jnp.zeros((rows, columns)), right)[0]

  def run(times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
      jax.block_until_ready(multiply(left, right))
    return time.perf_counter() - start

  return {"flops": 2 * math.prod(sizes) * number, "units": None}, run


def _outer_steps(
  optimizee: Optimizee, parts: Mapping[str, Any], outer_steps: int, max_bytes: int | None
) -> tuple[dict[str, Any], Run]:
  """Dispatches of `meta_train` of so many outer steps; the seconds are those of one."""
  state = meta_train.init(optimizee, **parts, key=jax.random.key(0))
  optimizee, state = devices.replicate((optimizee, state))
  state_bytes = _num_bytes(state)
  program, facts = compile_program(
    lambda: meta_train._dispatch.lower(optimizee, state, **parts, num_steps=outer_steps),
    max_bytes,
  )

  def run(times: int) -> float:
    nonlocal state
    # Where the outcome lies elsewhere than what it came from, as it may on several devices.
    state = jax.device_put(state, program.input_shardings[0][1])
    meta_losses = []
    start = time.perf_counter()
    for _ in range(times):
      state, info = program(optimizee, state)
      meta_losses.append(info.meta_loss)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    _check_finite(meta_losses)
    return seconds / outer_steps

  return {**facts, "state_bytes": state_bytes}, run


def _check_finite(meta_losses: list[Any]) -> None:
  if not np.isfinite(meta_losses).all():
    raise FloatingPointError("all problems diverged: what was measured is not meta-training")


def _meta_gradient(
  case: list[Any], path: str, max_bytes: int | None, mesh: jax.sharding.Mesh | None
) -> tuple[dict[str, Any], Run]:
  """Outer steps of `meta_train`: a meta-gradient and the update of the meta-params each."""
  del mesh  # `meta_train` finds the one that is in use.
  parsed = _cases.Case(*case)
  optimizee, data = _cases.make_optimizee(parsed)
  path, _, variant = path.partition("-")
  replayed = int(variant) if variant.isdecimal() else None
  lstm = _cases.make_lstm(parsed, "bfloat16" if variant == "bfloat16" else None)
  sizes = parsed.unroll_length, parsed.horizon, parsed.meta_batch_size
  estimator = estimators.truncated_backprop(*sizes, path=path, replayed_coordinates=replayed)  # pyright: ignore[reportArgumentType]
  parts: Any = {
    "learned_optimizer": lstm,
    "estimator": estimator,
    "outer_optimizer": meta_train.with_clipping(optax.adam(1e-3), max_meta_grad_norm=1.0),
  }
  facts, run = _outer_steps(optimizee, parts, parsed.outer_steps, max_bytes)
  params, _ = jax.eval_shape(optimizee.init, jax.random.key(0), optimizee.data)
  tensors = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
  coordinates = sum(tensors)
  # Forwards, and three times as much backwards; a sample goes forwards once more.
  work = 4.0
  if replayed is not None:
    work = 1.0 + 4.0 * sum(min(size, replayed) for size in tensors) / coordinates
  return {
    **facts,
    "data": data,
    "coordinates": coordinates * parsed.meta_batch_size,
    "coordinate_steps": coordinates * parsed.meta_batch_size * parsed.unroll_length,
    "flops_per_coordinate_step": work
    * _cases.forward_flops(jax.eval_shape(lstm.init, jax.random.key(0))),
  }, run


def _update(
  size: int,
  path: str,
  case: list[Any],
  max_bytes: int | None,
  mesh: jax.sharding.Mesh | None,
  optimizer: str = _updates.LSTM,
) -> tuple[dict[str, Any], Run]:
  """Calls of `tx.update` for so many parameters, which reuse the state's memory."""
  lstm = _updates.architecture_of(optimizer, _cases.make_lstm(_cases.Case(*case)))
  make = _updates.PATHS[path].make
  meta_params = lstm.init(jax.random.key(0))
  params, grads = jnp.zeros(size), jax.random.normal(jax.random.key(1), (size,))
  if optimizer != _updates.LSTM:
    params = _updates.matrices(jnp.zeros, size)
    grads = _updates.matrices(functools.partial(jax.random.normal, jax.random.key(1)), size)
  params, grads = _updates.shard(mesh, params), _updates.shard(mesh, grads)
  state = _updates.shard(mesh, make(lstm, meta_params).init(params))
  state_bytes = _num_bytes(state)

  def update(meta_params, grads, state, params):
    tx = optax.with_extra_args_support(make(lstm, meta_params))
    return tx.update(grads, state, params, value=jnp.ones(()))

  program, facts = compile_program(
    lambda: jax.jit(update, donate_argnums=2).lower(meta_params, grads, state, params), max_bytes
  )

  def run(times: int) -> float:
    nonlocal state
    state = jax.device_put(state, program.input_shardings[0][2])
    updates = None
    start = time.perf_counter()
    for _ in range(times):
      updates, state = program(meta_params, grads, state, params)
    jax.block_until_ready((updates, state))
    return time.perf_counter() - start

  known = path != "adam" and optimizer == _updates.LSTM
  plan = program.memory_analysis()
  return {
    **facts,
    "units": None,
    "state_bytes": state_bytes,
    "temporary_bytes": None if plan is None else plan.temp_size_in_bytes,
    "coordinates": size,
    "flops_per_coordinate_step": _cases.forward_flops(meta_params) if known else None,
  }, run


def _pes(
  host_fed: bool,
  architecture: str,
  settings: list[Any],
  max_bytes: int | None,
  mesh: jax.sharding.Mesh | None,
) -> tuple[dict[str, Any], Run]:
  """Outer steps of persistent evolution strategies, in one program or in a loop of the host."""
  del mesh
  sizes = _host_fed.Settings(*settings)
  dataset, data = _cases.load_dataset("digits")
  optimizee = optimizees.mlp_classifier(
    dataset,
    hidden_sizes=(32,),
    activation="relu",
    initial_scale=None,
    batch_size=sizes.batch_size,
  )
  learned_optimizer, outer_optimizer = getattr(optimizers, architecture)(), optax.adam(1e-4)
  if host_fed:
    loop = _host_fed.HostFedPES(
      optimizee, learned_optimizer, outer_optimizer, sizes, jax.random.key(0)
    )

    def run_loop(times: int) -> float:
      start = time.perf_counter()
      losses = [loop.step() for _ in range(_OUTER_STEPS * times)]
      jax.block_until_ready(losses)
      _check_finite([np.asarray(losses)])
      return (time.perf_counter() - start) / _OUTER_STEPS

    start = time.perf_counter()
    jax.block_until_ready(loop.step())
    return {"data": data, "compile_seconds": time.perf_counter() - start}, run_loop
  parts: Any = {
    "learned_optimizer": learned_optimizer,
    "estimator": estimators.pes(
      sizes.unroll_length, sizes.horizon, sizes.num_problems, sigma=sizes.sigma
    ),
    "outer_optimizer": outer_optimizer,
  }
  facts, run = _outer_steps(optimizee, parts, _OUTER_STEPS, max_bytes)
  return {**facts, "data": data}, run


TASKS: dict[str, Callable[..., tuple[dict[str, Any], Run]]] = {
  "matrix-product": _matrix_product,
  "products": _products_of,
  "meta-gradient": _meta_gradient,
  "update": _update,
  "pes": _pes,
}


def compile_program(
  lower: Callable[[], jax.stages.Lowered], max_bytes: int | None
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
  """Compiles, and refuses what would not fit into the memory.

  Args:
    lower: traces and lowers the program.
    max_bytes: the memory that there is, None for what the system says.

  Returns:
    The program, and ``compile_seconds`` and ``planned_bytes``: what XLA plans to allocate on top of
    the arguments, on all devices together.

  Raises:
    MemoryError: if that is more than there is.
  """
  start = time.perf_counter()
  program = lower().compile()
  seconds = time.perf_counter() - start
  planned = _planned_bytes(program)
  available = _memory.available_bytes(_device()) if max_bytes is None else max_bytes
  if planned is not None and available is not None and planned > available:
    raise MemoryError(f"XLA plans {planned / 1e9:.3g} GB, there are {available / 1e9:.3g} GB")
  return program, {"compile_seconds": seconds, "planned_bytes": planned}


def _planned_bytes(program: jax.stages.Compiled) -> int | None:
  plan = program.memory_analysis()
  if plan is None:
    return None
  shardings = jax.tree.leaves(program.input_shardings[0])
  num_devices = max((sharding.num_devices for sharding in shardings), default=1)
  own = plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
  return num_devices * own


def _calls(run: Run) -> int:
  """How many calls make a repetition."""
  return max(1, min(_MAX_CALLS, math.ceil(_SECONDS_OF_CALLS / max(run(1), 1e-9))))


def _num_bytes(tree: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
