"""What holds for the package as a whole: imports, layers, metadata, docstrings."""

import ast
import graphlib
import importlib
import inspect
import json
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

import learned_opt

ROOT = pathlib.Path(learned_opt.__file__).resolve().parent

# What each part of the library may import of the others; modules whose name begins with an
# underscore are private to those that name them here.
ARROWS = {
  "_compilation": set(),
  "base": {"_compilation"},
  "unroll": {"base"},
  "meta_losses": {"base"},
  "kernels": {"base"},
  "_coordinates": {"base"},
  "devices": set(),
  "_blocks": {"devices"},
  "_arrays": set(),
  "_draws": set(),
  "_statistics": set(),
  "optimizers": {"base", "kernels", "_blocks", "_coordinates", "_draws"},
  "optimizees": {"base", "devices", "_draws"},
  "datasets": {"base"},
  "families": {"base"},
  "estimators": {
    *("base", "devices", "families", "unroll", "meta_losses"),
    *("_blocks", "_coordinates", "_draws"),
  },
  "_outer_loop": {"base", "devices", "families", "unroll"},
  "meta_train": {"base", "devices", "families", "_outer_loop", "estimators"},
  "population": {"base", "devices", "families", "_outer_loop", "meta_train"},
}
FAMILIES = ("optimizers", "optimizees", "estimators", "datasets")
EXTRAS = (
  *("tensorflow", "tensorflow_datasets", "array_record", "etils", "matplotlib", "rich", "tyro"),
  *("sklearn", "PIL", "scipy.stats", "pandas", "torch"),
)


@pytest.fixture(scope="module")
def project(repo_root):
  return tomllib.loads((repo_root / "pyproject.toml").read_text())["project"]


# --- Imports.


def python(code):
  """Runs code in a fresh process; returns what it printed as JSON."""
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_import_brings_no_extra():
  code = "import json, sys, jax, flax, flax.linen, optax, chex; before = set(sys.modules); "
  code += "import learned_opt; print(json.dumps(sorted(set(sys.modules) - before)))"
  loaded = python(code)
  assert "learned_opt.base" in loaded
  assert [name for name in EXTRAS if name in loaded] == []


def test_core_works_where_no_extra_is_installed():
  """An outer step can be traced; what needs an extra says which."""
  loaded = python(f"""
import json, sys
# JAX and Flax bring some of them.
sys.modules.update(dict.fromkeys(set({EXTRAS!r}) - {{"etils", "rich", "scipy.stats"}}))
import jax
from learned_opt import datasets, estimators, optimizees, optimizers
lstm, estimator = optimizers.lstm(hidden_size=2), estimators.truncated_backprop(2, 2)

def one_outer_step(key):
  meta_params = lstm.init(key)
  state = estimator.init(optimizees.quadratic(2), lstm, meta_params, key)
  return estimator.estimate(optimizees.quadratic(2), lstm, meta_params, state, key)[2].losses

losses = jax.eval_shape(one_outer_step, jax.random.key(0))
try:
  datasets.load("digits")
  message = ""
except ImportError as error:
  message = str(error)
print(json.dumps([losses.shape, message]))
""")
  assert loaded[0] == [3]
  assert "learned_opt[data]" in loaded[1]


# --- Layers.


