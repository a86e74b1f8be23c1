import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.models import convolution, padding, platforms

WINDOWS = [
    ((7, 7, 7), (2, 2, 2)),
    ((3, 3, 3), (1, 1, 1)),
    ((1, 3, 3), (1, 2, 2)),
    ((2, 2, 2), (2, 2, 2)),
    ((4, 3, 3), (2, 2, 2)),
]


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("large", [0, np.inf])  # Toom-Cook for all convolutions; for none.
@pytest.mark.parametrize("frames", [1, 2, 6, 7, 9, 16])
@pytest.mark.parametrize("window,strides", WINDOWS)
def test_convolution_as_2d_equals_xlas_3d_convolution(
    window, strides, frames, large, float64, monkeypatch
):
    monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", large)
    monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)
    x, kernel = random(0, 2, frames, 9, 12, 3), random(1, *window, 3, 4)

    def loss(convolve, x, kernel):
        y = convolve(x, kernel, strides)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.value_and_grad(loss, (1, 2), has_aux=True), static_argnums=0)
    (_, plain), plain_grads = run(convolution._xla_conv, x, kernel)
    (_, folded), folded_grads = run(convolution._conv3d_as_2d, x, kernel)
    np.testing.assert_allclose(folded, plain, atol=1e-10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), folded_grads, plain_grads
    )


@pytest.mark.parametrize("borders", ["same", "symmetric"])
@pytest.mark.parametrize(
    "window,strides,shape",
    [
        ((3, 3), (1, 1), (2, 2)),
        ((3, 3), (1, 1), (1, 1)),
        ((3, 3), (2, 2), (3, 3)),
        ((3, 5), (1, 2), (4, 3)),
        ((3, 3, 3), (1, 1, 1), (4, 2, 1)),
        ((7, 7, 7), (2, 2, 2), (6, 7, 5)),
    ],
)
def test_small_images_are_multiplied_by_all_of_the_kernel(window, strides, shape, borders, float64):
    """XLA would convolve the kernel with the image, in a loop that is a hundred times slower."""
    x, kernel = random(0, 3, *shape, 3), random(1, *window, 3, 4)

    def loss(x, kernel):
        y = convolution.conv(x, kernel, strides, padding=borders)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    with platforms.forms_of("plain"):
        (_, wanted), wanted_grads = run(x, kernel)
    with platforms.forms_of("cpu"):
        (_, y), grads = run(x, kernel)
        assert "stablehlo.convolution" not in run.lower(x, kernel).as_text()
    np.testing.assert_allclose(y, wanted, atol=1e-11)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), grads, wanted_grads)


@pytest.mark.parametrize("large", [0, np.inf])  # Toom-Cook for all convolutions; for none.
@pytest.mark.parametrize(
    "window,strides,shape",
    [
        ((5, 7, 7), (2, 2, 2), (8, 10, 9)),
        ((3, 3, 3), (1, 2, 2), (5, 9, 12)),
        ((7, 7), (2, 2), (10, 9)),
        ((1, 1), (2, 2), (10, 9)),
    ],
)
def test_symmetric_padding_is_half_the_window_on_both_sides_in_all_forms(
    window, strides, shape, large, float64, monkeypatch
):
    monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", large)
    monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)
    x, kernel = random(0, 2, *shape, 3), random(1, *window, 3, 4)

    def loss(convolve, x, kernel):
        y = convolve(x, kernel)
        return jnp.sum(jnp.sin(y)), y

    def xlas(x, kernel):
        return convolution._xla_conv(
            x, kernel, strides, [(size // 2, size // 2) for size in window]
        )

    def ours(x, kernel):
        return convolution.conv(x, kernel, strides, padding="symmetric")

    run = jax.jit(jax.value_and_grad(loss, (1, 2), has_aux=True), static_argnums=0)
    (_, wanted), wanted_grads = run(xlas, x, kernel)
    for platform in ("cpu", "cuda", "tpu") if large else ("cpu",):
        with platforms.forms_of(platform):
            (_, found), grads = run(functools.partial(ours), x, kernel)
        np.testing.assert_allclose(found, wanted, atol=1e-10)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), grads, wanted_grads)


