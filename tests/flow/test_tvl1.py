"""TV-L1 against known motions, against OpenCV, and at its edges."""

import itertools
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import AS_USERS
from motions import motion, moving, stays_in_image

from i3d_jax import flow, video
from i3d_jax.flow import FAST, OPENCV, TVL1, images, tv_l1, tvl1, videos
from i3d_jax.flow.colours import WHEEL, flow_to_rgb
from i3d_jax.flow.tvl1 import scale_sizes

# With optimisation, as for users; other tests compile without.
compiled = jax.jit(tv_l1, static_argnums=2, compiler_options=AS_USERS)
QUICK = TVL1(scales=2, warps=2, outer=2, inner=5)


def endpoint_error(found, wanted):
    return np.linalg.norm(np.asarray(found) - wanted, axis=-1)


@pytest.mark.slow  # Computes for long.
@pytest.mark.parametrize("preset", flow.PRESETS)
@pytest.mark.parametrize("kind,length", [("shift", 1), ("shift", 10), ("turn", 10), ("zoom", 10)])
def test_known_motions_are_found_to_a_tenth_of_a_pixel(kind, length, preset):
    first, second, wanted = moving(*motion(kind, length))
    error = endpoint_error(compiled(first, second, flow.PRESETS[preset]), wanted)
    assert error[stays_in_image(wanted)].mean() < 0.1 and error.mean() < 0.12


@pytest.fixture(scope="module")
def cricket(shared_data):
    """The release's sample in grey, and its flow in pixels, which is stored in steps of 0.08."""
    clips = [
        shared_data / "kinetics-i3d" / f"v_CricketShot_g04_c01_{stream}.gif"
        for stream in ("rgb", "flow")
    ]
    grey = np.stack(list(video.grey(clips[0], short_side=224)))
    return grey[2:39], 20 * (video.decode(clips[1])[2:38, ..., :2] / 255 - 0.5)


@pytest.fixture(scope="module")
def opencv():
    cv2 = pytest.importorskip("cv2")

    def flow(grey, **parameters):
        method = cv2.optflow.DualTVL1OpticalFlow_create(**parameters)
        return np.stack([method.calc(*pair, None) for pair in itertools.pairwise(grey)])

    return flow


def correlations(found, wanted):
    return [
        np.corrcoef(np.asarray(found)[..., axis].ravel(), wanted[..., axis].ravel())[0, 1]
        for axis in (0, 1)
    ]


@pytest.mark.slow
def test_flow_is_opencvs_and_as_near_to_the_releases(cricket, opencv):
    grey, released = cricket
    found, wanted = compiled(grey[:-1], grey[1:], OPENCV), opencv(grey)
    error = endpoint_error(found, wanted)
    assert error.mean() < 0.02 and np.quantile(error, 0.99) < 0.15
    ours, theirs = correlations(found, released), correlations(wanted, released)
    assert [round(each, 2) for each in theirs] == [0.90, 0.86]
    assert all(each > other - 1e-3 for each, other in zip(ours, theirs, strict=True))
    # The performance page gives these figures of the fast preset.
    fast = compiled(grey[:-1], grey[1:], FAST)
    assert endpoint_error(fast, found).mean() < 0.06
    assert all(
        each > other - 0.01 for each, other in zip(correlations(fast, released), ours, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "ours,theirs",
    [
        (
            {"scales": 3, "warps": 2, "inner": 10},
            {"nscales": 3, "warps": 2, "innnerIterations": 10},
        ),
        (
            {"median": 3, "theta": 0.5, "lam": 0.1},
            {"medianFiltering": 3, "theta": 0.5, "lambda_": 0.1},
        ),
        (
            {"tau": 0.2, "scale_step": 0.7, "outer": 2},
            {"tau": 0.2, "scaleStep": 0.7, "outerIterations": 2},
        ),
    ],
)
def test_flow_is_opencvs_at_other_parameters_too(ours, theirs, shared_data, opencv):
    clip = shared_data / "clips" / "flipping_a_pancake.mkv"
    grey = np.stack(list(video.grey(clip, short_side=128, frames=11)))[5:]
    wanted = opencv(grey, **theirs)
    error = endpoint_error(compiled(grey[:-1], grey[1:], TVL1(**ours)), wanted)
    assert np.linalg.norm(wanted, axis=-1).mean() > 0.9
    assert error.mean() < 0.01 and np.quantile(error, 0.99) < 0.1


def small(seed=0, number=3, height=40, width=48):
    """Pairs of images with different motions."""
    shifts = [(0.5 * i, -0.25 * i) for i in range(number)]
    pairs = [
        moving(np.eye(2), shift, height, width, seed + i)[:2] for i, shift in enumerate(shifts)
    ]
    return tuple(np.stack(images) for images in zip(*pairs, strict=True))


STOPPING = TVL1(scales=2, warps=2)  # Stops at convergence, not after a fixed number of iterations.


def test_pairs_of_a_batch_do_not_depend_on_each_other():
    first, second = small()
    together = np.asarray(compiled(first, second, STOPPING))
    for one, other, wanted in zip(first, second, together, strict=True):
        np.testing.assert_array_equal(compiled(one, other, STOPPING), wanted)
    reshaped = compiled(first.reshape(1, 3, 1, 40, 48), second.reshape(1, 3, 1, 40, 48), STOPPING)
    np.testing.assert_array_equal(reshaped, together.reshape(1, 3, 1, 40, 48, 2))


def test_the_form_for_accelerators_gives_the_same_but_for_rounding():
    # In a batch, too, each pair stops by itself: the first has no motion, and the last the most.
    arrays = [jnp.asarray(images, jnp.float32) for images in small()]
    both = [np.asarray(form(STOPPING, *arrays)) for form in (tvl1._one_by_one, tvl1._as_one_batch)]
    np.testing.assert_allclose(*both, atol=2e-3)
    assert endpoint_error(*both).mean() < 1e-4


def test_flow_can_be_mapped_over_pairs():
    found = jax.vmap(lambda first, second: tv_l1(first, second, QUICK))(*small())
    np.testing.assert_allclose(found, tv_l1(*small(), QUICK), atol=1e-4)


def test_the_kind_of_number_does_not_matter():
    first, second = small()
    wanted = tv_l1(first, second, QUICK)
    for kind in np.int32, np.float32, np.float64, jnp.bfloat16:
        np.testing.assert_array_equal(tv_l1(first.astype(kind), second.astype(kind), QUICK), wanted)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 3), (1, 40), (40, 1), (16, 17)])
