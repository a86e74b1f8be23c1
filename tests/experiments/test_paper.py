"""The paper's experiments: which runs are made, what result files hold, what the report says."""

import json
import pathlib
import shlex

import figure4
import jax
import numpy as np
import pytest
import report
import table2
import table5
from paper import full_size, layout, miniature, results, runner, variants
from paper.runs import Run, unique

from i3d_jax import datasets, main, models, weights
from i3d_jax.datasets import moving_shapes
from i3d_jax.training import loop

REPOSITORY = pathlib.Path(__file__).parents[2]
ACCURACY = {"top1": 0.5, "top1_low": 0.4, "top1_high": 0.6, "clips": 480}


def make_run(name, start=None, **config):
    return Run(name, 1, {"steps": 10} | config, start)


@pytest.fixture
def places(tmp_path):
    return runner.Places(tmp_path / "results", tmp_path / "work", str(tmp_path / "data"))


@pytest.fixture
def trained(monkeypatch, places):
    """The names of the runs that were trained, by a stand-in that takes no time."""
    names = []

    def train(run, places):
        names.append(run.name)
        if run.config.get("fails"):
            raise ValueError("diverged")
        folder = places.folder(run) / "test"
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text("{}")
        return runner.about(run) | {"scores": ACCURACY, "streams": {}, "seconds": 1.0}

    monkeypatch.setattr(runner, "train", train)
    return names


def table(*runs):
    return runner.Table("table", lambda: list(runs), lambda folder: "text", lambda data: [])


def start(places, *runs, options=()):
    folders = ["--results", str(places.results), "--work", str(places.work)]
    return runner.main(table(*runs), [*folders, *options])


def test_a_finished_run_is_found_again_also_on_another_machine(places, trained, tmp_path):
    runs = make_run("a"), make_run("b")
    assert start(places, *runs) == 0 and trained == ["a", "b"]
    elsewhere = places._replace(work=tmp_path / "other")
    assert start(elsewhere, *runs) == 0 and trained == ["a", "b"]


def test_a_run_whose_config_changed_is_said_and_made_again(places, trained, capsys):
    start(places, make_run("a", optimizer={"lr": 0.1}))
    assert start(places, make_run("a", optimizer={"lr": 0.2}), options=["--list"]) == 0
    assert "not run; its result file is of another config: config.optimizer.lr: 0.1, now 0.2" in (
        capsys.readouterr().out
    )
    start(places, make_run("a", optimizer={"lr": 0.2}))
    assert trained == ["a", "a"]
    found = json.loads((places.results / "a.json").read_text())
    assert found["run"]["config"]["optimizer"] == {"lr": 0.2}


def test_a_run_that_fails_is_said_and_the_others_go_on(places, trained, capsys):
    assert start(places, make_run("a", fails=True), make_run("b")) == 1
    assert trained == ["a", "b"]
    errors = capsys.readouterr().err
    assert "1 of 2, a: failed: diverged" in errors and "Traceback" not in errors
    assert not (places.results / "a.json").exists() and (places.results / "b.json").exists()


def test_no_run_starts_after_the_budget(places, trained, capsys):
    assert start(places, make_run("a"), options=["--budget-minutes", "0"]) == 1
    assert trained == [] and "1 of 1 runs have no result yet" in capsys.readouterr().err


def test_only_runs_with_a_name_are_made_and_what_they_need(places, trained):
    images = make_run("images")
    runs = make_run("a", images), make_run("ab"), make_run("b")
    start(places, *runs, options=["--only", "a"])
    assert trained == ["images", "a"]
    start(places, *runs, options=["--only", "a*"])
    assert trained == ["images", "a", "ab"]


def test_weights_that_another_machine_has_are_made_again_and_its_result_stays(
    places, trained, tmp_path
):
    images = make_run("images")
    start(places, images)
    before = (places.results / "images.json").read_text()
    elsewhere = places._replace(work=tmp_path / "other")
    start(elsewhere, make_run("a", images))
    assert trained == ["images", "images", "a"]
    assert (places.results / "images.json").read_text() == before


def test_two_different_runs_cannot_have_one_name():
    with pytest.raises(ValueError, match="two runs are called a"):
        unique([make_run("a"), make_run("a", steps=20)])


