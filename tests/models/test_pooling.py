import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i3d_jax.models import pooling

WINDOWS = [
    ((3, 3, 3), (1, 1, 1)),
    ((1, 3, 3), (1, 2, 2)),
    ((2, 2, 2), (2, 2, 2)),
    ((3, 3, 3), (2, 2, 2)),
    ((1, 2, 5), (2, 3, 2)),
    ((3, 3), (2, 2)),
]


FORMS = [pooling.max_pool, pooling._max_pool_by_axis]  # The forms of CPUs and GPUs.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frames", [1, 9, 16])
@pytest.mark.parametrize("window,strides", WINDOWS)
def test_max_pool_and_its_gradient_equal_xlas_even_for_ties(window, strides, frames, form, float64):
    rng = np.random.default_rng(0)
    shape = (2, frames, 9, 12, 3) if len(window) == 3 else (frames, 9, 12, 3)
    x = jnp.asarray(rng.integers(-3, 3, shape).astype(float))
    weights = rng.normal(size=nn.max_pool(x, window, strides, "SAME").shape)

    def loss(pool, x):
        y = pool(x)
        return jnp.sum(weights * y), y

    run = jax.jit(jax.value_and_grad(loss, 1, has_aux=True), static_argnums=0)
    (_, plain), plain_grad = run(lambda x: nn.max_pool(x, window, strides, "SAME"), x)
    (_, ours), our_grad = run(lambda x: form(x, window, strides), x)
    np.testing.assert_array_equal(ours, plain)
    np.testing.assert_allclose(our_grad, plain_grad, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "window,strides,padding,pads",
    [
        ((1, 3, 3), (2, 2, 2), "symmetric", [(0, 0), (1, 1), (1, 1)]),
        ((2, 1, 1), (2, 1, 1), "symmetric", [(0, 1), (0, 0), (0, 0)]),
        ((1, 3, 3), (1, 2, 2), "valid", [(0, 0), (0, 0), (0, 0)]),
        ((2, 2), (2, 2), "valid", [(0, 0), (0, 0)]),
    ],
)
def test_other_paddings_of_max_pool_and_their_gradients_equal_xlas(
    window, strides, padding, pads, form, float64
):
    rng = np.random.default_rng(0)
    shape = (2, 5, 9, 12, 3) if len(window) == 3 else (5, 9, 12, 3)
    x = jnp.asarray(rng.integers(-3, 3, shape).astype(float))

    def loss(pool, x):
        y = pool(x)
        return jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y), y

    run = jax.jit(jax.value_and_grad(loss, 1, has_aux=True), static_argnums=0)
    (_, plain), plain_grad = run(lambda x: nn.max_pool(x, window, strides, pads), x)
    (_, ours), our_grad = run(lambda x: form(x, window, strides, padding), x)
    np.testing.assert_array_equal(ours, plain)
    np.testing.assert_allclose(our_grad, plain_grad, atol=1e-12)


@pytest.mark.parametrize("window,strides", WINDOWS)
def test_half_precision_is_pooled_in_float32(window, strides):
    rng = np.random.default_rng(0)
    shape = (2, 5, 9, 12, 3)[-2 - len(window) :]
    x = jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    y, gradient = jax.vjp(lambda x: pooling.max_pool(x, window, strides), x)
    plain, plain_gradient = jax.vjp(
        lambda x: pooling.max_pool(x, window, strides), x.astype(jnp.float32)
    )
    np.testing.assert_array_equal(y, plain.astype(jnp.bfloat16))
    weights = jnp.asarray(rng.normal(size=y.shape), jnp.bfloat16)
    (ours,), (wanted,) = gradient(weights), plain_gradient(weights.astype(jnp.float32))
    assert y.dtype == ours.dtype == jnp.bfloat16
    # A sum of up to 27 gradients is rounded only once.
    np.testing.assert_array_equal(ours, wanted.astype(jnp.bfloat16))


@pytest.mark.parametrize("form", FORMS)
def test_max_pool_passes_nan_on_wherever_it_is(form):
    x = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4, 0].set(jnp.nan)
    plain = nn.max_pool(x, (3, 3), (1, 1), "SAME")
    np.testing.assert_array_equal(form(x, (3, 3), (1, 1)), plain)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape,window", [((4, 3, 8, 8, 5), (1, 3, 3)), ((4, 8, 8, 5), (3, 3))])
def test_clips_are_pooled_on_the_devices_that_have_them(shape, window, form):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    x = jax.device_put(jnp.ones(shape), NamedSharding(mesh, PartitionSpec("data")))

    def gradient(x):
        return jax.grad(lambda x: jnp.square(form(x, window, window)).sum())(x)

    program = jax.jit(gradient).lower(x).compile().as_text()
    assert (" while(" in program) == (form is pooling.max_pool)
    assert not [line for line in program.splitlines() if re.search(r"all-|collective", line)]
