"""Lengths and rates that are read from timestamps, against what decoding gives."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from support.videos import MPEG4, clip, copied, damaged_mjpeg, encode, numbered, numbers, steady

from i3d_jax import video
from i3d_jax.video import h264

ODD = ("base25.mp4", "bframes.avi", "hold_first.mp4", "pipe.avi", "stale.mkv", "two.ts")


def decoded(data, fps):
    return sum(1 for _ in video.iter_frames(data, fps=fps))


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv", "mov"])
@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("rate", [10, 25, 30, 50, "varying"])
def test_the_length_is_predicted_from_timestamps(container, b_frames, rate):
    times = [round(1000 * number / rate) for number in range(40)] if rate != "varying" else None
    if times is None:
        times = np.cumsum(np.random.default_rng(0).integers(5, 120, 40)).tolist()
    data = encode(numbered(40), times, container, bf=b_frames)
    for fps in 25.0, 30000 / 1001, 4.0:
        assert video.predicted_length(data, fps) == decoded(data, fps)


def test_a_length_is_a_count_by_hand():
    # 40 frames of 40 ms are 1.6 s.
    assert video.predicted_length(steady(40)) == 40
    assert video.predicted_length(steady(40), fps=30) == 48
    assert video.predicted_length(steady(40), fps=12.5) == 20


def test_the_length_of_avi_which_has_no_presentation_times_is_predicted():
    frames = numbered(40)
    for options in MPEG4, MPEG4 | {"codec": "libx264", "bf": 2}:
        data = encode(frames, [*range(40)], **options)
        assert video.predicted_length(data) == decoded(data, 25) == 40


def test_lengths_of_copies_recordings_in_a_row_and_files_that_end_early_are_predicted():
    whole = encode(numbered(73), [40 * number for number in range(73)], "mp4", bf=2, g=12)
    stream = encode(numbered(73), [40 * number for number in range(73)], "mpegts", bf=2)
    for data in (
        *(copied(whole, container, start=1.0) for container in ("mp4", "matroska", "mpegts")),
        copied(whole, "mp4", last=1.0),
        stream + stream,
        stream[: len(stream) // 2],
    ):
        assert video.predicted_length(data) == decoded(data, 25)


@pytest.mark.parametrize("name", ODD)
def test_lengths_of_odd_files_are_predicted(name, shared_data):
    path = shared_data / "odd" / name
    assert video.predicted_length(path) == decoded(path, 25)


def test_the_length_of_a_real_clip_is_predicted(shared_data):
    path = shared_data / "clips" / "flipping_a_pancake.mkv"
    # 310 frames at 30 per second.
    assert video.frame_rate(path) == 30 and video.predicted_length(path, 30) == 310
    assert video.predicted_length(path) == decoded(path, 25)


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "flv"])
@pytest.mark.parametrize("rate", ["30000/1001", "24", "12", "60"])
def test_at_its_own_rate_a_video_of_constant_rate_shows_every_frame_once(container, rate):
    # The encoder is told 25 frames per second, and most containers state that.
    times = [round(1000 * number / Fraction(rate)) for number in range(60)]
    data = encode(numbered(60), times, container, bf=2)
    found = video.frame_rate(data)
    assert abs(found / Fraction(rate) - 1) < 1e-4
    shown = numbers(video.decode(data, fps=float(found)))
    # The encoder has the last frame shown for 40 ms.
    assert [number for number, _ in itertools.groupby(shown)] == [*range(60)]
    assert len(shown) - shown.count(59) == 59


def test_the_rate_of_a_varying_one_is_the_average():
    data = encode(numbered(5), [0, 100, 150, 350, 400])
    assert video.frame_rate(data) == 10


@pytest.mark.parametrize(
    "data,message",
    [(b"", "cannot be decoded"), (b"text" * 100, "cannot be decoded"), (None, "No such file")],
)
def test_files_that_are_no_videos_have_neither(data, message, tmp_path):
    for function in video.frame_rate, video.predicted_length:
        with pytest.raises(video.VideoError, match=message):
            function(tmp_path / "none.mp4" if data is None else data)


@pytest.mark.filterwarnings("ignore::i3d_jax.video.DamageWarning")
def test_damage_in_mid_file_does_not_change_the_length():
    data = damaged_mjpeg([3, 7])
    assert video.predicted_length(data) == decoded(data, 25) == 20


@pytest.mark.parametrize("options", [{}, {"short_side": 24}, {"crop": 20}, {"stride": 3}])
def test_decode_is_the_stack_of_rgb_frames(options):
    data = h264.encode(clip(12))
    found = [*video.rgb_frames(data, **options)]
    np.testing.assert_array_equal(np.stack(found), video.decode(data, **options))


def test_a_frame_that_stays_on_the_screen_is_the_same_array():
    data = encode(numbered(2), [0, 400])
    frames = [*video.rgb_frames(data)]
    assert len(frames) > 10 and len({id(frame) for frame in frames}) == 2
