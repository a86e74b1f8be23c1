"""The command that classifies videos."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import av.error
import jax
import numpy as np
import pytest
from PIL import Image
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
    logits, network, info, _ = predict.classifier(str(files / "w.safetensors"))
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


def test_a_timeline_has_the_classes_of_the_whole_video_over_time(files, tmp_path, capsys):
    arguments = ["--timeline", str(tmp_path), "--json", "--top-k", "7", str(files / "other.mp4")]
    assert run(files, *arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    found = json.loads((tmp_path / "other.json").read_text())
    # 30 frames: ceil(30 / 8) - 1 rows of 16 frames, 8 apart.
    times = [(row["start"], row["centre"], row["end"]) for row in found["rows"]]
    wanted = [(0, 8, 16), (8, 16, 24), (16, 23, 30)]
    np.testing.assert_allclose(np.array(times) * 25, wanted, rtol=1e-9)
    variables, info = weights.read(files / "w.safetensors")
    network = models.build("i3d", num_classes=7, **info.options)
    clip = pixels.to_unit(video.decode(files / "other.mp4", short_side=40, crop=32))
    logits, ends = jax.jit(lambda x: network.apply(variables, x, endpoints=True))(clip[None])
    for row, values in zip(found["rows"], ends["Logits"][0], strict=True):
        by_class = {each["class"]: each["logit"] for each in row["top"]}
        np.testing.assert_allclose([by_class[name] for name in INFO.classes], values, rtol=1e-4)
    # The network's logits are the mean over its rows.
    by_class = {each["class"]: each["logit"] for each in found["mean"]["top"]}
    np.testing.assert_allclose([by_class[name] for name in INFO.classes], logits[0], rtol=1e-4)
    assert printed == {
        "video": str(files / "other.mp4"),
        "frames": 30,
        "top": found["mean"]["top"],
        "timeline": str(tmp_path / "other.json"),
    }
    assert (tmp_path / "other.png").read_bytes().startswith(b"\x89PNG")
    about = found["about"]
    assert about["weights"][0]["fingerprint"] == weights.fingerprint(variables)
    assert (about["fps"], about["short_side"], about["crop"], about["frames"]) == (25, 40, 32, 30)


def test_timelines_of_a_folder_go_on_behind_a_bad_video(files, tmp_path, capsys):
    for name in "b/2.mp4", "a.mp4", "c/2.mp4":
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes((files / "good.mp4").read_bytes())
    for name in "short.mp4", "text.mp4":
        (tmp_path / "in" / name).write_bytes((files / name).read_bytes())
    assert run(files, "--timeline", str(tmp_path / "out"), str(tmp_path / "in")) == 1
    out, err = capsys.readouterr()
    made = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*.*"))
    assert made == [
        f"out/{name}.{kind}" for name in ("a", "b/2", "c/2") for kind in ("json", "png")
    ]
    first = out.splitlines()[0]
    assert first == f"{tmp_path}/in/a.mp4 (20 frames) -> {tmp_path}/out/a.json"
    errors = [line for line in err.splitlines() if str(tmp_path) in line]
    assert [line.split(":")[0] for line in errors] == [
        f"{tmp_path}/in/{name}" for name in ("short.mp4", "text.mp4")
    ]


def test_the_same_command_replaces_its_timelines_and_no_other_file(files, tmp_path, capsys):
    arguments = ["--timeline", str(tmp_path), str(files / "good.mp4")]
    assert run(files, *arguments) == 0 == run(files, *arguments)
    (tmp_path / "good.json").write_text("{}")
    capsys.readouterr()
    assert run(files, *arguments) == 2
    err = capsys.readouterr().err
    assert "good.json: is there already, and no timeline" in err and err.count("\n") == 1


def test_a_timeline_that_cannot_be_written_is_one_line_and_status_2(files, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(files, "--timeline", str(tmp_path / "file"), str(files / "good.mp4")) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "file") in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.slow  # Compiles whole networks.
def test_timelines_of_several_weights_are_added(streams, tmp_path, capsys):
    names = [["--weights", str(streams / f"{name}.safetensors")] for name in ("w", "flow")]
    arguments = ["--json", "--top-k", "7", "--flow-preset", "fast", "--timeline", str(tmp_path)]
    logits = []
    for each in names[0], names[1], names[0] + names[1]:
        assert predict.main([*arguments, *each, str(streams / "good.mp4")]) == 0
        rows = json.loads((tmp_path / "good.json").read_text())["rows"]
        by_class = [{each["class"]: each["logit"] for each in row["top"]} for row in rows]
        logits.append(np.array([[row[name] for name in INFO.classes] for row in by_class]))
    np.testing.assert_allclose(logits[2], logits[0] + logits[1], rtol=1e-5)


@pytest.mark.slow  # Compiles whole networks.
def test_rows_that_lie_elsewhere_in_time_are_not_added(streams, tmp_path, capsys):
    names = [str(streams / f"{name}.safetensors") for name in ("w", "both")]
    flags = ["--timeline", str(tmp_path), "--weights", names[0], "--weights", names[1]]
    assert predict.main([*flags, "x.mp4"]) == 2
    message = f"{names[1]}: its predictions lie elsewhere in time than {names[0]}'s"
    assert message in capsys.readouterr().err


@pytest.mark.slow  # Compiles Grad-CAM.
def test_a_drawn_video_is_as_long_as_the_clip_and_the_whole_clip_is_classified(
    files, tmp_path, capsys
):
    outputs = ["--video", str(tmp_path / "out.mp4"), "--picture", str(tmp_path / "out.png")]
    arguments = ["--json", "--top-k", "7", *outputs, "--explain-class", "c"]
    assert run(files, *arguments, str(files / "other.mp4")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [printed[name] for name in ("video", "annotated", "picture", "frames")] == [
        str(files / "other.mp4"),
        str(tmp_path / "out.mp4"),
        str(tmp_path / "out.png"),
        30,
    ]
    assert run(files, "--timeline", str(tmp_path), "--json", "--top-k", "7", printed["video"]) == 0
    assert json.loads(capsys.readouterr().out)["top"] == printed["top"]
    drawn = video.decode(tmp_path / "out.mp4")
    assert drawn.shape == (30, 720, 1280, 3)
    with Image.open(tmp_path / "out.png") as image:
        assert image.width == 1200
    # Without heat, the middle of the frame is another one.
    assert run(files, "--video", str(tmp_path / "plain.mp4"), printed["video"]) == 0
    plain = video.decode(tmp_path / "plain.mp4")
    assert abs(plain[:, 200:300, 300:400].astype(int) - drawn[:, 200:300, 300:400]).mean() > 10
    text = capsys.readouterr().out
    assert text.startswith(f"{printed['video']} (30 frames) -> {tmp_path}/plain.mp4\n")


@pytest.mark.slow  # Compiles whole networks, and flow.
def test_drawings_of_two_streams_show_flow_and_the_heat_of_both(streams, tmp_path, capsys):
    names = [
        each for name in ("w", "flow") for each in ("--weights", f"{streams}/{name}.safetensors")
    ]
    arguments = ["--flow-preset", "fast", "--picture", str(tmp_path / "out.png"), "--explain"]
    assert predict.main([*arguments, *names, str(streams / "good.mp4")]) == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.height > 700  # Three rows: frames, heat, flow.


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--explain"], "--explain wants --video OUT.mp4 or --picture OUT.png"),
        (["--explain-class", "a"], "--explain-class wants --video OUT.mp4 or --picture OUT.png"),
        (["--show-flow"], "--show-flow wants --video OUT.mp4 or --picture OUT.png"),
        (["--video", "o.mp4", "--timeline", "o"], "--timeline goes neither with --video nor"),
        (["--picture", "o.png", "--timeline", "o"], "--timeline goes neither with --video nor"),
        (["--video", "o.avi"], "--video: o.avi has another extension than .mp4"),
        (["--video", "no/o.mp4"], "--video: no/o.mp4 cannot be written: there is no folder no"),
        (["--picture", "o.png", "other.mp4"], "--picture: 2 videos to draw, wanted one"),
        (["--video", "good.mp4"], "--video: good.mp4 is the video to read; name another file"),
        (["--video", "o.mp4", "--explain-class", "x"], "none of the 7 classes is 'x'"),
        (["--video", "o.mp4", "--explain", "--weights", "w.safetensors"], "take rgb, wanted one"),
    ],
)
def test_drawings_that_cannot_be_meant_are_one_line_and_status_2(
    arguments, message, files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name in "good.mp4", "other.mp4", "w.safetensors":
        (tmp_path / name).symlink_to(files / name)
    assert run(files, *arguments, "good.mp4") == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize("name", ["text.mp4", "short.mp4", "missing.mp4"])
def test_a_video_that_cannot_be_drawn_is_named_and_leaves_nothing(name, files, tmp_path, capsys):
    assert run(files, "--video", str(tmp_path / "o.mp4"), str(files / name)) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if str(files / name) in line]
    assert out == "" and len(lines) == 1 and "Traceback" not in err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["-clip.mp4", "--json.mp4"])
def test_a_name_that_begins_with_a_dash_is_a_video_behind_two_dashes(
    name, files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes((files / "good.mp4").read_bytes())
    for arguments in ["--", name], [f"./{name}"]:
        assert run(files, "--timeline", "out", *arguments) == 0
        assert capsys.readouterr().out.startswith(f"{arguments[-1]} (20 frames)")
        assert (tmp_path / "out" / f"{name[:-4]}.json").exists()
    with pytest.raises(SystemExit) as end:
        run(files, name)
    assert end.value.code == 2
    line = f"the file {name} is written ./{name} (--help for help)\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.slow  # Starts processes.
@pytest.mark.parametrize("timeline", [False, True])
def test_a_run_that_is_stopped_has_printed_its_finished_videos(timeline, files, tmp_path):
    for number in range(200):
        (tmp_path / f"{number:03}.mp4").write_bytes((files / "other.mp4").read_bytes())
    flags = ["--timeline", str(tmp_path / "out")] if timeline else []
    command = [sys.executable, "-m", "i3d_jax.predict", "--json", *flags]
    command += ["--weights", str(files / "w.safetensors"), str(tmp_path)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "stopped by SIGINT" and "Traceback" not in errors
    found = [json.loads(line)["video"] for line in (first + out).splitlines()]
    assert found == [str(tmp_path / f"{number:03}.mp4") for number in range(len(found))]
    assert 1 <= len(found) < 200
    if timeline:  # Nothing is half-written; at most one video was written and not printed yet.
        made = {path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".json"}
        assert len(found) <= len(made) <= len(found) + 1
        assert not any(path.name.startswith(".") for path in (tmp_path / "out").iterdir())
