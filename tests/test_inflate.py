from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax import inflate_params


def kernel(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def test_kernels_are_repeated_over_time_and_divided():
    image = {"w": kernel(3, 5, 2, 4), "b": kernel(4)}
    video = inflate_params(
        image, like={"w": np.zeros((7, 3, 5, 2, 4), np.float32), "b": np.zeros(4, np.float32)}
    )
    np.testing.assert_allclose(video["w"].sum(0), image["w"], rtol=1e-6)
    for frame in video["w"]:
        np.testing.assert_array_equal(frame, video["w"][0])
    np.testing.assert_array_equal(video["b"], image["b"])


def test_a_centred_kernel_gives_every_frames_response():
    image, x = kernel(3, 3, 2, 4), kernel(1, 6, 5, 5, 2)
    for frames in (1, 3, 5):
        like = jax.ShapeDtypeStruct((frames, *image.shape), jnp.float32)
        video = inflate_params({"w": image}, like={"w": like}, how="centre")["w"]
        of_video = jax.lax.conv_general_dilated(
            x, video, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        of_frames = jax.lax.conv_general_dilated(
            x[0], image, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        np.testing.assert_allclose(of_video[0], of_frames, atol=1e-5)
    with pytest.raises(ValueError, match="how is 'center', wanted 'mean' or 'centre'"):
        inflate_params({"w": image}, like={"w": like}, how="center")


def test_any_pytree_is_inflated_into_the_structure_of_like():
    class Layer(NamedTuple):
        w: object
        b: object

    haiku = {
        "net/~/conv": {"w": kernel(3, 3, 2, 4), "b": kernel(4)},
        "net/~/bn": ({"offset": kernel(4)}, [kernel(1)]),
    }
    like = {
        "net/~/conv": {"w": jax.ShapeDtypeStruct((3, 3, 3, 2, 4), jnp.float32), "b": kernel(4)},
        "net/~/bn": ({"offset": kernel(4)}, [kernel(1)]),
    }
    found = inflate_params(haiku, like=like)
    assert jax.tree.structure(found) == jax.tree.structure(like)
    assert found["net/~/conv"]["w"].shape == (3, 3, 3, 2, 4)

    named = inflate_params(Layer(kernel(1, 1, 2, 4), None), like=Layer(kernel(2, 1, 1, 2, 4), None))
    assert isinstance(named, Layer) and named.b is None and named.w.shape == (2, 1, 1, 2, 4)


def test_bfloat16_is_rounded_once_and_dtypes_are_those_of_like():
    image = {"w": jnp.asarray(kernel(3, 3, 2, 4), jnp.bfloat16)}
    video = inflate_params(image, like={"w": jnp.zeros((7, 3, 3, 2, 4), jnp.bfloat16)})
    assert video["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        video["w"][3], (image["w"].astype(jnp.float32) / 7).astype(jnp.bfloat16)
    )
    assert (
        inflate_params(image, like={"w": np.zeros((7, 3, 3, 2, 4), np.float32)})["w"].dtype
        == np.float32
    )


def test_it_works_under_jit():
    like = {"w": jax.ShapeDtypeStruct((3, 3, 3, 2, 4), jnp.float32)}
    found = jax.jit(lambda tree: inflate_params(tree, like=like))({"w": kernel(3, 3, 2, 4)})
    np.testing.assert_allclose(found["w"].sum(0), kernel(3, 3, 2, 4), rtol=1e-6)


def test_a_network_is_inflated_by_one_program(programs):
    image = {name: kernel(size, size, 2, 4) for name, size in (("a", 1), ("b", 3), ("c", 5))}
    like = {
        name: jax.ShapeDtypeStruct((3, *each.shape), jnp.float32) for name, each in image.items()
    }
    inflate_params(image, like=like)
    assert len(programs()) == 1


def test_one_error_names_every_missing_extra_and_misshaped_leaf():
    image = {
        "Conv": {"kernel": kernel(3, 3, 2, 4)},
        "Logits": {"kernel": kernel(1, 1, 4, 10)},
        "old": kernel(2),
    }
    like = {
        "Conv": {"kernel": kernel(3, 3, 3, 2, 4)},
        "Logits": {"kernel": kernel(1, 1, 1, 4, 9)},
        "new": kernel(3),
    }
    with pytest.raises(ValueError) as error:
        inflate_params(image, like=like)
    message = str(error.value)
    assert "new: missing, wanted (3,)" in message
    assert "old: not wanted, found (2,)" in message
    assert "Logits/kernel: cannot inflate (1, 1, 4, 10) to (1, 1, 1, 4, 9)" in message
    assert "Conv/kernel" not in message


def test_the_result_shares_no_memory_and_no_leaf_is_lost():
    tree = {"b": jnp.ones(3)}
    inflate_params(tree, like=tree)["b"].delete()
    assert tree["b"].sum() == 3
    with pytest.raises(ValueError, match="two leaves .* the same path"):
        inflate_params({"a/b": np.ones(1), "a": {"b": np.ones(1)}}, like=tree)


@pytest.mark.parametrize("shape", [(3, 3, 2), (3, 3, 4, 2), (5, 3, 3, 3, 2, 4), ()])
def test_nothing_else_is_guessed(shape):
    with pytest.raises(ValueError, match="w: cannot inflate"):
        inflate_params({"w": np.zeros(shape)}, like={"w": np.zeros((3, 3, 3, 2, 4))})
