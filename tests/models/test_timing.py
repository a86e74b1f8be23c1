import pytest

from i3d_jax import models
from i3d_jax.models.timing import Timing

TIMINGS = {name: models.build(name, num_classes=2).timing for name in models.MODELS}


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