# Toom-Cook has six points and infinity, which is enough for products of seven terms; kernels with
# more taps take the plain convolution.
@pytest.mark.parametrize("taps,convolutions", [(5, 7), (6, 7), (7, 1), (9, 1)])
def test_more_taps_in_time_are_convolved_too(taps, convolutions, float64, monkeypatch):
    monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)
    x, kernel, weights = (
        random(0, 1, 12, 4, 5, 3),
        random(1, taps, 3, 1, 3, 2),
        random(2, 1, 12, 4, 5, 2),
    )

    def loss(form, x, kernel):
        y = form(x, kernel, (1, 1, 1))
        return (weights * y).sum(), y

    (_, wanted), wanted_grads = jax.value_and_grad(loss, (1, 2), has_aux=True)(
        convolution._xla_conv, x, kernel
    )
    (_, found), grads = jax.value_and_grad(loss, (1, 2), has_aux=True)(convolution.conv, x, kernel)
    np.testing.assert_allclose(found, wanted, atol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), grads, wanted_grads)
    text = jax.jit(lambda *both: convolution.conv(*both, (1, 1, 1))).lower(x, kernel).as_text()
    assert text.count("stablehlo.convolution") == convolutions


def test_a_bright_frame_blurs_others_in_fewer_multiplications_and_not_in_the_plain_form(
    monkeypatch,
):
    monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)
    rng = np.random.default_rng(0)
    x, kernel = np.maximum(rng.normal(size=(1, 16, 8, 8, 8)), 0), rng.normal(size=(3, 1, 1, 8, 4))
    x[:, 8] *= 1e4
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    padded = np.pad(x.astype(np.float64), [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
    exact = sum(
        padded[:, tap : tap + 16] @ kernel.astype(np.float64)[tap, 0, 0] for tap in range(3)
    )
    blind = [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15]

    def error(platform):
        with platforms.forms_of(platform):
            found = convolution.conv(jnp.asarray(x), jnp.asarray(kernel), (1, 1, 1))
        return np.abs(found - exact)[:, blind].max() / np.abs(exact)[:, blind].max()

    assert error("plain") < 1e-6
    assert 1e-5 < error("cpu") < 2e-2


def test_fewer_multiplications_are_for_large_convolutions_over_many_positions(monkeypatch):
    monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", 2 * 8 * 12 * 12 * 27 * 4 * 4)
    monkeypatch.setattr(convolution, "MIN_POSITIONS", 2 * 8 * 12 * 12)

    def convolutions(frames, size, channels):
        x, kernel = (
            jnp.zeros((2, frames, size, size, channels)),
            jnp.zeros((3, 3, 3, channels, channels)),
        )
        form = functools.partial(convolution._conv3d_as_2d, strides=(1, 1, 1))
        return jax.jit(form).lower(x, kernel).as_text().count("stablehlo.convolution")

    assert convolutions(8, 12, 4) == 6  # Toom-Cook, four outputs of three taps at a time.
    assert convolutions(8, 12, 3) == 1  # Too small for Toom-Cook.
    assert convolutions(8, 10, 8) == 1  # Large only because of its channels.


@pytest.mark.parametrize(
    "few", [12, 48, 96, 1000]
)  # Becomes a video; images; the zoo's first layers; a matrix product.
@pytest.mark.parametrize(
    "window,strides,shape",
    [
        *((*each, (frames, 9, 12)) for each in WINDOWS for frames in (1, 7, 16)),
        ((7, 7), (2, 2), (9, 12)),
        ((3, 3), (1, 1), (9, 12)),
    ],
)
def test_convolution_of_few_channels_equals_xlas(window, strides, shape, few, float64, monkeypatch):
    monkeypatch.setattr(convolution, "FEW_CHANNELS", few)
    x, kernel = random(0, 2, *shape, 3), random(1, *window, 3, 4)

    def loss(form, x, kernel):
        y = form(x, kernel, strides)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.value_and_grad(loss, (1, 2), has_aux=True), static_argnums=0)
    (_, wanted), wanted_grads = run(convolution._xla_conv, x, kernel)
    (_, found), grads = run(convolution._conv_of_few_channels, x, kernel)
    np.testing.assert_allclose(found, wanted, atol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), grads, wanted_grads)


