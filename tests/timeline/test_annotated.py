"""Annotated videos and contact sheets: what is drawn where, and when."""

import itertools
import threading

import av
import numpy as np
import pytest
from PIL import Image
from support.videos import moving, numbered

from i3d_jax import flow, video, weights
from i3d_jax.pictures import bars, layout, text
from i3d_jax.timeline import annotated, contact_sheet
from i3d_jax.timeline.annotated import Explanation, Watched
from i3d_jax.timeline.heat import VideoHeat
from i3d_jax.timeline.rows import VideoRows
from i3d_jax.video import h264

LONG = "an action that has a rather long name, of sixty letters, yes"
INFO = weights.Info("i3d", tuple("abcdefg"), short_side=64, crop=32)
# Rows as I3D's: 16 frames, 8 apart; of 24 frames.
SPANS = np.array([[0.0, 0.64], [0.32, 0.96]])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("annotated") / "clip.mp4"
    path.write_bytes(h264.encode(moving(24)))
    return str(path)


def watched(path, logits=None, classes=INFO.classes, **options):
    """A video whose rows are made up."""
    if logits is None:
        logits = np.random.default_rng(0).normal(0, 2, (2, len(classes)))
    rows = VideoRows(np.asarray(logits, np.float32), SPANS, 24)
    count = min(5, len(classes))
    return Watched(path, rows, classes, annotated.likeliest(rows, count), 48, **options)


def heat(row, column):
    """A heat map of 4x4 that is hot in one place."""
    maps = np.zeros((2, 4, 4), np.float32)
    maps[:, row, column] = 1
    return VideoHeat(maps, np.array([0.2, 0.8]))


def bar_shares(picture, box):
    """The lengths of the bars, as shares of the longest that is possible."""
    part = layout.part(picture, box)
    found = []
    for colour in layout.CLASSES[:5]:
        rows = (part == colour).all(-1)
        row = rows[rows.sum(1).argmax()]
        whole = row | (part[rows.sum(1).argmax()] == layout.FAINT).all(-1)
        found.append(row.sum() / max(1, whole.sum()))
    return np.array(found)


@pytest.mark.parametrize(
    "number,share",
    [(0, 0.0), (7, 0.0), (8, 0.0625), (11, 0.4375), (12, 0.5625), (15, 0.9375), (16, 1), (23, 1)],
)
def test_bars_are_the_rows_probabilities_at_the_middle_of_the_frame(number, share, clip):
    """Rows' centres are at 8 and 16 frames; the middle of frame 11 is at 11.5, 3.5 / 8 between."""
    first, second = np.array([0.5, 0.2, 0.15, 0.1, 0.05]), np.array([0.1, 0.6, 0.05, 0.2, 0.05])
    logits = np.log([first, second])
    made = watched(clip, logits, tuple("abcde"))
    painter = annotated.Painter(made, 48, 64)
    found = bar_shares(painter.draw(number, np.zeros((48, 64, 3), np.uint8)), painter.panels.bars)
    order = np.argsort(-logits.mean(0), kind="stable")
    wanted = ((1 - share) * first + share * second)[order]
    np.testing.assert_allclose(found, wanted, atol=0.003)


def test_classes_keep_their_places_in_all_frames(clip, monkeypatch):
    names = []
    real = bars.draw
    monkeypatch.setattr(
        bars, "draw", lambda h, w, n, s, **more: names.append(tuple(n)) or real(h, w, n, s, **more)
    )
    logits = np.array([[0, 5, 0, 0, 0, 0, 1], [9, 0, 0, 0, 0, 0, 1]])
    assert len([*annotated.frames(watched(clip, logits))]) == 24
    assert {*names} == {("a", "b", "g", "c", "d")}


@pytest.mark.parametrize("height,width", [(240, 426), (426, 240), (300, 300)])
@pytest.mark.parametrize("row,column", [(0, 3), (3, 0), (1, 2)])
def test_heat_lies_on_the_square_that_the_network_sees(row, column, height, width):
    """Of a short side of 64 the network sees the middle 32: half of the short side."""
    explanation = Explanation(0, {"rgb": heat(row, column)}, {"rgb": INFO})
    made = watched("x", explanation=explanation)
    image = np.full((height, width, 3), 128, np.uint8)
    found = annotated.explained(made, "rgb", image, 0.5)
    side = min(height, width) // 2
    top, left = (height - side) // 2, (width - side) // 2
    changed = (found != image).any(-1)
    rows, columns = changed.nonzero()
    assert (rows.min(), rows.max() + 1) == (top, top + side)
    assert (columns.min(), columns.max() + 1) == (left, left + side)
    assert (found[top, left : left + side] == 255).all()  # The outline.
    # Viridis is yellow where it is hot, and violet where it is not.
    inside = found[top + 4 : top + side - 4, left + 4 : left + side - 4].astype(int)
    yellow = inside[..., 1] - inside[..., 2]
    y, x = (yellow == yellow.max()).nonzero()
    cell = side / 4
    assert (y.mean() + 4) // cell == row and (x.mean() + 4) // cell == column
    assert yellow.max() > 40 and yellow.min() < 0


