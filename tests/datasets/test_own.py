"""Your own videos, in folders of splits and classes: prepared, trained on, predicted."""

import os
import shutil

import numpy as np
import pytest
from support.real_files import some_videos, steady

from i3d_jax import datasets, pixels, predict, weights
from i3d_jax.datasets import own
from i3d_jax.datasets.__main__ import main
from i3d_jax.training import loop
from i3d_jax.video import h264

PLACES = (
    "train/run/1.avi",
    "train/high jump/1.avi",
    "train/high jump/deep/2.avi",
    "val/run/1.avi",
    "val/high jump/1.avi",
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(own.Own, "SHORT_SIDE", 48)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    some_videos(folder, *PLACES)
    (folder / "train" / "run" / "bad.avi").write_text("bad")
    (folder / "train" / "notes.txt").write_text("no video")
    return folder


def prepare(videos, out, *more):
    return main(
        ["prepare", "own/videos", "--videos", str(videos), "--data-dir", str(out), *map(str, more)]
    )


def records(out):
    builder = datasets.prepared("own/videos", str(out))
    return builder, {
        record["id"]: record
        for split in ("train", "validation")
        for record in builder.records(split)
    }


def test_classes_and_splits_are_the_folders(videos, tmp_path, capsys):
    assert prepare(videos, tmp_path / "out") == 0
    assert "\ntrain: 3 of 4 annotated clips" in capsys.readouterr().out
    builder, found = records(tmp_path / "out")
    assert builder.class_names == ("high jump", "run") and set(found) == set(PLACES)
    for place, record in found.items():
        assert record["label"] == int("/run/" in place)
    assert main(["show", "own/videos", "--data-dir", str(tmp_path / "out"), "--classes"]) == 0
    assert "\n  high jump: 2 of 2\n  run: 1 of 2\nvalidation: 2 of 2 " in capsys.readouterr().out


def test_names_need_not_be_text(tmp_path):
    videos = tmp_path / "videos"
    some_videos(videos, "train/r\udce9/\udce9.avi", "train/run/a.avi")
    assert prepare(videos, tmp_path / "out") == 0
    builder = datasets.prepared("own/videos", str(tmp_path / "out"))
    assert builder.class_names == ("r\\xe9", "run")
    assert {record["id"] for record in builder.records("train")} == {
        "train/r\\xe9/\\xe9.avi",
        "train/run/a.avi",
    }


@pytest.mark.parametrize("label", [" run", "run ", "ru\nn", "run\u2028", " "])
def test_classes_that_would_come_back_as_others_are_refused(label, tmp_path, capsys):
    some_videos(tmp_path / "videos", f"train/{label}/1.avi")
    assert prepare(tmp_path / "videos", tmp_path / "out") == 2
    assert f"a folder is called {label!r}; wanted a class without" in capsys.readouterr().err


def test_flow_lies_where_the_flow_command_puts_it(videos, tmp_path):
    flow = tmp_path / "flow" / "val" / "run" / "1.mp4"
    flow.parent.mkdir(parents=True)
    (tmp_path / "flow" / "1.mp4").touch()  # Another video's flow, of the same name.
    shutil.rmtree(videos / "train")
    shutil.rmtree(videos / "val" / "high jump")
    flow.write_bytes(h264.encode(pixels.flow_bytes(np.zeros((9, 48, 64, 2)))))
    assert prepare(videos, tmp_path / "out", "--flow", tmp_path / "flow") == 0
    builder = datasets.prepared("own/videos", str(tmp_path / "out"))
    (record,) = builder.records("validation")
    assert record["flow"] == flow.read_bytes()


@pytest.mark.slow  # Trains networks.
def test_a_network_learns_and_predicts_own_classes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        for split, label in (
            ("train", "run"),
            ("train", "jump"),
            ("test", "run"),
            ("test", "jump"),
        ):
            path = tmp_path / "videos" / split / label / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            steady(12, 25, 48, 64).write(path, rng)
    assert prepare(tmp_path / "videos", tmp_path / "data") == 0
    result = loop.train(
        str(tmp_path / "run"),
        steps=2,
        batch_size=4,
        model=dict(name="inception", width=0.1),
        dataset=dict(name="own/videos", data_dir=str(tmp_path / "data")),
        train_clips=dict(rgb=(1, 1), crop=32),
        eval_clips=dict(rgb=(2, 1), crop=32, batch_size=4),
        optimizer=dict(lr=0.01),
        test_split="test",
    )
    assert result["clips"] == 8
    _, info = weights.read(tmp_path / "run" / "weights.safetensors")
    assert info.classes == ("jump", "run")
    arguments = [
        "--weights",
        tmp_path / "run" / "weights.safetensors",
        tmp_path / "videos" / "test" / "run" / "0.mp4",
    ]
    assert predict.main([str(each) for each in arguments]) == 0


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            "prepare own/videos --videos {0}/videos/train --data-dir {0}/out",
            "wanted SPLIT/CLASS/1.avi, SPLIT one of train, val",
        ),
        ("prepare own/videos --videos {0}/empty --data-dir {0}/out", "empty: has no videos"),
        ("prepare own/videos --videos {0}/nothing --data-dir {0}/out", "nothing: no such folder"),
        (
            "prepare own/videos --data-dir {0}/out",
            "own/videos is prepared from your files: --videos is missing",
        ),
        ("prepare own/videos --flow --data-dir {0}/out", "--videos is missing"),
        (
            "prepare own/videos --videos {0}/videos --annotations x --data-dir {0}/out",
            "own/videos has no annotations: leave",
        ),
        ("doctor own/videos --videos {0}/videos", "own/videos has no annotations to check"),
        ("show own/videos --data-dir {0}/out", "prepare own/videos --videos DIR --data-dir"),
    ],
)
def test_mistakes_are_one_line(arguments, message, videos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(arguments.format(tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert (
        message in error
        and error.startswith("python -m i3d_jax.datasets: ")
        and error.count("\n") == 1
    )
    assert not os.path.exists(tmp_path / "out" / "own" / "videos" / "1.0.0")