@pytest.mark.parametrize("window,strides", [*WINDOWS[:2], ((5, 3, 3), (1, 1, 1))])
def test_fewer_multiplications_round_as_finely_as_documented(window, strides, monkeypatch):
    x, kernel = jnp.maximum(random(0, 1, 16, 28, 28, 16), 0), random(1, *window, 16, 8)

    def error(large, dtype):
        monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", large)
        monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)
        with jax.enable_x64(True):
            exact = convolution._xla_conv(
                jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64), strides
            )
        found = jax.jit(lambda x, kernel: convolution._conv3d_as_2d(x, kernel, strides))(
            x.astype(dtype), kernel.astype(dtype)
        )
        assert found.dtype == dtype
        return np.sqrt(
            np.square(np.asarray(found).astype(np.float64) - np.asarray(exact)).mean()
            / np.square(np.asarray(exact)).mean()
        )

    assert 1e-8 < error(np.inf, np.float32) < error(0, np.float32) < 2e-6
    # With half-precision numbers, the error is theirs, not Toom-Cook's.
    assert error(0, jnp.bfloat16) < 1.1 * error(np.inf, jnp.bfloat16)


def test_video_of_the_papers_size_takes_half_of_the_multiplications():
    def multiplications(frames):
        shape = jax.ShapeDtypeStruct((1, frames, 56, 56, 64), jnp.float32)
        kernel = jax.ShapeDtypeStruct((3, 3, 3, 64, 192), jnp.float32)
        convolve = jax.jit(convolution._conv3d_as_2d, static_argnums=2)
        text = convolve.lower(shape, kernel, (1, 1, 1)).as_text()
        shapes = re.findall(
            r"stablehlo.convolution.*tensor<(\w+)xf32>\) -> tensor<(\w+)xf32>", text
        )
        sizes = [[list(map(int, each.split("x"))) for each in one] for one in shapes]
        return sum(math.prod(kernel[:-1]) * math.prod(out) for kernel, out in sizes)

    assert multiplications(32) == 0.5 * 32 * 56 * 56 * 192 * 27 * 64
    assert multiplications(1) == 56 * 56 * 192 * 27 * 64  # Small, so it has the plain form.


def test_same_padding_puts_the_odd_pixel_after():
    assert padding.same_pads((224, 79), (7, 7), (2, 2)) == [(2, 3), (3, 3)]


def test_edge_padding_repeats_the_first_and_last_frame():
    x, kernel = random(0, 1, 4, 5, 5, 2), random(1, 3, 3, 3, 2, 2)
    longer = jnp.concatenate([x[:, :1], x, x[:, -1:]], 1)
    inner = convolution.conv(longer, kernel, (1, 1, 1))[:, 1:-1]
    np.testing.assert_allclose(convolution.conv(x, kernel, (1, 1, 1), "edge"), inner, atol=1e-5)


def test_a_gpu_gets_the_papers_stem_as_a_convolution_of_images_with_96_channels():
    x, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for shape in ((2, 64, 224, 224, 3), (7, 7, 7, 3, 64))
    )
    with platforms.forms_of("cuda"):
        text = (
            jax.jit(lambda x, kernel: convolution.conv(x, kernel, (2, 2, 2)))
            .lower(x, kernel)
            .as_text()
        )
    (shapes,) = re.findall(r"stablehlo.convolution.*: \((.*)\) -> ", text)
    assert shapes == "tensor<64x115x115x96xbf16>, tensor<4x4x96x64xbf16>"


# First layers of videos: time's taps as channels, or left; sizes that fill whole blocks, or not.
STEMS = [
    ((7, 7, 7), (2, 2, 2), (9, 13, 14, 3)),
    ((7, 7, 7), (2, 2, 2), (16, 12, 12, 2)),
    ((5, 7, 7), (1, 2, 2), (4, 12, 13, 3)),
    ((9, 3, 3), (2, 2, 2), (12, 8, 9, 3)),
    ((2, 2, 2), (3, 3, 3), (7, 8, 9, 2)),
]


@pytest.mark.parametrize("time_padding,padding", [("zeros", "same"), ("none", "symmetric")])
@pytest.mark.parametrize("window,strides,shape", STEMS)
def test_a_tpus_convolution_of_few_channels_equals_xlas(
    window, strides, shape, time_padding, padding, float64
):
    x, kernel = random(0, 2, *shape), random(1, *window, shape[-1], 4)

    def loss(convolve, x, kernel):
        y = convolve(x, kernel)
        return jnp.sum(jnp.sin(y)), y

    def convolve(x, kernel):
        return convolution.conv(x, kernel, strides, time_padding, padding)

    run = jax.jit(jax.value_and_grad(loss, (1, 2), has_aux=True), static_argnums=0)
    found = {}
    for platform in "plain", "tpu":
        with platforms.forms_of(platform):
            found[platform] = run(functools.partial(convolve), x, kernel)
            text = jax.jit(functools.partial(convolve)).lower(x, kernel).as_text()
        (taken,) = re.findall(r"stablehlo.convolution.*: \(tensor<\w*?(\d+)xf64>", text)
        assert (int(taken) == shape[-1]) is (platform == "plain")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), found["tpu"], found["plain"]
    )


