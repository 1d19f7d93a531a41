"""Evolution strategies: unbiased where they say so, and step by step what a plain loop does."""

import functools
import sys
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import learned_opt
from learned_opt import estimators, meta_losses, meta_train
from learned_opt.estimators import _particles, _twins

inverse_variance_module = sys.modules[estimators.inverse_variance.__module__]

HERE = {
  "full": estimators.full_es,
  "truncated": estimators.truncated_es,
  "persistent": estimators.pes,
  "single": estimators.es_single,
}

# --- One number learned, one number optimized: the smoothed meta-loss can be integrated.

RATE, SIGMA, UNROLL, NUM_SEGMENTS = 0.3, 0.3, 2, 3


def one_rate():
  return learned_opt.LearnedOptimizer(lambda key: jnp.asarray(RATE), optax.sgd)


def valley():
  """f(x) = log(1 + exp(2 x)) - 0.6 x from x = 1.5: steeper on one side than on the other."""
  return learned_opt.Optimizee.from_functions(
    lambda key: jnp.asarray(1.5, jnp.result_type(float)),
    lambda x, key: jnp.logaddexp(0.0, 2 * x) - 0.6 * x,
  )


def segment_means(rates):
  """The mean loss of each segment in numpy, with a learning rate for each."""
  x, means = 1.5, []
  for rate in rates:
    losses = []
    for _ in range(UNROLL):
      x = x - rate * (1 + np.tanh(x) - 0.6)
      losses.append(np.logaddexp(0.0, 2 * x) - 0.6 * x)
    means.append(np.mean(losses, axis=0))
  return np.array(means)


def smoothed_gradient(independent):
  """d/d rate of E sum_t L_t by quadrature, each segment with its own noise or all with one."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(40)
  weights = weights / np.sqrt(2 * np.pi)
  if not independent:
    total = np.sum(segment_means([RATE + SIGMA * nodes] * NUM_SEGMENTS), axis=0)
    return np.sum(weights * total * nodes) / SIGMA
  grid = np.array(np.meshgrid(*[nodes] * NUM_SEGMENTS))
  weight = functools.reduce(np.multiply, np.meshgrid(*[weights] * NUM_SEGMENTS))
  total = np.sum(segment_means(RATE + SIGMA * grid), axis=0)
  return np.sum(weight * total * np.sum(grid, axis=0)) / SIGMA


def episode_sums(estimator, num_estimates, num_samples=400):
  """The summed estimates of many episodes, each from its own key."""
  learned_optimizer, optimizee = one_rate(), valley()

  @jax.jit
  def sample(key):
    state = estimator.init(optimizee, learned_optimizer, jnp.asarray(RATE), key)

    def body(state, key):
      grads, state, _ = estimator.estimate(
        optimizee, learned_optimizer, jnp.asarray(RATE), state, key
      )
      return state, grads

    return jnp.sum(jax.lax.scan(body, state, jax.random.split(key, num_estimates))[1])

  return np.asarray(jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(3), num_samples)))


def num_standard_errors(samples, truth):
  return (np.mean(samples) - truth) / (np.std(samples, ddof=1) / np.sqrt(samples.size))


def segment_losses(losses, steps, where=None):
  """The sum of the segments' means, for estimators that see them all at once."""
  del steps, where
  return jnp.sum(losses) / UNROLL


@pytest.mark.parametrize("name", ["full", "persistent", "single"])
def test_unbiased_for_the_gradient_of_the_smoothed_meta_loss(name, x64):
  horizon = UNROLL * NUM_SEGMENTS
  if name == "full":
    samples = episode_sums(estimators.full_es(horizon, 64, segment_losses, sigma=SIGMA), 1)
  else:
    estimator = HERE[name](UNROLL, horizon, 64, sigma=SIGMA, staggered=False)
    samples = episode_sums(estimator, NUM_SEGMENTS)
  truth = smoothed_gradient(independent=name == "persistent")
  assert abs(num_standard_errors(samples, truth)) < 3
  # Precise enough to see that the noise makes a difference.
  step = 1e-6
  slopes = [np.sum(segment_means([RATE + s] * NUM_SEGMENTS)) for s in (step, -step)]
  assert abs(num_standard_errors(samples, (slopes[0] - slopes[1]) / (2 * step))) > 6


