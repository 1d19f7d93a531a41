"""Neural art: the paper's fifth experiment (Andrychowicz et al. 2016, section 3.4).

    python experiments/neural_art.py --vgg vgg16.npz --contents photos/ --styles paintings/

meta-trains the coordinatewise LSTM to give 64 x 64 crops of photos the style of a painting, in 128
steps from white noise, and compares it with tuned baselines on photos and styles that it has not
seen: in one style at 64 x 64, and in another at 128 x 128.

`vgg16.npz` holds torchvision's VGG16: `learned_opt.optimizees.load_vgg` says how it is made.
`photos/` holds images of at least 128 x 128 pixels, ten or more; of each ten, in the order of their
names, seven are for training, one for validation and two for the test. `paintings/` holds four or
more, of which the first four serve, in this order: training, validation, test, test at 128 x 128.

Expected: below every tuned baseline at steps 40, 80 and 128 of both tests. In the paper's, of which
the first is in the style of the training, the best baseline ends 4 % and 10 % above the LSTM.
"""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import tyro

from learned_opt import (
  Optimizee,
  cli,
  datasets,
  devices,
  estimators,
  meta_losses,
  optimizees,
  optimizers,
  plots,
  runs,
)
from learned_opt.comparisons import Comparison
from learned_opt.evaluate import Evaluation

SizeName = Literal["smoke", "cpu", "paper"]

# Of each ten photos, in the order of their names.
DEALT_TO = ["train"] * 7 + ["validation"] + ["test"] * 2

# Losses over the LSTM's at step 128, read off figure 8, left and right; its axes have no numbers.
PAPER_STEPS = np.array([20, 40, 60, 80, 100, 120, 128])
PAPER = {
  "small": {
    "lstm": (1.466, 1.180, 1.089, 1.046, 1.021, 1.005, 1.0),
    "rmsprop": (2.024, 1.413, 1.215, 1.126, 1.078, 1.048, 1.038),
    "adam": (1.953, 1.356, 1.186, 1.119, 1.082, 1.061, 1.054),
  },
  "large": {
    "lstm": (2.134, 1.381, 1.184, 1.093, 1.043, 1.010, 1.0),
    "rmsprop": (3.769, 1.974, 1.496, 1.294, 1.182, 1.119, 1.099),
    "adam": (4.328, 1.858, 1.383, 1.229, 1.156, 1.111, 1.099),
  },
}


class Size(NamedTuple):
  """How much work to do."""

  image_size: int
  unroll_length: int
  num_steps: int
  num_outer_steps: int
  validate_every: int
  num_validation_problems: int
  num_test_problems: int
  num_large_problems: int
  num_tuning_problems: int
  baselines: tuple[str, ...]


SIZES = {
  "smoke": Size(8, 2, 4, 4, 2, 2, 2, 2, 2, ("adam",)),
  "cpu": Size(64, 32, 128, 600, 50, 4, 16, 8, 2, ("nag", "rmsprop", "adam")),
  "paper": Size(
    64, 32, 128, 4000, 200, 20, 100, 100, 16, ("sgd", "momentum", "nag", "rmsprop", "adam")
  ),
}


class Inputs(NamedTuple):
  """The network, the photos of each split, and the paintings by their names."""

  features: optimizees.VGGFeatures
  photos: Mapping[str, list[np.ndarray]]
  paintings: Mapping[str, np.ndarray]


def load(vgg: pathlib.Path, contents: pathlib.Path, styles: pathlib.Path) -> Inputs:
  """Reads the files."""
  photos, paintings = datasets.load_images(contents), datasets.load_images(styles)
  if len(photos) < len(DEALT_TO) or len(paintings) < 4:
    raise SystemExit(
      f"{contents} must hold at least {len(DEALT_TO)} photos and {styles} 4 paintings, "
      f"got {len(photos)} and {len(paintings)}"
    )
  return Inputs(optimizees.load_vgg(vgg), deal(list(photos.values())), paintings)


def make_up() -> Inputs:
  """A random network and two random images a split, for the smoke size."""
  rng = np.random.default_rng(0)
  arrays = {"mean": np.full(3, 0.5), "std": np.full(3, 0.25)}
  for name in ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "conv3_3", "conv4_1"):
    arrays[f"{name}/kernel"] = rng.normal(0, 0.2, (3, 3, 3, 3))
    arrays[f"{name}/bias"] = np.zeros(3)
  photos = {split: list(rng.integers(0, 256, (2, 20, 24, 3), np.uint8)) for split in set(DEALT_TO)}
  paintings = rng.integers(0, 256, (4, 24, 20, 3), np.uint8)
  features = optimizees.VGGFeatures.from_arrays(arrays)
  return Inputs(features, photos, dict(zip("abcd", paintings, strict=True)))


