"""Rows of logits of whole videos, computed as a stream."""

import dataclasses

import jax
import numpy as np
import pytest
from support.small_networks import SMALL, clip, small
from support.small_weights import INFO, small_variables
from support.videos import damaged_mjpeg, encode, moving, steady

from i3d_jax import flow, models, pixels, video, weights
from i3d_jax.models.timing import Timing
from i3d_jax.timeline import rows
from i3d_jax.video import h264

SIZES = dict(short_side=40, crop=32)


def write(path, content):
    path.write_bytes(content)
    return str(path)


def test_i3ds_rows_cover_16_frames_each_8_frames_apart():
    network = models.build("i3d", num_classes=7)
    # 20 frames: ceil(20 / 8) - 1 rows; the last one ends with the video.
    assert rows.row_spans(network.timing, 20).tolist() == [[0, 16], [8, 20]]
    assert rows.row_spans(network.timing, 9).tolist() == [[0, 9]]
    assert len(rows.row_spans(network.timing, 250)) == 31
    assert rows.tick_seconds(network, INFO) == pytest.approx(1 / 25)


@pytest.mark.parametrize(
    "name,footprint,wanted",
    [
        ("inception", {"rgb": (250, 1)}, [[0, 1 / 25], [1 / 25, 2 / 25]]),
        ("convnet_lstm", {"rgb": (50, 5)}, [[0, 0.2], [0.2, 0.4]]),
        ("c3d", {"rgb": (240, 1)}, [[0, 0.64], [0.64, 1.28]]),
        ("two_stream", {"rgb": (25, 10), "flow": (250, 1)}, [[0, 0.4], [0.4, 0.8]]),
    ],
)
def test_rows_of_the_other_networks_cover_their_ticks(name, footprint, wanted):
    network = models.build(name, num_classes=7)
    info = weights.Info(name, INFO.classes, footprint=footprint)
    spans = rows.row_spans(network.timing, 2) * rows.tick_seconds(network, info)
    np.testing.assert_allclose(spans, wanted)


def one_pass(network, variables, streams):
    """The rows of one pass, f32 [rows, K]."""
    batch = models.as_network_input({name: frames[None] for name, frames in streams.items()})
    _, ends = jax.jit(lambda x: network.apply(variables, x, endpoints=True))(batch)
    return np.asarray(ends["Logits"])[0]


