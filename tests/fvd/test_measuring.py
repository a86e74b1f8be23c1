"""The network over sets of videos: what it sees, in which order, and on how many devices."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.small_fvd import save_weights, variables
from support.small_networks import small

from i3d_jax import fvd, video
from i3d_jax.fvd import measuring, resizing, saved, statistics
from i3d_jax.fvd.clips import Selection
from i3d_jax.fvd.measuring import Input, Request
from i3d_jax.fvd.videos import Arrays

REFERENCE = Input("legacy", None, 1e-3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"))


def noise(number, height=32, width=32, frames=16, seed=0):
    shape = number, frames, height, width, 3
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def logits(array, resize="legacy", epsilon=1e-3):
    """The logits by one pass of the network on resized clips."""
    x = resizing.network_input(array, resize=resize, side=32)
    return np.asarray(small("i3d", norm_epsilon=epsilon).apply(variables(), x))


def measure(array, weights, *requests, batch_size=16, **options):
    network = measuring.load(weights, "Logits", batch_size)
    given = requests or [Request(Selection("first"), REFERENCE)]
    found = measuring.measure(Arrays(array), network, given, frames=16, **options)
    return [each for each in found if each is not None]


def kept(measured):
    """The features of a measured set."""
    assert measured.features is not None
    return measured.features


@pytest.mark.parametrize("convention", ["reference", "videogpt", "tats"])
def test_features_are_the_networks_logits(weights, convention):
    array = noise(3, 20, 30)
    row = fvd.CONVENTIONS[convention]
    found = fvd.features(array, convention, weights=weights)
    assert found.dtype == np.float32 and found.shape == (3, 7)
    wanted = logits(array, row.resize, row.norm_epsilon)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_features_of_another_layer_are_averaged_over_space_and_time(weights):
    array = noise(2)
    _, ends = small("i3d").apply(
        variables(), resizing.network_input(array, resize="legacy", side=32), endpoints=True
    )
    wanted = np.asarray(ends["Mixed_4f"]).mean((1, 2, 3))
    found = fvd.features(array, weights=weights, layer="Mixed_4f")
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_what_has_no_features_is_refused(weights):
    with pytest.raises(ValueError, match="clips of 8 frames, but i3d needs 9 at least"):
        fvd.features(noise(2, frames=8), weights=weights)
    with pytest.raises(ValueError, match="no convention is called 'mine'; there are reference"):
        fvd.features(noise(2), "mine", weights=weights)
    with pytest.raises(video.VideoError, match="video 1: has NaN"):
        array = np.zeros((2, 16, 32, 32, 3), np.float32)
        array[1, 3] = np.nan
        fvd.features(array, weights=weights)


def test_features_do_not_depend_on_the_batch_or_the_neighbours(weights):
    array = noise(5)
    (one,) = measure(array, weights)
    (other,) = measure(array, weights, batch_size=3)
    (turned,) = measure(array[::-1], weights)
    np.testing.assert_array_equal(kept(one), kept(other))
    np.testing.assert_array_equal(kept(one), kept(turned)[::-1])
    generated = noise(6, seed=9)
    (against,) = measure(generated, weights)
    distance = fvd.distance(kept(one), kept(against))
    assert fvd.distance(kept(turned), kept(against)) == pytest.approx(distance, rel=1e-9)


def test_statistics_only_are_those_of_the_features(weights):
    array = noise(7)
    (all_kept,) = measure(array, weights)
    (streamed,) = measure(array, weights, keep=False)
    assert streamed.features is None and streamed.digests is None
    assert streamed.about == all_kept.about
    for found, wanted in zip(streamed.statistics, all_kept.statistics, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(all_kept.statistics.mean, statistics.of(kept(all_kept)).mean)


def test_each_request_has_its_clips_in_one_pass(weights):
    array = noise(4, 20, 30, frames=40)
    requests = [
        Request(Selection("first", 3), REFERENCE),
        Request(Selection("all"), REFERENCE),
        Request(Selection("random", seed=1), Input("half-pixel", None, 1e-5)),
    ]
    runs = []
    together = measure(array, weights, *requests, advance=runs.append)
    for request, found in zip(requests, together, strict=True):
        (alone,) = measure(array, weights, request)
        np.testing.assert_array_equal(kept(found), kept(alone))
        np.testing.assert_array_equal(found.videos, alone.videos)
        assert found.about == alone.about
    first, every, _ = together
    np.testing.assert_array_equal(kept(first), kept(every)[:6:2])
    # Two clips of every video, and the random one; those of "first" are among the two.
    assert sum(runs) == 4 * 3


def test_square_videos_go_through_the_network_once_for_equal_resizes(weights):
    runs = []
    requests = [
        Request(Selection("first"), Input(resize, None, 1e-5)) for resize in ("crop", "half-pixel")
    ]
    crop, half = measure(noise(3, 20, 20), weights, *requests, advance=runs.append)
    assert sum(runs) == 3
    np.testing.assert_array_equal(kept(crop), kept(half))


def test_no_more_videos_are_read_than_are_wanted(weights):
    class Counted(Arrays):
        read = 0

        def frames(self, number, start):
            self.read += 1
            return super().frames(number, start)

    given = Counted(noise(50))
    network = measuring.load(weights, "Logits")
    request = Request(Selection("first", 2), REFERENCE)
    (found,) = measuring.measure(given, network, [request], frames=16)
    assert found is not None and found.statistics.number == 2
    assert given.read < 8


def test_what_is_wrong_is_counted_and_the_rest_is_measured(weights):
    array = noise(4).astype(np.float32) / 255
    array[2, 7, 3, 3] = 2
    errors = []
    (found,) = measure(array, weights, on_error=errors.append)
    assert [str(error).partition(",")[0] for error in errors] == [
        "videos: video 2: has values from 0 to 2"
    ]
    assert found.about["unusable"] == 1 and found.about["videos"] == 3
    np.testing.assert_array_equal(found.videos, [0, 1, 3])


def test_saved_sets_come_back_and_merge(weights, tmp_path):
    array = noise(6)
    (whole,) = measure(array, weights)
    parts = []
    for name, numbers in (("a", range(0, 6, 2)), ("b", range(1, 6, 2))):
        (part,) = measure(array, weights, numbers=numbers)
        saved.write(tmp_path / f"{name}.npz", {"reference": ({"frames": 16}, part)})
        settings, again = saved.read(tmp_path / f"{name}.npz")["reference"]
        assert settings == {"frames": 16} and again.about == part.about
        np.testing.assert_array_equal(kept(again), part.features)
        np.testing.assert_array_equal(again.digests, part.digests)
        parts.append(again)
    merged = saved.merge(*parts)
    assert merged.videos is not None and len(np.unique(merged.videos)) == 6
    assert merged.about == whole.about
    other = noise(5, seed=3)
    (generated,) = measure(other, weights)
    for found in merged.statistics, kept(merged):
        assert fvd.distance(found, kept(generated)) == pytest.approx(
            fvd.distance(kept(whole), kept(generated)), rel=1e-9
        )


def test_damaged_files_of_sets_are_refused(weights, tmp_path):
    path = tmp_path / "x.npz"
    (found,) = measure(noise(3), weights)
    saved.write(path, {"reference": ({}, found)})
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        bad = bytearray(good)
        for place in rng.integers(len(bad), size=3):
            bad[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bad[: rng.integers(len(bad) // 2, len(bad) + 1)])
        try:
            again = saved.read(path)["reference"][1]
        except (ValueError, OSError) as error:
            assert str(path) in str(error)
        except KeyError:
            pytest.fail("a KeyError")
        else:
            assert again.statistics.mean.shape == (7,)


CODE = """
import json, sys
import jax
import numpy as np
from i3d_jax import fvd
from i3d_jax.fvd import measuring
array = np.random.default_rng(0).integers(0, 256, (9, 16, 32, 32, 3), np.uint8)
for devices in jax.devices(), jax.devices()[:1]:
    jax.local_devices, jax.local_device_count = lambda: devices, lambda: len(devices)
    measuring.load.cache_clear()
    found = [fvd.features(part, weights=sys.argv[1]) for part in (array[:5], array[5:])]
    print(json.dumps([len(devices), fvd.distance(*found), *[each.tolist() for each in found]]))