def test_truncations_without_memory_are_biased(x64):
  horizon, truth = UNROLL * NUM_SEGMENTS, smoothed_gradient(independent=False)
  estimator = estimators.truncated_es(UNROLL, horizon, 64, sigma=SIGMA, staggered=False)
  samples = episode_sums(estimator, NUM_SEGMENTS)
  assert abs(num_standard_errors(samples, truth)) > 10
  by_backprop = estimators.truncated_backprop(
    UNROLL, horizon, 1, meta_losses.mean, second_order=True
  )
  (found,) = episode_sums(by_backprop, NUM_SEGMENTS, num_samples=1)
  step = 1e-6
  slopes = [np.sum(segment_means([RATE + s] * NUM_SEGMENTS)) for s in (step, -step)]
  assert abs(found - (slopes[0] - slopes[1]) / (2 * step)) > 0.1 * abs(found)


# --- Episodes of different lengths that begin and end inside of segments, against a plain loop.


class Tilted(NamedTuple):
  """The constants of a problem of `tilted`; those above 0.8 become NaN after the first update."""

  tilt: Any
  defect: Any


def tilted():
  def init(key, data):
    del data
    start, tilt, defect = jax.random.uniform(key, (3,), dtype=jnp.result_type(float))
    return start, Tilted(tilt, jnp.where(defect > 0.8, start, jnp.nan))

  def loss(x, constants, data, key):
    del data
    noise = jax.random.uniform(key, (), dtype=jnp.result_type(float))
    bad = ~jnp.isnan(constants.defect) & (x != constants.defect)
    return jnp.where(bad, jnp.nan, jnp.exp(x) - (1 + constants.tilt + noise) * x)

  return learned_opt.Optimizee(init, loss)


def planner():
  """Momentum that begins with a learned number, and a rate that depends on the horizon."""

  def optimizer(phi):
    def init(params):
      del params
      return phi["momentum"]

    def update(grads, state, params=None, *, num_steps, **extra_args):
      del params, extra_args
      state = 0.5 * state + grads
      return -phi["rate"] * (1 + 1 / jnp.asarray(num_steps, float)) * state, state

    return optax.GradientTransformationExtraArgs(init, update)

  return learned_opt.LearnedOptimizer(
    lambda key: {"rate": jnp.asarray(0.2), "momentum": jnp.asarray(0.3)}, optimizer
  )


class Twin(NamedTuple):
  """One sign of a particle in plain numbers."""

  x: float
  momentum: float


class Walk:
  """One segment of one sign of one particle, step by step."""

  def __init__(self, slope_and_loss, fresh, length):
    self.slope_and_loss, self.fresh, self.length = slope_and_loss, fresh, length

  def __call__(self, phi, next_phi, twin, problem, horizon, end):
    """The losses as (loss, whether of the second problem) or None, and where it ends."""
    losses, renewed, step = [], False, int(problem.step)
    for _ in range(self.length):
      if step == end:
        problem, horizon, end, step, phi, renewed = *self.fresh, 0, next_phi, True
        twin = Twin(float(problem.params), phi["momentum"])
        losses.append(None)
        continue
      slope, _ = self.slope_and_loss(twin.x, problem, step)
      momentum = 0.5 * twin.momentum + slope
      twin = Twin(twin.x - phi["rate"] * (1 + 1 / horizon) * momentum, momentum)
      step += 1
      losses.append((self.slope_and_loss(twin.x, problem, step)[1], renewed))
    return losses, twin, step, renewed


@jax.jit
def _slope_and_loss(x, problem, step):
  key = jax.random.fold_in(problem.key, step)
  loss, slope = jax.value_and_grad(tilted().loss)(x, problem.constants, (), key)
  return slope, loss


