import subprocess
import sys

HEAVY = ("tensorflow", "tensorflow_datasets", "grain", "av", "orbax", "cv2", "optax", "tensorboardX", "ml_collections")


def modules_after(code):
    out = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, check=True
    )
    return set(out.stdout.decode().split())


def test_importing_the_package_is_light():
    added = modules_after("import i3d_jax, i3d_jax.models") - modules_after("import jax, flax")
    assert not added & set(HEAVY)
    assert "i3d_jax.models" in added


def test_training_imports_no_tensorflow():
    assert "tensorflow" not in modules_after("import i3d_jax.main")