@pytest.mark.parametrize("frames", [9, 50])
def test_rows_of_a_video_are_those_of_one_pass(frames, tmp_path):
    path = write(tmp_path / "a.mp4", h264.encode(moving(frames)))
    network = models.build("i3d", num_classes=7, **INFO.options)
    variables = small_variables()
    steps = []
    found = rows.video_rows(
        path, rows.LogitStream(network, variables, INFO), INFO, advance=steps.append
    )
    whole = pixels.to_unit(video.decode(path, **SIZES))
    wanted = one_pass(network, variables, {"rgb": whole})
    assert found.frames == frames == len(whole) and len(wanted) == -(-frames // 8) - 1
    np.testing.assert_allclose(found.logits, wanted, rtol=2e-5)
    assert found.spans[-1, 1] == pytest.approx(frames / 25)
    assert sum(steps) >= frames and max(steps) == 16


SLOW = pytest.mark.slow  # Compiles two networks, and flow.


@pytest.mark.parametrize(
    "name",
    [
        "inception",
        "convnet_lstm",
        "c3d",
        pytest.param("two_stream", marks=SLOW),
        pytest.param("fused_two_stream", marks=SLOW),
        pytest.param("two_stream_i3d", marks=SLOW),
    ],
)
def test_rows_of_every_network_are_those_of_one_pass(name, tmp_path):
    path = write(tmp_path / "a.mp4", h264.encode(moving(45)))
    network, entry = small(name), models.MODELS[name]
    snippet = network.timing.flow if "flow" in entry.test else 1
    footprint = {"rgb": (100, snippet if "flow" in entry.test else entry.test["rgb"][1])} | (
        {"flow": (100, 1)} if "flow" in entry.test else {}
    )
    options = {"width": 0.1} | SMALL[name][0]
    info = weights.Info(name, INFO.classes, options, footprint, **SIZES)
    variables = jax.jit(network.init)(jax.random.key(0), clip(SMALL[name][1], 1))
    found = rows.video_rows(path, rows.LogitStream(network, variables, info), info, flow.FAST)
    streams = {}
    for stream in footprint:
        frames = np.stack([*rows.frames_of(path, stream, info, flow.FAST)])
        streams[stream] = pixels.to_unit(frames) if stream == "rgb" else frames
    ticks = min(len(x) // network.timing.frames(each) for each, x in streams.items())
    whole = {each: x[: ticks * network.timing.frames(each)] for each, x in streams.items()}
    wanted = one_pass(network, variables, whole)
    assert len(found.logits) == len(found.spans) == network.timing.steps(ticks)
    size = abs(wanted).max()
    assert np.ptp(wanted, 0).max() > 0.01 * size > 0  # Rows differ.
    np.testing.assert_allclose(found.logits, wanted, rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("said", [30, 60])
def test_a_wrong_prediction_of_the_length_has_no_effect(said, tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", h264.encode(moving(45)))
    network = models.build("i3d", num_classes=7, **INFO.options)
    stream = rows.LogitStream(network, small_variables(), INFO)
    wanted = rows.video_rows(path, stream, INFO)
    monkeypatch.setattr(video, "predicted_length", lambda *_: said, raising=False)
    found = rows.video_rows(path, stream, INFO)
    assert wanted.frames == found.frames == 45
    np.testing.assert_array_equal(found.logits, wanted.logits)
    np.testing.assert_array_equal(found.spans, wanted.spans)


def test_frames_are_those_of_decode_and_of_flow(tmp_path):
    path = write(tmp_path / "a.mkv", encode(moving(12, 60, 96), [*range(0, 480, 40)]))
    info = dataclasses.replace(INFO, footprint={"rgb": (250, 3), "flow": (250, 1)})
    found = np.stack([*rows.frames_of(path, "rgb", info, flow.FAST)])
    np.testing.assert_array_equal(found, video.decode(path, stride=3, **SIZES))
    found = np.stack([*rows.frames_of(path, "rgb", info, flow.FAST, 2)])
    np.testing.assert_array_equal(found, video.decode(path, stride=3, frames=2, **SIZES))
    found = np.stack([*rows.frames_of(path, "flow", info, flow.FAST)])
    assert found.shape == (12, 32, 32, 2) and found.dtype == np.float32


def test_a_video_that_is_too_short_is_an_error(tmp_path):
    path = write(tmp_path / "a.mp4", steady(5))
    network = models.build("i3d", num_classes=7, **INFO.options)
    stream = rows.LogitStream(network, small_variables(), INFO)
    with pytest.raises(
        video.VideoError, match="too short: 5 frames at 25 per second, and at least 9"
    ):
        rows.video_rows(path, stream, INFO)


def test_memory_does_not_grow_with_the_video(tmp_path, monkeypatch):
    """No more than three chunks are decoded ahead of the network."""
    ahead = []

    def frames(*_):
        for number in range(400):
            ahead.append(number - fed[0])
            yield np.zeros((32, 32, 3), np.uint8)

    def feed(self, streams):
        fed[0] += 16
        return real(self, streams)

    fed, real = [0], rows.LogitStream.feed
    monkeypatch.setattr(rows, "frames_of", frames)
    monkeypatch.setattr(rows.LogitStream, "feed", feed)
    monkeypatch.setattr(video, "predicted_length", lambda *_: 400, raising=False)
    network = models.build("i3d", num_classes=7, **INFO.options)
    found = rows.video_rows("x", rows.LogitStream(network, small_variables(), INFO), INFO)
    assert len(found.logits) == 49 and max(ahead) < 3 * 16


def test_chunks_are_whole_steps_of_the_network():
    def ticks(name, frames, footprint=None):
        info = weights.Info(name, INFO.classes, footprint=footprint or {"rgb": (250, 1)})
        network = models.build(name, num_classes=7)
        shapes = {}
        stream = rows.LogitStream(network, shapes, info, frames)
        return stream.ticks

    assert [ticks("i3d", frames) for frames in (1, 8, 9, 16, 20)] == [8, 8, 16, 16, 24]
    assert ticks("inception", 5) == 5 and ticks("c3d", 16) == 1 and ticks("c3d", 17) == 2
    assert Timing(step=8).steps(16) == 2


def test_damage_that_shortens_a_video_is_seen(tmp_path):
    path = write(tmp_path / "a.mkv", damaged_mjpeg([17, 18, 19]))
    network = models.build("i3d", num_classes=7, **INFO.options)
    stream = rows.LogitStream(network, small_variables(), INFO)
    with pytest.warns(video.DamageWarning):
        found = rows.video_rows(path, stream, INFO)
    with pytest.warns(video.DamageWarning):
        assert found.frames == len(video.decode(path, **SIZES))
