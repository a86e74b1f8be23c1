"""Bars, time lines, contact sheets, and where they go."""

import itertools

import numpy as np
import pytest

from i3d_jax.pictures import bars, layout, sheet, strip, text
from i3d_jax.pictures.layout import Box

LONG = "an action that has a rather long name, of sixty letters, yes"


def colour_length(picture, colour):
    """The most pixels of a colour in a row."""
    return (picture == colour).all(-1).sum(1).max()


@pytest.mark.parametrize("height,width", [(446, 420), (380, 688), (300, 1000)])
def test_bars_are_as_long_as_probabilities_say(height, width):
    shares = [0.75, 0.25, 0.004, 0.0, 1.0]
    picture = bars.draw(height, width, ["a", LONG, "c", "d", "e"], shares)
    assert picture.shape == (height, width, 3)
    whole = colour_length(picture, layout.CLASSES[4])
    assert 0.5 * width < whole < width
    for number, share in enumerate(shares):
        assert abs(colour_length(picture, layout.CLASSES[number]) - share * whole) <= 0.5


@pytest.mark.parametrize("height", [120, 200, 446, 542])
def test_as_many_bars_as_fit_are_not_cut_off(height):
    count = bars.fitting(height)
    assert count * 26 * 2 < height
    picture = bars.draw(height, 400, ["gjpq"] * count, [0.5] * count)
    assert (picture[-1] == layout.PAPER).all()  # There is a gap below the last one.
    drawn = (picture != layout.PAPER).any((1, 2))
    blocks = sum(1 for value, _ in itertools.groupby(drawn) if value)
    assert blocks >= count
    for number in range(count):
        assert colour_length(picture, layout.CLASSES[number % 8]) > 100


def test_at_least_one_bar_fits():
    assert bars.fitting(10) == 1
    assert bars.draw(75, 50, [LONG], [1.0]).shape == (75, 50, 3)


def line(picture, number):
    """Rows of a class's colour in each column, from the top of the picture; nan: none."""
    drawn = (picture == layout.CLASSES[number]).all(-1)
    rows = np.where(drawn, np.arange(len(picture))[:, None], np.nan)
    return np.array(
        [np.nanmean(each) if drawn[:, i].any() else np.nan for i, each in enumerate(rows.T)]
    )


def test_a_time_line_shows_probabilities_at_their_times():
    shares = np.array([[0.0, 0.5], [1.0, 0.5], [0.0, 0.5]], np.float32)
    made = strip.Strip(160, 800, np.array([2.0, 5.0, 8.0]), shares, 10.0)
    plot = made.plot

    def level(number, seconds):
        rows = line(made.picture, number)
        return 1 - (rows[made.column(seconds)] - plot.top) / plot.height

    assert level(0, 5.0) == pytest.approx(1, abs=0.06)
    assert level(0, 3.5) == pytest.approx(0.5, abs=0.06) == pytest.approx(level(0, 6.5), abs=0.06)
    assert level(1, 0.5) == pytest.approx(0.5, abs=0.06) == pytest.approx(level(1, 9.5), abs=0.06)
    assert made.column(0) == plot.left and made.column(10) == plot.left + plot.width - 1


def test_a_single_row_is_a_level_line():
    made = strip.Strip(160, 800, np.array([0.3]), np.array([[0.5]], np.float32), 0.6)
    rows = line(made.picture, 0)[made.plot.left : made.plot.left + made.plot.width]
    assert np.nanmax(rows) - np.nanmin(rows) < 0.5 and np.isfinite(rows).mean() > 0.99


def test_many_rows_in_a_column_are_averaged():
    shares = np.tile(np.array([[0.2], [0.6]], np.float32), (50_000, 1))
    made = strip.Strip(160, 800, np.arange(100_000) * 0.32 + 0.32, shares, 32_000.0)
    rows = line(made.picture, 0)[made.plot.left + 5 : made.plot.left + made.plot.width - 5]
    level = 1 - (rows - made.plot.top) / made.plot.height
    np.testing.assert_allclose(level, 0.4, atol=0.06)


