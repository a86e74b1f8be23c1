import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scaling
from flax import errors
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from i3d_jax import models
from i3d_jax.models import initializers, layers, platforms


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_groups_of_batch_norm_are_replicas_of_their_own():
    x = random(0, 6, 4, 3, 3, 5) * 3 + 1
    one, three = layers.BatchNorm(5, 1, 0.9), layers.BatchNorm(5, 3, 0.9)
    variables = one.init(jax.random.key(0), x)
    grouped, new = three.apply(variables, x, mutable=["batch_stats"])
    alone = [one.apply(variables, x[i : i + 2], mutable=["batch_stats"]) for i in (0, 2, 4)]
    np.testing.assert_allclose(grouped, jnp.concatenate([y for y, _ in alone]), atol=1e-5)
    for name in "mean", "var":
        average = sum(stats["batch_stats"][name] for _, stats in alone) / 3
        np.testing.assert_allclose(new["batch_stats"][name], average, rtol=1e-5)


@pytest.mark.parametrize("relu", [False, True])
def test_gradient_of_batch_norm_is_that_of_its_definition(relu, float64):
    x, weights = random(0, 6, 4, 3, 5) * 3 + 1, random(1, 6, 4, 3, 5)
    norm = layers.BatchNorm(5, 3, relu=relu)
    bias = random(2, 5)
    stats = norm.init(jax.random.key(0), x)["batch_stats"]

    def ours(x, bias):
        y, _ = norm.apply(
            {"params": {"bias": bias}, "batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return (weights * y).sum()

    def defined(x, bias):
        x = x.reshape(3, -1, 5)
        y = (x - x.mean(1, keepdims=True)) / jnp.sqrt(x.var(1, keepdims=True) + 1e-3) + bias[
            None, None
        ]
        return (weights * (nn.relu(y) if relu else y).reshape(weights.shape)).sum()

    for found, wanted in zip(
        jax.grad(ours, (0, 1))(x, bias), jax.grad(defined, (0, 1))(x, bias), strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-10)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_gradient_of_batch_norm_with_a_scale_is_that_of_its_definition(relu, platform, float64):
    x, weights, bias = random(0, 6, 4, 3, 5) * 3 + 1, random(1, 6, 4, 3, 5), random(2, 5)
    scale = jnp.array([1.5, -0.5, 0.0, 0.01, -2.0])
    norm = layers.BatchNorm(5, 3, relu=relu, initial_scale=1.0)
    variables = norm.init(jax.random.key(0), x)
    assert variables["params"]["scale"].tolist() == [1.0] * 5
    stats = jax.tree.map(jnp.float64, variables["batch_stats"])

    def ours(x, bias, scale):
        y, new = norm.apply(
            {"params": {"bias": bias, "scale": scale}, "batch_stats": stats},
            x,
            mutable=["batch_stats"],
        )
        of_stats = jax.tree.map(lambda x: jnp.sin(100 * x).sum(), new["batch_stats"])
        return (weights * y).sum() + of_stats["mean"] + of_stats["var"]

    def defined(x, bias, scale):
        x = x.reshape(3, -1, 5)
        mean, var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
        y = (x - mean) / jnp.sqrt(var + 1e-3) * scale[None, None] + bias[None, None]
        y = (weights * (nn.relu(y) if relu else y).reshape(weights.shape)).sum()
        kept = (0.999 * old + 0.001 * new.mean((0, 1)) for old, new in ((0, mean), (1, var)))
        return y + sum(jnp.sin(100 * each).sum() for each in kept)

    with models.forms_of(platform):
        found = jax.jit(jax.grad(ours, (0, 1, 2)))(x, bias, scale)
    wanted = jax.jit(jax.grad(defined, (0, 1, 2)))(x, bias, scale)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


def test_at_test_batch_norm_multiplies_by_its_scale_in_all_forms(float64):
    x, scale, bias = random(0, 2, 3, 6, 6, 8), random(1, 4), random(2, 4)
    unit = layers.ConvBN(4, (3, 3, 3), (1, 1, 1), dtype=jnp.float64, initial_scale=1.0, relu=False)
    variables = unit.init(jax.random.key(0), x, False)
    variables["params"]["bn"] = {"scale": scale, "bias": bias}
    without = layers.ConvBN(4, (3, 3, 3), (1, 1, 1), dtype=jnp.float64, relu=False).apply(
        {
            "params": {**variables["params"], "bn": {"bias": jnp.zeros(4)}},
            "batch_stats": variables["batch_stats"],
        },
        x,
        False,
    )
    for platform in "cpu", "cuda", "tpu":
        with models.forms_of(platform):
            np.testing.assert_allclose(
                unit.apply(variables, x, False),
                without * scale.reshape(1, 1, 1, 1, 4) + bias.reshape(1, 1, 1, 1, 4),
                atol=1e-6,
            )


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("weights", [(0, 1, 0), (0, 0, 1), (1, 2, 3)])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_losses_may_be_of_the_statistics_of_batch_norm(relu, weights, platform, float64):
    x, bias = random(0, 6, 4, 3, 5) * 3 + 1, random(1, 5)
    norm = layers.BatchNorm(5, 3, relu=relu)
    stats = jax.tree.map(jnp.float64, norm.init(jax.random.key(0), x)["batch_stats"])

    def loss(x, bias):
        y, new = norm.apply(
            {"params": {"bias": bias}, "batch_stats": stats}, x, mutable=["batch_stats"]
        )
        assert new["batch_stats"]["var"].dtype == jnp.float64
        values = y, new["batch_stats"]["mean"], new["batch_stats"]["var"]
        return sum(
            weight * (jnp.sin(value)).sum()
            for weight, value in zip(weights, values, strict=True)
            if weight
        )

    def of(form):
        with platforms.forms_of(form):
            return jax.grad(loss, (0, 1))(x, bias)

    for found, wanted in zip(of(platform), of("plain"), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert np.abs(of(platform)[0]).max() > 1e-6


# Few and many positions, divisible into runs and not.
@pytest.mark.parametrize("positions", [(), (5,), (16, 112, 112), (37, 37), (8191,)])
@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_statistics_of_batch_norm_are_exact_over_many_positions(positions, platform):
    x = np.random.default_rng(0).normal(2, 3, (4, *positions, 6)).astype(np.float32)
    norm = layers.BatchNorm(6, 2, decay=0)
    with platforms.forms_of(platform):
        _, new = norm.apply(norm.init(jax.random.key(0), x), x, mutable=["batch_stats"])
    groups = x.astype(np.float64).reshape(2, -1, 6)
    for name, wanted in ("mean", groups.mean(1)), ("var", groups.var(1)):
        np.testing.assert_allclose(new["batch_stats"][name], wanted.mean(0), rtol=1e-5)


@pytest.mark.parametrize("platform", ["plain", "cpu", "cuda", "tpu"])
@pytest.mark.parametrize("scale", [1, 1e-3])
def test_variance_is_exact_where_the_mean_is_a_thousand_times_the_deviation(platform, scale):
    rng = np.random.default_rng(0)
    # The means of the groups, too, are far apart.
    x = (rng.normal(1000, 1, (6, 2, 12, 12, 5)) * [1, -1, 3, 0.5, 0]).astype(
        np.float32
    ) * np.float32(scale)
    x[3:] *= 2
    norm, weights = layers.BatchNorm(5, 2, decay=0.25), rng.normal(size=x.shape).astype(np.float32)
    variables = norm.init(jax.random.key(0), x)

    def total(x):
        y, new = norm.apply(variables, x, mutable=["batch_stats"])
        return (weights * y).sum(), (y, new["batch_stats"])

    with platforms.forms_of(platform):
        grad, (y, stats) = jax.grad(total, has_aux=True)(x)
    groups, weights = (each.astype(np.float64).reshape(2, -1, 5) for each in (x, weights))
    mean = groups.mean(1, keepdims=True)
    var = np.square(groups - mean).mean(1, keepdims=True)
    np.testing.assert_allclose(stats["mean"], 0.75 * mean.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.25 + 0.75 * var.mean((0, 1)), rtol=1e-5)
    wanted = (groups - mean) / np.sqrt(var + 1e-3)
    np.testing.assert_allclose(y, wanted.reshape(x.shape), atol=1e-4)
    of_x = (
        weights
        - weights.mean(1, keepdims=True)
        - wanted * (weights * wanted).mean(1, keepdims=True)
    )
    of_x = of_x / np.sqrt(var + 1e-3)
    np.testing.assert_allclose(grad, of_x.reshape(x.shape), atol=2e-4 * np.abs(of_x).max())


@pytest.mark.parametrize("groups,more", [(2, 0), (1, 1)])
def test_devices_that_share_a_group_of_batch_norm_send_its_sums_and_its_first_values(groups, more):
    """With a device per group, the only collective operation is for the running statistics."""
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    whole, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    norm, x = layers.BatchNorm(6, groups), jnp.zeros((4, 2, 8, 8, 6))
    variables = norm.init(jax.random.key(0), x)
    apply = jax.jit(
        functools.partial(norm.apply, mutable=["batch_stats"]), in_shardings=(whole, cut)
    )
    with platforms.forms_of("cuda"):
        found = scaling.collectives(apply.lower(variables, x).compile().as_text())
    size = 6 * 4
    assert found == [("all-reduce", size)] * more + [("all-reduce", 2 * size)]


def test_statistics_of_batch_norm_are_taken_in_one_pass():
    norm = layers.BatchNorm(6, relu=True)
    x = jnp.zeros((2, 8, 28, 28, 6), jnp.float32)
    variables = norm.init(jax.random.key(0), x)

    def loss(x):
        return jnp.square(norm.apply(variables, x, mutable=["batch_stats"])[0]).sum()

    text = jax.jit(jax.grad(loss)).lower(x).compile().as_text()
    # Both sums are in one reduction: XLA computes a sum alone in several passes over memory.
    of_runs = "(f32[1,2,196,6]{3,2,1,0}, f32[1,2,196,6]{3,2,1,0}) reduce("
    assert text.count(of_runs) == 2 and " reduce-window(" not in text


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_has_second_derivatives_where_a_loss_is_linear(relu, float64):
    norm, weights, x = layers.BatchNorm(5, relu=relu), random(1, 4, 600, 5), random(0, 4, 600, 5)
    variables = norm.init(jax.random.key(0), x)

    def of_gradient(x):
        of = jax.grad(
            lambda x: (weights * norm.apply(variables, x, mutable=["batch_stats"])[0]).sum()
        )
        return jnp.square(of(x)).sum()

    with models.forms_of("plain"):
        plain = jax.grad(of_gradient)(x)
    np.testing.assert_allclose(jax.grad(of_gradient)(x), plain, atol=1e-10)


def test_gradient_of_batch_norm_has_the_types_of_what_it_is_of(float64):
    norm, x = layers.BatchNorm(5, relu=True), random(0, 6, 4, 3, 5).astype(jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x)

    def ours(x, bias):
        return norm.apply(variables | {"params": {"bias": bias}}, x, mutable=["batch_stats"])[
            0
        ].sum()

    for dtype in jnp.float32, jnp.float64:
        grads = jax.grad(ours, (0, 1))(x, jnp.ones(5, dtype))
        assert [grad.dtype for grad in grads] == [jnp.bfloat16, dtype]


def test_batch_norm_follows_the_release():
    x = random(0, 4, 2, 3, 3, 5).astype(jnp.float32)
    norm = layers.BatchNorm(5)
    variables = norm.init(jax.random.key(0), x)
    assert set(variables["params"]) == {"bias"}  # No scale.
    y, new = norm.apply(variables, x, mutable=["batch_stats"])
    x, axes = np.asarray(x), (0, 1, 2, 3)
    np.testing.assert_allclose(y, (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-3), atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.001 * x.mean(axes), rtol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.999 + 0.001 * x.var(axes), rtol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("window,strides", [((), ()), ((1, 1), (1, 1)), ((3, 3, 3), (2, 2, 2))])
def test_in_a_test_the_unit_is_convolution_then_batch_norm_then_relu(
    window, strides, backend, float64, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    unit = layers.ConvBN(5, window, strides, dtype=jnp.float64)
    x = random(0, 2, *(6,) * len(window), 4)
    variables = unit.init(jax.random.key(0), x, False)
    stats = {"mean": random(1, 5), "var": jnp.exp(random(2, 5))}
    bias = random(3, 5)
    variables = {
        "params": {"conv": variables["params"]["conv"], "bn": {"bias": bias}},
        "batch_stats": {"bn": stats},
    }
    conv = layers.Conv(5, window, strides, dtype=jnp.float64).apply(
        {"params": variables["params"]["conv"]}, x
    )
    shape = (1,) * (x.ndim - 1) + (-1,)
    mean, var, bias = (each.reshape(shape) for each in (stats["mean"], stats["var"], bias))
    wanted = nn.relu((conv - mean) / jnp.sqrt(var + 1e-3) + bias)
    assert 0 < (wanted == 0).mean() < 1
    np.testing.assert_allclose(unit.apply(variables, x, False), wanted, atol=1e-12)


def test_on_a_gpu_nothing_comes_between_the_convolution_and_its_sum():
    unit, x = (
        layers.ConvBN(8, (3, 3, 3), (1, 1, 1), dtype=jnp.bfloat16),
        random(0, 1, 4, 6, 6, 8).astype(jnp.bfloat16),
    )
    variables = unit.init(jax.random.key(0), x, False)

    def applied(platform):
        with platforms.forms_of(platform):
            text = jax.jit(lambda x: unit.apply(variables, x, False)).lower(x).as_text()
            assert "stablehlo.convolution" in text
            return unit.apply(variables, x, False), "x144x8xf32>" in text  # Activations in float32.

    (plain, widened), (folded, folded_widened) = applied("plain"), applied("cuda")
    assert widened and not folded_widened
    np.testing.assert_allclose(
        folded.astype(jnp.float32), plain.astype(jnp.float32), atol=0.03 * plain.max()
    )


def test_a_layer_with_a_bias_takes_no_other():
    with pytest.raises(AssertionError):
        layers.Conv(2, (), (), use_bias=True).init(
            jax.random.key(0), jnp.zeros((1, 3)), jnp.ones(2), jnp.ones(2)
        )


def test_batch_norm_names_a_batch_that_cannot_be_cut():
    norm = layers.BatchNorm(2, 4)
    variables = norm.init(jax.random.key(0), jnp.zeros((8, 2)))
    with pytest.raises(ValueError, match="batch of 6 cannot be cut into 4"):
        norm.apply(variables, jnp.zeros((6, 2)), mutable=["batch_stats"])
    for empty in (0, 2), (4, 0, 2):
        with pytest.raises(ValueError, match="clips with 0 values per channel have no statistics"):
            norm.apply(variables, jnp.zeros(empty), mutable=["batch_stats"])
    with pytest.raises(ValueError, match="a group with one value per channel has no variance"):
        norm.apply(variables, jnp.zeros((4, 2)), mutable=["batch_stats"])


def test_kernels_start_with_variance_one_over_fan_in():
    kernel = initializers.kernel_init(jax.random.key(0), (3, 3, 3, 50, 40))
    assert kernel.std() * np.sqrt(27 * 50) == pytest.approx(1, abs=0.01)
    assert (
        abs(kernel).max() * np.sqrt(27 * 50) < 2 / 0.8796 + 1e-3
    )  # Truncated at two standard deviations.
    assert np.unique(kernel).size > 0.99 * kernel.size


@pytest.mark.parametrize(("name", "kernels"), [("convnet_lstm", 59), ("c3d", 11)])
def test_kernels_of_a_network_are_drawn_in_one_loop_as_each_is_alone(name, kernels):
    network = models.build(name, num_classes=7, width=0.05)
    arguments = jax.random.key(3), models.input_shapes(models.MODELS[name].train, 32)
    loops, variables = [], []
    for init in (network.init, functools.partial(nn.Module.init, network)):
        lowered = jax.jit(init).lower(*arguments)
        loops.append(lowered.as_text().count("stablehlo.while"))
        variables.append(
            lowered.compile()(
                arguments[0], jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), arguments[1])
            )
        )
    assert loops[1] - loops[0] == kernels - 1
    jax.tree.map(np.testing.assert_array_equal, *variables)


def test_a_network_that_begins_is_traced_in_plain_forms():
    clips = models.input_shapes(models.MODELS["fused_two_stream"].train, 32)
    network = models.build("fused_two_stream", num_classes=7, width=0.05, dtype="bfloat16")
    begun = jax.make_jaxpr(network.init)(jax.random.key(0), clips)
    variables = jax.eval_shape(network.init, jax.random.key(0), clips)
    applied = jax.make_jaxpr(network.apply)(variables, clips)
    for of_a_cpu in "custom_vjp", "_taps_as_channels":
        assert of_a_cpu in str(applied) and of_a_cpu not in str(begun)


def test_kernels_that_begin_in_a_trace_of_their_own_are_drawn_there():
    key, clips = jax.random.key(3), models.input_shapes(models.MODELS["c3d"].train, 32, 2)
    keys = {"params": key, "dropout": key}
    inits = [
        functools.partial(
            models.build("c3d", num_classes=7, width=0.05, remat=remat).init, train=True
        )
        for remat in (True, False)
    ]
    clips = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), clips)
    jax.tree.map(np.testing.assert_array_equal, *(jax.jit(init)(keys, clips) for init in inits))


def test_a_kernel_of_another_shape_is_named():
    layer, x = layers.Conv(4, (3, 3), (1, 1)), jnp.zeros((1, 5, 5, 2))
    variables = layer.init(jax.random.key(0), x)
    with pytest.raises(errors.ScopeParamShapeError, match="kernel"):
        layer.apply(variables, jnp.zeros((1, 5, 5, 3)))
