"""Flow in records: computed during preparation, copied from files, and read by commands."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.videos import clip

from i3d_jax import datasets, evaluate, flow, labels, models, pixels, predict, video, weights
from i3d_jax.datasets import annotations, shards
from i3d_jax.datasets.__main__ import main
from i3d_jax.flow.__main__ import main as flow_main
from i3d_jax.video import h264

# The command with small videos and shards. It is run with -c, so that workers do not run it again.
DRIVER = """
import sys
from i3d_jax import datasets
from i3d_jax.datasets import shards
from i3d_jax.datasets.__main__ import main
datasets.Kinetics.SHORT_SIDE, shards.CLIPS_PER_SHARD = 32, 2
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five clips of a second each in Kinetics' layout, and their CSV."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "videos").mkdir()
    rows = []
    for number in range(5):
        name = annotations.file_name(f"clip{number:07d}", 0, 1)
        (folder / "videos" / name).write_bytes(h264.encode(clip(25, number, 48, 64)))
        rows.append(
            dict(
                zip(
                    annotations.COLUMNS,
                    ("yoga", f"clip{number:07d}", 0, 1, "validate"),
                    strict=True,
                )
            )
        )
    annotations.write_kinetics(folder / "validate.csv", rows)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(datasets.Kinetics, "SHORT_SIDE", 32)
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 2)


def arguments(made, out, *more):
    given = [
        "--videos",
        made / "videos",
        "--annotations",
        made / "validate.csv",
        "--data-dir",
        out,
        *more,
    ]
    return ["prepare", "kinetics/400", *map(str, given)]


COMPUTED = ("--flow", "--flow-preset", "fast")


@pytest.fixture(scope="module")
def prepared(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.Kinetics, "SHORT_SIDE", 32)
        patch.setattr(shards, "CLIPS_PER_SHARD", 2)
        assert main(arguments(made, out, *COMPUTED)) == 0
    return out


def records(out):
    return {
        record["id"]: record
        for record in datasets.prepared("kinetics/400", str(out)).records("validation")
    }


def test_computed_flow_is_what_the_flow_command_writes(made, prepared, tmp_path):
    assert (
        flow_main(
            [
                str(made / "videos"),
                "--out",
                str(tmp_path / "flow"),
                "--short-side",
                "32",
                "--flow-preset",
                "fast",
            ]
        )
        == 0
    )
    found = records(prepared)
    assert len(found) == 5
    for identity, record in found.items():
        assert record["flow"] == (tmp_path / "flow" / f"{identity}.mp4").read_bytes()
        moved = 20 * pixels.to_unit(video.decode(record["flow"], stream="flow"))
        assert moved.shape == (25, record["height"], record["width"], 2)
        assert abs(moved[..., 0].mean() - 1) < 0.3  # 1.5 pixels of 48 are 1 of 32.
    assert main(arguments(made, tmp_path / "copied", "--flow", tmp_path / "flow")) == 0
    copied = records(tmp_path / "copied")
    assert all(copied[identity]["flow"] == record["flow"] for identity, record in found.items())
    assert datasets.available("kinetics/400", str(tmp_path / "copied")).flow_recipe == flow.recipe(
        "fast"
    )
    (tmp_path / "flow" / "flow.json").unlink()  # It says how the flow was made.
    assert main(arguments(made, tmp_path / "unknown", "--flow", tmp_path / "flow")) == 0
    assert datasets.available("kinetics/400", str(tmp_path / "unknown")).flow_recipe is None


