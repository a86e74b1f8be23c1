import functools
import itertools
import pickle
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from support.videos import exact_rgb

from i3d_jax import video
from i3d_jax.datasets import pipeline
from i3d_jax.models.timing import Timing
from i3d_jax.prefetch import prefetch
from i3d_jax.video import decoding, h264, planes

I3D = Timing(step=8, lost=1, least=9, quantum=16)
SLOPE = 5  # Change of brightness per pixel.


def record(label, count, height=40, width=48):
    """A record whose pixels encode their position and frame.

    Red is x, green y, blue the frame; u is x plus the label, v is y plus the frame.
    """
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    rgb = np.stack([SLOPE * x + 10, SLOPE * y + 10, 10 * t % 240 + 10], -1)
    flow = np.stack([4 * x + 20 + 2 * label, 4 * y + 4 * t % 96], -1)
    return {
        "video": h264.encode(rgb.astype(np.uint8), crf=5),
        "flow": h264.encode(flow.astype(np.uint8)),
        "label": label,
        "frames": np.int32(count),  # The type that TFDS reads.
        "height": np.int32(height),
        "width": np.int32(width),
        "id": f"clip{label}",
    }


def where(clip):
    """Decodes a clip of such a record: (top, left, frames, whether it is mirrored)."""
    clip = clip.astype(float)
    mirrored = clip[..., 0, 0].mean() > clip[..., -1, 0].mean()
    size = clip.shape[1]
    left, top = (clip[..., channel].mean() / SLOPE - 2 - (size - 1) / 2 for channel in (0, 1))
    times = (clip[..., 2].mean((1, 2)) - 10) / 10
    found = np.array([top, left, *times])
    assert abs(found - np.rint(found)).max() < 0.3, found
    top, left, *times = np.rint(found).astype(int).tolist()
    return top, left, times, mirrored


def seen(clips):
    """The network's input for packed clips, as bytes, and the labels."""
    frames = jax.jit(planes.unpack)(
        {name: value for name, value in clips.items() if name != "label"}
    )
    scale = {"rgb": (127.5, 127.5), "flow": (127, 128)}
    found = {
        name: np.rint(np.asarray(x) * scale[name][0] + scale[name][1]) for name, x in frames.items()
    }
    return found | {name: value for name, value in clips.items() if name == "label"}