def test_heat_is_that_of_the_moment():
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 0, 0] = maps[1, 3, 3] = 1
    moments = VideoHeat(maps, np.array([0.0, 1.0]))
    made = watched("x", explanation=Explanation(0, {"rgb": moments}, {"rgb": INFO}))
    image = np.full((64, 64, 3), 128, np.uint8)
    first, last = (annotated.explained(made, "rgb", image, each) for each in (0.0, 1.0))
    green = np.stack([first, last])[..., 1].astype(int)
    assert green[0, 20, 20] > green[1, 20, 20] and green[0, 44, 44] < green[1, 44, 44]


def test_streams_have_their_own_heat_and_flows_goes_over_rgb_if_that_has_none():
    image = np.full((64, 64, 3), 128, np.uint8)

    def drawn(streams):
        both = {name: heat(0, number) for number, name in enumerate(("rgb", "flow"))}
        chosen = {name: both[name] for name in streams}
        explanation = Explanation(0, chosen, dict.fromkeys(chosen, INFO))
        made = watched("x", explanation=explanation)
        return [annotated.explained(made, name, image, 0.5) for name in ("rgb", "flow")]

    rgb, moving = drawn(["rgb", "flow"])
    assert (rgb != moving).any()
    only = drawn(["rgb"])
    assert (only[0] == rgb).all() and (only[1] == image).all()
    only = drawn(["flow"])
    assert (only[0] == moving).all() and (only[1] == moving).all()


