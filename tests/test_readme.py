"""The README's Python, run as it stands but for the names of the files and small networks in them."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from support.small_weights import INFO, small_variables
from support.videos import encode, numbered

from i3d_jax import weights

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_code_of_your_own_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights.save("rgb_scratch.safetensors", small_variables(), INFO)
    (tmp_path / "video.mp4").write_bytes(encode(numbered(64), [*range(0, 64 * 40, 40)], "mp4"))
    section = README.read_text().split("## In your own code\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(blocks).replace('"rgb_scratch"', '"rgb_scratch.safetensors"')
    code = code.replace("mesh =", "clips = jnp.concatenate([clip] * jax.device_count())\nmesh =")
    found = {}
    exec(code, found)  # noqa: S102
    assert found["logits"].shape == (1, 7) and found["features"].shape == (1, 64)
    kernels = (
        tree["params"]["Mixed_4b"]["b1b"]["conv"]["kernel"]
        for tree in (found["images"], found["inflated"])
    )
    image, inflated = map(np.asarray, kernels)
    np.testing.assert_allclose(inflated.sum(0), image, atol=1e-6)
    variables, clips = found["variables"], found["clips"]
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
