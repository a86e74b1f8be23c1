import itertools

import pytest

from i3d_jax import models
from i3d_jax.models.timing import Timing, Window

# The zoo's, that of 3D-Fused Two-Stream in 3-D, and four that no network has.
TIMINGS = {name: models.build(name, num_classes=2).timing for name in models.MODELS} | {
    "fused_i3d": models.build("fused_two_stream", num_classes=2, dims=3).timing,
    "whole": Timing(step=16, after=16, least=16, quantum=16),
    "past only": Timing(step=2, before=7, after=2),
    "future only": Timing(step=4, after=9, lost=1),
    "odd": Timing(step=3, before=4, after=5),
}
FORGETFUL = {name: timing for name, timing in TIMINGS.items() if not timing.carries}


def cases(timing):
    """(ticks, size) with every remainder, for sizes from the least to more than the whole."""
    least = enough(timing)
    for size in range(least, least + 2 * timing.step + 3):
        for ticks in range(timing.least, 4 * size, max(1, size // 9)):
            if timing.steps(ticks) > 0:
                yield ticks, size


def enough(timing):
    before = -(-timing.before // timing.step) * timing.step
    return 1 if timing.carries else before + timing.after + timing.step - 1


def predict(timing, video, past=()):
    """A network that predicts what each prediction depends on: ticks, and None outside the video.

    There is padding before the video, and after it to fill up the last step.
    """
    if timing.carries:
        return [(*past, *video[: step + 1]) for step in range(len(video))]
    found = []
    for step in range(timing.steps(len(video))):
        places = range(step * timing.step - timing.before, step * timing.step + timing.after)
        found.append(tuple(video[place] if 0 <= place < len(video) else None for place in places))
    return found


@pytest.mark.slow  # Compiles whole networks.
@pytest.mark.parametrize("name", TIMINGS)
def test_the_pieces_predictions_together_are_the_wholes(name):
    timing = TIMINGS[name]
    for ticks, size in cases(timing):
        video, found = list(range(ticks)), []
        for window in timing.windows(ticks, size):
            piece = predict(timing, video[window.start : window.stop], tuple(video[: window.start]))
            assert 0 <= window.first < window.last <= len(piece), (ticks, size, window)
            found += piece[window.first : window.last]
        assert found == predict(timing, video), (ticks, size)


@pytest.mark.parametrize("name", TIMINGS)
def test_every_prediction_is_kept_once_and_in_order(name):
    timing = TIMINGS[name]
    for ticks, size in cases(timing):
        kept = []
        for window in timing.windows(ticks, size):
            skipped = window.start // timing.step
            kept += range(skipped + window.first, skipped + window.last)
        assert kept == list(range(timing.steps(ticks))), (ticks, size)


@pytest.mark.parametrize("name", FORGETFUL)
def test_pieces_are_of_one_size_and_show_each_prediction_all_that_it_depends_on(name):
    timing = FORGETFUL[name]
    for ticks, size in cases(timing):
        windows = timing.windows(ticks, size)
        assert len({window.stop - window.start for window in windows}) == 1, (ticks, size)
        for window in windows:
            assert 0 <= window.start and window.stop <= ticks and window.stop - window.start <= size
            # Strides and the padding at the end then fall on the same frames as in the whole.
            assert window.start % timing.step == 0
            assert (window.stop - window.start - ticks) % timing.step == 0
            skipped = window.start // timing.step
            for step in range(skipped + window.first, skipped + window.last):
                assert window.start <= max(0, step * timing.step - timing.before)
                assert window.stop >= min(ticks, step * timing.step + timing.after)


def test_pieces_of_a_network_that_carries_its_past_lie_end_to_end():
    timing = TIMINGS["convnet_lstm"]
    assert timing.windows(10, 4) == [Window(0, 4, 0, 4), Window(4, 8, 0, 4), Window(8, 10, 0, 2)]
    for ticks, size in cases(timing):
        windows = timing.windows(ticks, size)
        assert windows[0].start == 0 and windows[-1].stop == ticks
        assert all(a.stop == b.start for a, b in itertools.pairwise(windows))
        assert all(window.stop - window.start == size for window in windows[:-1])


def test_the_last_piece_ends_where_the_video_does():
    # By this `evaluate` recognises the last piece of a video.
    for timing in TIMINGS.values():
        for ticks, size in cases(timing):
            stops = [window.stop for window in timing.windows(ticks, size)]
            assert stops[-1] == ticks and ticks not in stops[:-1], (timing, ticks, size)


def test_i3d_takes_30_seconds_in_pieces_of_10():
    windows = TIMINGS["i3d"].windows(752, 256)
    assert windows == [
        Window(0, 256, 0, 25),
        Window(152, 408, 6, 25),
        Window(304, 560, 6, 25),
        Window(456, 712, 6, 25),
        Window(496, 752, 20, 31),
    ]
    assert (
        TIMINGS["i3d"].windows(752) == TIMINGS["i3d"].windows(752, 752) == [Window(0, 752, 0, 93)]
    )


@pytest.mark.parametrize("name", FORGETFUL)
def test_pieces_that_are_too_short_are_an_error_that_names_the_least_size_for_videos_of_any_length(
    name,
):
    timing = FORGETFUL[name]
    least = enough(timing)
    lengths = range(least, least + 4 * timing.step)
    assert all(timing.windows(ticks, least) for ticks in lengths)
    refused = {size: 0 for size in range(least)}
    for size in refused:
        for ticks in lengths:
            try:
                timing.windows(ticks, size)
            except ValueError as error:
                assert f"at least {least} are needed" in str(error)
                refused[size] += 1
    # One tick less is too short for some videos. Less than a prediction sees is so for all.
    assert all(refused.values())
    assert all(refused[size] == len(lengths) for size in range(least - timing.step + 1))


def test_i3d_needs_pieces_of_118_frames():
    with pytest.raises(
        ValueError, match="too short for exact predictions: at least 118 are needed"
    ):
        TIMINGS["i3d"].windows(250, 64)
    assert TIMINGS["i3d"].windows(250, 118)[0] == Window(0, 114, 0, 7)


@pytest.mark.parametrize(
    "frames,ticks",
    [
        (1, 16),
        (9, 16),
        (16, 16),
        (17, 32),
        (79, 80),
        (240, 240),
        (241, 250),
        (250, 250),
        (999, 250),
    ],
)
def test_i3d_loops_videos_to_whole_windows_of_16_frames_of_the_first_250(frames, ticks):
    assert TIMINGS["i3d"].ticks({"rgb": frames}, {"rgb": 250}) == ticks


@pytest.mark.parametrize(
    "rgb,flow,ticks",
    [
        (1, 10, 1),
        (1, 9, 1),
        (1, 5, 1),
        (2, 20, 2),
        (3, 29, 2),
        (3, 30, 3),
        (2, 30, 2),
        (25, 250, 25),
        (40, 400, 25),
    ],
)
def test_two_streams_leave_out_what_is_no_whole_snippet_of_both(rgb, flow, ticks):
    assert (
        TIMINGS["two_stream"].ticks({"rgb": rgb, "flow": flow}, {"rgb": 25, "flow": 250}) == ticks
    )


def test_the_shortest_input_is_the_networks_even_where_fewer_frames_may_be_used():
    assert Timing(least=9).ticks({"rgb": 3}, {"rgb": 250}) == 9
    assert Timing(least=9).ticks({"rgb": 99}, {"rgb": 4}) == 9
    # The shorter of the streams counts; streams that are not used do not count.
    assert Timing().ticks({"rgb": 30, "flow": 20}, {"rgb": 25, "flow": 25}) == 20
    assert Timing().ticks({"rgb": 30, "flow": 20}, {"rgb": 25}) == 25


def test_inputs_are_not_looped_beyond_the_whole_ticks_that_may_be_used():
    timing, most = Timing(flow=10, quantum=4), {"rgb": 30, "flow": 255}
    assert timing.ticks({"rgb": 22, "flow": 220}, most) == 24
    assert timing.ticks({"rgb": 26, "flow": 260}, most) == 25


def test_a_tick_is_one_frame_or_a_snippet_of_flow_and_gives_a_prediction_per_step():
    assert [TIMINGS["two_stream"].frames(stream) for stream in ("rgb", "flow")] == [1, 10]
    assert [TIMINGS["i3d"].frames(stream) for stream in ("rgb", "flow")] == [1, 1]
    assert [TIMINGS["i3d"].steps(ticks) for ticks in (9, 16, 17, 64, 250)] == [1, 1, 2, 7, 31]
    assert [TIMINGS["c3d"].frames("rgb"), TIMINGS["c3d"].steps(15)] == [16, 15]
    assert TIMINGS["c3d"].ticks({"rgb": 250}, {"rgb": 250}) == 15