def test_the_written_video_has_a_frame_per_frame_and_plays_everywhere(clip, tmp_path):
    steps = []
    count = annotated.write_video(tmp_path / "out.mp4", watched(clip), steps.append)
    assert count == 24 == sum(steps)
    with av.open(str(tmp_path / "out.mp4")) as file:
        (stream,) = file.streams
        assert (stream.width, stream.height) == (1280, 720)
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.duration * stream.time_base == pytest.approx(24 / 25)
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    found = video.decode(tmp_path / "out.mp4")
    assert len(found) == 24
    painter = annotated.Painter(watched(clip), 48, 64)
    box = painter.panels.video
    side = annotated.fitting_side(clip, box.height, box.width)
    for number, frame in enumerate(video.rgb_frames(clip, short_side=side)):
        shown = layout.part(found[number], box)
        height, width = frame.shape[:2]
        left = (box.width - width) // 2
        part = shown[(box.height - height) // 2 :, left : left + width][:height]
        assert abs(part.astype(int) - frame).mean() < 6  # In frame `number` is frame `number`.


def test_a_portrait_video_is_drawn_in_portrait(tmp_path):
    (tmp_path / "p.mp4").write_bytes(h264.encode(moving(24, 64, 48)))
    first = next(annotated.frames(watched(str(tmp_path / "p.mp4"))))
    assert first.shape == (1280, 720, 3)


def test_flow_is_shown_in_colours(clip):
    """The scene of `moving` moves to the left by 4 pixels a frame, and down by 2."""
    made = watched(clip, flow_settings=flow.FAST)
    painter = annotated.Painter(made, 48, 64)
    box = painter.panels.flow
    assert box is not None
    shown = [layout.part(each, box) for each in annotated.frames(made)]
    middle = np.mean(shown, 0)[box.height // 4 : -box.height // 4, box.width // 3 : -box.width // 3]
    red, green, blue = middle.mean((0, 1))
    assert red < green and red < blue - 50  # Left is cyan-blue.
    plain = next(annotated.frames(watched(clip)))
    assert plain.shape == (720, 1280, 3)


def test_memory_does_not_grow_with_the_video(clip, monkeypatch):
    """However many frames there are, few are decoded or drawn ahead of the encoder."""
    decoded, ahead = itertools.count(), []

    def rgb_frames(path, *, frames=None, **_):
        for _ in range(frames or 300):
            decoded_so_far[0] = next(decoded)
            yield np.zeros((48, 64, 3), np.uint8)

    decoded_so_far = [0]
    monkeypatch.setattr(video, "rgb_frames", rgb_frames, raising=False)
    drawing = threading.Semaphore(8)
    real = annotated.Painter.draw

    def draw(self, *arguments):
        assert drawing.acquire(blocking=False), "more than 8 frames are drawn at a time"
        try:
            return real(self, *arguments)
        finally:
            drawing.release()

    monkeypatch.setattr(annotated.Painter, "draw", draw)
    first = None
    for number, _ in enumerate(annotated.frames(watched(clip))):
        first = decoded_so_far[0] if first is None else first
        ahead.append(decoded_so_far[0] - number)
    assert number == 299 and max(ahead) - ahead[0] <= annotated.MOST_AHEAD + 1
    assert first is not None and first < 20


SHAPES = [(240, 426), (426, 240), (2160, 3840), (18, 22), (100, 1600), (1600, 100), (300, 300)]


@pytest.mark.parametrize("classes", [1, 3, 700])
@pytest.mark.parametrize("height,width", SHAPES)
def test_no_text_is_cut_off_and_nothing_is_drawn_outside_of_the_panels(
    height, width, classes, monkeypatch, clip
):
    names = tuple(f"{LONG[:-3]}{number}" for number in range(classes))
    explanation = Explanation(0, {"rgb": heat(0, 3)}, {"rgb": INFO})
    options = dict(explanation=explanation, flow_settings=flow.FAST)
    made = watched(clip, classes=names, **options)
    real, lines = text.draw, []

    def noted(picture, box, label, **more):
        line = real(picture, box, label, **more)
        lines.append((box, line))
        return line

    monkeypatch.setattr(text, "draw", noted)
    painter = annotated.Painter(made, height, width)
    scale = min(1, 300 / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    picture = painter.draw(5, np.zeros((*size, 3), np.uint8), np.zeros((*size, 3), np.uint8))
    panels = painter.panels
    outside = np.ones(picture.shape[:2], bool)
    boxes = [panels.video, panels.flow, panels.flow_caption, panels.bars, panels.strip]
    for box in [*boxes, *panels.header]:
        assert box is not None
        outside[box.top : box.top + box.height, box.left : box.left + box.width] = False
    assert (picture[outside] == layout.PAPER).all()
    assert len(lines) > 6
    for box, line in lines:
        assert line.size >= text.READABLE and line.text
        free = layout.blank(100, 1400)
        real(free, layout.Box(0, 0, 100, 1400), line.text, size=line.size)
        tight = layout.blank(box.height, box.width)
        real(tight, layout.Box(0, 0, box.height, box.width), line.text, size=line.size)
        assert (free != layout.PAPER).sum() == (tight != layout.PAPER).sum()


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (34, 130), (130, 34), (50, 50), (48, 86)])
@pytest.mark.parametrize("height,width", [(542, 800), (640, 688), (177, 133)])
def test_frames_fill_their_box_and_are_whole(height, width, shape, tmp_path):
    (tmp_path / "a.mp4").write_bytes(h264.encode(numbered(2, *shape)))
    side = annotated.fitting_side(str(tmp_path / "a.mp4"), height, width)
    (frame,) = video.rgb_frames(str(tmp_path / "a.mp4"), short_side=side, frames=1)
    assert frame.shape[0] <= height and frame.shape[1] <= width
    longest = max(frame.shape[0] / height, frame.shape[1] / width)
    assert longest > 1 - (1 + max(shape) / min(shape)) / min(height, width)
    assert frame.shape[1] / frame.shape[0] == pytest.approx(shape[1] / shape[0], rel=0.02)


def test_a_contact_sheet_has_the_moments_in_their_order(tmp_path):
    path = str(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(h264.encode(numbered(24)))
    explanation = Explanation(1, {"rgb": heat(0, 3)}, {"rgb": INFO})
    plain = contact_sheet.draw(watched(path))
    assert plain.shape[1] == contact_sheet.WIDTH
    # 8 moments of 24 frames: the middles of 8 thirds of 3 frames are frames 1, 4, 7, ...
    cell = (contact_sheet.WIDTH - 16) // 8
    levels = [plain[40, 16 + number * cell + cell // 2].mean() for number in range(8)]
    np.testing.assert_allclose(levels, 20 + 3 * np.arange(1, 24, 3), atol=2)
    with_heat = contact_sheet.draw(watched(path, explanation=explanation))
    both = watched(path, explanation=explanation, flow_settings=flow.FAST)
    contact_sheet.write(tmp_path / "a.png", both)
    with Image.open(tmp_path / "a.png") as image:
        whole = np.asarray(image)
    heights = [each.shape[0] for each in (plain, with_heat, whole)]
    assert heights[0] + 80 < heights[1] < heights[2] - 80
    np.testing.assert_array_equal(whole[:140], plain[:140])  # Frames and their times.
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.mp4", "a.png"]


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_a_contact_sheet_of_few_frames_repeats_them(frames, tmp_path):
    (tmp_path / "a.mp4").write_bytes(h264.encode(numbered(frames)))
    rows = VideoRows(np.zeros((1, 7), np.float32), np.array([[0, frames / 25]]), frames)
    made = Watched(str(tmp_path / "a.mp4"), rows, INFO.classes, np.arange(5), 48, None, flow.FAST)
    assert contact_sheet.draw(made).shape[1] == contact_sheet.WIDTH