"""


@pytest.mark.slow  # Compiles for other devices.
def test_one_and_four_devices_give_the_same(weights):
    done = subprocess.run(
        [sys.executable, "-c", CODE, weights],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True,
        check=True,
    )
    four, one = map(json.loads, done.stdout.splitlines())
    assert (four[0], one[0]) == (4, 1)
    assert four[1:] == one[1:]


# Zeros against ones, by the TensorFlow Hub module (epsilon 1e-3) and its PyTorch ports (1e-5).
GOLDEN = {10: (569.7714, 570.9181), 15: (133.9089, 134.2138)}
GOLDEN |= {16: (152.9015, 153.2742), 30: (151.3926, 151.7595)}


@pytest.mark.slow
@pytest.mark.parametrize("frames", GOLDEN)
def test_black_and_white_videos_are_as_far_apart_as_by_the_reference(shared_data, frames):
    weights = str(shared_data / "kinetics-i3d/checkpoints/rgb_scratch")
    black = np.zeros((2, frames, 64, 64, 3), np.uint8)
    for convention, wanted in zip(("reference", "tats"), GOLDEN[frames], strict=True):
        real, generated = (
            fvd.features(x, convention, weights=weights) for x in (black, black + 255)
        )
        # From the same network in float64 the reference is up to 6e-6, and we are up to 9e-6, which
        # depends on the processor.
        assert fvd.distance(real, generated) == pytest.approx(wanted, rel=2e-5)


def test_batches_are_full_whatever_the_sizes(weights, monkeypatch):
    """Clips of other sizes share a batch, since they are resized before."""
    sizes = []
    run = measuring.Network.features
    monkeypatch.setattr(
        measuring.Network,
        "features",
        lambda self, batch, epsilon: sizes.append(len(batch)) or run(self, batch, epsilon),
    )

    class Mixed(Arrays):
        def frames(self, number, start):
            for frame in super().frames(number, start):
                yield frame[: 20 + number]

    network = measuring.load(weights, "Logits")
    request = Request(Selection("first"), REFERENCE)
    (found,) = measuring.measure(Mixed(noise(6)), network, [request], frames=16)
    assert found is not None and len(found.about["size"]) == 6
    assert sizes == [jax.local_device_count()] * (6 // jax.local_device_count())
