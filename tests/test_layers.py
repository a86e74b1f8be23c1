import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.models import layers

WINDOWS = [((7, 7, 7), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 2, 2)), ((2, 2, 2), (2, 2, 2))]


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("large", [0, np.inf])  # Fewer multiplications for all; for none.
@pytest.mark.parametrize("frames", [1, 2, 7, 9, 16])
@pytest.mark.parametrize("window,strides", WINDOWS)
def test_convolution_as_2d_equals_xlas_3d_convolution(window, strides, frames, large, float64, monkeypatch):
    monkeypatch.setattr(layers, "LARGE", large)
    x, kernel = random(0, 2, frames, 9, 12, 3), random(1, *window, 3, 4)

    def loss(convolve, x, kernel):
        y = convolve(x, kernel, strides)
        return jnp.sum(jnp.sin(y)), y

    run = jax.jit(jax.value_and_grad(loss, (1, 2), has_aux=True), static_argnums=0)
    (_, plain), plain_grads = run(layers._conv3d, x, kernel)
    (_, folded), folded_grads = run(layers._conv3d_as_2d, x, kernel)
    np.testing.assert_allclose(folded, plain, atol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), folded_grads, plain_grads)


@pytest.mark.parametrize("window,strides", WINDOWS[:2])
def test_fewer_multiplications_round_as_finely_as_documented(window, strides, monkeypatch):
    x, kernel = jnp.maximum(random(0, 1, 16, 28, 28, 16), 0), random(1, *window, 16, 8)

    def error(large, dtype):
        monkeypatch.setattr(layers, "LARGE", large)
        with jax.enable_x64(True):
            exact = layers._conv3d(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64), strides)
        found = jax.jit(lambda x, kernel: layers._conv3d_as_2d(x, kernel, strides))(
            x.astype(dtype), kernel.astype(dtype)
        )
        assert found.dtype == dtype
        return np.sqrt(
            np.square(np.asarray(found).astype(np.float64) - np.asarray(exact)).mean()
            / np.square(np.asarray(exact)).mean()
        )

    assert 1e-8 < error(np.inf, np.float32) < error(0, np.float32) < 2e-6
    # Of half-precision numbers it is their own, not the method's.
    assert error(0, jnp.bfloat16) < 1.1 * error(np.inf, jnp.bfloat16)


def test_video_of_the_papers_size_takes_half_of_the_multiplications():
    def multiplications(frames):
        shape = jax.ShapeDtypeStruct((1, frames, 56, 56, 64), jnp.float32)
        kernel = jax.ShapeDtypeStruct((3, 3, 3, 64, 192), jnp.float32)
        convolve = jax.jit(layers._conv3d_as_2d, static_argnums=2)
        text = convolve.lower(shape, kernel, (1, 1, 1)).as_text()
        shapes = re.findall(r"stablehlo.convolution.*tensor<(\w+)xf32>\) -> tensor<(\w+)xf32>", text)
        sizes = [[list(map(int, each.split("x"))) for each in one] for one in shapes]
        return sum(math.prod(kernel[:-1]) * math.prod(out) for kernel, out in sizes)

    assert multiplications(32) == 0.5 * 32 * 56 * 56 * 192 * 27 * 64
    assert multiplications(1) == 56 * 56 * 192 * 27 * 64  # Small: the plain form.


@pytest.mark.parametrize("frames", [1, 9, 16])
@pytest.mark.parametrize("window,strides", [*WINDOWS[1:], ((3, 3, 3), (2, 2, 2))])
def test_max_pool_and_its_gradient_equal_xlas_even_for_ties(window, strides, frames, float64):
    x = jnp.asarray(np.random.default_rng(0).integers(-3, 3, (2, frames, 9, 12, 3)).astype(float))
    weights = random(1, *jax.eval_shape(lambda x: nn.max_pool(x, window, strides, "SAME"), x).shape)

    def loss(pool, x):
        y = pool(x)
        return jnp.sum(weights * y), y

    run = jax.jit(jax.value_and_grad(loss, 1, has_aux=True), static_argnums=0)
    (_, plain), plain_grad = run(lambda x: nn.max_pool(x, window, strides, "SAME"), x)
    (_, separable), separable_grad = run(lambda x: layers.max_pool(x, window, strides), x)
    np.testing.assert_array_equal(separable, plain)
    np.testing.assert_allclose(separable_grad, plain_grad, atol=1e-12)


