"""Rows and times of all grids, against formulas and counts of the projects that have them."""

import numpy as np
import pytest

from i3d_jax.features import grids
from i3d_jax.features.presets import PRESETS

LENGTHS = [*range(1, 200), 201, 1000, 5088]


def video_features(frames, stack, step):
    """The first frames of the rows of video_features: its loop over frames, written out."""
    starts, held = [], []
    for frame in range(frames):
        held.append(frame)
        if len(held) - 1 == stack:
            starts.append(held[0])
            held = held[step:]
    return starts


@pytest.mark.parametrize("stack,step", [(64, 64), (16, 16), (24, 24), (10, 3), (21, 1), (16, 17)])
def test_rows_of_video_features(stack, step):
    windows = grids.Windows(stack, step, "drop", following=1)
    for frames in LENGTHS:
        wanted = (frames - 1 - stack) // step + 1 if frames >= stack + 1 else 0
        assert windows.rows(frames) == wanted == len(video_features(frames, stack, step))
        assert windows.spans(frames)[:, 0].tolist() == video_features(frames, stack, step)


def test_the_effective_step_of_video_features_is_at_most_a_stack_and_one_frame():
    assert video_features(60, 16, 32) == [0, 17, 34]
    assert grids.Windows(16, 17, "drop", 1).spans(60)[:, 0].tolist() == [0, 17, 34]


def test_64_frames_give_video_features_no_row_128_one_and_129_two():
    windows = PRESETS["video_features"].windows
    assert [windows.rows(frames) for frames in (64, 65, 128, 129)] == [0, 1, 1, 2]
    # It stamps a row with the time of the frame after its window, in milliseconds.
    _, end, _ = grids.seconds(windows.spans(129), 30)
    np.testing.assert_allclose(1000 * end, [64 / 30 * 1000, 128 / 30 * 1000])


@pytest.mark.parametrize("frequency", [1, 4, 16])
def test_rows_of_fin(frequency):
    windows = grids.Windows(16, frequency, "drop")
    for frames in (each for each in LENGTHS if each > 16):
        assert windows.rows(frames) == (frames - 16) // frequency + 1


def test_rows_and_times_of_actionformer():
    # video_validation_0000051 of THUMOS14: 169.79 s at 29.97 frames per second, (1269, 2048).
    fps = 30000 / 1001
    frames = 5088
    assert abs(frames / fps - 169.79) < 0.03
    windows = PRESETS["actionformer"].windows
    assert windows.rows(frames) == 1269
    _, _, centre = grids.seconds(windows.spans(frames), fps)
    wanted = [(i * 4 + 0.5 * 16) / fps for i in range(1269)]
    np.testing.assert_allclose(centre, wanted, rtol=1e-12)


def test_the_dense_grid_has_actionformers_times_with_window_16_and_stride_8():
    start, end, centre = grids.seconds(grids.Dense().spans(250), 25)
    assert len(centre) == 31  # ceil(250 / 8) - 1.
    np.testing.assert_allclose(centre[:-1], [(i * 8 + 8) / 25 for i in range(30)])
    # The video's end cuts the last row: frames 240 to 249.
    assert (start[-1], end[-1], centre[-1]) == (9.6, 10, 9.8)


def test_rows_of_pytorch_i3d():
    for frames in range(9, 700):
        assert grids.Dense().rows(frames) == -(-frames // 8) - 1
    assert [grids.Dense().rows(frames) for frames in (2000, 5000, 10000)] == [249, 624, 1249]


def test_rows_of_rtfm_are_rounded_up():
    for frames in LENGTHS:
        assert PRESETS["rtfm"].windows.rows(frames) == -(-frames // 16)


def test_201_frames_are_12_rows_of_wtalc():
    assert PRESETS["wtalc"].windows.rows(201) == 12


def test_a_window_of_bmt_is_as_long_as_one_of_vggish():
    _, end, _ = grids.seconds(PRESETS["bmt"].windows.spans(24), PRESETS["bmt"].fps)
    assert end.tolist() == [0.96]


@pytest.mark.parametrize("partial", ["pad", "loop"])
@pytest.mark.parametrize("size,stride", [(16, 16), (16, 4), (9, 1), (16, 32), (10, 7)])
def test_filled_windows_leave_no_frame_out_but_those_between_windows(partial, size, stride):
    windows = grids.Windows(size, stride, partial)
    for frames in LENGTHS[:120]:
        covered = np.zeros(frames, bool)
        for start, end in windows.spans(frames):
            assert 0 <= start < end <= frames and end - start <= size
            covered[start:end] = True
        between = np.arange(frames) % stride >= size
        assert (covered | between).all()
        # None is there for nothing: the one before the last does not reach the end.
        assert (windows.spans(frames)[:-1, 1] < frames).all()


def test_the_last_window_repeats_its_last_frame_or_all_of_its_frames():
    assert grids.Windows(10, 5, "pad").filled(4).tolist() == [0, 1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert grids.Windows(10, 5, "loop").filled(4).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert grids.Windows(10, 5, "pad").filled(10).tolist() == [*range(10)]


def test_layers_before_the_last_pool_have_a_row_more():
    # Mixed_5c: 8 frames each.
    assert grids.Dense(8, 8).spans(20).tolist() == [[0, 8], [8, 16], [16, 20]]
    assert grids.Dense(2, 2).rows(21) == 11  # Conv_1a.


def rows(*numbers):
    return np.array(numbers, np.float32)[:, None]


def test_the_nearest_row_of_each_frame():
    # Centres at 8, 16 and 22 frames; frame i's centre is i + 0.5.
    found = grids.per_frame(rows(0, 1, 2), grids.Dense().spans(28), 28, "nearest")[:, 0]
    assert found.tolist() == [0] * 12 + [1] * 7 + [2] * 9


def test_rows_of_frames_are_interpolated_between_centres():
    found = grids.per_frame(rows(0, 8, 20), grids.Dense().spans(28), 28, "linear")[:, 0]
    wanted = [np.interp(i + 0.5, [8, 16, 22], [0, 8, 20]) for i in range(28)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert found.dtype == np.float32 and found[3] == 0 and found[27] == 20


@pytest.mark.parametrize("method", grids.PER_FRAME)
def test_a_single_row_is_every_frames(method):
    found = grids.per_frame(rows(3), grids.Dense().spans(12), 12, method)
    assert found.tolist() == [[3]] * 12


def test_a_row_per_frame_covers_that_frame():
    start, end, centre = grids.seconds(grids.each_frame(3), 2)
    assert (start.tolist(), end.tolist(), centre.tolist()) == (
        [0, 0.5, 1],
        [0.5, 1, 1.5],
        [0.25, 0.75, 1.25],
    )
