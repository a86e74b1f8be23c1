"""The resizes, against their formulas written out in NumPy."""

import jax
import numpy as np
import pytest

from i3d_jax.fvd import resizing

SIZES = [(64, 64), (128, 128), (256, 256), (224, 224), (240, 320), (97, 131), (512, 300), (17, 900)]


def tensorflow_1s(frames, height, width, legacy):
    """`tf.compat.v1.image.resize_bilinear`, in float32, width first."""

    def places(given, wanted):
        scale, x = np.float32(given) / np.float32(wanted), np.arange(wanted, dtype=np.float32)
        x = x * scale if legacy else (x + np.float32(0.5)) * scale - np.float32(0.5)
        low = np.maximum(np.floor(x), 0).astype(int)
        return low, np.minimum(np.ceil(x), given - 1).astype(int), x - np.floor(x)

    low, high, part = places(frames.shape[-2], width)
    left, right = frames[..., low, :], frames[..., high, :]
    rows = left + (right - left) * part.reshape(1, 1, -1, 1)
    low, high, part = places(frames.shape[-3], height)
    top, bottom = rows[..., low, :, :], rows[..., high, :, :]
    return top + (bottom - top) * part.reshape(1, -1, 1, 1)


@pytest.mark.parametrize("height,width", SIZES)
def test_bilinear_is_tensorflow_1s_to_the_bit(height, width):
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.float32)
    run = jax.jit(resizing.bilinear, static_argnums=(1, 2), static_argnames="legacy")
    for legacy in True, False:
        wanted = tensorflow_1s(frames, 224, 224, legacy)
        np.testing.assert_array_equal(run(frames, 224, 224, legacy=legacy), wanted)


def test_legacy_places_the_first_pixel_on_the_first():
    """By hand: a row of 0, 100 becomes 0, 50, 100, 100; half-pixel centres give 0, 25, 75, 100."""
    row = np.array([0, 100], np.float32).reshape(1, 1, 2, 1)
    for legacy, wanted in ((True, [0, 50, 100, 100]), (False, [0, 25, 75, 100])):
        found = resizing.bilinear(row, 1, 4, legacy=legacy)
        np.testing.assert_array_equal(np.ravel(found), wanted)


@pytest.mark.parametrize("resize", resizing.RESIZES)
def test_networks_input_is_from_minus_one_to_one(resize):
    frames = np.zeros((2, 30, 40, 3), np.uint8)
    frames[1] = 255
    found = np.asarray(resizing.network_input(frames, resize=resize, side=32))
    assert found.shape == (2, 32, 32, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], -1)
    np.testing.assert_allclose(found[1], 1)


def test_crop_keeps_the_aspect_ratio_and_the_centre():
    frames = np.zeros((1, 28, 57, 3), np.uint8)
    frames[:, :, 28] = 255  # The middle column.
    found = np.asarray(resizing.network_input(frames, resize="crop", side=56))
    # 28x57 becomes 56x114: the crop begins at column 29, and the middle lies at 57.
    light = found[0, 0, :, 0].argsort()[-2:]
    assert sorted(light) == [27, 28]


def test_resolution_is_whole_numbers_rounded_down():
    frames = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), np.uint8)
    x = np.asarray(
        resizing.network_input(frames, resize="half-pixel", resolution=32, side=32), np.float64
    )
    levels = (x + 1) * 127.5
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    # A third of the size averages over about three pixels: noise of 74 levels is 30 at most.
    assert levels.std() < 40


@pytest.mark.parametrize("resize", resizing.RESIZES)
@pytest.mark.parametrize("height,width,resolution", [(32, 32, None), (20, 20, None), (20, 20, 20)])
def test_resizes_that_are_taken_as_one_are_equal(resize, height, width, resolution):
    frames = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    other, none = resizing.same_resize(resize, resolution, height, width, 32)
    assert none is None
    found, wanted = (
        resizing.network_input(frames, resize=each, resolution=given, side=32)
        for each, given in ((other, None), (resize, resolution))
    )
    np.testing.assert_array_equal(found, wanted)
    assert resizing.same_resize("legacy", None, 20, 20, 32) == ("legacy", None)
    assert resizing.same_resize("crop", None, 20, 30, 32) == ("crop", None)
    assert resizing.same_resize("legacy", 40, 20, 20, 32) == ("legacy", 40)
