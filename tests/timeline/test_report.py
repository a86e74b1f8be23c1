"""Timelines as JSON and as pictures, and where they go."""

import json
import struct

import numpy as np
import pytest

from i3d_jax.timeline import report

SPANS = np.array([[0, 0.64], [0.32, 0.96]])
LOGITS = np.array([[0, 0, np.log(2)], [np.log(6), 0, 0]], np.float32)
CLASSES = ("run", "jump", "sit")


def test_a_description_has_rows_in_seconds_with_their_likeliest_classes_and_the_mean():
    found = report.describe("a.mp4", {"fps": 25.0}, SPANS, LOGITS, CLASSES, 2)
    assert found["video"] == "a.mp4" and found["about"]["fps"] == 25.0
    first, second = found["rows"]
    assert [first[name] for name in ("start", "centre", "end")] == [0, 0.32, 0.64]
    assert second["centre"] == pytest.approx(0.64)
    assert [each["class"] for each in first["top"]] == ["sit", "run"]  # Of equal ones the first.
    # exp: 1, 1, 2 and 6, 1, 1.
    assert [each["probability"] for each in first["top"]] == pytest.approx([1 / 2, 1 / 4])
    assert second["top"][0]["probability"] == pytest.approx(6 / 8)
    assert second["top"][0]["logit"] == pytest.approx(np.log(6))
    # The mean of the logits: log(6) / 2, 0, log(2) / 2.
    top = found["mean"]["top"]
    assert [each["class"] for each in top] == ["run", "sit"]
    assert top[0]["logit"] == pytest.approx(np.log(6) / 2)
    json.dumps(found)


def picture(tmp_path, monkeypatch, **options):
    """Writes a picture; returns the axes, and the size of the PNG in pixels."""
    from matplotlib import figure

    made, subplots = [], figure.Figure.subplots
    monkeypatch.setattr(
        figure.Figure, "subplots", lambda self: made.append(subplots(self)) or made[0]
    )
    wanted = dict(title="a.mp4", spans=SPANS, logits=LOGITS, classes=CLASSES, top_k=2) | options
    report.write_picture(tmp_path / "a.png", **wanted)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    return made[0], struct.unpack(">II", data[16:24])


def test_a_picture_has_the_likeliest_classes_over_seconds(tmp_path, monkeypatch):
    axes, size = picture(tmp_path, monkeypatch)
    # Mean probabilities: (1/4 + 6/8) / 2, (1/4 + 1/8) / 2, (1/2 + 1/8) / 2.
    assert [line.get_label() for line in axes.lines] == ["run", "sit"]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0.32, 0.64])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1 / 4, 6 / 8])
    assert axes.get_xlabel() == "time in seconds" and axes.get_xlim() == (0, 0.96)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["run", "sit"]
    assert size == (1200, 480)


@pytest.mark.parametrize(
    "name", ["$10 bill $", "_hidden", "跳舞", "line\nbreak", "x" * 300, "back\\slash {"]
)
def test_every_class_name_can_be_drawn(name, tmp_path, monkeypatch):
    axes, _ = picture(tmp_path, monkeypatch, classes=(name, "b", "c"), title=name, top_k=3)
    assert len(axes.get_legend().get_texts()) == 3


def test_a_single_row_is_a_point(tmp_path, monkeypatch):
    axes, _ = picture(tmp_path, monkeypatch, spans=SPANS[:1], logits=LOGITS[:1])
    assert axes.lines[0].get_marker() == "o"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "a/x.mp4", "a/b/x.mp4", "a/b/y.mkv", "c/x.mp4", "c/x.avi":
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def targets(folder, *names):
    found = report.targets([str(name) for name in names], folder / "out")
    return {path: str(target.relative_to(folder / "out")) for path, target in found}


def test_equal_names_from_different_folders_stay_apart(folder):
    assert targets(folder, "a/x.mp4", "c/x.mp4") == {"a/x.mp4": "a/x", "c/x.mp4": "c/x"}
    assert targets(folder, "a/x.mp4", "a/b/x.mp4", folder / "c/x.mp4") == {
        "a/x.mp4": "a/x",
        "a/b/x.mp4": "a/b/x",
        f"{folder}/c/x.mp4": "c/x",
    }


def test_a_single_video_goes_right_into_the_folder(folder):
    assert targets(folder, "a/b/y.mkv") == {"a/b/y.mkv": "y"}
    assert targets(folder, "a/b/y.mkv", "a/b/x.mp4") == {"a/b/y.mkv": "y", "a/b/x.mp4": "x"}


def test_a_folders_videos_keep_their_folders(folder):
    assert targets(folder, "a") == {"a/x.mp4": "x", "a/b/x.mp4": "b/x", "a/b/y.mkv": "b/y"}


def test_a_video_that_is_named_twice_is_written_once(folder):
    assert targets(folder, "a/x.mp4", "a/x.mp4") == {"a/x.mp4": "x"}


@pytest.mark.parametrize("names", [("c",), ("c/x.mp4", "c/x.avi"), ("a", "c/x.mp4")])
def test_two_videos_of_one_timeline_are_an_error_that_names_both(names, folder):
    (folder / "c" / "x.avi").touch()
    with pytest.raises(ValueError, match=r"out/x.json: the timelines of .*x.* and .*x.* go there"):
        targets(folder, *names)


def test_a_file_that_is_no_timeline_is_not_replaced(folder):
    (folder / "out").mkdir()
    (folder / "out" / "y.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="y.json: is there already, and no timeline"):
        targets(folder, "a/b/y.mkv")
    found = report.describe("a/b/y.mkv", {}, SPANS, LOGITS, CLASSES, 2)
    (folder / "out" / "y.json").write_text(json.dumps(found))
    assert targets(folder, "a/b/y.mkv") == {"a/b/y.mkv": "y"}
