"""A small version of the experiment that kills a run: the results are bit-identical."""

import kill
import numpy as np
import pytest
from support import small_run

from i3d_jax import weights


@pytest.mark.slow
def test_a_run_killed_at_four_moments_ends_bit_identical_with_no_step_logged_twice(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "1")  # The experiment has its own folder.
    config = small_run.write(tmp_path)
    arguments = [f"--config={config}", "--config.steps=100", "--config.validate_every=20"]
    done, different = kill.experiment(tmp_path / "runs", 4, arguments, every=20)
    assert [each["moment"] for each in done] == list(kill.MOMENTS) and done[2]["step"] > 0
    assert different == []

    # The comparison finds a change of one bit, and a line that is logged twice.
    undisturbed, killed = (tmp_path / "runs" / name for name in ("undisturbed", "killed"))
    variables, info = weights.read(killed / "weights.safetensors")
    last = variables["params"]["Logits"]
    last["bias"] = np.nextafter(last["bias"], 1, dtype=np.float32)
    weights.save(killed / "weights.safetensors", variables, info)
    with (killed / "log.jsonl").open("a") as log:
        log.write('{"step": 100, "loss": 1.0}\n')
    twice = f"{killed}: step 100 is logged twice"
    found = kill.differences(undisturbed, killed)
    assert found == ["weights: params/Logits/bias", twice, "the logs"]
