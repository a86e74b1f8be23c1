"""The estimate of how training scales: bytes that a step sends, seconds that they take."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scaling
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def test_the_bytes_of_collectives_are_read_out_of_a_compiled_program():
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    whole, cut = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    step = jax.jit(lambda x: (x.sum(0), jnp.square(x).sum()), in_shardings=cut, out_shardings=whole)
    text = step.lower(jax.ShapeDtypeStruct((4, 100), jnp.float32)).compile().as_text()
    found = scaling.collectives(text)
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert sum(size for _, size in found) == 4 * 101


def test_only_collectives_are_counted():
    text = """
  %all-reduce.2 = (f32[2,3]{1,0}, /*index=5*/bf16[4]{0}) all-reduce(%a, %b), channel_id=1
  %get-tuple-element.1 = f32[2,3]{1,0} get-tuple-element(%all-reduce.2), index=0
  %all-gather-start.1 = s32[] all-gather-start(%c), dimensions={0}
"""
    assert scaling.collectives(text) == [("all-reduce", 2 * 3 * 4 + 4 * 2), ("all-gather", 4)]


def test_sending_uses_a_ring_within_a_machine_and_a_ring_of_machines():
    links = scaling.Links("", 8, 100.0, 10.0, 0.5)
    assert scaling.seconds_to_send(400, 8, links) == pytest.approx(2 * 7 / 8 * 4 + 2 * 3 * 0.5)
    two_machines = 2 * 7 / 8 * 4 + 2 / 2 * 400 / 8 / 10 + 2 * 4 * 0.5
    assert scaling.seconds_to_send(400, 16, links) == pytest.approx(two_machines)


def test_a_step_that_was_compiled_for_tpus_has_its_own_collectives(tmp_path, monkeypatch, capsys):
    row = {"config": "kinetics:c3d", "topology": "v5e:2x2", "program": "train", "clips": 6}
    row |= {"fits": True, "clips_per_second": 60.0, "collectives": [["all-reduce", 50_000_000]]}
    rows = {"one": row | {"program": "forward"}, "two": row, "three": row | {"fits": False}}
    (tmp_path / "x.json").write_text(json.dumps(rows))
    monkeypatch.setattr("sys.argv", ["scaling.py", "--compiled", str(tmp_path / "x.json")])
    scaling.main()
    first, *_, slice_of_tpus = capsys.readouterr().out.splitlines()
    assert first.startswith("kinetics:c3d for v5e:2x2, 6 clips per device, 100.0 ms a step")
    assert "(60 clips/s, predicted). Sent per step: 1 all-reduce of 50.0 MB" in first
    # 2 * 7 / 8 * 50 MB at 100 GB/s are 0.9 ms of 100.
    assert slice_of_tpus.split("|")[2].strip() == "99% to 100%"


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", "has no training step that fits"),
        ("[1]", "is no file of tpu_compile.py --json"),
        ('{"a": 1}', "is no file of tpu_compile.py --json"),
        ("{", "is no file of tpu_compile.py --json"),
        (None, "No such file"),
    ],
)
def test_a_file_without_a_training_step_is_refused(tmp_path, monkeypatch, capsys, text, message):
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr("sys.argv", ["scaling.py", "--compiled", str(path)])
    assert scaling.main() == 2
    said = capsys.readouterr().err
    assert message in said and str(path) in said and said.count("\n") == 1