def plain_estimate(name, settings, phi, state, fresh):
  """One estimate, particle by particle: the gradient, and what the state must be."""
  total, after = dict.fromkeys(phi, 0.0), []
  for index in range(settings.num_particles):
    at = functools.partial(jax.tree.map, lambda leaf, index=index: leaf[index])
    problem, drawn = at(state.problems), at(fresh.problem)
    noise, remembered = at(fresh.noise), at(state.perturbations)
    horizon, end = int(state.horizons[index]), int(state.ends[index])
    restart = bool(state.restart[index])
    if name == "persistent":
      moved = noise
      weight = {k: noise[k] + (0.0 if restart else remembered[k]) for k in phi}
    elif name == "single":
      moved = weight = noise if restart else remembered
    else:
      moved = weight = noise
    if restart:
      problem, horizon, end = drawn, int(fresh.horizon[index]), int(fresh.horizon[index])
    walk = Walk(
      _slope_and_loss,
      (drawn, int(fresh.horizon[index]), int(fresh.horizon[index])),
      end if settings.unroll_length is None else settings.unroll_length,
    )
    ends, losses = [], []
    for which, sign in enumerate((1.0, -1.0)):
      here = {k: phi[k] + sign * moved[k] for k in phi}
      there = {k: phi[k] + sign * noise[k] for k in phi}
      if restart:
        twin = Twin(float(drawn.params), here["momentum"])
      else:
        twin = Twin(
          np.ravel(problem.params)[-2:][which % np.size(problem.params)],
          np.ravel(problem.opt_state)[-2:][which % np.size(problem.opt_state)],
        )
      said, *where = walk(here, there, twin, problem, horizon, end)
      losses.append(said)
      ends.append(where)
    differences = {False: 0.0, True: 0.0}
    counted = [pair for pair in zip(*losses, strict=True) if pair[0] is not None]
    for plus, minus in counted:
      differences[plus[1]] += (plus[0] - minus[0]) / len(counted)
    diverged = not np.isfinite(sum(differences.values()))
    (plus, step, renewed), (minus, *_) = ends
    if not diverged:
      for k in phi:
        total[k] += differences[False] * weight[k] + differences[True] * noise[k] * (
          1 if settings.unroll_length else 0
        )
    after.append((plus, minus, step, diverged, renewed, noise if renewed else weight))
  scale = 2 * settings.sigma**2 * settings.num_particles
  return {k: total[k] / scale for k in phi}, after


@pytest.mark.parametrize("name", HERE)
def test_episodes_that_end_inside_of_segments_equal_a_plain_loop(name, x64, monkeypatch):
  """Drawn horizons, staggered starts, an optimizer that is told its horizon, NaNs."""
  monkeypatch.setattr(_twins, "_CHUNK", 2)
  optimizee, learned_optimizer = tilted(), planner()
  sizes = {"horizon": (3, 7), "meta_batch_size": 6, "sigma": 0.1}
  if name != "full":
    sizes["unroll_length"] = 3
  estimator = HERE[name](**sizes)
  settings = _particles.check_settings(
    **{"unroll_length": None, **sizes}, meta_loss=meta_losses.mean, staggered=name != "full"
  )
  phi = jax.tree.map(lambda leaf: leaf.astype(float), learned_optimizer.init(None))

  @jax.jit
  def estimate(state, key):
    fresh = _particles.draw(settings, optimizee, phi, state, key)
    return fresh, estimator.estimate(optimizee, learned_optimizer, phi, state, key)

  state = jax.jit(lambda key: estimator.init(optimizee, learned_optimizer, phi, key))(
    jax.random.key(1)
  )
  seen = {"diverged": 0, "renewed": 0, "ends": set()}
  for number in range(6):
    fresh, (grads, new_state, info) = estimate(state, jax.random.key(10 + number))
    numbers = jax.tree.map(float, phi)
    expected, after = plain_estimate(
      name, settings, numbers, *jax.tree.map(_as_numpy, (state, fresh))
    )
    chex.assert_trees_all_close(grads, expected, rtol=1e-9, atol=1e-12)
    assert int(info.num_diverged) == sum(one[3] for one in after)
    seen["diverged"] += int(info.num_diverged)
    seen["renewed"] += sum(one[4] for one in after)
    seen["ends"] |= set(np.asarray(new_state.horizons).tolist())
    if name != "full":
      check_state(new_state, after)
    state = new_state
  assert seen["diverged"] > 0
  assert (seen["renewed"] > 0) == (name != "full")
  assert len(seen["ends"]) > 2
  assert seen["ends"] <= set(range(3, 8))
  assert int(state.num_estimates) == 6


def _as_numpy(leaf):
  return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def check_state(state, after):
  """Where the twins stand, who is to be replaced, and what is remembered of the noise."""
  plus, minus, steps, diverged, _, weights = zip(*after, strict=True)
  if np.ndim(state.problems.params) == 2:
    twins = np.array([[one.x for one in plus], [one.x for one in minus]]).T
    np.testing.assert_allclose(state.problems.params, twins, rtol=1e-9)
  else:
    np.testing.assert_allclose(state.problems.params, [one.x for one in plus], rtol=1e-9)
  np.testing.assert_array_equal(state.problems.step, steps)
  np.testing.assert_array_equal(state.restart, np.array(diverged) | (np.array(steps) >= state.ends))
  if state.perturbations:
    expected = jax.tree.map(lambda *leaves: np.array(leaves), *weights)
    chex.assert_trees_all_close(state.perturbations, expected, rtol=1e-12)


# --- Identities.


