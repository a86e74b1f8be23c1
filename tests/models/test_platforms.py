"""The choice of the layers' implementations by platform."""

import functools
import traceback

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from support import small_networks

from i3d_jax import models
from i3d_jax.models import convolution, layers, platforms, pooling

KEY = jax.random.key(0)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_compiler_has_its_options(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    options = platforms.compiler_options()
    assert {name.split("_")[1] for name in options} == {backend}
    assert (
        jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2
    )  # XLA accepts the options of all its backends.
    monkeypatch.setattr(jax, "__version_info__", (99, 0, 0))
    assert platforms.compiler_options() is None


def test_options_can_be_those_of_another_platform():
    ours, of_tpus = platforms.compiler_options(), platforms.compiler_options("tpu")
    assert of_tpus and ours and not {*ours} & {*of_tpus}
    assert all(name.startswith("xla_tpu_") for name in of_tpus)
    assert platforms.compiler_options("rocm") is None


@pytest.mark.parametrize("backend,known", [("cpu", "cpu"), ("gpu", "cuda"), ("tpu", "tpu")])
def test_forms_are_those_of_what_the_process_computes_on(backend, known, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert platforms.platform() == known
    with models.forms_of("plain"):
        assert platforms.platform() == "plain"
    assert platforms.platform() == known


def test_platforms_that_there_are_not_are_named():
    with pytest.raises(
        ValueError, match="no platform is called 'gpu'; there are cpu, cuda, rocm, tpu, plain"
    ):
        models.forms_of("gpu")


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function])
def test_forward_mode_is_for_plain_forms_and_tracebacks_of_others_say_so(jit, float64, monkeypatch):
    monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)
    norm = layers.BatchNorm(3)
    rng = np.random.default_rng(0)
    x, tangent, kernel = (
        jnp.asarray(rng.normal(size=shape)) for shape in [(1, 8, 6, 6, 3)] * 2 + [(3, 3, 3, 3, 3)]
    )
    variables = norm.init(jax.random.key(0), x)
    normalised = lambda x: norm.apply(variables, x, mutable=["batch_stats"])[0]
    for platform, function in (
        ("cpu", lambda x: pooling.max_pool(x, (3, 3, 3), (2, 2, 2))),
        ("cpu", lambda x: pooling.max_pool(x[0], (3, 3), (2, 2))),
        ("cuda", lambda x: pooling.max_pool(x, (3, 3, 3), (2, 2, 2))),
        ("cpu", lambda x: convolution.conv(x, kernel, (1, 1, 1))),
        ("cpu", normalised),
        ("tpu", normalised),
    ):
        with models.forms_of(platform):
            try:
                jax.jvp(jit(function), (x,), (tangent,))
                said = ""
            except TypeError:
                said = traceback.format_exc()
            assert 'For jvp, use forms_of("plain").' in said
            y, back = jax.vjp(function, x)
        with models.forms_of("plain"):
            _, forward = jax.jvp(jit(function), (x,), (tangent,))
        weights = jnp.asarray(rng.normal(size=y.shape))
        np.testing.assert_allclose(
            (forward * weights).sum(), (back(weights)[0] * tangent).sum(), rtol=1e-9
        )


def test_a_program_for_another_platform_has_its_forms():
    x, kernel = jnp.zeros((1, 16, 14, 14, 3)), jnp.zeros((3, 3, 3, 3, 8))

    @jax.jit
    def layers(x, kernel):
        return pooling.max_pool(convolution.conv(x, kernel, (1, 1, 1)), (3, 3, 3), (2, 2, 2))

    def exported(platform):
        with models.forms_of(platform):
            return jax.export.export(layers, platforms=[platform])(x, kernel).mlir_module()

    cpu, cuda, tpu = map(
        exported, ("cpu", "cuda", "tpu")
    )  # The same function: `jit` distinguishes the contexts.
    assert "stablehlo.while" in cpu and "optimization_barrier" in cuda
    assert "reduce_window" in tpu and "reduce_window" not in cpu + cuda
    assert "stablehlo.while" not in tpu + cuda


@pytest.mark.slow  # Compiles two whole networks with their gradients.
@pytest.mark.parametrize("name", ["i3d", "i3d_r50"])
def test_a_network_in_the_forms_of_tpus_equals_the_plain_one(name, float64):
    network = small_networks.small(name, dtype=jnp.float64, norm_decay=0.5)
    video = small_networks.clip(small_networks.SMALL[name][1]).astype(jnp.float64)
    variables = jax.jit(network.init)(jax.random.key(0), video)

    def run(variables, video):
        def loss(params):
            changed = variables | {"params": params}
            y, new = network.apply(
                changed, video, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}
            )
            return jnp.sin(y).sum(), new

        return jax.grad(loss, has_aux=True)(variables["params"]), network.apply(variables, video)

    found = {}
    for platform in "plain", "tpu":
        with models.forms_of(platform):
            found[platform] = jax.jit(functools.partial(run))(variables, video)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * max(1e-3, np.abs(b).max())),
        found["tpu"],
        found["plain"],
    )
