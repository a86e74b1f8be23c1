import pathlib
import subprocess
import sys

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
    # They run where there is no more than jax, flax and optax.
    blocked = [name for name in HEAVY if name != "optax"]
    folder = pathlib.Path(__file__).parents[1] / "experiments/benchmarks"
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); sys.modules.update(dict.fromkeys({blocked!r})); "
    for benchmark in "model", "long_video", "flow":
        subprocess.run([sys.executable, "-c", f"{code} import {benchmark}"], check=True)


def test_training_imports_no_tensorflow():
    modules = modules_after("import i3d_jax.main")
    assert "tensorflow" not in modules
    assert "tensorboardX" not in modules  # Which imports PyTorch, and is for runs that have begun.
