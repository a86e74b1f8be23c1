import forms
import jax
import jax.numpy as jnp
import model
import numpy as np
import pytest

from i3d_jax import models
from i3d_jax.models import convolution, layers, pooling


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_plain_form_that_ours_is_measured_against_is_xlas_own(platform):
    x, kernel = jnp.zeros((1, 16, 14, 14, 3)), jnp.zeros((3, 3, 3, 3, 8))

    def lowered():
        def layers(x, kernel):
            return pooling.max_pool(convolution.conv(x, kernel, (1, 1, 1)), (3, 3, 3), (2, 2, 2))

        return jax.jit(layers).lower(x, kernel).as_text()

    with models.forms_of(platform):
        ours = lowered()
    with models.forms_of("plain"):
        plain = lowered()
    assert (
        "tensor<3x3x3x3x8xf32>) -> tensor<1x16x14x14x8xf32>" in plain
        and "stablehlo.while" not in plain
    )
    assert plain.count("reduce_window") == 1 and "reduce_window" not in ours
    assert ("stablehlo.while" if platform == "cpu" else "stablehlo.optimization_barrier") in ours
    with models.forms_of(platform):
        assert lowered() == ours


def test_batch_norm_that_ours_is_measured_against_has_the_gradient_that_jax_finds():
    def traced():
        norm = layers.BatchNorm(3, relu=True)
        x = jnp.zeros((2, 4, 4, 3))
        return str(jax.make_jaxpr(lambda x: norm.init_with_output(jax.random.key(0), x)[0])(x))

    with models.forms_of("plain"):
        plain = traced()
    assert "custom_vjp_call" in traced() and "custom_vjp_call" not in plain


def test_programs_are_timed_as_the_first_process_has_them_and_the_next():
    about = {}
    square = model.compiled(lambda x: x**2, (jnp.arange(3.0),), about)
    assert square(jnp.arange(3.0)).tolist() == [0, 1, 4]
    assert about["compile"] > 0 and about["warm_start"] > 0 and about["megabytes"] >= 0


def test_tasks_clips_are_those_of_the_paper_and_their_work_is_the_plain_forms():
    task = model.Task("two_stream", 1, {"rgb": 1, "flow": 10}, 224, train=True)
    assert {stream: frames.shape for stream, frames in task.streams().items()} == {
        "rgb": (1, 1, 224, 224, 3),
        "flow": (1, 10, 224, 224, 2),
    }
    # 1.44 G for each stream's image network but for its first layer's input channels (20 for 3).
    assert 3 * 2 * 1.44e9 < task.work() < 3 * (2 * 1.6e9 + 112 * 112 * 64 * 49 * 17)


@pytest.mark.parametrize(
    "task", forms.TASKS[:2] + forms.TASKS[5:], ids=lambda task: f"{task[0]} {task[3]}"
)
def test_forms_of_a_layer_are_the_same_and_so_are_their_gradients(task):
    kind, made, _, _, _, *kernel = task
    arguments = (jax.random.normal(jax.random.key(0), (1, 4, 8, 8, 3)),)
    if kernel:
        window, outputs = kernel
        arguments += (jax.random.normal(jax.random.key(1), (*window, 3, outputs)) / 10,)
    programs = [forms.programs(form, arguments, kind) for form in made.values()]
    gradients = (
        ["of x"]
        if not kernel
        else ["of the kernel"]
        if kind == "stem"
        else ["of x", "of the kernel"]
    )
    assert list(programs[0]) == ["forward", *gradients]
    for what, wanted in programs[0].items():
        for other in programs[1:]:
            np.testing.assert_allclose(other[what](), wanted(), rtol=1e-4, atol=1e-4, err_msg=what)
