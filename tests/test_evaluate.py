import contextlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from i3d_jax import datasets, evaluate, files, models, weights
from i3d_jax.datasets import moving_shapes
from i3d_jax.video import planes, windows

CLASSES = moving_shapes.CLASSES["videos"]
FILES = {
    ".lock",
    "predictions.jsonl",
    "scores.json",
    "settings.json",
    "confusion.csv",
    "confusion.png",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set of 24 test clips, and untrained weights of some networks."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            moving_shapes,
            "CLIPS_PER_CLASS",
            {k: {"train": 1, "validation": 1} for k in ("videos", "images")},
        )
        for name, options, footprint in (
            ("inception", {}, {"rgb": (32, 1)}),
            ("convnet_lstm", {"norm_steps": 4}, {"rgb": (6, 5)}),
            ("two_stream", {}, {"rgb": (3, 10), "flow": (30, 1)}),
        ):
            network = models.build(name, num_classes=24, width=0.1, **options)
            variables = jax.jit(network.init)(
                jax.random.key(1), video_of(models.input_shapes(footprint, 32))
            )
            info = weights.Info(
                name, CLASSES, {"width": 0.1, **options}, footprint, short_side=56, crop=32
            )
            weights.save(folder / f"{name}.safetensors", variables, info)
        yield folder


def video_of(shapes):
    return jax.tree.map(lambda shape: np.zeros(shape.shape, np.float32), shapes)


def run(folder, name, out, *arguments):
    source = ["--weights", str(folder / f"{name}.safetensors"), "--dataset", "moving_shapes/videos"]
    return evaluate.main(
        [*source, "--data-dir", str(folder / "tfds"), "--out", str(out), *arguments]
    )


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def images(prepared):
    assert run(prepared, "inception", prepared / "images", "--batch-size", "5") == 0
    return prepared / "images"


@pytest.mark.slow  # Computes for long.
def test_every_clip_has_its_prediction_and_the_scores_are_theirs(images, prepared, capsys):
    assert {path.name for path in images.iterdir()} == FILES
    found, scores = lines(images), json.loads((images / "scores.json").read_text())
    assert (
        sorted(line["class"] for line in found) == sorted(CLASSES)
        and len({line["id"] for line in found}) == 24
    )
    variables, info = weights.read(prepared / "inception.safetensors")
    apply = jax.jit(models.build("inception", num_classes=24, **info.options).apply)
    builder = datasets.prepared("moving_shapes/videos", str(prepared / "tfds"))
    for line, record in zip(found, builder.records("validation"), strict=True):
        packed = windows.read(record["video"], planes.Window(12, 12, 32), frames=32)[None]
        clip = planes.unpack(
            {"rgb": packed, "corner": np.zeros((1, 2), int), "mirrored": np.zeros(1, bool)}
        )["rgb"][0]
        np.testing.assert_allclose(line["logits"], apply(variables, clip[None])[0], atol=1e-5)
        assert (
            line["top"][0] == [CLASSES[np.argmax(line["logits"])], max(line["logits"])]
            and len(line["top"]) == 5
        )
        assert (line["frames"], line["ticks"]) == (32, 32)
    right = [line["top"][0][0] == line["class"] for line in found]
    assert (scores["top1"], scores["clips"]) == (pytest.approx(np.mean(right)), 24)
    assert scores["top1_low"] <= scores["top1"] <= scores["top1_high"]
    assert scores["about"]["dataset"] == "moving_shapes/videos/2.0.0"
    assert (scores["about"]["used"], scores["about"]["annotated"]) == (24, 24)


def test_an_evaluation_that_was_killed_goes_on_and_ends_with_the_same_bytes(
    images, prepared, tmp_path, capsys
):
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    text = before["predictions.jsonl"]
    for kept in (0, text.index(b"\n") + 1, len(text) // 2, len(text) - 1, len(text)):
        (images / "predictions.jsonl").write_bytes(text[:kept])
        (images / "scores.json").unlink()
        assert run(prepared, "inception", images, "--batch-size", "5") == 0
        assert {path.name: path.read_bytes() for path in images.iterdir()} == before, kept
    assert "top-1 " in capsys.readouterr().out


@pytest.mark.slow  # Computes for long.
@pytest.mark.parametrize(
    "name,stream_logits", [("convnet_lstm", set()), ("two_stream", {"rgb", "flow"})]
)
def test_chunks_and_batches_change_nothing_but_rounding(name, stream_logits, prepared, tmp_path):
    assert run(prepared, name, tmp_path / "whole") == 0
    assert (
        run(
            prepared,
            name,
            tmp_path / "pieces",
            "--chunk",
            "10",
            "--batch-size",
            "3",
            "--threads",
            "1",
        )
        == 0
    )
    for one, other in zip(lines(tmp_path / "whole"), lines(tmp_path / "pieces"), strict=True):
        assert one["id"] == other["id"] and set(one) & {"rgb", "flow"} == stream_logits
        np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-4)
        if stream_logits:
            np.testing.assert_allclose(
                one["logits"], np.add(one["rgb"], one["flow"]) / 2, atol=1e-5
            )


