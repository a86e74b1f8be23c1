"""A run that is killed ends as if nothing had been; the experiment that shows it, in small."""

import kill
import numpy as np
import pytest
from support import small_run

from i3d_jax import weights


@pytest.mark.slow
def test_a_run_killed_at_four_moments_ends_bit_identical_with_no_step_logged_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "1")  # In the experiment's own folder.
    arguments = [
        f"--config={small_run.write(tmp_path)}",
        "--config.steps=60",
        "--config.validate_every=20",
    ]
    done, different = kill.experiment(tmp_path / "runs", 4, arguments, every=20)
    assert [each["moment"] for each in done] == list(kill.MOMENTS) and done[2]["step"] > 0
    assert different == []

    # And what is not the same is found.
    path = tmp_path / "runs" / "killed" / "weights.safetensors"
    variables, info = weights.read(path)
    variables["params"]["Logits"]["bias"] = np.nextafter(
        variables["params"]["Logits"]["bias"], 1, dtype=np.float32
    )
    weights.save(path, variables, info)
    with (tmp_path / "runs" / "killed" / "log.jsonl").open("a") as log:
        log.write('{"step": 60, "loss": 1.0}\n')
    runs = [tmp_path / "runs" / name for name in ("undisturbed", "killed")]
    found = kill.differences(*runs)
    assert found == [
        "weights: params/Logits/bias",
        f"{runs[1]}: step 60 is logged twice",
        "the logs",
    ]