def first_estimates(*many, optimizee=None, learned_optimizer):
  """Those of several estimators, from equal keys."""
  optimizee = optimizee or tilted()

  @jax.jit
  def run(key):
    phi = jax.tree.map(lambda leaf: leaf.astype(float), learned_optimizer.init(key))
    results = []
    for estimator in many:
      state = estimator.init(optimizee, learned_optimizer, phi, key)
      grads, _, info = estimator.estimate(optimizee, learned_optimizer, phi, state, key)
      results.append((grads, info))
    return results

  return run(jax.random.key(7))


def test_first_truncations_are_one_and_the_same(x64):
  """And that of full ES, whose episode is one truncation; problems that diverge included."""
  first, *others = first_estimates(
    estimators.full_es(4, 5),
    *(HERE[name](4, 12, 5, staggered=False) for name in ("truncated", "persistent", "single")),
    learned_optimizer=one_rate(),
  )
  for other in others:
    chex.assert_trees_all_close(other, first, rtol=1e-12)
  assert float(first[1].meta_grad_norm) > 0


def test_without_weight_the_mix_is_backpropagation_and_with_all_of_it_truncated_es(x64):
  sizes = {"unroll_length": 2, "horizon": 6, "meta_batch_size": 4, "meta_loss": meta_losses.mean}
  many = [
    estimators.inverse_variance(**sizes, es_weight=0.0, sigma=1e-7, staggered=False),
    estimators.truncated_backprop(**sizes),
    estimators.inverse_variance(**sizes, es_weight=1.0),
    estimators.truncated_es(**sizes),
  ]
  mix, backprop, all_es, es = first_estimates(
    *many, optimizee=valley(), learned_optimizer=one_rate()
  )
  np.testing.assert_allclose(mix[0], backprop[0], rtol=1e-6)
  chex.assert_trees_all_close(all_es, es, rtol=1e-12)


def test_weights_are_the_inverse_variances():
  rng = np.random.default_rng(0)
  es, slopes = rng.normal(1, 2, (6, 3)), rng.normal(2, 0.5, (6, 3))
  keep = np.array([True, True, False, True, True, True])
  slopes[2] = np.nan
  slopes[:, 1] = np.where(keep, 0.25, np.nan)
  found = inverse_variance_module._combine(
    jnp.asarray(es), jnp.asarray(slopes), jnp.asarray(keep), "inverse_variance"
  )
  variances = np.var(es, 0, ddof=1) / 6, np.var(slopes[keep], 0, ddof=1) / 5
  means = np.mean(es, 0), np.mean(slopes[keep], 0)
  with np.errstate(divide="ignore", invalid="ignore"):
    expected = (means[0] / variances[0] + means[1] / variances[1]) / (
      1 / variances[0] + 1 / variances[1]
    )
  np.testing.assert_allclose(found, np.where(variances[1] == 0, 0.25, expected), rtol=1e-5)
  one_left = jnp.arange(6) == 0
  for weight in ("inverse_variance", 0.0):
    found = inverse_variance_module._combine(jnp.asarray(es), jnp.asarray(slopes), one_left, weight)
    np.testing.assert_allclose(found, means[0], rtol=1e-6)


@pytest.mark.parametrize(
  ("rule", "expected"), [(None, [3.0, -0.5]), (1.0, [1.0, -0.5]), ("sign", [1.0, -1.0])]
)
def test_differences_are_used_by_the_rule(rule, expected):
  outcome = _twins.Outcome(
    jnp.array([3.0, -0.5, jnp.nan, 1.0, jnp.inf]), jnp.array([0.0, 2.0, 1.0, jnp.nan, 0.0]), *"abc"
  )
  before, after, diverged = _particles.usable(rule, outcome)
  np.testing.assert_array_equal(before, [*expected, 0, 0, 0])
  np.testing.assert_array_equal(after, [0, 2.0 if rule is None else 1.0, 0, 0, 0])
  np.testing.assert_array_equal(diverged, [False, False, True, True, True])


# --- Horizons and meta-losses.


def test_horizons_are_drawn_log_uniformly_from_the_whole_range():
  keys = jax.random.split(jax.random.key(0), 20_000)
  drawn = jax.vmap(lambda key: estimators.LogUniform(10, 1000).draw(key, jnp.int32(0)))(keys)
  assert (int(jnp.min(drawn)), drawn.dtype) == (10, jnp.int32)
  assert 990 <= int(jnp.max(drawn)) <= 1000
  share = float(jnp.mean(drawn < 100))
  expected = np.log(100 / 10) / np.log(1001 / 10)
  assert abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / drawn.size)
  ends = jax.vmap(lambda key: estimators.LogUniform(2, 3).draw(key, jnp.int32(0)))(keys)
  assert set(np.asarray(ends).tolist()) == {2, 3}


