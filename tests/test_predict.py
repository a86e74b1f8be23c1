"""The command that classifies videos."""

import dataclasses
import json

import av.error
import jax
import numpy as np
import pytest
from support.small_weights import INFO, small_variables
from support.videos import damaged_mjpeg

from i3d_jax import flow, models, pixels, predict, video, weights
from i3d_jax.flow.videos import flow_of_frames
from i3d_jax.video import h264


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with tiny weights, good videos and bad ones."""
    folder = tmp_path_factory.mktemp("predict")
    weights.save(folder / "w.safetensors", small_variables(), INFO)
    rng = np.random.default_rng(0)
    for name, frames in ("good.mp4", 20), ("short.mp4", 5), ("nine.mp4", 9), ("other.mp4", 30):
        (folder / name).write_bytes(
            h264.encode(rng.integers(0, 255, (frames, 48, 64, 3)).astype(np.uint8))
        )
    (folder / "text.mp4").write_text("hello")
    (folder / "empty.mp4").write_bytes(b"")
    return folder


def run(folder, *arguments):
    return predict.main(["--weights", str(folder / "w.safetensors"), *arguments])


def test_bad_videos_are_named_and_the_others_classified(files, capsys):
    names = ["good.mp4", "missing.mp4", "text.mp4", "empty.mp4", "short.mp4", "nine.mp4"]
    assert run(files, "--json", "--top-k", "2", *(str(files / name) for name in names)) == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [(line["video"], line["frames"]) for line in found] == [
        (str(files / "good.mp4"), 20),
        (str(files / "nine.mp4"), 9),
    ]
    assert all(len(line["top"]) == 2 for line in found)
    errors = [line for line in err.splitlines() if str(files) in line]
    assert [line.split(":")[0] for line in errors] == [str(files / name) for name in names[1:5]]
    assert "too short: 5 frames at 25 per second, and at least 9" in err
    assert "Traceback" not in err


def test_the_intact_part_of_a_damaged_video_is_classified_and_the_loss_named(files, capsys):
    (files / "damaged.mkv").write_bytes(damaged_mjpeg([5, 6]))
    assert run(files, str(files / "damaged.mkv"), str(files / "good.mp4")) == 0
    out, err = capsys.readouterr()
    for name in "damaged.mkv", "good.mp4":
        assert f"{files / name} (20 frames)" in out
    (line,) = [line for line in err.splitlines() if "damaged" in line]
    message = "is damaged: left out: 2 packets that could not be decoded"
    assert line == f"{files / 'damaged.mkv'}: {message}"


def test_a_folder_stands_for_all_its_videos(files, tmp_path, capsys):
    for name in "b/2.mp4", "b/1.MKV", "a.mp4", ".hidden.mp4", "notes.txt":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((files / "good.mp4").read_bytes())
    assert run(files, "--json", str(tmp_path), str(files / "good.mp4")) == 0
    found = [json.loads(line)["video"] for line in capsys.readouterr().out.splitlines()]
    assert found == [
        *(f"{tmp_path}/{name}" for name in ("a.mp4", "b/1.MKV", "b/2.mp4")),
        str(files / "good.mp4"),
    ]


def test_a_folder_without_videos_is_one_line_and_status_2(files, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no video")
    assert run(files, str(files / "good.mp4"), str(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(f"{tmp_path}: has no videos\n") and err.count("\n") == 1


@pytest.mark.parametrize(
    "error,text",
    [
        (MemoryError("10 GB"), "not enough memory: 10 GB"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
            "not enough memory: RESOURCE_EXHAUSTED: Out ",
        ),
        (
            jax.errors.JaxRuntimeError("INTERNAL: check failed"),
            "JaxRuntimeError: INTERNAL: check failed",
        ),
        (av.error.ExternalError(0, "no"), "no"),
    ],
)
@pytest.mark.parametrize("where", ["cannot be read", "cannot be classified"])
def test_an_error_in_a_video_does_not_end_the_command(
    where, error, text, files, monkeypatch, capsys
):
    class Logits:
        def __new__(cls, streams):
            if where == "cannot be classified" and streams["rgb"] == "bad":
                raise error
            return np.arange(7.0)

    def read(path, *_):
        if where == "cannot be read" and path == "bad":
            raise error
        return {"rgb": path}

    monkeypatch.setattr(predict, "read_clips", read)
    monkeypatch.setattr(predict, "classifier", lambda name: predict.Classifier(Logits, None, INFO))
    assert predict.main(["--json", "before", "bad", "after"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["video"] for line in out.splitlines()] == ["before", "after"]
    assert err.startswith(f"bad: {where}: ") and text in err and err.count("\n") == 1


def test_without_json_the_output_is_a_table(files, capsys):
    assert run(files, str(files / "good.mp4")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{files / 'good.mp4'} (20 frames)" and len(out) == 6 and "%" in out[1]


def test_lengths_are_compiled_by_bucket(files):
    logits, network, info = predict.classifier(str(files / "w.safetensors"))
    lengths = [
        network.timing.ticks({"rgb": frames}, {"rgb": 250})
        for frames in (9, 16, 17, 79, 241, 250, 999)
    ]
    assert lengths == [16, 16, 32, 80, 250, 250, 250]
    streams = predict.read_clips(str(files / "good.mp4"), network, info)
    assert streams.keys() == {"rgb"} and streams["rgb"].shape == (20, 32, 32, 3)
    np.testing.assert_array_equal(logits(streams), logits({"rgb": pixels.loop(streams["rgb"], 32)}))


@pytest.fixture(scope="module")
def streams(files):
    """`files` with weights of a flow network and of a two-stream network."""
    flow_info = dataclasses.replace(INFO, footprint={"flow": (250, 1)})
    weights.save(files / "flow.safetensors", small_variables(1, channels=2), flow_info)
    network = models.build("two_stream", num_classes=7, width=0.1)
    footprint = {"rgb": (3, 10), "flow": (30, 1)}
    clip = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float32), models.input_shapes(footprint, 32)
    )
    sizes = dict(short_side=40, crop=32)
    both_info = weights.Info("two_stream", INFO.classes, {"width": 0.1}, footprint, **sizes)
    variables = jax.jit(network.init)(jax.random.key(0), clip)
    weights.save(files / "both.safetensors", variables, both_info)
    return files


def logits_of(capsys, *arguments):
    """Runs the command on one video; returns the printed logits by class."""
    flags = ["--json", "--top-k", "7", "--flow-preset", "fast"]
    assert predict.main([*flags, *map(str, arguments)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    return {each["class"]: each["logit"] for each in json.loads(line)["top"]}


def computed_flow(path):
    """The flow of a video as a network takes it."""
    flows = flow_of_frames(video.grey(path, short_side=40), flow.FAST)
    return pixels.crop(np.stack([pixels.flow_unit(each) for each in flows]), 32)


@pytest.mark.slow  # Compiles whole networks.
def test_a_flow_network_takes_the_videos_flow(streams, capsys):
    variables, info = weights.read(streams / "flow.safetensors")
    clip = computed_flow(streams / "good.mp4")
    assert clip.shape == (20, 32, 32, 2) and abs(clip).max() > 0.01
    network = models.build("i3d", num_classes=7, **info.options)
    wanted = np.asarray(jax.jit(network.apply)(variables, pixels.loop(clip, 32)[None]))[0]
    for stream in ([], ["--stream", "flow"]):
        found = logits_of(
            capsys, "--weights", streams / "flow.safetensors", *stream, streams / "good.mp4"
        )
        np.testing.assert_allclose([found[name] for name in INFO.classes], wanted, rtol=1e-4)


def test_logits_of_several_weights_are_added(streams, capsys):
    names = [["--weights", streams / f"{name}.safetensors"] for name in ("w", "flow")]
    rgb, moving = (logits_of(capsys, *name, streams / "good.mp4") for name in names)
    found = logits_of(capsys, *names[0], *names[1], "--stream", "both", streams / "good.mp4")
    assert found == pytest.approx({name: rgb[name] + moving[name] for name in rgb}, rel=1e-5)


def test_a_two_stream_network_takes_both(streams, capsys):
    variables, info = weights.read(streams / "both.safetensors")
    rgb = pixels.crop(video.decode(streams / "other.mp4", short_side=40, stride=10), 32)
    clip = {"rgb": pixels.to_unit(rgb)[None], "flow": computed_flow(streams / "other.mp4")[None]}
    assert clip["rgb"].shape[1] == 3 and clip["flow"].shape[1] == 30
    network = models.build("two_stream", num_classes=7, **info.options)
    wanted = np.asarray(jax.jit(network.apply)(variables, clip))[0]
    found = logits_of(
        capsys, "--weights", streams / "both.safetensors", "--stream", "both", streams / "other.mp4"
    )
    np.testing.assert_allclose([found[name] for name in INFO.classes], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "names,stream,message",
    [
        (["w"], "flow", "w.safetensors: weights for rgb, not for flow"),
        (["w"], "both", "w.safetensors: weights for rgb, not for both"),
        (["w", "flow"], "rgb", "weights for flow and rgb, not for rgb"),
        (["w", "renamed"], "rgb", "renamed.safetensors: has other classes than"),
    ],
)
def test_weights_that_do_not_fit_together_are_refused(names, stream, message, streams, capsys):
    renamed = dataclasses.replace(INFO, classes=tuple("gfedcba"))
    weights.save(streams / "renamed.safetensors", small_variables(), renamed)
    arguments = [
        each for name in names for each in ("--weights", str(streams / f"{name}.safetensors"))
    ]
    assert predict.main([*arguments, "--stream", stream, "x.mp4"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "stream,names",
    [
        ("rgb", ["rgb_scratch"]),
        ("flow", ["flow_imagenet"]),
        ("both", ["rgb_imagenet", "flow_imagenet"]),
    ],
)
def test_streams_have_published_weights(stream, names, monkeypatch, capsys):
    asked = []

    def network(name):
        asked.append(name)
        if len(asked) == len(names):
            raise weights.WeightsError("enough")
        return models.build("i3d", num_classes=7, width=0.0625), small_variables(), INFO

    monkeypatch.setattr(weights, "network", network)
    assert predict.main(["--stream", stream, "x.mp4"]) == 2 and asked == names


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ["--weights", "rgb_scrach", "x.mp4"],
            "rgb_scrach: no such file, and no published weights",
        ),
        ([], "the following arguments are required: VIDEO"),
        (["--top-k", "0", "x.mp4"], "argument --top-k: '0' is not a positive whole number"),
        (["--top-k", "many", "x.mp4"], "argument --top-k: 'many' is not a positive whole number"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_status_2(arguments, message, capsys):
    try:
        status = predict.main(arguments)
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_weights_of_another_model_are_refused(files, tmp_path, capsys):
    other = weights.Info("i3d", INFO.classes, {"width": 0.125})
    weights.save(tmp_path / "w.safetensors", small_variables(), other)
    assert run(tmp_path, "x.mp4") == 2
    assert "w.safetensors: does not fit the model: " in capsys.readouterr().err


def test_weights_of_an_unknown_model_are_refused(tmp_path, capsys):
    weights.save(tmp_path / "w.safetensors", small_variables(), weights.Info("x3d", INFO.classes))
    assert run(tmp_path, "x.mp4") == 2
    assert "w.safetensors: no model is called 'x3d'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "clip,name",
    [
        ("kinetics-i3d/v_CricketShot_g04_c01_rgb.gif", "playing cricket"),
        ("clips/flipping_a_pancake.mkv", "flipping pancake"),
    ],
)
def test_released_weights_name_the_action(clip, name, shared_data, capsys):
    checkpoint = str(shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch")
    assert predict.main(["--json", "--weights", checkpoint, str(shared_data / clip)]) == 0
    assert json.loads(capsys.readouterr().out)["top"][0]["class"] == name