def coloured(frame):
    """Converts an I420 frame to RGB, f64 [H, W, 3], by BT.601's luma weights.

    2x2 pixels share a colour sample.
    """
    height, width = frame.height, frame.width
    values = frame.to_ndarray(format="yuv420p").ravel().astype(float)
    y, cb, cr = np.split(values, [height * width, height * width * 5 // 4])
    cb, cr = (np.kron(c.reshape(height // 2, width // 2), np.ones((2, 2))) for c in (cb, cr))
    y = (y.reshape(height, width) - 16) / 219
    red, blue = y + 2 * (1 - 0.299) * (cr - 128) / 224, y + 2 * (1 - 0.114) * (cb - 128) / 224
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    return 255 * np.clip(np.stack([red, green, blue], -1), 0, 1)


@functools.cache
def whole(data, stream):
    if stream == "flow":
        return video.decode(data, stream=stream)
    return np.stack([coloured(frame) for frame in video.iter_frames(data)])


def assert_seen(found, wanted):
    """Asserts equality up to rounding."""
    np.testing.assert_allclose(found, wanted, atol=0.51)


def cut(record, stream, times, top, left, size, mirrored=False):
    """The expected clip, cut out of the whole video."""
    frames = whole(record["video" if stream == "rgb" else "flow"], stream)
    frames = frames[times][:, top : top + size, left : left + size]
    if mirrored:
        frames = frames[:, :, ::-1].copy()
        if stream == "flow":
            assert frames[..., 0].min() > 0
            frames[..., 0] = 256 - frames[..., 0].astype(int)
    return frames


@pytest.fixture(scope="module")
def source():
    """Eleven records; every third is shorter than a clip."""
    return [record(label, 6 if label % 3 == 0 else 24) for label in range(11)]


def take(source, count, **options):
    options = {"batch_size": 4, "seed": 0, "rgb": (8, 1), "crop": 32, **options}
    return list(itertools.islice(pipeline.train_batches(source, **options), count))


def assert_equal(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_clips_have_the_streams_that_are_wanted_with_their_shapes_and_types(source):
    (batch,) = take(source, 1, flow=(16, 1))
    assert batch["rgb"].shape == (4, 8, 51, 34) and batch["rgb"].dtype == np.uint8
    assert batch["flow"].shape == (4, 16, 64, 32) and batch["flow"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    frames = planes.unpack(batch)
    assert frames["rgb"].shape == (4, 8, 32, 32, 3) and frames["flow"].shape == (4, 16, 32, 32, 2)
    assert frames["rgb"].dtype == frames["flow"].dtype == np.float32
    place = {"corner", "mirrored", "label"}
    assert take(source, 1)[0].keys() == {"rgb"} | place
    assert take(source, 1, rgb=None, flow=(8, 1))[0].keys() == {"flow"} | place


BOTH = {"rgb": (3, 4), "flow": (12, 1)}


def test_a_resumed_run_gets_the_batches_it_would_have_got(source):
    assert_equal(take(source, 3, start=5, **BOTH), take(source, 8, **BOTH)[5:])


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_threads_changes_nothing(source, threads):
    assert_equal(take(source, 6, threads=threads, **BOTH), take(source, 6, threads=2, **BOTH))


def test_the_number_of_worker_processes_changes_nothing(source):
    assert_equal(take(source, 6, start=3, workers=2, **BOTH), take(source, 9, **BOTH)[3:])


@pytest.mark.slow  # Starts processes.
def test_nothing_that_workers_share_is_left_to_jax(source, tmp_path):
    """Otherwise Python's tracker of shared memory complains at the end."""
    (tmp_path / "source").write_bytes(pickle.dumps(source))
    program = """
import contextlib, pathlib, pickle, sys
import jax
from i3d_jax.datasets import pipeline
if __name__ == "__main__":
    source = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
    batches = pipeline.train_batches(source, batch_size=4, seed=0, rgb=(8, 1), crop=32, workers=1)
    with contextlib.closing(batches):
        for _ in range(3):
            jax.block_until_ready(jax.device_put(next(batches)))
"""
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, tmp_path / "program.py", tmp_path / "source"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_clip_depends_on_the_seed_and_its_place_in_the_run_alone(source):
    """A clip depends only on `step * batch_size + index`."""

    def clips(batches):
        return [
            {name: values[row] for name, values in batch.items()}
            for batch in batches
            for row in range(len(batch["label"]))
        ]

    one = clips(take(source, 12, **BOTH))
    assert_equal(clips(take(source, 6, batch_size=8, **BOTH)), one)
    assert_equal(clips(take(source, 2, batch_size=24, **BOTH)), one)
    halves = [take(source, 1, batch_size=48, process=p, processes=2, **BOTH) for p in range(2)]
    assert_equal([*clips(halves[0]), *clips(halves[1])], one)
    assert_equal(clips(take(source, 1, batch_size=1, start=37, **BOTH)), one[37:38])
    other = clips(take(source, 12, seed=1, **BOTH))
    assert sum((a["rgb"] == b["rgb"]).all() for a, b in zip(one, other, strict=True)) < 4


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_clips_that_one_process_gets(source, processes):
    one = take(source, 6, **BOTH)
    parts = [take(source, 6, process=p, processes=processes, **BOTH) for p in range(processes)]
    for step in range(6):
        together = {
            name: np.concatenate([part[step][name] for part in parts]) for name in one[step]
        }
        assert_equal([together], [one[step]])


def test_every_clip_comes_once_an_epoch_in_an_order_of_its_own(source):
    labels = np.concatenate([batch["label"] for batch in take(source, 22, batch_size=1)])
    assert sorted(labels[:11]) == sorted(labels[11:]) == list(range(11))
    assert labels[:11].tolist() != labels[11:].tolist()
    assert take(source, 3, seed=1)[0]["label"].tolist() != take(source, 3)[0]["label"].tolist()


def test_start_crop_and_flip_are_random_and_the_same_over_a_clip(source):
    clips = [clip for batch in take(source[1:2], 64, batch_size=4) for clip in seen(batch)["rgb"]]
    tops, lefts, times, mirrored = zip(*map(where, clips), strict=True)
    assert set(tops) == set(range(9)) and set(lefts) == set(range(17))  # 40 x 48 less 32.
    assert {t[0] for t in times} == set(range(17))  # 24 less 8, and the last frame is in a clip.
    assert all(t == list(range(t[0], t[0] + 8)) for t in times)
    assert 100 < sum(mirrored) < 156
    for clip, *place in zip(clips, times, tops, lefts, mirrored, strict=True):
        times, top, left, flipped = place
        assert_seen(clip, cut(source[1], "rgb", times, top, left, 32, flipped))
    unflipped = [clip for batch in take(source[1:2], 8, flip=False) for clip in seen(batch)["rgb"]]
    assert not any(where(clip)[3] for clip in unflipped)


@pytest.mark.parametrize(
    "rgb,flow", [((8, 1), (8, 1)), ((3, 4), (12, 1)), ((1, 10), (10, 1)), ((4, 2), (3, 5))]
)
def test_flow_starts_and_is_cut_and_mirrored_as_rgb_is(source, rgb, flow):
    span = max((frames - 1) * stride + 1 for frames, stride in (rgb, flow))
    starts, flips = set(), 0
    for batch in map(seen, take(source[1:2], 20, rgb=rgb, flow=flow)):
        for clip, its_flow in zip(batch["rgb"], batch["flow"], strict=True):
            top, left, times, mirrored = where(clip)
            assert times == list(range(times[0], 24, rgb[1]))[: rgb[0]]
            flow_times = list(range(times[0], 24, flow[1]))[: flow[0]]
            wanted = cut(source[1], "flow", flow_times, top, left, 32, mirrored)
            np.testing.assert_array_equal(its_flow, wanted)
            starts.add(times[0])
            flips += mirrored
    assert (min(starts), max(starts)) == (0, 24 - span) and 20 < flips < 60


@pytest.mark.parametrize(
    "rgb,flow", [((8, 1), (8, 1)), ((3, 4), (12, 1)), ((1, 10), (10, 1)), ((4, 2), (3, 5))]
)
def test_clips_that_are_played_backwards_move_the_opposite_way(source, rgb, flow):
    seen_backwards, ends = 0, set()
    for batch in take(source[1:2], 40, rgb=rgb, flow=flow, reverse=True):
        frames = seen(batch)
        for clip, its_flow, backwards in zip(
            frames["rgb"], frames["flow"], batch["backwards"], strict=True
        ):
            top, left, times, mirrored = where(clip)
            way = -1 if backwards else 1
            assert times == [times[0] + way * i * rgb[1] for i in range(rgb[0])]
            # The flow of frame t goes from t to t + 1. Backwards it goes from t to t - 1, which is
            # the opposite of the flow of t - 1.
            flow_times = [times[0] - backwards + way * i * flow[1] for i in range(flow[0])]
            assert 0 <= min(flow_times) and max(flow_times) < 24
            wanted = cut(source[1], "flow", flow_times, top, left, 32, mirrored)
            np.testing.assert_array_equal(
                its_flow, 256 - wanted.astype(int) if backwards else wanted
            )
            seen_backwards += backwards
            ends.add(times[0])
    assert 60 < seen_backwards < 100 and max(ends) == 23


def test_batches_do_not_say_what_is_played_backwards_where_nothing_is(source):
    assert "backwards" not in take(source, 1)[0]


def test_short_videos_are_looped_backwards_too(source):
    for batch in take(source[:1], 6, batch_size=1, rgb=(8, 1), flow=(8, 1), reverse=True):
        if batch["backwards"][0]:
            frames = seen(batch)
            top, left, times, mirrored = where(frames["rgb"][0])
            assert times == [1, 0, 5, 4, 3, 2, 1, 0]
            wanted = cut(source[0], "flow", [0, 5, 4, 3, 2, 1, 0, 5], top, left, 32, mirrored)
            np.testing.assert_array_equal(frames["flow"][0], 256 - wanted.astype(int))
            return
    pytest.fail("no clip was played backwards")


@pytest.mark.parametrize(
    "rgb,flow,rgb_times,flow_times",
    [
        ((8, 1), (14, 1), [0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1]),
        ((4, 2), (8, 1), [0, 2, 4, 0], [0, 1, 2, 3, 4, 5, 0, 1]),
        ((1, 10), (10, 1), [0], [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]),
        ((6, 1), (2, 5), [0, 1, 2, 3, 4, 5], [0, 5]),
    ],
)
def test_videos_shorter_than_a_clip_are_looped_in_both_streams(
    source, rgb, flow, rgb_times, flow_times
):
    for batch in map(seen, take(source[:1], 3, batch_size=1, rgb=rgb, flow=flow)):
        top, left, times, mirrored = where(batch["rgb"][0])
        assert times == rgb_times
        np.testing.assert_array_equal(
            batch["flow"][0], cut(source[0], "flow", flow_times, top, left, 32, mirrored)
        )


def test_frames_are_looped_from_their_start(source):
    def frames_of(**options):
        packed = pipeline.read_frames(source[0], "rgb", planes.Window(0, 0, 32), **options)
        return where(
            seen(
                {
                    "rgb": packed[None],
                    "corner": np.zeros((1, 2), int),
                    "mirrored": np.zeros(1, bool),
                }
            )["rgb"][0]
        )[2]

    assert frames_of(count=7, stride=2, start=1) == [1, 3, 5, 1, 3, 5, 1]
    assert frames_of(count=4, stride=2, start=5) == [5, 1, 3, 5]
    # In step with a stream that has all frames.
    assert frames_of(count=3, stride=4, start=3) == [3, 1, 5]
    assert frames_of(count=3, stride=1, start=100) == [4, 5, 0]


def test_short_side_resizes_the_frames_before_they_are_cut(source):
    batches = take(source[1:2], 16, rgb=(2, 3), crop=20, short_side=20, flip=False)
    resized = {"width": 24, "height": 20, "format": "yuv420p", "interpolation": decoding.BILINEAR}
    frames = [
        frame.reformat(**resized).to_ndarray() for frame in video.iter_frames(source[1]["video"])
    ]
    small = np.stack([exact_rgb(frame, 20, 24) for frame in frames])
    lefts = set()
    for clip in (clip for batch in batches for clip in seen(batch)["rgb"]):
        errors = {
            (s, x): abs(clip - small[s : s + 4 : 3, :, x : x + 20]).mean()
            for s, x in itertools.product(range(24 - 3), range(24 - 20 + 1))
        }
        best, second = sorted(errors, key=errors.__getitem__)[:2]
        assert errors[best] < 0.3 and errors[second] > 1.4 * errors[best]  # Bytes are rounded.
        lefts.add(best[1])
    assert lefts == set(range(5))
    with pytest.raises(ValueError, match="flow cannot be resized"):
        take(source, 1, flow=(2, 1), short_side=20, crop=20)


def test_frames_too_small_for_the_crop_are_named(source):
    with pytest.raises(ValueError, match=r"cannot cut 42x42 at \(0, .*\) out of frames of 40x48"):
        take(source, 1, crop=42)
    with pytest.raises(ValueError, match="crop: 31 pixels, wanted an even number"):
        take(source, 1, crop=31)


def pieces(source, **options):
    options = {"timing": Timing(), "batch_size": 4, "crop": 32, "rgb": (250, 1), **options}
    return list(pipeline.eval_chunks(source, **options))


def ids(found):
    return [[each["id"] for each in piece.records] for piece in found]


def assert_same_pieces(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        assert a[:3] == b[:3]
    assert_equal([piece.streams for piece in found], [piece.streams for piece in wanted])


def test_test_videos_come_once_in_batches_of_one_length_and_whole(source):
    found = pieces(source, flow=(250, 1))
    # Records 0, 3, 6, 9 have 6 frames, the others 24. The length whose batch is full first comes
    # first.
    assert ids(found) == [
        ["clip1", "clip2", "clip4", "clip5"],
        ["clip0", "clip3", "clip6", "clip9"],
    ] + [["clip7", "clip8", "clip10"]]
    assert [piece.ticks for piece in found] == [24, 6, 24]
    for piece in found:
        frames = seen(piece.streams)
        assert piece.start == 0 and piece.streams["rgb"].shape[1] == piece.ticks
        for row, about in enumerate(piece.records):
            size = {"height": 40, "width": 48}
            assert (
                about
                == {"id": f"clip{about['label']}", "label": about["label"], "frames": piece.ticks}
                | size
            )
            for stream in "rgb", "flow":
                wanted = cut(
                    source[about["label"]], stream, range(piece.ticks), 4, 8, 32
                )  # The centre of 40x48.
                assert_seen(frames[stream][row], wanted)


def test_the_last_batch_is_filled_up_with_its_first_video(source):
    last = pieces(source, flow=(250, 1))[-1]
    assert len(last.records) == 3
    for frames in last.streams.values():
        assert len(frames) == 4
        np.testing.assert_array_equal(frames[3], frames[0])
    flow = last.streams["flow"]
    assert (flow[1] != flow[0]).any() and (flow[2] != flow[0]).any()
    (alone,) = pieces(source[:1])
    np.testing.assert_array_equal(alone.streams["rgb"], np.repeat(alone.streams["rgb"][:1], 4, 0))


def test_only_so_many_frames_of_test_videos_are_used_and_at_their_step(source):
    (piece,) = pieces(source[1:2], rgb=(5, 3), flow=(4, 2))
    assert piece.ticks == 4
    assert where(seen(piece.streams)["rgb"][0])[2] == [0, 3, 6, 9]
    np.testing.assert_array_equal(
        seen(piece.streams)["flow"][0], cut(source[1], "flow", [0, 2, 4, 6], 4, 8, 32)
    )
    (piece,) = pieces(source[1:2], rgb=(50, 5))
    assert piece.ticks == 5 and where(seen(piece.streams)["rgb"][0])[2] == [0, 5, 10, 15, 20]


def test_test_videos_are_looped_up_to_the_lengths_of_the_network(source):
    (piece,) = pieces(source[:1], timing=I3D)
    assert piece.ticks == 16 and where(seen(piece.streams)["rgb"][0])[2] == [
        0,
        1,
        2,
        3,
        4,
        5,
    ] * 2 + [0, 1, 2, 3]
    (piece,) = pieces(source[1:2], timing=I3D)
    assert piece.ticks == 32 and where(seen(piece.streams)["rgb"][0])[2] == [*range(24), *range(8)]


def test_short_side_resizes_test_videos(source):
    (piece,) = pieces(source[:1], short_side=20, crop=16, batch_size=1)
    wanted = video.decode(source[0]["video"], short_side=20)[:, 2:18, 4:20].astype(float)
    assert abs(seen(piece.streams)["rgb"][0] - wanted).mean() < 4  # A pixel aside it is 7.


@pytest.fixture(scope="module")
def long_source():
    """Videos from which I3D takes 240, 240, 240 (looped), 128 and 250 frames."""
    return [record(label, count, 16, 20) for label, count in enumerate((240, 240, 229, 115, 300))]


def assert_chunks_make_the_whole(source, chunk, **options):
    """Compares every chunk of every batch with the same frames of the whole video.

    Returns the numbers of chunks.
    """
    options = {"batch_size": 2, "crop": 16, **options}
    timing = options["timing"]
    chunked = iter(pieces(source, chunk=chunk, **options))
    counts = []
    for whole in pieces(source, **options):
        starts = range(0, whole.ticks, chunk)
        for start in starts:
            piece = next(chunked)
            assert (piece.records, piece.ticks, piece.start) == (whole.records, whole.ticks, start)
            for stream in set(piece.streams) & {"rgb", "flow"}:
                size = timing.frames(stream)
                wanted = whole.streams[stream][:, start * size : (start + chunk) * size]
                found = piece.streams[stream]
                assert found.shape[1] == min(chunk, whole.ticks) * size
                np.testing.assert_array_equal(found[:, : wanted.shape[1]], wanted)
        counts.append(len(starts))
    assert not list(chunked)
    return counts


def test_chunks_of_videos_for_i3d_are_the_whole_videos_frames(long_source):
    assert assert_chunks_make_the_whole(long_source, 32, timing=I3D, rgb=(250, 1)) == [8, 8, 4, 8]


def test_chunks_of_videos_of_two_streams_are_the_whole_videos_frames(long_source):
    both = {"rgb": (250, 1), "flow": (250, 1)}
    assert assert_chunks_make_the_whole(long_source[2:3], 96, timing=I3D, **both) == [3]


def test_chunks_of_rgb_frames_and_snippets_of_flow_are_the_whole_videos_frames(long_source):
    both = {"rgb": (25, 10), "flow": (250, 1)}
    timing = Timing(flow=10)
    assert assert_chunks_make_the_whole(long_source, 7, timing=timing, **both) == [4, 4, 2, 4]
    for piece in pieces(long_source[3:4], timing=timing, batch_size=1, crop=16, chunk=4, **both):
        times = where(seen(piece.streams)["rgb"][0])[2]  # Frame numbers modulo 24.
        ticks = range(piece.start, min(piece.start + 4, piece.ticks))
        assert times[: len(ticks)] == [10 * tick % 24 for tick in ticks]
        wanted = cut(long_source[3], "flow", range(10 * ticks.start, 10 * ticks.stop), 0, 2, 16)
        found = seen(piece.streams)["flow"][0]
        np.testing.assert_array_equal(found[: 10 * len(ticks)], wanted)


def test_batches_that_are_done_are_left_out_and_the_others_stay_as_they_are(source):
    every = pieces(source, batch_size=3)
    assert sorted(map(len, ids(every))) == [1, 1, 3, 3, 3]
    for left_out in range(len(every)):
        kept = [piece for number, piece in enumerate(every) if number != left_out]
        done = {each["id"] for each in every[left_out].records}
        assert_same_pieces(pieces(source, batch_size=3, done=done), kept)
        # A batch with one video that is not done is yielded whole.
        assert_same_pieces(pieces(source, batch_size=3, done=done - {min(done)}), every)
    assert pieces(source, batch_size=3, done={record["id"] for record in source}) == []


@pytest.mark.parametrize("threads", [1, 5])
def test_the_number_of_threads_does_not_change_the_test_pieces(source, threads):
    options = dict(flow=(250, 1), chunk=7, batch_size=3)
    assert_same_pieces(
        pieces(source, threads=threads, **options), pieces(source, threads=2, **options)
    )


@pytest.mark.parametrize("lengths", [1, 3, 9, 40, 400])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_batches_are_full_while_they_can_be_and_few_records_wait(lengths, size):
    length_of = np.random.default_rng(0).integers(1, lengths + 1, 300).tolist()
    taken, most_waiting, given, sizes = 0, 0, [], []

    def records():
        nonlocal taken, most_waiting
        for number in range(300):
            taken += 1
            yield {"number": number}
            # Records that wait when the next one is asked for.
            most_waiting = max(most_waiting, taken - len(given))

    for length, batch in pipeline.batch_by_length(
        records(), lambda each: length_of[each["number"]], size
    ):
        numbers = [each["number"] for each in batch]
        assert {length_of[number] for number in numbers} == {length} and 1 <= len(numbers) <= size
        given += numbers
        sizes.append(len(numbers))
    assert sorted(given) == list(range(300)) and most_waiting <= 4 * size
    if lengths <= 4:
        assert sum(number < size for number in sizes) <= lengths  # The last batch of each length.
    for length in set(length_of):  # Within a length, the order is the records'.
        own = [number for number in given if length_of[number] == length]
        assert own == sorted(own)


def test_if_too_many_records_wait_the_length_that_has_most_goes():
    records = [10, 20, 20, 30, 20, *range(40, 60)]
    found = list(
        pipeline.batch_by_length(({"frames": n} for n in records), lambda each: each["frames"], 4)
    )
    assert [(length, len(batch)) for length, batch in found[:2]] == [(20, 3), (10, 1)]


@pytest.mark.parametrize("threads", [1, 3])
def test_work_ahead_keeps_the_order_is_bounded_and_fails_where_an_item_fails(threads):
    taken, found, running, most_running = 0, [], 0, 0
    lock, together = threading.Lock(), threading.Barrier(threads)

    def items():
        nonlocal taken
        for number in range(20):
            taken += 1
            assert taken - len(found) <= threads + 1
            yield number

    def square(number):
        nonlocal running, most_running
        with lock:
            running += 1
            most_running = max(most_running, running)
        if number < threads:
            together.wait(60)  # Fails if they do not run at once.
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        if number == 17:
            raise KeyError(number)
        return number * number

    results = prefetch(square, items(), threads)
    for _ in range(17):
        found.append(next(results))
    with pytest.raises(KeyError, match="17"):
        next(results)
    assert found == [number * number for number in range(17)] and most_running == threads


@pytest.mark.parametrize("claimed", [40, 25])
@pytest.mark.parametrize("stream", ["rgb", "flow"])
def test_a_record_that_has_fewer_frames_than_it_says_is_named(source, stream, claimed):
    wrong = [source[1], source[2] | {"frames": np.int32(claimed)}, source[4]]
    streams = {"rgb": None, stream: (250, 1)}
    message = f"record clip2: {stream}: 24 frames where there should be {claimed}"
    with pytest.raises(video.VideoError, match=message):
        pieces(wrong, **streams)
    # Also if the window, or the clip, starts after the last frame.
    with pytest.raises(
        video.VideoError, match=f"record clip2: {stream}: .* of video: has no frame 24"
    ):
        pieces(wrong, chunk=24, timing=Timing(), **streams)
    with pytest.raises(video.VideoError, match=f"record clip2: {stream}: "):
        take(wrong[1:2], 40, batch_size=1, **{"rgb": None, stream: (1, 1)})


def test_a_record_that_cannot_be_decoded_is_named(source):
    for stream, name in (("rgb", "video"), ("flow", "flow")):
        broken = [source[1], source[2] | {name: source[2][name][:300]}]
        with pytest.raises(
            video.VideoError, match=f"record clip2: {stream}: 300 bytes of video: cannot be decoded"
        ):
            pieces(broken, flow=(9, 1))
        with pytest.raises(
            video.VideoError, match=f"record clip2: {stream}: 300 bytes of video: cannot be decoded"
        ):
            take(broken, 2, flow=(9, 1))


def test_streams_are_two_positive_whole_numbers_each():
    assert pipeline.streams((8, 2), (16, 1)) == {"rgb": (8, 2), "flow": (16, 1)}
    assert pipeline.streams(flow=(16, 1)) == {"flow": (16, 1)}
    with pytest.raises(ValueError, match="neither rgb nor flow"):
        pipeline.streams()
    wrong: list = [(8,), (8, 1, 1), (0, 1), (8, 0), (8, -1), (8.0, 1), ("8", 1), (), 8, "88"]
    for pair in wrong:
        with pytest.raises(
            ValueError,
            match="^flow: .*wanted .frames, step between them., two positive whole numbers",
        ):
            pipeline.streams((8, 1), pair)


def test_clips_want_a_stream(source):
    with pytest.raises(ValueError, match="neither rgb nor flow"):
        take(source, 1, rgb=None)
    with pytest.raises(ValueError, match="neither rgb nor flow"):
        pieces(source, rgb=None)


@pytest.mark.parametrize("records,batch_size", [([], 4), ([{}], 0), ([{}], -1)])
def test_batches_without_clips_are_refused(records, batch_size):
    """Batch statistics would be NaN, and running statistics would stay NaN."""
    with pytest.raises(
        ValueError,
        match=f"batches of {batch_size} of {len(records)} clips: wanted one or more of each",
    ):
        next(pipeline.train_batches(records, batch_size=batch_size, seed=0, crop=2, rgb=(1, 1)))


def test_unequal_shares_are_named(source):
    with pytest.raises(ValueError, match="batch of 4 clips cannot be cut into 3"):
        take(source, 1, processes=3)
