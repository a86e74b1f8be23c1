"""Heat maps of whole videos are those of their clips."""

import dataclasses

import jax
import numpy as np
import pytest
from support.small_weights import INFO, small_variables
from support.videos import moving

from i3d_jax import flow, models, pixels, video, weights
from i3d_jax.evaluation import saliency
from i3d_jax.timeline import heat, rows
from i3d_jax.video import VideoError, h264

SIZES = dict(short_side=72, crop=64)


def written(folder, frames, name="a.mp4"):
    path = folder / name
    path.write_bytes(h264.encode(moving(frames, height=80, width=96)))
    return str(path)


def i3d(**changes):
    """A small I3D whose clips have 64 pixels, so that its last layer has 2x2 places."""
    return models.build("i3d", num_classes=7, **INFO.options), dataclasses.replace(
        INFO, **SIZES, **changes
    )


def random_variables(network, info, seed=0):
    clip = models.input_shapes(
        {name: (32 * network.timing.frames(name), 1) for name in info.footprint}, info.crop
    )
    shapes = jax.eval_shape(network.init, jax.random.key(0), clip)
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    return drawn | {"batch_stats": jax.tree.map(lambda x: abs(x) + 0.1, drawn["batch_stats"])}


def test_a_video_as_long_as_a_clip_has_the_clips_maps(tmp_path):
    network, info = i3d()
    variables, path = small_variables(), written(tmp_path, 32)
    seen = []
    (found,) = heat.video_heat(
        path, heat.HeatMaps(network, variables, info), 2, advance=seen.append
    ).values()
    clip = pixels.to_unit(video.decode(path, **SIZES))[None]
    _, maps = jax.jit(lambda x: saliency.grad_cam(variables, x, [2], network=network))(clip)
    wanted = np.asarray(saliency.normalised(maps["Mixed_5c"]))[0]
    assert wanted.shape == (4, 2, 2) and wanted.max() == 1
    np.testing.assert_allclose(found.maps, wanted, atol=1e-5)
    # The middles of 8 frames each.
    np.testing.assert_allclose(found.seconds, np.array([4, 12, 20, 28]) / 25)
    assert sum(seen) == 32


@pytest.mark.parametrize("frames", [80, 100, 121])
def test_windows_that_do_not_depend_on_each_other_are_joined_to_one_pass(frames, tmp_path):
    """C3D sees 16 frames at a time, whatever else is in the clip."""
    network = models.build("c3d", num_classes=7, width=0.0625)
    info = weights.Info(
        "c3d", INFO.classes, {"width": 0.0625}, {"rgb": (48, 1)}, short_side=72, crop=64
    )
    variables, path = random_variables(network, info), written(tmp_path, frames)
    heats = heat.HeatMaps(network, variables, info)
    (found,) = heat.video_heat(path, heats, 1).values()
    whole = pixels.to_unit(video.decode(path, **SIZES))[None, : frames // 16 * 16]
    _, maps = jax.jit(lambda x: saliency.grad_cam(variables, x, [1], network=network))(whole)
    wanted = np.asarray(saliency.normalised(maps["Conv_5b"]))[0]
    assert wanted.shape == (frames // 16, 4, 4) and 0 < wanted.mean() < 1
    np.testing.assert_allclose(found.maps, wanted, atol=1e-4)
    np.testing.assert_allclose(found.seconds, (np.arange(frames // 16) * 16 + 8) / 25)


@pytest.mark.parametrize("frames", [9, 17, 33, 61, 64, 65])
def test_every_eighth_frame_has_a_map_however_long_the_video_is(frames, tmp_path):
    network, info = i3d(footprint={"rgb": (26, 1)})
    heats = heat.HeatMaps(network, small_variables(), info)
    assert heats.ticks == 24
    windows = []
    heats.maps = lambda clip, _: (
        windows.append(len(clip["rgb"]))
        or {"Mixed_5c": np.ones((-(-len(clip["rgb"]) // 8), 2, 2), np.float32)}
    )
    (found,) = heat.video_heat(written(tmp_path, frames), heats, 0).values()
    assert len(found.maps) == len(found.seconds) == -(-frames // 8)
    assert max(windows) <= 26
    assert (np.diff(found.seconds) > 0).all()


@pytest.mark.slow  # Compiles flow.
def test_both_streams_have_maps(tmp_path):
    footprint = {"rgb": (3, 10), "flow": (30, 1)}
    network = models.build("two_stream", num_classes=7, width=0.0625)
    info = weights.Info(
        "two_stream", INFO.classes, {"width": 0.0625}, footprint, short_side=72, crop=64
    )
    heats = heat.HeatMaps(network, random_variables(network, info), info)
    found = heat.video_heat(written(tmp_path, 45), heats, 1, flow.FAST)
    assert {name: each.maps.shape for name, each in found.items()} == {
        "rgb": (4, 2, 2),
        "flow": (4, 2, 2),
    }
    np.testing.assert_allclose(found["flow"].seconds, [0.2, 0.6, 1.0, 1.4])


def test_between_two_steps_maps_change_evenly():
    maps = np.array([[[0.0, 1.0]], [[1.0, 1.0]], [[0.0, 0.0]]], np.float32)
    each = heat.VideoHeat(maps, np.array([1.0, 2.0, 3.0]))
    assert each.at(1.25).tolist() == [[0.25, 1.0]]
    assert each.at(0.0).tolist() == maps[0].tolist() and each.at(9.0).tolist() == maps[2].tolist()
    assert each.at(3.0).tolist() == maps[2].tolist()


def test_a_video_that_is_too_short_is_an_error_that_names_it(tmp_path):
    network, info = i3d()
    path = written(tmp_path, 5)
    with pytest.raises(VideoError, match=r"a\.mp4: too short: 5 frames at 25 per second"):
        heat.video_heat(path, heat.HeatMaps(network, small_variables(), info), 0)


def test_a_layer_that_is_not_there_is_an_error():
    network, info = i3d()
    with pytest.raises(ValueError, match="no layer 'Mixed_6a' with a grid; there are Conv_1a"):
        heat.HeatMaps(network, small_variables(), info, ["Mixed_6a"])


def test_only_a_few_windows_are_in_memory(tmp_path, monkeypatch):
    network, info = i3d(footprint={"rgb": (16, 1)})
    heats = heat.HeatMaps(network, small_variables(), info)
    decoded, explained = [], []

    def frames_of(*_):
        for number in range(400):
            decoded.append(number)
            yield np.zeros((64, 64, 3), np.uint8)

    def maps(clip, _):
        explained.append(len(decoded))
        return {"Mixed_5c": np.ones((2, 2, 2), np.float32)}

    monkeypatch.setattr(rows, "frames_of", frames_of)
    heats.maps = maps
    heat.video_heat("endless", heats, 0)
    hop = 8
    assert all(found <= 16 + (number + 4) * hop for number, found in enumerate(explained))
    assert len(explained) == 49
