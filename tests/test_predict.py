import json

import numpy as np
import pytest
from test_weights import INFO, small_variables

from i3d_jax import h264, predict, video, weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tiny weights, good videos, bad ones."""
    folder = tmp_path_factory.mktemp("predict")
    weights.save(folder / "w.safetensors", small_variables(), INFO)
    rng = np.random.default_rng(0)
    for name, frames in ("good.mp4", 20), ("short.mp4", 5), ("nine.mp4", 9), ("other.mp4", 30):
        (folder / name).write_bytes(h264.encode(rng.integers(0, 255, (frames, 48, 64, 3)).astype(np.uint8)))
    (folder / "text.mp4").write_text("hello")
    (folder / "empty.mp4").write_bytes(b"")
    return folder


def run(folder, *arguments):
    return predict.main(["--weights", str(folder / "w.safetensors"), *arguments])


def test_bad_videos_are_named_and_the_others_go_on(files, capsys):
    names = ["good.mp4", "missing.mp4", "text.mp4", "empty.mp4", "short.mp4", "nine.mp4"]
    assert run(files, "--json", "--top", "2", *(str(files / name) for name in names)) == 1
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


def test_table(files, capsys):
    assert run(files, str(files / "good.mp4")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{files / 'good.mp4'} (20 frames)" and len(out) == 6 and "%" in out[1]


def test_lengths_are_compiled_by_bucket(files):
    classify, network, info = predict.classifier(str(files / "w.safetensors"))
    lengths = [network.timing.ticks({"rgb": frames}, {"rgb": 250}) for frames in (9, 16, 17, 79, 241, 250, 999)]
    assert lengths == [16, 16, 32, 80, 250, 250, 250]
    clip = predict.read(str(files / "good.mp4"), network, info)
    assert clip.shape == (20, 32, 32, 3)
    np.testing.assert_array_equal(classify(clip), classify(video.loop(clip, 32)))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--weights", "rgb_scrach", "x.mp4"], "rgb_scrach: no such file, and no published weights"),
        ([], "the following arguments are required: VIDEO"),
        (["--top", "0", "x.mp4"], "--top: 0 is not a positive number"),
        (["--top", "many", "x.mp4"], "invalid int value: 'many'"),
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