def test_a_number_that_was_edited_is_noticed(places, trained, capsys):
    start(places, make_run("a"))
    path = places.results / "a.json"
    path.write_text(path.read_text().replace('"top1": 0.5', '"top1": 0.9'))
    with pytest.raises(results.ResultError, match="changed since it was written"):
        results.read(path)
    assert start(places, make_run("a")) == 2
    errors = capsys.readouterr().err
    assert f"{path}: changed since it was written" in errors and "Traceback" not in errors


def test_the_report_is_what_the_result_files_give(monkeypatch):
    monkeypatch.setattr(figure4, "draw", None)  # Looking draws nothing.
    assert report.REPORT.read_text() == report.render(results.FOLDER)


def test_the_report_refuses_an_edited_file(tmp_path, capsys):
    run = miniature.images(1)
    content = runner.about(run) | {"scores": ACCURACY, "streams": {}, "seconds": 1.0}
    path = results.path_of(tmp_path, run.name)
    results.write(path, content)
    path.write_text(path.read_text().replace('"seconds": 1.0', '"seconds": 0.5'))
    assert report.main(["--results", str(tmp_path), "--out", str(tmp_path / "REPORT.md")]) == 2
    assert "changed since it was written" in capsys.readouterr().err
    assert not (tmp_path / "REPORT.md").exists()


def test_results_that_were_made_again_are_compared(tmp_path, capsys):
    folders = [tmp_path / "one", tmp_path / "again"]
    for folder, accuracy in zip(folders, (0.5, 0.6)):
        for name, top1 in ("a", 0.5), ("b", accuracy):
            content = runner.about(make_run(name)) | {"scores": {"top1": top1}, "seconds": accuracy}
            results.write(results.path_of(folder, name), content)
    paths = ["--results", str(folders[0]), "--compare", str(folders[1])]
    assert report.main(paths) == 1
    assert capsys.readouterr().out == "a: the same\nb: differs in scores\n"
    assert report.main(["--compare", str(tmp_path / "typo")]) == 2
    assert f"{tmp_path / 'typo'}: no result files are there" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["miniature", "paper"])
def test_runs_that_no_table_has_are_a_mistake(preset, places, capsys):
    assert start(places, make_run("a"), options=["--only", "typo", "--preset", preset]) == 2
    assert "--only typo: no " in capsys.readouterr().err


def test_a_folder_that_is_not_there_leaves_the_report_alone(tmp_path, capsys):
    missing, out = tmp_path / "typo", tmp_path / "REPORT.md"
    assert report.main(["--results", str(missing), "--out", str(out)]) == 2
    assert f"{missing}: no such folder" in capsys.readouterr().err
    assert not missing.exists() and not out.exists()


def write_accuracies(folder, cell, accuracies):
    for seed, accuracy in zip(miniature.SEEDS, accuracies, strict=False):
        run = cell.run(seed)
        scores = ACCURACY | {"top1": accuracy}
        content = runner.about(run) | {"scores": scores, "streams": {}, "seconds": 1.0}
        results.write(results.path_of(folder, run.name), content)


def test_cells_are_means_over_seeds_and_gains_are_of_the_same_seeds(tmp_path):
    better, worse = (
        layout.Cell(lambda seed: make_run(f"a{seed}")),
        layout.Cell(lambda seed: make_run(f"b{seed}")),
    )
    assert layout.accuracy(tmp_path, better) == "not run"
    write_accuracies(tmp_path, better, [0.8, 0.6, 0.7])
    write_accuracies(tmp_path, worse, [0.7, 0.5])
    assert layout.accuracy(tmp_path, better) == "70.0 ± 10.0"
    assert layout.accuracy(tmp_path, worse) == "60.0 ± 14.1 (2 of 3 seeds)"
    # Both gains are of 10 points, whatever the seeds' own spread.
    assert layout.gain(tmp_path, better, worse) == "+10.0 ± 0.0 (2 of 3 seeds)"


def test_an_effect_is_there_only_if_seeds_agree(tmp_path):
    cells = [layout.Cell(lambda seed, name=name: make_run(f"{name}{seed}")) for name in "abc"]
    for cell, accuracies in zip(
        cells, ([0.8, 0.81, 0.82], [0.7, 0.72, 0.71], [0.9, 0.7, 0.71]), strict=True
    ):
        write_accuracies(tmp_path, cell, accuracies)

    def verdict(more, less):
        return report.effect_row(tmp_path, report.Effect("", more, less, 1.0))[4]

    row = report.effect_row(tmp_path, report.Effect("x", cells[0], cells[1], 1.0))
    assert row == ["x", "+1.0", "+10.0 ± 1.0", "+7.5 to +12.5", "yes", ""]
    assert verdict(cells[1], cells[0]) == "**the reverse**"
    assert verdict(cells[0], cells[2]) == "not decided; in 2 of 3 seeds"