@pytest.mark.parametrize("width", [300, 688, 1248])
@pytest.mark.parametrize("length", [0.36, 3.16, 10.0, 59.9, 61, 600, 3600, 36_000, 400_000])
def test_a_time_line_of_any_length_has_labels_that_do_not_overlap(length, width, monkeypatch):
    drawn = []
    real = text.draw

    def noted(picture, box, label, **options):
        drawn.append((box, label))
        return real(picture, box, label, **options)

    monkeypatch.setattr(text, "draw", noted)
    shares = np.full((2, 1), 0.5, np.float32)
    strip.Strip(130, width, np.array([0, length]), shares, length)
    times = [(box, label) for box, label in drawn if "%" not in label]
    assert len(times) >= 2 or width < 400
    assert len({label for _, label in times}) == len(times)
    for (before, _), (after, _) in itertools.pairwise(times):
        assert before.left + before.width < after.left
    assert all(0 <= box.left and box.left + box.width <= width for box, _ in times)


def test_the_cursor_is_at_its_time_and_changes_nothing_else():
    made = strip.Strip(160, 800, np.array([1.0]), np.array([[0.5]], np.float32), 10.0)
    before = made.picture.copy()
    for seconds in 0.0, 4.0, 10.0, 99.0:
        changed = (made.at(seconds) != made.picture).any((0, 2)).nonzero()[0]
        middle = made.column(seconds)
        assert middle in changed and abs(changed - middle).max() <= 9
    assert made.column(99.0) == made.column(10.0)
    np.testing.assert_array_equal(made.picture, before)


SHAPES = [(240, 426), (426, 240), (224, 224), (100, 1600), (1600, 100), (100, 101), (101, 100)]


@pytest.mark.parametrize("with_flow", [False, True])
@pytest.mark.parametrize("height,width", SHAPES)
def test_panels_lie_inside_and_do_not_overlap(height, width, with_flow):
    found = layout.panels(height, width, with_flow=with_flow, lines=2, size=26)
    portrait = height > width
    assert (found.height, found.width) == ((1280, 720) if portrait else (720, 1280))
    boxes = [found.video, found.bars, found.strip, *found.header]
    if with_flow:
        assert found.flow is not None and found.flow_caption is not None
        assert text.measure("flow", 26).width <= found.flow_caption.width
        boxes += [found.flow, found.flow_caption]
    count = np.zeros((found.height, found.width), int)
    for box in boxes:
        assert min(box) > 0
        count[box.top : box.top + box.height, box.left : box.left + box.width] += 1
    assert count.max() == 1 and count.sum() == sum(box.height * box.width for box in boxes)
    assert bars.fitting(found.bars.height) >= 5 and found.bars.width >= 384


def test_an_image_is_put_into_the_middle_and_cut_to_its_box():
    picture, box = layout.blank(20, 30), Box(2, 3, 10, 12)
    assert layout.place(picture, box, np.zeros((4, 6, 3), np.uint8)) == Box(5, 6, 4, 6)
    assert ((picture == 0).all(-1)).sum() == 24 and (picture[5:9, 6:12] == 0).all()
    layout.place(picture, box, np.zeros((40, 60, 3), np.uint8))
    assert (layout.part(picture, box) == 0).all() and (picture == 0).all(-1).sum() == 120


def test_a_sheet_shows_every_image_in_its_cell_and_shape():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    shapes = [(40, 60), (60, 40), (10, 10)]
    images = [np.full((*s, 3), c, np.uint8) for s, c in zip(shapes, colours, strict=True)]
    picture = sheet.sheet(images, ["one", LONG, ""], 2, title=LONG * 3, width=500)
    assert picture.shape[1] == 500
    tops = []
    for (height, width), colour in zip(shapes, colours, strict=True):
        rows, columns = ((picture == colour).all(-1)).nonzero()
        high, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == high * wide  # It is whole.
        assert high / wide == pytest.approx(height / width, rel=0.02)
        assert max(high, wide) > 180
        tops.append((rows.min(), columns.min()))
    assert tops[0][1] < tops[1][1] and tops[2][0] > tops[0][0]
    assert (picture[:, :16] == layout.PAPER).all() and (picture[:, -16:] == layout.PAPER).all()


def test_a_sheet_of_nothing_or_of_too_many_columns_is_an_error():
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="sheet: 0 images and 0 captions"):
        sheet.sheet([], [], 3)
    with pytest.raises(ValueError, match="sheet: 1 images and 2 captions"):
        sheet.sheet([image], ["a", "b"], 3)
    with pytest.raises(ValueError, match="sheet: 100 columns do not fit into 200 pixels"):
        sheet.sheet([image], ["a"], 100, width=200)