@pytest.mark.parametrize(
    "name,value,wanted",
    [
        ("format", "colours", "wanted 'h264'"),
        ("short_side", 48, "wanted 32"),
        ("frames", 9, "wanted None"),
    ],
)
def test_flow_that_was_made_for_something_else_is_refused_before_anything_is_done(
    name, value, wanted, made, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(shards, "write", None)
    note = flow.recipe("fast") | {"format": "h264", "short_side": 32, "frames": None, name: value}
    (tmp_path / "flow.json").write_text(json.dumps(note))
    assert main(arguments(made, tmp_path / "out", "--flow", tmp_path)) == 2
    assert f"flow.json: {name} is {value!r}, {wanted}" in capsys.readouterr().err


def test_a_data_set_says_how_its_flow_was_made(prepared, capsys):
    assert main(["show", "kinetics/400", "--data-dir", str(prepared)]) == 0
    said = capsys.readouterr().out
    assert "\nflow: TV-L1, preset fast, version 1\n" in said and ", rgb, flow\n" in said
    assert datasets.available("kinetics/400", str(prepared)).flow_recipe == flow.recipe("fast")


def test_rejected_flow_that_was_replaced_meanwhile_is_looked_at_again(
    made, prepared, tmp_path, capsys
):
    identity, record = records(prepared).popitem()
    lists = tmp_path / "validate.csv"
    header, *rows = (made / "validate.csv").read_text().splitlines()
    lists.write_text(
        "\n".join([header, next(row for row in rows if identity.partition("_")[0] in row)]) + "\n"
    )
    path = tmp_path / "flow" / f"{identity}.mp4"
    path.parent.mkdir()
    path.write_bytes(record["flow"][:-500])
    command = [
        "prepare",
        "kinetics/400",
        "--videos",
        str(made / "videos"),
        "--annotations",
        str(lists),
    ]
    command += ["--data-dir", str(tmp_path / "out"), "--flow", str(path.parent)]
    assert main(command) == 2
    assert "none of the 1 clips of validation can be used" in capsys.readouterr().err
    path.write_bytes(record["flow"])
    assert main(command) == 0
    assert records(tmp_path / "out")[identity]["flow"] == record["flow"]


def test_processes_compute_the_same_flow(made, prepared, tmp_path):
    given = arguments(made, tmp_path, *COMPUTED, "--workers", 2)
    subprocess.run([sys.executable, "-c", DRIVER, *given], check=True, capture_output=True)
    for name in os.listdir(prepared / "kinetics" / "400" / "1.0.0"):
        one, other = (
            folder / "kinetics" / "400" / "1.0.0" / name for folder in (prepared, tmp_path)
        )
        assert one.read_bytes() == other.read_bytes(), name


def test_another_recipe_computes_all_flow_anew(made, tmp_path, monkeypatch):
    def stop(*_):
        raise shards.PrepareError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_link_or_copy", stop)
        assert main(arguments(made, tmp_path, *COMPUTED)) == 2
    written = []
    write = shards.write
    monkeypatch.setattr(
        shards, "write", lambda job, *rest, **more: (written.append(job), write(job, *rest, **more))
    )
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_link_or_copy", stop)
        assert main(arguments(made, tmp_path, *COMPUTED)) == 2
        assert not written
        patch.setitem(flow.PRESETS, "fast", flow.TVL1(scales=1, warps=1, outer=1, inner=1))
        assert main(arguments(made, tmp_path, *COMPUTED)) == 2
    assert len(written) == 3


def test_networks_see_the_flow_of_records_as_that_of_the_video(made, prepared, tmp_path, capsys):
    classes = tuple(labels.names("kinetics_400"))
    network = models.build("i3d", num_classes=400, width=0.1)
    variables = jax.jit(network.init)(jax.random.key(0), np.zeros((1, 16, 32, 32, 2), np.float32))
    info = weights.Info("i3d", classes, {"width": 0.1}, {"flow": (250, 1)}, short_side=32, crop=32)
    weights.save(tmp_path / "flow.safetensors", variables, info)
    given = ["--weights", str(tmp_path / "flow.safetensors")]
    data = [
        "--dataset",
        "kinetics/400",
        "--data-dir",
        str(prepared),
        "--out",
        str(tmp_path / "out"),
    ]
    assert evaluate.main([*given, *data]) == 0
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 5
    capsys.readouterr()
    files = [str(made / "videos" / f"{line['id']}.mp4") for line in lines]
    assert predict.main([*given, "--json", "--top-k", "400", "--flow-preset", "fast", *files]) == 0
    for line, said in zip(lines, capsys.readouterr().out.splitlines(), strict=True):
        logits = {each["class"]: each["logit"] for each in json.loads(said)["top"]}
        found, wanted = np.array(line["logits"]), np.array([logits[name] for name in classes])
        assert np.corrcoef(found, wanted)[0, 1] > 0.98  # Compression changes them a little.


@pytest.mark.parametrize(
    "given,message",
    [
        (["kinetics/400", "--flow"], "--videos and --annotations are missing"),
        (
            ["moving_shapes/videos", "--flow"],
            "generates its own videos: leave --videos, --annotations and --flow out",
        ),
        (
            ["kinetics/400", "--flow", ".", "--flow-preset", "fast"],
            "is for --flow without a folder",
        ),
        (["kinetics/400", "--flow-preset", "fast"], "is for --flow without a folder"),
    ],
)
def test_mistakes_are_one_line(given, message, tmp_path, capsys):
    assert main(["prepare", *given, "--data-dir", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
