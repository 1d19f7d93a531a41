# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # learned_opt in ten minutes
#
# A *learned optimizer* is a small network that proposes the updates of another model, its
# *optimizee*. The same network, with the same weights, works on every coordinate of the optimizee;
# its weights, the *meta-params*, are trained by running it on many problems.
#
# This notebook **uses** one, **makes** one and **judges** one.
#
# In Colab, the next cell installs the library; elsewhere it finds it and does nothing.

# %%
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("learned_opt") is None:
  package = "learned_opt[all]"
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from IPython.display import Image

import learned_opt
from learned_opt import estimators, evaluate, meta_train, optimizers, plots

# The tests run this notebook at a fraction of its size.
SMOKE = "LEARNED_OPT_SMOKE" in os.environ

# %% [markdown]
# ## Use one
#
# `learned_opt.load` gives an optax transformation. It goes wherever optax goes: here into a plain
# training loop, on a quadratic bowl that it has never seen.

# %%
learned_opt.pretrained_names()

# %%
key = jax.random.key(0)
matrix_key, target_key = jax.random.split(key)
matrix = jax.random.uniform(matrix_key, (10, 10))
target = jax.random.uniform(target_key, (10,))


def bowl(theta):
  return jnp.sum((matrix @ theta - target) ** 2)


def optimize(tx, num_steps=100):
  """The losses of one run; an ordinary optax loop, in a scan."""

  def step(carry, _):
    theta, state = carry
    loss, grads = jax.value_and_grad(bowl)(theta)
    updates, state = tx.update(grads, state, theta, value=loss)
    return (optax.apply_updates(theta, updates), state), loss

  theta = jnp.zeros(10)
  return jax.jit(lambda theta: jax.lax.scan(step, (theta, tx.init(theta)), length=num_steps)[1])(
    theta
  )


tx = learned_opt.load("lstm-quadratic")
fig, ax = plt.subplots(figsize=(6, 3.5))
ax.semilogy(optimize(optax.with_extra_args_support(optax.adam(0.2))), label="Adam, rate 0.2")
ax.semilogy(optimize(tx), label="lstm-quadratic", linewidth=2.5)
ax.set_xlabel("step")
ax.set_ylabel("loss")
ax.legend()
plt.show()

# %% [markdown]
# ## Make one
#
# Three parts, each a value of its own, meet in `meta_train.run`:
#
# * an **optimizee**, a distribution of problems. Two functions make one of your own;
# * a **learned optimizer**, the architecture: here the paper's coordinatewise LSTM;
# * an **estimator** of the meta-gradient: here backpropagation through 20 steps at a time.
#
# The problem below is not in the library: robust regression, with new data for each problem.


# %%
def init(key):
  return 0.01 * jax.random.normal(key, (8,))


def loss(weights, key):
  inputs = jax.random.normal(key, (32, 8))
  errors = inputs @ (weights - jnp.linspace(-1.0, 1.0, 8))
  return jnp.mean(jnp.sqrt(1.0 + errors**2)) - 1.0


regression = learned_opt.Optimizee.from_functions(init, loss)

# %%
architecture = optimizers.lstm(preprocessing=optimizers.Identity(), output_scale=1.0)
result = meta_train.run(
  regression,
  architecture,
  estimators.truncated_backprop(unroll_length=20, horizon=100, meta_batch_size=32),
  num_outer_steps=4 if SMOKE else 400,
  validate_every=2 if SMOKE else 50,
  outer_optimizer=meta_train.with_clipping(optax.adam(3e-3), max_meta_grad_norm=1.0),
  key=jax.random.key(1),
)
fig, ax = plt.subplots(figsize=(6, 3.5))
ax.semilogy(result.history.validation_step, result.history.validation_loss, "o-")
ax.set_xlabel("outer step")
ax.set_ylabel("final validation loss")
plt.show()

# %% [markdown]
# Save it, and load it again wherever it is needed: a folder with the weights and a card that says
# how they were made.

# %%
folder = learned_opt.save(
  "my-optimizer", architecture, result.meta_params, recipe={"seed": 1}, overwrite=True
)
mine = learned_opt.load(folder)

# %% [markdown]
# ## Judge one
#
# Fresh problems, and baselines whose learning rates are tuned on other problems of the same kind.
# The optimizer's own cost stands beside its losses: an LSTM of 5,061 numbers for each coordinate
# is far more work than Adam.

# %%
evaluation = evaluate.evaluate(
  regression,
  [evaluate.Candidate.from_learned("lstm", architecture, result.meta_params)],
  num_steps=100,
  num_problems=8 if SMOKE else 256,
  num_tuning_problems=4 if SMOKE else 64,
  baselines=["sgd"] if SMOKE else ["sgd", "nag", "rmsprop", "adam"],
  key=jax.random.key(2),
)
for row in evaluation.rows():
  print(row)

# %%
plots.learning_curves_figure(evaluation, "learning_curves.png")
Image("learning_curves.png")
