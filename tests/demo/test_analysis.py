"""What the page shows of a video."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import small_fvd
from support.videos import clip, damaged_mjpeg, encode, numbered, steady

from i3d_jax import models, predict, weights
from i3d_jax.demo import analysis
from i3d_jax.features import __main__ as features_command
from i3d_jax.timeline import heat
from i3d_jax.video import VideoError

FRAMES = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with weights and a video of numbered frames."""
    folder = tmp_path_factory.mktemp("demo")
    small_fvd.save_weights(folder)
    (folder / "numbered.mp4").write_bytes(steady(FRAMES))
    return folder


@pytest.fixture(scope="module")
def network(folder):
    return analysis.Network(str(folder / "small.safetensors"))


@pytest.fixture(scope="module")
def found(folder, network):
    found = analysis.analyse(folder / "numbered.mp4", network, 60)
    analysis.explain(found, network, analysis.likeliest(found, 1)[0])
    return found


def test_visitors_see_no_folders_of_the_server(network):
    assert network.label == "small.safetensors"


def test_the_classes_over_time_are_those_that_predict_writes(folder, found, tmp_path):
    weights = str(folder / "small.safetensors")
    arguments = ["--weights", weights, "--top-k", "3", "--timeline", str(tmp_path / "out")]
    assert predict.main([*arguments, str(folder / "numbered.mp4")]) == 0
    wanted = json.loads((tmp_path / "out" / "numbered.json").read_text())
    analysis.write_timeline(found, tmp_path / "own.json", 3)
    own = json.loads((tmp_path / "own.json").read_text())
    # They name the video and the weights without the server's folders.
    assert own.pop("video") == "numbered.mp4"
    assert own["about"]["weights"][0].pop("name") == "small.safetensors"
    del wanted["video"], wanted["about"]["weights"][0]["name"]
    assert own == wanted

    mean = {each["class"]: each["probability"] for each in wanted["mean"]["top"]}
    assert analysis.shares_of_video(found, 3) == mean
    # At 1 s: the row from frame 16 to 32, whose centre is at 0.96 s.
    (row,) = [row for row in wanted["rows"] if row["centre"] == pytest.approx(0.96)]
    assert analysis.shares_at(found, 1.0, 3) == {
        each["class"]: each["probability"] for each in row["top"]
    }
    table = analysis.curves(found, 2)
    best = [each["class"] for each in wanted["mean"]["top"][:2]]
    assert table["class"] == [name for name in best for _ in wanted["rows"]]
    assert table["seconds"][:2] == [0.32, 0.64]


def test_the_features_are_those_that_the_features_command_writes(
    folder, found, network, tmp_path, capsys
):
    video = str(folder / "numbered.mp4")
    weights = str(folder / "small.safetensors")
    out = tmp_path / "out"
    assert features_command.main([video, "--weights", weights, "--out", str(out)]) == 0
    analysis.write_features(found, network, tmp_path / "own.npz")
    with np.load(out / "numbered.npz") as wanted, np.load(tmp_path / "own.npz") as own:
        for name in "features", "start", "end", "centre", "frames":
            np.testing.assert_array_equal(own[name], wanted[name])
        abouts = [json.loads(str(each["about"])) for each in (own, wanted)]
    assert abouts[0]["made_by"].pop("weights") == ["small.safetensors"]
    del abouts[1]["made_by"]["weights"]
    assert abouts[0] == abouts[1]