def test_a_growing_horizon_grows_with_the_estimates(x64):
  """Problems keep the horizon with which they began."""
  estimator = estimators.pes(2, estimators.Growing(2, 8, num_estimates=4), 3, staggered=False)
  optimizee, learned_optimizer = valley(), one_rate()

  @jax.jit
  def run(key):
    state = estimator.init(optimizee, learned_optimizer, jnp.asarray(RATE), key)

    def body(state, key):
      _, state, _ = estimator.estimate(optimizee, learned_optimizer, jnp.asarray(RATE), state, key)
      return state, (state.horizons, state.problems.step)

    return jax.lax.scan(body, state, jax.random.split(key, 8))[1]

  horizons, steps = run(jax.random.key(0))
  # 2 sqrt(2)^k after k estimates: 2, 2.8, 4, 5.7, 8.
  np.testing.assert_array_equal(horizons[:, 0], [2, 3, 4, 4, 4, 8, 8, 8])
  np.testing.assert_array_equal(steps[:, 0], [2, 2, 0, 2, 4, 2, 4, 6])
  np.testing.assert_array_equal(horizons, np.repeat(horizons[:, :1], 3, axis=1))


WITH_OPTIONS = {
  "mean_log_above": meta_losses.mean_log_above(0.1),
  "mean_log_rising": meta_losses.mean_log_above(0.1, rising_over=7),
}


@pytest.mark.parametrize("name", [*meta_losses.META_LOSSES, *WITH_OPTIONS])
def test_meta_losses_leave_out_what_does_not_count(name):
  meta_loss = {**meta_losses.META_LOSSES, **WITH_OPTIONS}[name]
  losses, steps = jnp.array([4.0, jnp.nan, 2.0, 3.0, jnp.nan]), jnp.array([5, 0, 1, 2, 0])
  found = meta_loss(losses, steps, where=jnp.array([True, False, True, True, False]))
  expected = meta_loss(jnp.array([4.0, 2.0, 3.0]), jnp.array([5, 1, 2]))
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("options", "error", "message"),
  [
    ({"unroll_length": 20, "horizon": 10}, ValueError, "unroll_length=10 would work"),
    ({"horizon": (10, 100)}, ValueError, "shortest horizon"),
    ({"horizon": (100, 20)}, ValueError, "longest first, got 100 and 20"),
    ({"horizon": 20.0}, TypeError, r"pair \(shortest, longest\)"),
    ({"horizon": 0}, ValueError, "horizon must be at least 1, got 0"),
    ({"sigma": 0.0}, ValueError, "sigma must be positive and finite, got 0.0"),
    ({"difference": "clip"}, ValueError, "difference must be None, 'sign', or the largest"),
    ({"difference": -1.0}, ValueError, "difference must be None"),
    ({"meta_batch_size": 0}, ValueError, "meta_batch_size must be at least 1, got 0"),
    ({"meta_loss": lambda f, steps: jnp.sum(f)}, TypeError, "must take the keyword `where`"),
    ({"meta_loss": lambda f, steps, where=None: jnp.sum(f)}, ValueError, "leave out the losses"),
  ],
  ids=lambda value: getattr(value, "__name__", None),
)
def test_pes_refuses(options, error, message):
  with pytest.raises(error, match=message):
    estimators.pes(**options)


def test_a_users_meta_loss_needs_no_mask_where_all_losses_count():
  def total(losses, steps):
    return jnp.sum(losses * steps)

  assert estimators.pes(20, 100, meta_loss=total, staggered=False).horizon == 100
  assert estimators.full_es(100, meta_loss=total).horizon == 100


def test_the_mix_refuses():
  with pytest.raises(ValueError, match="at least 2 for a variance, got 1"):
    estimators.inverse_variance(meta_batch_size=1)
  with pytest.raises(ValueError, match="es_weight must be between 0 and 1, got 2"):
    estimators.inverse_variance(es_weight=2)


# --- As a part of a meta-training.


def test_a_resumed_run_is_the_uninterrupted_one():
  train = functools.partial(
    meta_train.run,
    tilted(),
    planner(),
    estimators.es_single(3, (3, 7), 6),
    key=jax.random.key(0),
    num_validation_problems=2,
    validate_every=2,
  )
  whole, half = train(num_outer_steps=6), train(num_outer_steps=2)
  resumed = train(num_outer_steps=6, state=half.state, history=half.history)
  chex.assert_trees_all_equal(resumed.state, whole.state)
  assert resumed.history.meta_loss == whole.history.meta_loss
  assert sum(whole.history.num_diverged) > 0