def test_an_effect_that_the_miniature_lacks_has_a_remark():
    for effect in report.EFFECTS:
        row = report.effect_row(results.FOLDER, effect)
        difference, verdict = row[2], row[4]
        undecided = verdict.startswith("not decided") and difference.startswith("+")
        assert verdict in ("yes", "–") or undecided or effect.note, effect.name


def test_results_of_other_weights_than_the_reports_are_listed(tmp_path):
    first = make_run("first")
    same, other = make_run("same", start=first), make_run("other", start=first)
    for run, more in (
        (first, {"weights": "a"}),
        (same, {"made_from": {"first": "a"}}),
        (other, {"made_from": {"first": "b"}}),
    ):
        results.write(results.path_of(tmp_path, run.name), runner.about(run) | more)
    assert report.of_other_weights(tmp_path, [first, same, other]) == ["- other: first"]


def test_errors_are_told_apart_by_shape_and_movement(tmp_path):
    classes = moving_shapes.CLASSES["videos"]
    matrix = np.zeros((24, 24), int)
    matrix[0, 0], matrix[0, 1], matrix[0, 2], matrix[0, 6], matrix[0, 7] = 5, 1, 1, 2, 1
    run = make_run("a")
    content = {"scores": ACCURACY, "classes": classes, "confusion": matrix.tolist()}
    results.write(results.path_of(tmp_path, "a"), runner.about(run) | content)
    row = report.errors_row(tmp_path, "network", lambda seed: run)
    assert row == ["network", "50.0", "10.0", "10.0", "20.0", "10.0"]


def test_what_is_reported_is_not_chosen_on_its_seeds_or_test_videos():
    import choices

    assert miniature.CHOICE_SEED not in miniature.SEEDS
    for run in choices.runs():
        assert run.seed == miniature.CHOICE_SEED
        assert run.config["train_split"] == "train[:80%]"
        assert run.config["test_split"] == "train[80%:]"
    assert all(run.seed in miniature.SEEDS for run in report.all_runs())


def test_table_2_has_five_architectures_and_both_kinds_of_flow():
    names = {run.name for run in table2.runs()}
    for network in ("convnet_lstm", "c3d", "two_stream", "fused_two_stream", "two_stream_i3d"):
        assert any(name.startswith(f"videos-{network}-") for name in names)
        assert any(name.startswith(f"transfer_1-{network}-") for name in names)
    assert "videos_tvl1-i3d_flow-images-s1" in names and "videos-i3d_flow-images-s1" in names


def test_table_5_takes_the_mean_over_splits_seed_by_seed(tmp_path):
    cells = [table5.cell("i3d", True, split) for split in (1, 2, 3)]
    for cell, accuracy in zip(cells, (0.6, 0.7, 0.8), strict=True):
        write_accuracies(tmp_path, cell, [accuracy, accuracy + 0.1])
    assert table5.mean_of_splits(tmp_path, cells) == "75.0 ± 7.1 (2 of 3 seeds)"


def test_early_pools_divide_time_as_i3d_does_and_have_its_parameters():
    video = jax.ShapeDtypeStruct((1, 16, 48, 48, 3), np.float32)
    ends, params = {}, {}
    for name in ("i3d", "i3d_early_pools"):
        with variants.known():
            network = models.build(name, num_classes=24, width=0.25)
        variables = jax.eval_shape(network.init, jax.random.key(0), video)
        params[name] = jax.tree.map(lambda leaf: leaf.shape, variables["params"])
        _, found = jax.eval_shape(
            lambda v, x, network=network: network.apply(v, x, endpoints=True), variables, video
        )
        ends[name] = {layer: end.shape[1] for layer, end in found.items()}
    assert params["i3d"] == params["i3d_early_pools"]
    late, early = ends.values()
    assert (late["Conv_1a"], late["MaxPool_3a"], late["Mixed_5c"]) == (8, 8, 2)
    assert (early["Conv_1a"], early["MaxPool_3a"], early["Mixed_5c"]) == (8, 2, 2)


def test_variants_are_networks_of_the_zoo_only_while_runs_are_made(places, trained, monkeypatch):
    names, train = [], runner.train
    monkeypatch.setattr(runner, "train", lambda *of: names.extend(models.MODELS) or train(*of))
    runner.complete(make_run("a"), places)
    assert "i3d_early_pools" in names and "i3d_early_pools" not in models.MODELS