def test_max_pool_passes_nan_on_wherever_it_is():
    x = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(jnp.nan)
    plain = nn.max_pool(x, (3, 3), (1, 1), "SAME")
    np.testing.assert_array_equal(layers.max_pool(x, (3, 3), (1, 1)), plain)


def test_same_padding_puts_the_odd_pixel_after():
    assert layers.same_pads((224, 79), (7, 7), (2, 2)) == [(2, 3), (3, 3)]


def test_edge_padding_repeats_the_first_and_last_frame():
    x, kernel = random(0, 1, 4, 5, 5, 2), random(1, 3, 3, 3, 2, 2)
    longer = jnp.concatenate([x[:, :1], x, x[:, -1:]], 1)
    inner = layers.conv(longer, kernel, (1, 1, 1))[:, 1:-1]
    np.testing.assert_allclose(layers.conv(x, kernel, (1, 1, 1), "edge"), inner, atol=1e-5)


def test_groups_of_batch_norm_are_replicas_of_their_own():
    x = random(0, 6, 4, 3, 3, 5) * 3 + 1
    one, three = layers.BatchNorm(1, 0.9), layers.BatchNorm(3, 0.9)
    variables = one.init(jax.random.key(0), x, False)
    grouped, new = three.apply(variables, x, True, mutable=["batch_stats"])
    alone = [one.apply(variables, x[i : i + 2], True, mutable=["batch_stats"]) for i in (0, 2, 4)]
    np.testing.assert_allclose(grouped, jnp.concatenate([y for y, _ in alone]), atol=1e-5)
    for name in "mean", "var":
        average = sum(stats["batch_stats"][name] for _, stats in alone) / 3
        np.testing.assert_allclose(new["batch_stats"][name], average, rtol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_gradient_of_batch_norm_is_that_of_its_definition(relu, float64):
    x, weights = random(0, 6, 4, 3, 5) * 3 + 1, random(1, 6, 4, 3, 5)
    norm = layers.BatchNorm(3, relu=relu)
    bias = random(2, 5)
    stats = norm.init(jax.random.key(0), x, False)["batch_stats"]

    def ours(x, bias):
        y, _ = norm.apply({"params": {"bias": bias}, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        return (weights * y).sum()

    def defined(x, bias):
        x = x.reshape(3, -1, 5)
        y = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-3) + bias[None, None]
        return (weights * (nn.relu(y) if relu else y).reshape(weights.shape)).sum()

    for found, wanted in zip(jax.grad(ours, (0, 1))(x, bias), jax.grad(defined, (0, 1))(x, bias), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_batch_norm_follows_the_release():
    x = random(0, 4, 2, 3, 3, 5).astype(jnp.float32)
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(0), x, False)
    assert set(variables["params"]) == {"bias"}  # No scale.
    y, new = norm.apply(variables, x, True, mutable=["batch_stats"])
    x, axes = np.asarray(x), (0, 1, 2, 3)
    np.testing.assert_allclose(y, (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-3), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.001 * x.mean(axes), rtol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.999 + 0.001 * x.var(axes), rtol=1e-5)


def test_batch_norm_names_a_batch_that_cannot_be_cut():
    norm = layers.BatchNorm(4)
    variables = norm.init(jax.random.key(0), jnp.zeros((4, 2)), False)
    with pytest.raises(ValueError, match="batch of 6 cannot be cut into 4"):
        norm.apply(variables, jnp.zeros((6, 2)), True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="a group with one value per channel has no variance"):
        norm.apply(variables, jnp.zeros((4, 2)), True, mutable=["batch_stats"])


def test_kernels_start_with_variance_one_over_fan_in():
    kernel = layers.kernel_init(jax.random.key(0), (3, 3, 3, 50, 40))
    assert kernel.std() * np.sqrt(27 * 50) == pytest.approx(1, abs=0.01)
    assert abs(kernel).max() * np.sqrt(27 * 50) < 2 / 0.8796 + 1e-3  # Truncated at two standard deviations.
    assert np.unique(kernel).size > 0.99 * kernel.size
