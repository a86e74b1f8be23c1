"""Videos for people to watch: `h264.write`."""

import itertools
import os
import subprocess
import sys

import av
import numpy as np
import pytest
from support.videos import moving

from i3d_jax import video
from i3d_jax.video import h264

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255), (200, 100, 50)]


def flat(colour, count=3):
    return np.full((count, 32, 48, 3), colour, np.uint8)


def test_a_written_video_has_its_frames_and_plays_on_phones(tmp_path):
    path = tmp_path / "a %03d é.mp4"
    frames = moving(31, 48, 66)
    assert h264.write(path, iter(frames)) == 31
    with av.open(f"file:{path}") as file:
        (stream,) = file.streams
        assert (stream.width, stream.height, stream.average_rate) == (66, 48, 25)
        assert stream.duration * stream.time_base == pytest.approx(31 / 25)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.profile == "High"
    found = video.decode(path)
    assert found.shape == frames.shape
    assert abs(found.astype(int) - frames).mean() < 3
    data = path.read_bytes()
    # Fast start: the index is before the frames.
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_file_keeps_a_comment(tmp_path):
    h264.write(tmp_path / "a.mp4", moving(2), comment="made by a test")
    h264.write(tmp_path / "b.mp4", moving(2))
    (tmp_path / "c.mp4").write_text("no video")
    found = [h264.comment_of(tmp_path / f"{name}.mp4") for name in "abcd"]
    assert found == ["made by a test", None, None, None]


def test_the_rate_is_the_one_asked_for(tmp_path):
    assert h264.write(tmp_path / "a.mp4", moving(20), fps=10) == 20
    assert video.frame_rate(tmp_path / "a.mp4") == 10


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_those_of_their_tags(colour, tmp_path):
    """BT.709 from Y = 0.2126 R + 0.7152 G + 0.0722 B, in studio range, and the file says so."""
    h264.write(tmp_path / "a.mp4", flat(colour), crf=1)
    red, green, blue = (each / 255 for each in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    wanted = (
        16 + 219 * luma,
        128 + 112 * (blue - luma) / (1 - 0.0722),
        128 + 112 * (red - luma) / (1 - 0.2126),
    )
    with av.open(str(tmp_path / "a.mp4")) as file:
        context = file.streams.video[0].codec_context
        tags = context.colorspace, context.color_primaries, context.color_trc, context.color_range
        assert tags == (1, 1, 1, 1)  # BT.709 in each of ITU-T H.273's tables; "MPEG", studio range.
        frame = next(file.decode(video=0))
    planes = [np.frombuffer(plane, np.uint8)[0] for plane in frame.planes]
    np.testing.assert_allclose(planes, wanted, atol=1.01)
    found = video.decode(tmp_path / "a.mp4")
    np.testing.assert_allclose(found[0, 8, 8], colour, atol=3)


def test_frames_are_taken_one_by_one(tmp_path):
    """Few frames are alive at a time, however many there are."""
    alive = []

    class Counted(np.ndarray):
        def __array_finalize__(self, obj):
            pass

    def frames():
        import gc
        import weakref

        for _ in range(200):
            frame = np.zeros((32, 48, 3), np.uint8).view(Counted)
            references.append(weakref.ref(frame))
            yield frame
            del frame
            gc.collect(0)
            alive.append(sum(each() is not None for each in references))

    references = []
    assert h264.write(tmp_path / "a.mp4", frames()) == 200
    assert max(alive) <= 3


@pytest.mark.parametrize(
    "frames,message",
    [
        ([], "write: no frames"),
        (
            np.zeros((2, 31, 48, 3), np.uint8),
            r"write: frames of shape \(31, 48, 3\), wanted .* even",
        ),
        (np.zeros((2, 32, 47, 3), np.uint8), r"write: frames of shape \(32, 47, 3\)"),
        (
            np.zeros((2, 32, 48, 2), np.uint8),
            r"write: frames of shape \(32, 48, 2\), wanted \[H, W, 3\]",
        ),
        (np.zeros((2, 32, 48), np.uint8), r"write: frames of shape \(32, 48\)"),
    ],
)
def test_frames_that_h264_cannot_hold_are_an_error(frames, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        h264.write(tmp_path / "a.mp4", frames)
    assert [*tmp_path.iterdir()] == []


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    for path in tmp_path / "missing" / "a.mp4", tmp_path:
        with pytest.raises(OSError) as error:
            h264.write(path, flat(COLOURS[0]))
        assert error.value.filename == str(path)


def test_what_fails_on_the_way_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"before")

    def failing():
        yield from flat(COLOURS[0], 30)
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        h264.write(tmp_path / "a.mp4", failing())
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"before"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from i3d_jax.video import h264\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "frames = np.random.default_rng(0).integers(0, 255, (40, 96, 96, 3)).astype(np.uint8)\n"
        "try:\n"
        "    h264.write(sys.argv[1], frames)\n"
        "except OSError as error:\n"
        "    print(error.filename)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.mp4")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.stdout.strip() == str(tmp_path / "a.mp4"), done.stderr
    assert [*tmp_path.iterdir()] == []


def test_records_are_written_as_before():
    """`write` shares code with `encode`, whose files must not change: no tags, no fast start."""
    data = h264.encode(itertools.islice(moving(20), 20))
    assert data.index(b"mdat") < data.index(b"moov")