def test_runs_are_fused_by_adding_their_logits(images, prepared, tmp_path, capsys):
    assert run(prepared, "convnet_lstm", tmp_path / "lstm") == 0
    fuse = ["--fuse", str(images), str(tmp_path / "lstm"), "--out", str(tmp_path / "both")]
    assert evaluate.main(fuse) == 0
    assert (
        "on 24 clips; validation has 24 of 24 annotated clips (0.0% missing)"
        in capsys.readouterr().out
    )
    assert {path.name for path in (tmp_path / "both").iterdir()} == FILES
    by_id = {line["id"]: line for line in lines(tmp_path / "lstm")}
    for line, first in zip(lines(tmp_path / "both"), lines(images), strict=True):
        wanted = np.float32(first["logits"]) + np.float32(by_id[line["id"]]["logits"])
        np.testing.assert_array_equal(np.float32(line["logits"]), wanted)
    assert evaluate.main(fuse) == 0  # A second time, into the same folder.
    assert len(lines(tmp_path / "both")) == 24
    assert run(prepared, "convnet_lstm", tmp_path / "lstm", "--batch-size", "2") == 0
    assert evaluate.main(fuse) == 0  # It is still the same evaluation.
    capsys.readouterr()
    assert run(prepared, "inception", tmp_path / "train", "--split", "train") == 0
    assert (
        evaluate.main(
            ["--fuse", str(images), str(tmp_path / "train"), "--out", str(tmp_path / "x")]
        )
        == 2
    )
    assert "another split than in" in capsys.readouterr().err
    (tmp_path / "train" / "scores.json").write_text('{"top1"')
    assert (
        evaluate.main(
            ["--fuse", str(images), str(tmp_path / "train"), "--out", str(tmp_path / "x")]
        )
        == 2
    )
    assert "scores.json: damaged" in capsys.readouterr().err
    assert run(prepared, "inception", tmp_path / "few", "--limit", "7") == 0
    assert len(lines(tmp_path / "few")) == 7
    capsys.readouterr()
    assert (
        evaluate.main(["--fuse", str(images), str(tmp_path / "few"), "--out", str(tmp_path / "x")])
        == 2
    )
    assert "17 clips are not those of" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_another_evaluation_in_the_folder_is_refused_and_left_alone(images, prepared, capsys):
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    for name, arguments, what in (
        ("convnet_lstm", (), "weights is"),
        ("inception", ("--split", "train"), "split is 'validation' there and 'train' here"),
        ("inception", ("--frames", "5"), "footprint is {'rgb': [32, 1]} there"),
        ("inception", ("--limit", "5"), "limit is None there and 5 here"),
    ):
        assert run(prepared, name, images, *arguments) == 2
        assert what in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before


def test_frames_that_are_used_can_be_fewer_or_all_but_not_too_few(prepared, tmp_path, capsys):
    assert run(prepared, "two_stream", tmp_path / "x", "--frames", "9") == 2
    message = "--frames: 9 are too few for two_stream, which takes at least 10"
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()
    for frames, ticks in (("10", 10), ("0", 32)):
        assert (
            run(prepared, "inception", tmp_path / frames, "--frames", frames, "--limit", "2") == 0
        )
        assert [line["ticks"] for line in lines(tmp_path / frames)] == [ticks] * 2


