"""What is asked of drawings is checked before the work begins."""

import pathlib

import jax
import numpy as np
import pytest
from PIL import Image
from support.small_weights import INFO, small_variables

from i3d_jax import models, weights
from i3d_jax.pictures import png
from i3d_jax.timeline import annotated, contact_sheet, drawing
from i3d_jax.timeline.drawing import Drawing
from i3d_jax.video import h264

CLASSES = ("playing cricket", "playing cards", "Golf Putting", "yoga")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to("clip.mp4")
    (tmp_path / "folder.mp4").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "out,inputs,message",
    [
        ("out.mp4", ["clip.mp4", "b.mp4"], "--video: 2 videos to draw, wanted one"),
        ("out.mp4", [], "--video: 0 videos to draw, wanted one"),
        ("out.avi", ["clip.mp4"], "--video: out.avi has another extension than .mp4"),
        ("out", ["clip.mp4"], "--video: out has another extension than .mp4"),
        ("no/out.mp4", ["clip.mp4"], "--video: no/out.mp4 cannot be written: .* no folder no"),
        ("folder.mp4", ["clip.mp4"], "--video: folder.mp4 is a folder, wanted a file"),
        ("clip.mp4", ["clip.mp4"], "--video: clip.mp4 is the video to read; name another file"),
        ("link.mp4", ["clip.mp4"], "--video: link.mp4 is the video to read"),
        ("clip.mp4", ["./folder.mp4/../clip.mp4"], "--video: clip.mp4 is the video to read"),
    ],
)
def test_files_that_cannot_be_meant_are_an_error(out, inputs, message, folder):
    with pytest.raises(ValueError, match=message):
        Drawing(pathlib.Path(out), None).check_files(inputs)


def test_only_files_of_its_own_are_replaced(folder):
    (folder / "other.mp4").write_bytes((folder / "clip.mp4").read_bytes())
    Image.new("RGB", (4, 4)).save(folder / "other.png")
    (folder / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="--video: other.mp4 is there already, and is no annot"):
        Drawing(pathlib.Path("other.mp4"), None).check_files(["clip.mp4"])
    for name in "other.png", "text.png":
        with pytest.raises(ValueError, match=f"--picture: {name} is there already, and is no co"):
            Drawing(None, pathlib.Path(name)).check_files(["clip.mp4"])
    h264.write("own.mp4", np.zeros((1, 32, 32, 3), np.uint8), comment=annotated.COMMENT)
    png.write(pathlib.Path("own.png"), np.zeros((4, 4, 3), np.uint8), contact_sheet.SOFTWARE)
    Drawing(pathlib.Path("own.mp4"), pathlib.Path("own.png")).check_files(["clip.mp4"])


def test_a_picture_is_a_png(folder):
    with pytest.raises(ValueError, match="--picture: a.jpg has another extension than .png"):
        Drawing(None, pathlib.Path("a.jpg")).check_files(["clip.mp4"])
    Drawing(pathlib.Path("OUT.MP4"), pathlib.Path("a.PNG")).check_files(["clip.mp4"])
    Drawing(pathlib.Path("a.mp4"), None).check_files(["missing.mp4"])  # Reading it will fail.


@pytest.mark.parametrize("number", range(4))
def test_classes_are_found_by_name(number):
    assert drawing.class_index(CLASSES[number], CLASSES) == number


@pytest.mark.parametrize(
    "name,message",
    [
        ("playing criket", "none of the 4 classes is 'playing criket'; .* 'playing cricket'"),
        ("golf putting", "'golf putting'; the nearest are 'Golf Putting'"),
        ("zzz", "'zzz'; none is similar"),
        ("", "''; none is similar"),
    ],
)
def test_a_misspelt_class_is_an_error_that_names_similar_ones(name, message):
    with pytest.raises(ValueError, match=f"--explain-class: .*{message}"):
        drawing.class_index(name, CLASSES)


def test_two_networks_of_a_stream_have_no_common_heat_map():
    network = models.build("i3d", num_classes=7, **INFO.options)
    networks = [(network, small_variables(), INFO)] * 2
    wanted = Drawing(None, pathlib.Path("a.png"), explain=True)
    with pytest.raises(ValueError, match="--explain: one and two take rgb, wanted one network"):
        wanted.explainer(["one", "two"], networks)
    assert wanted._replace(explain=False).explainer(["one", "two"], networks) is None


def test_a_network_without_heat_maps_is_named(monkeypatch):
    def no_maps(*_):
        raise ValueError("Logits has no grid")

    monkeypatch.setattr(drawing, "HeatMaps", no_maps)
    info = weights.Info("i3d", INFO.classes)
    wanted = Drawing(None, pathlib.Path("a.png"), explain=True)
    with pytest.raises(ValueError, match="--explain: w: Logits has no grid"):
        wanted.explainer(["w"], [(models.build("i3d", num_classes=7), jax.numpy.zeros(1), info)])