@pytest.mark.parametrize("channels,wanted", [(3, 84), (2, 56)])
def test_a_tpu_gets_the_papers_stem_with_enough_channels(channels, wanted):
    """RGB and flow at 2x2 phases in space and 7 taps in time."""
    x = jax.ShapeDtypeStruct((2, 64, 224, 224, channels), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((7, 7, 7, channels, 64), jnp.bfloat16)
    with platforms.forms_of("tpu"):
        text = jax.jit(lambda x, kernel: convolution.conv(x, kernel, (2, 2, 2))).lower(x, kernel)
    (shapes,) = re.findall(r"stablehlo.convolution.*: \((.*)\) -> ", text.as_text())
    assert shapes == f"tensor<2x32x112x112x{wanted}xbf16>, tensor<1x4x4x{wanted}x64xbf16>"


@pytest.mark.parametrize(
    "shape,window,strides",
    [((2, 16, 112, 112, 3), (3, 3, 3), (1, 1, 1)), ((32, 224, 224, 3), (7, 7), (2, 2))],
)
def test_a_tpu_gets_other_first_layers_as_they_are(shape, window, strides):
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((*window, 3, 64), jnp.bfloat16)
    with platforms.forms_of("tpu"):
        text = jax.jit(lambda x, kernel: convolution.conv(x, kernel, strides)).lower(x, kernel)
    (shapes,) = re.findall(r"stablehlo.convolution.*: \((.*)\) -> ", text.as_text())
    assert shapes.startswith(f"tensor<{'x'.join(map(str, shape))}xbf16>, ")


def test_a_tpus_products_at_all_positions_are_convolutions():
    x, kernel = jnp.zeros((2, 3, 4, 5, 8)), jnp.zeros((1, 1, 1, 8, 6))
    with platforms.forms_of("tpu"):
        text = jax.jit(lambda x, kernel: convolution.conv(x, kernel, (1, 1, 1))).lower(x, kernel)
    assert "stablehlo.dot_general" not in text.as_text()


@pytest.mark.parametrize(
    "window,strides",
    [((3, 3, 3), (1, 1, 1)), ((7, 7, 7), (2, 2, 2)), ((7, 7), (2, 2)), ((1, 1), (1, 1))],
)
def test_no_clips_are_convolved_to_none(window, strides):
    x, kernel = jnp.zeros((0, *(8,) * len(window), 3)), jnp.zeros((*window, 3, 4))
    outputs = [8 // stride for stride in strides]
    assert convolution.conv(x, kernel, strides).shape == (0, *outputs, 4)


def test_images_have_no_time_to_pad():
    x, kernel = random(0, 1, 5, 5, 2), random(1, 3, 3, 2, 2)
    wanted = convolution.conv(x, kernel, (1, 1))
    np.testing.assert_array_equal(convolution.conv(x, kernel, (1, 1), "edge"), wanted)


def test_product_has_its_gradients_without_transposing():
    x, kernel = jnp.zeros((2, 8, 14, 14, 24)), jnp.zeros((1, 1, 1, 24, 40))

    def loss(x, kernel):
        return jnp.sin(convolution.conv(jnp.cos(x), kernel, (1, 1, 1))).sum()

    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    assert "f32[3136,40]" in text and "f32[40,3136]" not in text and "f32[24,3136]" not in text


@pytest.mark.parametrize(
    "platform,result", [("cpu", "6x5xf32"), ("cuda", "2x3x5xbf16"), ("tpu", "2x3x5xbf16")]
)
def test_products_give_what_the_platform_is_fast_at(platform, result):
    x, kernel = jnp.zeros((2, 3, 4), jnp.bfloat16), jnp.zeros((1, 4, 5), jnp.bfloat16)
    with platforms.forms_of(platform):
        text = (
            jax.jit(lambda x, kernel: convolution.conv(x, kernel, (1,))).lower(x, kernel).as_text()
        )
    assert re.findall(r"stablehlo.dot_general.* -> tensor<(\w+)>", text) == [result]
