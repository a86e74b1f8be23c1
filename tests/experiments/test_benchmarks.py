"""The benchmarks compare equal computations, and report what they claim to."""

import features
import forms
import jax
import jax.numpy as jnp
import layer_by_layer
import model
import numpy as np
import pytest

from i3d_jax import models
from i3d_jax.models import convolution, layers, pooling


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_the_plain_form_of_layers_is_xlas_own(platform):
    x, kernel = jnp.zeros((1, 16, 14, 14, 3)), jnp.zeros((3, 3, 3, 3, 8))

    def lowered():
        def layers(x, kernel):
            return pooling.max_pool(convolution.conv(x, kernel, (1, 1, 1)), (3, 3, 3), (2, 2, 2))

        return jax.jit(layers).lower(x, kernel).as_text()

    with models.forms_of(platform):
        ours = lowered()
    with models.forms_of("plain"):
        plain = lowered()
    assert "tensor<3x3x3x3x8xf32>) -> tensor<1x16x14x14x8xf32>" in plain
    assert "stablehlo.while" not in plain
    assert plain.count("reduce_window") == 1 and "reduce_window" not in ours
    assert ("stablehlo.while" if platform == "cpu" else "stablehlo.optimization_barrier") in ours
    with models.forms_of(platform):
        assert lowered() == ours


def test_plain_batch_norm_has_the_gradient_of_jax():
    def traced():
        norm = layers.BatchNorm(3, relu=True)
        x = jnp.zeros((2, 4, 4, 3))
        return str(jax.make_jaxpr(lambda x: norm.init_with_output(jax.random.key(0), x)[0])(x))

    with models.forms_of("plain"):
        plain = traced()
    assert "custom_vjp_call" in traced() and "custom_vjp_call" not in plain


def test_compiling_is_timed_without_and_with_the_cache():
    about = {}
    square = model.compiled(lambda x: x**2, (jnp.arange(3.0),), about)
    assert square(jnp.arange(3.0)).tolist() == [0, 1, 4]
    assert about["compile"] > 0 and about["warm_start"] > 0 and about["megabytes"] >= 0


def test_a_task_has_the_papers_clips_and_the_multiply_adds_of_the_plain_form():
    task = model.Task("two_stream", 1, {"rgb": 1, "flow": 10}, 224, train=True)
    assert {stream: frames.shape for stream, frames in task.streams().items()} == {
        "rgb": (1, 1, 224, 224, 3),
        "flow": (1, 10, 224, 224, 2),
    }
    # 1.44 G for the image network of each stream; the first layer of flow has 20 input channels
    # instead of 3.
    assert 3 * 2 * 1.44e9 < task.work() < 3 * (2 * 1.6e9 + 112 * 112 * 64 * 49 * 17)


@pytest.mark.parametrize(
    "task", forms.TASKS[:2] + forms.TASKS[5:], ids=lambda task: f"{task[0]} {task[3]}"
)
def test_forms_of_a_layer_have_equal_outputs_and_gradients(task):
    kind, made, _, _, _, *kernel = task
    arguments = (jax.random.normal(jax.random.key(0), (1, 4, 8, 8, 3)),)
    if kernel:
        window, outputs = kernel
        arguments += (jax.random.normal(jax.random.key(1), (*window, 3, outputs)) / 10,)
    programs = [forms.programs(form, arguments, kind) for form in made.values()]
    gradients = ["of x"] * (kind != "stem") + ["of the kernel"] * bool(kernel)
    assert list(programs[0]) == ["forward", *gradients]
    for what, wanted in programs[0].items():
        for other in programs[1:]:
            np.testing.assert_allclose(other[what](), wanted(), rtol=1e-4, atol=1e-4, err_msg=what)


def test_a_layer_is_timed_with_its_own_output_and_multiply_adds():
    x = np.random.default_rng(0).uniform(-1, 1, (1, 4, 16, 16, 3)).astype(np.float32)
    layer = layer_by_layer.Layer(None, row=layer_by_layer.LAYERS[0])
    mine = layer_by_layer.ours(layer, x)
    assert mine["multiply_adds"] == 2 * 8 * 8 * 7**3 * 3 * 64
    network = models.build("i3d", num_classes=3)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 9, 32, 32, 3)))
    for kind, of_layer in mine["variables"].items():
        wanted = variables[kind][layer.row[1]]
        assert jax.tree.map(jnp.shape, of_layer[layer.row[1]]) == jax.tree.map(jnp.shape, wanted)
    y, of_kernel, of_video = mine["training"]()
    assert y.shape == mine["y"].shape == (1, 2, 8, 8, 64) and of_video is None
    assert jax.tree.structure(of_kernel) == jax.tree.structure(mine["variables"]["params"])
    np.testing.assert_array_equal(mine["forward"](), mine["y"])


def test_pieces_overlap_by_what_a_prediction_sees():
    # Pieces of 128 of 512 frames: the first has 9 predictions, those in the midst 3 each, and the
    # last one the rest of 63: it is full after 16 pieces, and 63 - 9 - 15 * 3 = 9 are left.
    assert features.pieces(512) == 1 + 15 + 1
    assert features.pieces(128) == 1