def imported_modules(path):
  """The modules of this package that a file imports, as dotted names below learned_opt."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      if name.split(".")[0] == "learned_opt":
        yield as_module(name.split(".")[1:])


def as_module(parts):
  """The longest prefix that is a module: the rest names something in it."""
  while parts:
    path = ROOT.joinpath(*parts)
    if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
      break
    parts = parts[:-1]
  return ".".join(parts)


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("part", ARROWS)
def test_arrows_between_parts_go_one_way(part):
  """base <- unroll <- estimators <- meta_train; optimizers, optimizees and datasets import base."""
  files = [path for name, path in FILES.items() if name.split(".")[0] == part]
  assert files
  others = {name.split(".")[0] for path in files for name in imported_modules(path)} - {part}
  assert others <= ARROWS[part]


@pytest.mark.parametrize("family", FAMILIES)
def test_siblings_import_only_private_files_of_their_own(family):
  for name, path in FILES.items():
    if name.startswith(f"{family}."):
      siblings = [n for n in imported_modules(path) if n.split(".")[0] == family]
      assert all(n.split(".")[-1].startswith("_") for n in siblings), f"{name}: {siblings}"


def test_imports_have_no_cycle():
  graph = {
    name: {n for n in imported_modules(path) if n not in ("", name)}
    for name, path in FILES.items()
    if name
  }
  order = list(graphlib.TopologicalSorter(graph).static_order())
  assert order.index("base") < order.index("unroll") < order.index("estimators.backprop")


# --- Metadata.


def test_runtime_dependencies_are_these_six(project):
  names = [re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in project["dependencies"]]
  assert sorted(names) == ["chex", "flax", "jax", "jaxlib", "numpy", "optax"]


def test_version_stands_in_three_places(project, repo_root):
  assert learned_opt.__version__ == project["version"]
  assert f"version: {project['version']}\n" in (repo_root / "CITATION.cff").read_text()


def test_lock_names_packages_and_versions_only(project, repo_root):
  lines = (repo_root / "requirements.lock").read_text().splitlines()
  assert [line for line in lines if not re.match(r"[a-z0-9-]+==[\w.]+( ; .*)?$", line)] == []
  locked = {line.split("==")[0] for line in lines}
  extras = project["optional-dependencies"]
  wanted = [*project["dependencies"], *(name for extra in extras.values() for name in extra)]
  names = {re.split(r"[<>=!~\[; ]", name)[0].lower() for name in wanted} - {"learned_opt"}
  assert names <= locked


def test_wheel_holds_the_library_and_nothing_else(repo_root, tmp_path):
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(repo_root / name, tmp_path)
  ignore = shutil.ignore_patterns("__pycache__")
  shutil.copytree(repo_root / "learned_opt", tmp_path / "learned_opt", ignore=ignore)
  code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
  command = [sys.executable, "-W", "error", "-c", code]
  subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
  (wheel,) = (tmp_path / "dist").glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    (metadata,) = (name for name in names if name.endswith("METADATA"))
    requires = re.findall(r"^Requires-Dist: (\w+)[^;\n]*$", archive.read(metadata).decode(), re.M)
  assert sorted(requires) == ["chex", "flax", "jax", "jaxlib", "numpy", "optax"]
  info = metadata.split("/")[0]
  assert {name.split("/")[0] for name in names} == {"learned_opt", info}
  committed = {
    str(path.relative_to(repo_root))
    for path in (repo_root / "learned_opt").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }
  for_maintainers = {"learned_opt/kernels/README.md"}
  found = {name for name in names if name.split("/")[0] == "learned_opt"}
  assert found == committed - for_maintainers
  assert "learned_opt/py.typed" in names


# Folders of one machine, or a person's.
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|root|home|Users|mnt)/")


def test_files_name_no_folder_of_a_machine(repo_root):
  folders = ("learned_opt", "experiments", "notebooks", ".ci")
  paths = [path for folder in folders for path in (repo_root / folder).rglob("*")]
  # Measured coverage names the files that it measured.
  paths += [
    path for path in repo_root.iterdir() if path.suffix != ".lock" and path.name != ".coverage"
  ]
  found = [
    f"{path.relative_to(repo_root)}: {line.strip()[:100]}"
    for path in paths
    if path.is_file() and path.suffix in ("", ".py", ".md", ".toml", ".cfg", ".json", ".ipynb")
    for line in path.read_text(errors="ignore").splitlines()
    if MACHINE_PATH.search(line)
  ]
  assert found == []


# --- Documentation.


def public_modules():
  modules = pkgutil.walk_packages([str(ROOT)], "learned_opt.")
  names = [m.name for m in modules if not any(p.startswith("_") for p in m.name.split("."))]
  return ["learned_opt", *names]


def exported_names(module):
  """What a module re-exports: ``import name as name``."""
  for node in ast.walk(ast.parse(inspect.getsource(module))):
    if isinstance(node, ast.ImportFrom):
      yield from (alias.name for alias in node.names if alias.asname == alias.name)


def public_objects():
  """Functions and classes that public modules define or re-export, by where they are defined."""
  found = {}
  for module in map(importlib.import_module, public_modules()):
    exported = set(exported_names(module))
    for name, value in vars(module).items():
      where = getattr(value, "__module__", "")
      here = where == module.__name__ and not name.startswith("_")
      if (here or name in exported) and hasattr(value, "__qualname__"):
        found[f"{where}.{value.__qualname__}"] = value
  return found


PUBLIC = public_objects()
# What `functools.cache` wraps is a function, too.
FUNCTIONS = {n: v for n, v in PUBLIC.items() if inspect.isfunction(inspect.unwrap(v))}
CLASSES = {n: v for n, v in PUBLIC.items() if inspect.isclass(v)}


def test_public_names_were_found():
  assert {"learned_opt.optimizers.lstm.lstm", "learned_opt.unroll.unroll"} <= set(FUNCTIONS)
  assert "learned_opt.base.Optimizee" in CLASSES


@pytest.mark.parametrize("name", public_modules())
def test_public_module_says_what_it_is(name):
  assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_has_an_example(name):
  docstring = inspect.getdoc(FUNCTIONS[name]) or ""
  assert re.search(r"^Example", docstring, re.M)
  assert ">>> " in docstring


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_function_is_annotated(name):
  signature = inspect.signature(FUNCTIONS[name])
  bare = [p.name for p in signature.parameters.values() if p.annotation is inspect.Parameter.empty]
  assert bare == []
  assert signature.return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", CLASSES)
def test_public_class_has_a_docstring_of_its_own(name):
  value = CLASSES[name]
  assert value.__doc__
  # A NamedTuple or dataclass without a docstring gets its signature for one.
  assert not value.__doc__.startswith(f"{value.__name__}(")
