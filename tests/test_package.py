"""Importing the package loads few modules."""

import pathlib
import subprocess
import sys

# Packages that take long to import, or that some environments do not have.
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "av",
    "orbax",
    "cv2",
    "optax",
    "tensorboardX",
    "ml_collections",
)


def modules_after(code):
    """The names of all modules that are loaded after a new process has run some code."""
    out = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        capture_output=True,
        check=True,
    )
    return set(out.stdout.decode().split())


def test_importing_the_package_is_light():
    added = modules_after("import i3d_jax, i3d_jax.models") - modules_after("import jax, flax")
    assert not added & set(HEAVY)
    assert "i3d_jax.models" in added


def test_benchmarks_of_networks_need_no_decoder_nor_data_sets():
    # They run in environments with jax, flax and optax only.
    blocked = [name for name in HEAVY if name != "optax"]
    folder = pathlib.Path(__file__).parents[1] / "experiments/benchmarks"
    path = f"sys.path.insert(0, {str(folder)!r})"
    block = f"sys.modules.update(dict.fromkeys({blocked!r}))"
    for benchmark in "model", "long_video", "flow":
        code = f"import sys; {path}; {block}; import {benchmark}"
        subprocess.run([sys.executable, "-c", code], check=True)


def test_training_imports_no_tensorflow():
    modules = modules_after("import i3d_jax.main")
    assert "tensorflow" not in modules
    assert "tensorboardX" not in modules  # It imports PyTorch; only a run that logs needs it.