@pytest.mark.parametrize("levels", [(0, 0), (128, 128), (10, 250)])
def test_nothing_moves_in_constant_images(size, levels):
    found = tv_l1(*(np.full(size, level, np.uint8) for level in levels), QUICK)
    np.testing.assert_array_equal(found, np.zeros((*size, 2)))


def test_nothing_moves_between_equal_images():
    first, _ = small()
    np.testing.assert_array_equal(compiled(first, first, STOPPING), np.zeros((*first.shape, 2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pair_that_is_not_finite_has_no_flow_and_the_others_have_theirs(value):
    first, second = (images.astype(np.float32) for images in small())
    wanted = np.asarray(tv_l1(first, second, QUICK)).copy()
    second[1, 3, 4] = value
    wanted[1] = np.nan
    np.testing.assert_array_equal(tv_l1(first, second, QUICK), wanted)


def test_no_pairs_have_no_flow():
    none = np.zeros((0, 20, 24), np.uint8)
    assert tv_l1(none, none).shape == (0, 20, 24, 2)


@pytest.mark.parametrize(
    "first,second,message",
    [
        ((20, 24), (24, 20), r"images of shapes \(20, 24\) and \(24, 20\), wanted the same"),
        ((2, 20, 24), (20, 24), r"shapes \(2, 20, 24\) and \(20, 24\), wanted the same"),
        ((24,), (24,), r"images of shape \(24,\), wanted \[\.\.\., H, W\]"),
        ((2, 0, 24), (2, 0, 24), r"images of shape \(2, 0, 24\), wanted"),
    ],
)
def test_images_that_do_not_fit_are_errors(first, second, message):
    with pytest.raises(ValueError, match=message):
        tv_l1(np.zeros(first), np.zeros(second))


@pytest.mark.parametrize(
    "name,value,wanted",
    [
        ("tau", 0.3, "more than 0 and at most 0.25"),
        ("lam", 0, "more than 0"),
        ("theta", -1.0, "more than 0"),
        ("scales", 0, "1 or more"),
        ("scale_step", 1.0, "between 0 and 1"),
        ("finest", 5, "a scale"),
        ("warps", 0, "1 or more"),
        ("epsilon", float("nan"), "0 or more"),
        ("outer", 0, "1 or more"),
        ("inner", -1, "1 or more"),
        ("warps", 2.5, "1 or more"),
        ("scales", 2.5, "1 or more"),
        ("median", 3.0, "1, 3 or 5"),
        ("median", 4, "1, 3 or 5"),
    ],
)
def test_parameters_that_cannot_be_are_errors(name, value, wanted):
    with pytest.raises(ValueError, match=f"TV-L1: {name} is {value}, wanted {wanted}"):
        TVL1(**{name: value})


def test_images_of_complex_numbers_are_errors():
    with pytest.raises(ValueError, match="complex numbers"):
        tv_l1(np.zeros((4, 4), complex), np.zeros((4, 4)))


def test_scales_are_those_of_opencv():
    assert scale_sizes((256, 340), OPENCV) == [
        (256, 340),
        (205, 272),
        (164, 218),
        (131, 174),
        (105, 139),
    ]
    assert scale_sizes((24, 400), OPENCV) == [
        (24, 400),
        (19, 320),
    ]  # The next is less than 16 high.
    assert scale_sizes((8, 8), OPENCV) == [(8, 8)]


def test_a_coarser_finest_scale_gives_flow_of_full_size_and_length():
    first, second, wanted = moving(np.eye(2), (3.0, -2.0), 96, 128)
    found = compiled(first, second, TVL1(finest=1))
    assert found.shape == wanted.shape and endpoint_error(found, wanted).mean() < 0.2


def test_flow_of_mirrored_and_of_reversed_images_is_mirrored_and_opposite():
    first, second, _ = moving(motion("turn", 4)[0], (1.5, -0.5))
    wanted = np.asarray(compiled(first, second, OPENCV))
    mirrored = np.asarray(compiled(first[:, ::-1], second[:, ::-1], OPENCV))[:, ::-1] * [-1, 1]
    assert endpoint_error(mirrored, wanted).mean() < 0.02
    # The reverse flow is opposite at a pixel's new place; as flow is smooth, also at its old one.
    opposite = -np.asarray(compiled(second, first, OPENCV))
    assert endpoint_error(opposite, wanted)[8:-8, 8:-8].mean() < 0.1


@pytest.mark.parametrize("window", [1, 3, 5])
def test_medians_are_numpys(window):
    image = np.random.default_rng(0).integers(0, 20, (13, 17)).astype(np.float32)
    padded = np.pad(image, window // 2, "edge")
    wanted = np.median(np.lib.stride_tricks.sliding_window_view(padded, (window, window)), (2, 3))
    np.testing.assert_array_equal(images.median(jnp.asarray(image), window), wanted)


def test_images_are_resized_as_opencv_does():
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).normal(size=(41, 64)).astype(np.float32)
    for height, width in ((33, 51), (80, 100), (41, 64)):
        found = images.resize(jnp.asarray(image), (height, width))
        np.testing.assert_allclose(found, cv2.resize(image, (width, height)), atol=1e-5)
    wanted = cv2.resize(image, None, fx=0.8, fy=0.8)
    np.testing.assert_allclose(
        images.resize(jnp.asarray(image), wanted.shape, 1 / 0.8), wanted, atol=1e-5
    )


def test_images_are_warped_by_cubic_interpolation_and_are_0_outside():
    rng = np.random.default_rng(0)
    image, u, v = rng.normal(size=(11, 14)), *rng.normal(size=(2, 11, 14)) * 6
    u[0, :4], v[0, :4] = [0, 1e9, -1e9, 2], 0

    def weight(distance):  # The cubic kernel of Keys.
        a, d = images.CUBIC_A, abs(distance)
        return np.where(
            d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4) * (d < 2)
        )

    y, x = np.mgrid[:11, :14]
    weights = (
        weight((y + v)[..., None] - np.arange(11))[..., :, None]
        * weight((x + u)[..., None] - np.arange(14))[..., None, :]
    )
    arrays = [jnp.asarray(each, jnp.float32) for each in (image, u, v)]
    (found,) = images.warp(arrays[:1], *arrays[1:])
    np.testing.assert_allclose(found, (weights * image).sum((2, 3)), atol=1e-4)


def test_divergence_is_the_negative_adjoint_of_differences():
    rng = np.random.default_rng(0)
    image, x, y = (jnp.asarray(rng.normal(size=(7, 9)), jnp.float32) for _ in range(3))
    x, y = x.at[:, -1].set(0), y.at[-1].set(0)
    ux, uy = images.forward_differences(image)
    np.testing.assert_allclose(
        (ux * x + uy * y).sum(), -(image * images.divergence(x, y)).sum(), rtol=1e-4
    )


def test_colours_tell_directions_and_lengths():
    assert WHEEL.shape == (55, 3)
    found = flow_to_rgb(np.array([[0, 0], [1, 0], [0, 2], [-2, 0], [0.0, -2]]), 2.0).tolist()
    assert found == [[255, 255, 255], [255, 128, 128], [255, 230, 0], [0, 209, 255], [88, 0, 255]]
    assert max(flow_to_rgb(np.array([9.0, 0]), 2.0)) == 191  # Longer than full colour: darker.


def grey(count, height=40, width=48):
    return [np.roll(moving(np.eye(2), (0, 0), height, width)[0], i, 1) for i in range(count)]


@pytest.mark.parametrize("count", [2, 3, 4, 5, 9])
def test_flow_of_a_video_is_that_of_its_pairs_whatever_the_batch(count):
    frames = grey(count)
    wanted = np.asarray(tv_l1(np.stack(frames[:-1]), np.stack(frames[1:]), QUICK))
    found = np.stack(list(videos.flow_of_frames(frames, QUICK, batch_size=4, threads=2)))
    np.testing.assert_allclose(found[:-1], wanted, atol=1e-5)
    np.testing.assert_array_equal(found[-1], found[-2])  # The last frame has no next one.


def test_a_single_frame_does_not_move():
    np.testing.assert_array_equal(
        list(videos.flow_of_frames(grey(1), QUICK)), np.zeros((1, 40, 48, 2))
    )


@pytest.mark.parametrize(
    "frames,message",
    [
        ([], "flow: no frames"),
        ([np.zeros((8, 9), np.float32)], r"a frame of float32 \(8, 9\), wanted uint8 \(8, 9\)"),
        ([np.zeros((8, 9, 3), np.uint8)], r"a frame of uint8 \(8, 9, 3\), wanted uint8 \[H, W\]"),
        (
            [np.zeros((8, 9), np.uint8), np.zeros((9, 8), np.uint8)],
            r"a frame of uint8 \(9, 8\), wanted uint8 \(8, 9\)",
        ),
    ],
)
def test_frames_that_are_not_grey_or_not_of_one_size_are_errors(frames, message):
    with pytest.raises(ValueError, match=message):
        list(videos.flow_of_frames(frames, QUICK))


def test_threads_that_want_one_program_compile_it_once_and_others_do_not_wait(monkeypatch):
    begun, go_on, compiled = [], threading.Event(), {}

    def compile_(shape, settings):
        begun.append(shape)
        assert shape != (2, 32, 32) or go_on.wait(60)
        return lambda first, second: np.zeros((*first.shape, 2), np.float32)

    monkeypatch.setattr(videos, "_compile", compile_)
    monkeypatch.setattr(videos, "_programs", compiled)
    waiting = [
        threading.Thread(target=videos.compiled_program, args=((2, 32, 32), QUICK))
        for _ in range(3)
    ]
    for thread in waiting:
        thread.start()
    for width in range(40, 40 + 2 * videos.MAX_PROGRAMS):
        videos.compiled_program((2, 32, width), QUICK)
    assert len(compiled) == videos.MAX_PROGRAMS
    go_on.set()
    for thread in waiting:
        thread.join()
    assert begun.count((2, 32, 32)) == 1


def test_a_program_that_cannot_be_compiled_fails_everywhere_it_is_wanted():
    for _ in range(2):
        with pytest.raises(TypeError):
            videos.compiled_program((2, "high", 3), QUICK)


def test_few_frames_of_a_long_video_are_in_memory():
    taken = 0

    def endless():
        nonlocal taken
        for frame in itertools.cycle(grey(8)):
            taken += 1
            yield frame

    flows = videos.flow_of_frames(endless(), QUICK, batch_size=2, threads=2)
    for given in range(1, 20):
        next(flows)
        assert taken < given + 12
    flows.close()


def test_flow_needs_nothing_but_jax_and_numpy():
    code = """
import sys
import i3d_jax.flow.videos
heavy = {"av", "tensorflow_datasets", "grain", "ml_collections", "cv2", "matplotlib"}
assert not heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_program_that_cannot_be_compiled_is_tried_again_for_the_next_video(monkeypatch):
    frames, compile_ = [np.zeros((40, 56), np.uint8)] * 2, videos._compile
    monkeypatch.setattr(videos, "_compile", lambda *_: (_ for _ in ()).throw(MemoryError("10 GB")))
    with pytest.raises(MemoryError):
        list(videos.flow_of_frames(frames, FAST))
    monkeypatch.setattr(videos, "_compile", compile_)
    assert [flow.any() for flow in videos.flow_of_frames(frames, FAST)] == [False, False]