@pytest.mark.parametrize(
    "arguments,message",
    [
        (
            ["--dataset", "ucf", "--weights", "{w}"],
            "no data set is called 'ucf'; there are kinetics/400, ",
        ),
        (["--dataset", "moving_shapes/images", "--weights", "{w}"], "has 4 classes (disc, ...), "),
        (
            ["--dataset", "moving_shapes/videos", "--weights", "{w}", "--split", "test"],
            "has no split 'test'",
        ),
        (
            ["--dataset", "moving_shapes/videos", "--weights", "x.safetensors"],
            "x.safetensors: no such file",
        ),
        (
            ["--dataset", "moving_shapes/videos", "--weights", "{w}", "--frames", "-1"],
            "--frames: -1, wanted a positive number, or 0 for all",
        ),
        (
            ["--dataset", "moving_shapes/videos", "--weights", "{w}", "--batch-size", "0"],
            "--batch-size: '0' is not a pos",
        ),
        (["--weights", "{w}"], "--dataset is missing"),
        (
            ["--dataset", "moving_shapes/videos"],
            "one of the arguments --weights --fuse is required",
        ),
        (["--fuse", "nowhere"], "nowhere: no finished evaluation (it has no scores.json)"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_status_2(
    arguments, message, prepared, tmp_path, capsys
):
    arguments = [each.format(w=prepared / "inception.safetensors") for each in arguments]
    try:
        status = evaluate.main(
            [*arguments, "--data-dir", str(prepared / "tfds"), "--out", str(tmp_path / "out")]
        )
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    assert (
        len([line for line in captured.err.splitlines() if message in line]) == 1
        and "Traceback" not in captured.err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name,arguments,message",
    [
        ("inception", ["--dataset", "moving_shapes/images"], "has 4 classes (disc, ...), "),
        ("inception", ["--split", "test"], "has no split 'test'; there are train, validation"),
        ("two_stream", ["--frames", "9"], "--frames: 9 are too few"),
    ],
)
def test_what_does_not_fit_is_said_before_a_data_set_is_prepared(
    name, arguments, message, prepared, tmp_path, capsys
):
    assert (
        run(prepared, name, tmp_path / "out", "--data-dir", str(tmp_path / "data"), *arguments) == 2
    )
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_an_output_folder_that_cannot_be_made_is_named(prepared, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(prepared, "inception", tmp_path / "file" / "out") == 2
    assert f"{tmp_path / 'file' / 'out'}" in capsys.readouterr().err


@pytest.fixture
def copy(images, tmp_path):
    """A copy of a finished evaluation, for tests to damage."""
    return shutil.copytree(images, tmp_path / "copy")


@pytest.mark.parametrize(
    "change,message",
    [
        ({"label": 24}, "clip {id!r}: label 24, wanted 0 to 23"),
        ({"label": -1}, "clip {id!r}: label -1, wanted 0 to 23"),
        ({"label": "3"}, "clip {id!r}: label '3', wanted 0 to 23"),
        (
            {"class": "archery"},
            "clip {id!r}: class 'archery', wanted {class!r}, which has label {label}",
        ),
        ({"logits": [1.0]}, "clip {id!r}: logits of shape (1,), wanted (24,)"),
        ({"rgb": [0.0] * 24}, "clip {id!r}: has logits of streams ['rgb'], wanted []"),
        ({"frames": None}, "clip {id!r}: frames and ticks (None, 32), wanted whole numbers"),
        ({"id": 3}, "id 3, wanted text"),
        ({"logits": "what"}, "damaged"),
        (None, "damaged"),
    ],
)
def test_a_line_that_cannot_be_is_named_with_its_clip(
    change, message, copy, prepared, tmp_path, capsys
):
    path = copy / "predictions.jsonl"
    good = path.read_text().splitlines()
    third = json.loads(good[2])
    good[2] = "what" if change is None else json.dumps(third | change)
    path.write_text("".join(line + "\n" for line in good))
    wanted = f"{path}: line 3: {message.format_map(third)}\n"
    assert run(prepared, "inception", copy) == 2
    assert capsys.readouterr().err.endswith(wanted)
    assert evaluate.main(["--fuse", str(copy), str(copy), "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.endswith(wanted) and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "change", [{"about": 3}, {"classes": None}, {"classes": [1]}, {"about": {"split": "test"}}]
)
def test_scores_of_something_else_are_not_fused(change, copy, tmp_path, capsys):
    path = copy / "scores.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert evaluate.main(["--fuse", str(copy), str(copy), "--out", str(tmp_path / "x")]) == 2
    err = capsys.readouterr().err
    assert f"{path}: not of an evaluation" in err and err.count("\n") == 1


def test_one_process_evaluates_into_a_folder_at_a_time(copy, prepared, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with files.locked(copy / ".lock", ValueError()):
        assert run(prepared, "inception", copy) == 2
        assert evaluate.main(["--fuse", str(copy), str(copy), "--out", str(copy)]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert (
            evaluate.main(["--fuse", str(copy), str(copy), "--out", str(tmp_path / "x")]) == 0
        )  # Fusing only reads this folder.
    assert len(errors) == 2
    assert all(
        f"{copy}: another process is evaluating into it; use another --out" in line
        for line in errors
    )
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["predictions.jsonl", "scores.json", "confusion.csv", "confusion.png"]
)
def test_a_full_disk_is_named_with_the_file(name, copy, prepared, monkeypatch, capsys):
    @contextlib.contextmanager
    def replacing(path):
        with real(path) as temporary:
            if path.name == name:
                temporary.symlink_to("/dev/full")
            yield temporary

    def opened(path, mode="r", **options):
        return whole(
            pathlib.Path("/dev/full") if (path.name, mode) == (name, "a") else path, mode, **options
        )

    real, whole = files.atomic_write, pathlib.Path.open
    monkeypatch.setattr(files, "atomic_write", replacing)
    monkeypatch.setattr(pathlib.Path, "open", opened)
    (copy / "predictions.jsonl").unlink()
    assert run(prepared, "inception", copy) == 2
    assert capsys.readouterr().err.endswith(f"{copy / name}: No space left on device\n")
