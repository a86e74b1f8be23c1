"""The tutorials' cells run, in order; the site runs them too, where their output can be seen."""

import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import pages


def run(page: pathlib.Path) -> dict:
    """Runs a tutorial's cells in the current folder, and returns their variables."""
    found: dict = {}
    for cell in pages.blocks(page, "{code-cell} ipython3"):
        cell = re.sub(r"\A:tags:.*\n+", "", cell)
        magic, _, rest = cell.partition("\n")
        if magic.startswith("%%writefile"):
            pathlib.Path(magic.split()[1]).write_text(rest)
        elif magic == "%%bash":
            code = f'python() {{ "{sys.executable}" "$@"; }}\n{rest}'
            done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            found.setdefault("printed", []).append(done.stdout)
        elif "XLA_FLAGS" not in cell:  # These tests have their own.
            exec(cell, found)  # noqa: S102
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def page(name: str) -> pathlib.Path:
    return pages.DOCS / "tutorials" / f"{name}.md"


def test_every_tutorial_has_a_test_here():
    assert {path.stem for path in pages.TUTORIALS} == {"predict", "finetune", "jax", "flow"}


@pytest.mark.slow  # Compiles a network in three processes.
def test_predict_prints_what_the_code_computes():
    found = run(page("predict"))
    best = found["info"].classes[found["logits"].argmax()]
    assert (
        best in found["printed"][0].splitlines()[1] and f'"class": "{best}"' in found["printed"][1]
    )


@pytest.mark.slow  # Trains a network.
def test_finetune_learns_four_classes():
    found = run(page("finetune"))
    assert "120 of 120 annotated clips" in found["printed"][0]
    assert "top-1" in found["printed"][1] and len(found["predictions"]) == 40


@pytest.mark.slow  # Compiles a training step.
def test_jax_builds_trains_and_inflates():
    found = run(page("jax"))
    assert found["logits"].shape == (2, 10) and found["features"].shape == (2, 64)
    assert found["value"] < 1.0  # ln(10) is 2.3.
    trees = found["images"], found["inflated"]
    kernels = (tree["params"]["Mixed_4b"]["b1b"]["conv"]["kernel"] for tree in trees)
    image, inflated = map(np.asarray, kernels)
    np.testing.assert_allclose(inflated.sum(0), image, atol=1e-6)
    variables, clips = found["variables"], found["batch"]
    labels = jnp.zeros(len(clips), int)
    shapes = jax.eval_shape(
        jax.grad(found["loss"], has_aux=True),
        variables["params"],
        variables["batch_stats"],
        clips,
        labels,
        jax.random.key(1),
    )
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, variables["params"])


@pytest.mark.slow  # Compiles TV-L1 for three shapes.
def test_flow_finds_the_motion_of_a_rendered_shape():
    found = run(page("flow"))
    assert found["uv"].shape == (4, 128, 128, 2)
    assert found["error"][found["inside"]].mean() < 0.6
