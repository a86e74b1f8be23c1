"""Text on pictures fits into its box, and is as large as it can be."""

import numpy as np
import pytest

from i3d_jax.pictures import layout, text
from i3d_jax.pictures.layout import Box

LONG = "an action that has a rather long name, of sixty letters, yes"
NAMES = [
    "x",
    "gjpqy ÅÉ|_",
    LONG,
    LONG * 40,
    "WWWWWWWWWWWWWWWWWWWW",
    "国語 العربية \U0001f3cf",  # The font has not all of these.
    "tab\there\nline\x1b[31m\x00",
    "$x^{2}$ _private \\frac",
    "f\udcff.mp4",  # A name that is no UTF-8.
    "",
    " ",
]


def ink(picture):
    """The box around all that is not paper, as slices; None: nothing."""
    drawn = (picture != layout.PAPER).any(-1)
    if not drawn.any():
        return None
    rows, columns = np.nonzero(drawn.any(1))[0], np.nonzero(drawn.any(0))[0]
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


@pytest.mark.parametrize("align", ["left", "centre", "right"])
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_no_letter_is_cut_off_or_outside_of_its_box(name, align):
    for width in 300, 61, 17:
        picture, box = layout.blank(120, 400), Box(40, 30, 40, width)
        line = text.draw(picture, box, name, size=30, least=12, align=align)
        found = ink(picture)
        if found is None:
            assert not line.text.strip()
            continue
        top, bottom, left, right = found
        assert box.top <= top and bottom <= box.top + box.height
        assert box.left <= left and right <= box.left + width
        # The same text with all the room of the world has as much ink: nothing was cut off.
        free = layout.blank(400, 2000)
        text.draw(free, Box(0, 0, 400, 2000), line.text, size=line.size)
        free_top, free_bottom, free_left, free_right = ink(free)
        assert (bottom - top, right - left) == (free_bottom - free_top, free_right - free_left)


def test_alignment_is_that_of_the_ink():
    for align, place in ("left", 30), ("right", 330):
        picture = layout.blank(60, 400)
        text.draw(picture, Box(10, 30, 40, 300), "Tjj", size=30, align=align)
        found = ink(picture)
        assert found is not None and abs(found[2 if align == "left" else 3] - place) <= 3


def test_text_shrinks_first_and_loses_its_middle_then():
    whole = text.fit(LONG, 5000, 30, 20)
    assert (whole.text, whole.size) == (LONG, 30)
    smaller = text.fit(LONG, whole.width - 1, 30, 20)
    assert smaller.text == LONG and 20 <= smaller.size < 30
    short = text.fit(LONG, 300, 30, 20)
    assert short.size == 20 and short.width <= 300 and short.text.count("…") == 1
    head, tail = short.text.split("…")
    assert LONG.startswith(head) and LONG.endswith(tail) and 0 <= len(head) - len(tail) <= 1
    # One more letter would not fit.
    assert text.measure(text.shortened(LONG, len(short.text) + 1), 20).width > 300


@pytest.mark.parametrize(
    "letters,wanted",
    [(9, "abcdefgh"), (8, "abcdefgh"), (7, "abc…fgh"), (2, "a…"), (1, "…"), (0, "")],
)
def test_the_ellipsis_stands_for_the_middle(letters, wanted):
    assert text.shortened("abcdefgh", letters) == wanted


def test_control_characters_are_drawn_as_escapes():
    assert text.fit("a\x1b[1m\n", 1000, 20, 20).text == r"a\x1b[1m\n"


@pytest.mark.parametrize(
    "seconds,length,decimals,wanted",
    [
        (0, 10, 0, "0 s"),
        (1.25, 10, 1, "1.2 s"),
        (59.96, 59.99, 1, "60.0 s"),
        (59.96, 80, 1, "1:00.0"),
        (65, 80, 0, "1:05"),
        (3725, 4000, 0, "1:02:05"),
        (65, 4000, 0, "0:01:05"),
        (-0.01, 10, 1, "0.0 s"),
        (90061, 100000, 0, "25:01:01"),
    ],
)
def test_times_are_written_as_players_do(seconds, length, decimals, wanted):
    assert text.clock(seconds, length, decimals) == wanted
