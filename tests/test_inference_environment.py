"""`requirements/inference.txt`: commands that only run networks need no more than it lists."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from support.small_weights import INFO, small_variables
from support.videos import encode, numbered

from i3d_jax import weights

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The Python of a new environment, which pip has installed the package into as its docs say."""
    folder = tmp_path_factory.mktemp("inference")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, "-r", REPOSITORY / "requirements/inference.txt"], check=True)
    subprocess.run([*install, "--no-deps", REPOSITORY], check=True)
    return folder / "bin"


def run(environment, *arguments, status=0):
    # As it is installed, not from the repository.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [environment / "i3d-jax", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=variables,
        cwd=environment,
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.mark.slow  # Installs packages.
def test_networks_run_in_an_environment_for_inference(environment, tmp_path):
    weights.save(tmp_path / "w.safetensors", small_variables(), INFO)
    (tmp_path / "x.mp4").write_bytes(encode(numbered(20), range(0, 800, 40), container="mp4"))
    line = run(environment, "predict", "--json", "--weights", tmp_path / "w.safetensors", tmp_path)
    assert len(json.loads(line.stdout)["top"]) == 5
    run(environment, "live", "--weights", tmp_path / "w.safetensors", tmp_path / "x.mp4")
    run(
        environment, "flow", tmp_path / "x.mp4", "--out", tmp_path / "flow", "--flow-preset", "fast"
    )
    out = tmp_path / "features"
    run(
        environment,
        "features",
        tmp_path / "x.mp4",
        "--out",
        out,
        "--weights",
        tmp_path / "w.safetensors",
    )
    assert (out / "x.npz").exists()
    np.save(tmp_path / "x.npy", np.zeros((3, 9, 40, 40, 3), np.uint8))
    sets = [tmp_path / "x.npy"] * 2
    run(environment, "fvd", *sets, "--frames", "9", "--weights", tmp_path / "w.safetensors")
    assert "i3d" in run(environment, "models", "i3d").stdout
    assert ": good; i3d" in run(environment, "weights", "verify", tmp_path / "w.safetensors").stdout
    code = "import i3d_jax; i3d_jax.inflate_params({}, like={})"
    subprocess.run([environment / "python", "-c", code], check=True, cwd=environment)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command,package",
    [
        (["train", "--config=moving_shapes", "--workdir=x"], "grain"),
        (["datasets", "show", "kinetics/400"], "tensorflow-datasets"),
    ],
)
def test_a_command_that_needs_more_says_what_to_type(command, package, environment):
    done = run(environment, *command, status=2)
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert re.search(rf"which is not installed: pip install .*\"{package}>=", done.stderr)
