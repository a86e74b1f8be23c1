"""The results of a run: log, checkpoints, weights."""

import numpy as np
import pytest
from support.small_run import read_log

from i3d_jax import predict, weights
from i3d_jax.datasets import moving_shapes
from i3d_jax.training import loop
from i3d_jax.video import h264


def test_a_run_leaves_a_log_checkpoints_and_weights_that_predict(finished_run, tmp_path):
    folder, result = finished_run
    log = read_log(folder)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6, 6]
    assert [line["lr"] for line in log[:6]] == pytest.approx([0.05] * 4 + [0.005] * 2)
    assert result["clips"] == log[-1]["validation_clips"] == 24
    assert 0 <= result["top1"] <= result["top5"] <= 1
    shares = dict(train_used=48, train_annotated=48, validation_used=24, validation_annotated=24)
    assert shares.items() <= result.items() and shares.items() <= log[-1].items()
    assert list(folder.glob("events.out.tfevents.*"))
    variables, info = weights.read(folder / "weights.safetensors")
    assert info.classes == tuple(moving_shapes.CLASSES["videos"])
    assert (info.short_side, info.crop) == (56, 32)
    frames, _ = moving_shapes.render("disc", "moving left", np.random.default_rng(0))
    video = tmp_path / "x.mp4"
    video.write_bytes(h264.encode(frames))
    assert predict.main(["--weights", str(folder / "weights.safetensors"), str(video)]) == 0
    assert len(variables["params"]["Logits"]["bias"]) == 24


def test_a_run_that_diverges_says_so_and_keeps_the_last_good_parameters(c3d_config, tmp_path):
    options = dict(optimizer=dict(lr=1e30), steps=20, max_skipped_steps=3, checkpoint_every=1)
    message = (
        r"step \d: loss or gradient of the last 3 steps was not finite; "
        ".* has the last good parameters"
    )
    with pytest.raises(loop.DivergedError, match=message):
        loop.train(str(tmp_path), **c3d_config | options)
    log = [line for line in read_log(tmp_path) if "loss" in line]
    assert log[-1]["skipped_in_a_row"] == 3 and log[-1]["loss"] is None