def deal(photos: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
  """The photos of each split."""
  splits = {split: [] for split in DEALT_TO}
  for split, photo in zip(itertools.cycle(DEALT_TO), photos):
    splits[split].append(photo)
  return splits


def problems(inputs: Inputs, split: str, style: str, image_size: int) -> Optimizee:
  """Crops of the photos of a split in one style, with the same balance at all sizes."""
  return optimizees.neural_style(
    inputs.features,
    inputs.photos[split],
    [inputs.paintings[style]],
    size=image_size,
    style_weight=1e3 * (image_size / 64) ** 2,
  )


def recipe(inputs: Inputs, size: SizeName, seed: int) -> runs.Recipe:
  """The training at one of its sizes, and the test at the same size of images.

  The optimizer is the paper's: preprocessing with p = 10, no output scale, and 128 steps in unrolls
  of 32. Ours are the loss (see `optimizees.neural_style`), the mean of its log as the meta-loss,
  which counts what is gained late as much as what is gained at once, the outer learning rate with
  its schedule, two problems an outer step, and that each outer step goes back through a sample of
  2,048 of the 12,288 coordinates. The baselines are tuned in the style of the test, on photos of
  the training: they see more of the test than the LSTM does.
  """
  chosen = SIZES[size]
  trained, validated, tested = list(inputs.paintings)[:3]
  return runs.Recipe(
    name="lstm",
    optimizee=problems(inputs, "train", trained, chosen.image_size),
    validation_optimizee=problems(inputs, "validation", validated, chosen.image_size),
    test_optimizee=problems(inputs, "test", tested, chosen.image_size),
    tuning_optimizee=problems(inputs, "train", tested, chosen.image_size),
    optimizee_name=describe(tested, chosen.image_size),
    learned_optimizer=optimizers.lstm(output_scale=1.0),
    estimator=estimators.truncated_backprop(
      unroll_length=chosen.unroll_length,
      horizon=chosen.num_steps,
      meta_batch_size=2,
      meta_loss=meta_losses.mean_log,
      replayed_coordinates=2048,
    ),
    outer_learning_rate=3e-3,
    schedule="cosine",
    num_outer_steps=chosen.num_outer_steps,
    validate_every=chosen.validate_every,
    num_validation_problems=chosen.num_validation_problems,
    num_test_problems=chosen.num_test_problems,
    num_tuning_problems=chosen.num_tuning_problems,
    baselines=chosen.baselines,
    seed=seed,
    description={
      "command": f"python experiments/neural_art.py --size {size} --seed {seed}",
      "optimizee": f"neural_style, crops of photos, {describe(trained, chosen.image_size)}",
      "validation": f"other photos, {describe(validated, chosen.image_size)}",
      "estimator": (
        f"truncated_backprop, {chosen.unroll_length} of {chosen.num_steps} steps, mean log loss, "
        "2 problems, 2048 coordinates"
      ),
    },
  )


def large(inputs: Inputs, size: SizeName, seed: int) -> Comparison:
  """The test in yet another style, on images of twice the height and width."""
  chosen = SIZES[size]
  style, image_size = list(inputs.paintings)[3], 2 * chosen.image_size
  return Comparison(
    "large",
    problems(inputs, "test", style, image_size),
    num_steps=chosen.num_steps,
    optimizee_name=describe(style, image_size),
    tuning_optimizee=problems(inputs, "train", style, image_size),
    num_problems=chosen.num_large_problems,
    num_tuning_problems=chosen.num_tuning_problems,
    baselines=chosen.baselines,
    seed=seed,
  )


def describe(style: str, image_size: int) -> str:
  """What tables and plots call the problems."""
  return f"{pathlib.Path(style).stem}, {image_size} x {image_size}"


def draw_beside_paper(evaluation: Evaluation, name: str, folder: pathlib.Path) -> None:
  """Draws the figure again, with the paper's curves such that the LSTMs end together."""
  end = evaluation.results["lstm"].mean[-1]
  published = {who: (PAPER_STEPS, end * np.array(ratios)) for who, ratios in PAPER[name].items()}
  plots.learning_curves_figure(evaluation, folder / "learning_curves.png", published=published)


def main(
  size: SizeName = "cpu",
  vgg: pathlib.Path | None = None,
  contents: pathlib.Path | None = None,
  styles: pathlib.Path | None = None,
  out: pathlib.Path | None = None,
  seed: int = 0,
  resume: bool = False,
) -> None:
  """Meta-trains an LSTM on neural style and compares it with tuned baselines.

  Args:
    size: how much work to do: smoke takes seconds and needs no files, cpu takes about three
      hours on 2 busy cores; paper is for an accelerator.
    vgg: the weights of VGG16, an .npz file.
    contents: the folder of the photos.
    styles: the folder of the paintings.
    out: the folder of the run; by default runs/neural_art-SIZE-SEED.
    seed: of everything random.
    resume: continue the run in that folder, and take from it what is finished.
  """
  devices.use_cores()
  folder = out or pathlib.Path("runs") / f"neural_art-{size}-{seed}"
  if size == "smoke":
    inputs = make_up()
  elif vgg and contents and styles:
    inputs = load(vgg, contents, styles)
  else:
    raise SystemExit(
      f"--size {size} needs --vgg, a file of weights, and --contents and --styles, folders of "
      "images; the first lines of this file say what they hold and how to get them"
    )
  run = cli.run_recipe(recipe(inputs, size, seed), folder, resume=resume)
  if run.evaluation is not None:
    draw_beside_paper(run.evaluation, "small", folder)
  test = large(inputs, size, seed)
  (evaluation,) = cli.compare([test], {"lstm": folder / "optimizer"}, folder, resume=resume)
  draw_beside_paper(evaluation, "large", folder / test.name)


if __name__ == "__main__":
  tyro.cli(main)