@pytest.mark.parametrize("seconds,number", [(0, 0), (0.52, 13), (1.0, 25), (1.88, 47), (9, 47)])
def test_the_frame_is_that_of_the_time(found, seconds, number):
    image = analysis.frame_with_heat(found, seconds, *found.heat, "rgb")
    # The network sees 32 of 40 pixels: the frame's upper edge has no heat map over it.
    assert round((image[: image.shape[0] // 12].mean() - 20) / 3) == number
    assert image.shape == (360, 480, 3)


def test_the_heat_map_lies_over_the_square_that_the_network_sees(found):
    image = analysis.frame_with_heat(found, 1.0, *found.heat, "rgb").astype(int)
    # Frames are grey: colours are the map's. The square's side is 32 / 40 of 360.
    rows, columns = np.nonzero(np.ptp(image, -1) > 8)
    assert (rows.min(), rows.max() + 1) == (36, 324)
    assert (columns.min(), columns.max() + 1) == (96, 384)


def test_heat_maps_of_a_class_are_computed_once(found, network, monkeypatch):
    other = [number for number in analysis.likeliest(found, 7) if number not in found.heat][-1]
    analysis.explain(found, network, other)
    one, two = found.heat.values()
    assert one["rgb"].maps.shape == two["rgb"].maps.shape

    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(analysis.heat, "video_heat", fail)
    analysis.explain(found, network, other)
    del found.heat[other]


def test_motion_is_the_flow_to_the_next_frame_in_colours(found, tmp_path):
    # A texture that moves to the right, which is red; it stands still from frame 10 on.
    frames = clip(20, height=240, width=320)
    frames[10:] = frames[10]
    (tmp_path / "x.mp4").write_bytes(encode(frames, [*range(0, 800, 40)], "mp4", crf=5))
    found = found._replace(path=tmp_path / "x.mp4", frames=20)
    red, green, blue = analysis.flow_at(found, 0.2).mean((0, 1))
    assert red > 250 and green < 215 and blue < 215
    # The last frame has the motion of the one before.
    for seconds in 0.6, 0.76:
        still = analysis.flow_at(found, seconds)
        assert still.shape[0] == 360 and still.mean() > 250


def playlist(folder):
    """A playlist whose name is a video's, of a video that is on the server."""
    path = folder / "list.mp4"
    path.write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n"
        f"file://{folder / 'numbered.mp4'}\n#EXT-X-ENDLIST\n"
    )
    return path


def concatenation(folder):
    path = folder / "concat.mp4"
    path.write_text("ffconcat version 1.0\nfile numbered.mp4\n")
    return path


@pytest.mark.parametrize("make", [playlist, concatenation])
def test_files_that_name_other_files_of_the_server_are_refused(make, folder, network):
    with pytest.raises(VideoError, match="cannot be read as a video"):
        analysis.analyse(make(folder), network, 60)


@pytest.mark.parametrize(
    "content,reason",
    [
        (b"", "is empty"),
        (b"no video", "cannot be read as a video"),
        (steady(8), "too short: 8 frames at 25 per second, and at least 9 are needed"),
        (steady(40)[:2000], "cannot be read as a video"),
    ],
    ids=["empty", "text", "short", "cut"],
)
def test_what_is_no_video_is_said(content, reason, network, tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError) as error:
        analysis.analyse(path, network, 60)
    assert error.value.reason.startswith(reason)


def test_damage_is_told_without_folders_of_the_server(network, tmp_path):
    (tmp_path / "x.mkv").write_bytes(damaged_mjpeg([15]))
    (sentence,) = analysis.analyse(tmp_path / "x.mkv", network, 60).damage
    assert "damaged" in sentence and str(tmp_path) not in sentence


def test_networks_of_two_streams_have_heat_maps_of_each_and_rgb_comes_first(found, monkeypatch):
    at = np.array([0.5])
    maps = {
        "flow": heat.VideoHeat(np.zeros((1, 2, 2), np.float32), at),
        "rgb": heat.VideoHeat(np.ones((1, 2, 2), np.float32), at),
    }
    monkeypatch.setattr(heat, "video_heat", lambda *_, **__: maps)
    footprint = {"rgb": (250, 1), "flow": (250, 1)}
    network: Any = SimpleNamespace(heat=None, info=SimpleNamespace(footprint=footprint))
    found = found._replace(heat={})
    analysis.explain(found, network, 3)
    assert [*found.heat[3]] == ["rgb", "flow"]
    middles = [analysis.frame_with_heat(found, 1, 3, stream)[180, 240] for stream in found.heat[3]]
    # Viridis ends in yellow, and begins in violet.
    assert middles[0][0] > middles[0][2] + 50 and middles[1][2] > middles[1][1] + 20


def test_networks_that_take_whole_clips_are_refused_when_they_are_loaded(tmp_path):
    options = {"depth": 26, "width": 0.1, "non_local": "softmax"}
    network = models.build("i3d_r50", num_classes=7, **options)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))
    path = tmp_path / "x.safetensors"
    info = weights.Info("i3d_r50", tuple("abcdefg"), options, short_side=40, crop=32)
    weights.save(path, jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes), info)
    with pytest.raises(weights.WeightsError, match="x.safetensors: .* takes whole clips"):
        analysis.Network(str(path))


def test_a_long_video_is_refused_before_anything_is_computed(folder, network):
    called = []
    with pytest.raises(VideoError, match="takes 1.9 s, and 1.5 s are the most that are analysed"):
        analysis.analyse(folder / "numbered.mp4", network, 1.5, called.append)
    assert called == []


def test_a_video_that_is_longer_than_its_timestamps_say_is_not_computed_to_its_end(
    network, monkeypatch, tmp_path
):
    times = [*range(0, 80 * 40, 40)]
    (tmp_path / "x.mp4").write_bytes(encode(numbered(80, 32, 40), times, "mp4"))
    monkeypatch.setattr(analysis, "check", lambda *_: 1)
    with pytest.raises(VideoError, match="is longer than its timestamps say"):
        analysis.analyse(tmp_path / "x.mp4", network, 0.1)


def test_work_ends_when_nobody_waits_for_it(folder, network):
    class LeftError(Exception):
        pass

    def leave(part):
        assert 0 < part <= 1
        raise LeftError

    with pytest.raises(LeftError):
        analysis.analyse(folder / "numbered.mp4", network, 60, leave)