def test_full_size_commands_are_understood_and_have_their_cost(tmp_path, capsys):
    assert runner.main(table2.TABLE, ["--preset", "paper", "--data-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 115,000 steps of 384 clips, at 344 a second.
    assert any(line.startswith("# train i3d_rgb, ImageNet first: 35.7 h") for line in lines)
    assert "# 112 accelerator-hours of training in all, on H200s in bfloat16" in lines
    assert any(line.startswith("# not run: kinetics/400 is not prepared") for line in lines)
    training = [shlex.split(line) for line in lines if " i3d_jax.main " in line]
    assert len(training) == 6 + 4
    for words in training:
        _, config = main.parse(words[3:])
        assert config["batch_size"] % config["grad_accum_steps"] == 0
        assert config["model"]["dtype"] == "bfloat16"


def test_a_full_size_command_runs_where_its_data_is(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(full_size, "lack", lambda name, data_dir: name[6:] or None)
    commands = [
        full_size.Command("one", ("echo", "ran one"), "there/"),
        full_size.Command("two", ("echo", "ran two"), "there/gone"),
    ]
    assert full_size.main(commands, str(tmp_path), None, go=True) == 1
    out = capfd.readouterr().out
    assert "\nran one\n" in out and "\nran two\n" not in out and "# not run: gone" in out


def test_filters_are_drawn_in_columns_with_time_going_down():
    filters = np.zeros((2, 3, 3, 2, 4), np.float32)
    filters[1, 0, 0, 0, 2] = 1.0
    picture = figure4.mosaic(filters)
    assert picture.shape == (2 * 4 + 1, 4 * 4 + 1, 3)
    # Row 4 separates the frames, columns 4 and 8 the filters before the third.
    assert picture[5, 9].tolist() == [255, 128, 128] and picture[1, 1].tolist() == [128] * 3
    assert (picture[4] == 255).all() and (picture[:, 8] == 255).all()


def test_a_run_may_start_from_filters_inflated_into_the_centre_frame(places):
    images = make_run("images")
    network = models.build("inception", num_classes=3, width=0.1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
    info = weights.Info("inception", ("a", "b", "c"), {"width": 0.1}, {"rgb": (1, 1)}, crop=32)
    places.folder(images).mkdir(parents=True)
    weights.save(places.folder(images) / "weights.safetensors", variables, info)
    path = runner.starting_weights(make_run("b", images)._replace(inflation="centre"), places)
    model, variables, _ = weights.network(path)
    kernel = variables["params"]["Conv_1a"]["conv"]["kernel"]
    assert kernel.shape[0] == 7 and model.dims == 3
    assert [float(kernel[frame].max()) for frame in range(7)] == [0, 0, 0, 0.5, 0, 0, 0]
    assert runner.starting_weights(make_run("b", images), places).parent == places.folder(images)


@pytest.mark.slow
def test_a_real_run_that_is_interrupted_ends_with_the_numbers_of_one_that_is_not(
    places, tmp_path, monkeypatch
):
    counts = {"train": 2, "validation": 1}
    with monkeypatch.context() as patch:
        patch.setitem(moving_shapes.CLIPS_PER_CLASS, "videos", counts)
        datasets.prepared("moving_shapes/videos", places.data)
    changes = {
        "steps": 4,
        "batch_size": 8,
        "checkpoint_every": 2,
        "log_every": 1,
        "model.width": 0.1,
        "train_clips.crop": 32,
        "eval_clips.crop": 32,
    }
    run = miniature.on_videos("c3d", 1, changes=changes)
    whole = places._replace(results=tmp_path / "whole", work=tmp_path / "whole_work")
    assert runner.run_all([run], whole) == 0

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            runner.run_all([run], places)
    assert not places.results.exists() and runner.state(places, run) == "begun"
    assert runner.run_all([run], places) == 0
    one, other = (results.find(each.results, run) for each in (places, whole))
    assert one is not None and other is not None
    assert one["sittings"] == 2 and other["sittings"] == 1
    for name in ("scores", "confusion", "curve", "parameters", "class_accuracy"):
        assert one[name] == other[name]
    assert one["scores"]["clips"] == 24 and np.array(one["confusion"]).sum() == 24
    assert one["class_accuracy"] == np.diag(one["confusion"]).tolist()
    assert [point[0] for point in one["curve"]] == [1, 2, 3, 4]
    assert runner.run_all([run], places) == 0
