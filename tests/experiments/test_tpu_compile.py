"""Programs compiled for TPUs: what is read of them, and what a training step of two clips sends."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import tpu_compile
from tpu_program import batches, hlo, programs

from i3d_jax import models
from i3d_jax.training import optimizers
from i3d_jax.training.step import initial_state

REPOSITORY = pathlib.Path(__file__).parents[2]

# As libtpu prints programs, shortened.
PROGRAM = """\
HloModule step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, may-alias) }, \
entry_computation_layout={...}

%fused (p: bf16[6,16,56,56,64], k: f32[3,3,3,64,192]) -> bf16[6,16,56,56,192] {
  %p = bf16[6,16,56,56,64]{4,0,3,2,1:T(8,128)(2,1)} parameter(0)
  %k = f32[3,3,3,64,192]{4,3,2,1,0:T(8,128)} parameter(1)
  ROOT %c = bf16[6,16,56,56,192]{4,0,3,2,1:T(8,128)(2,1)} convolution(%p, %k), window={size=3x3x3}
}

%body (p.1: (s32[], f32[16,128])) -> (s32[], f32[16,128]) {
  %p.1 = (s32[], f32[16,128]{1,0:T(8,128)}) parameter(0)
  %g = f32[16,128]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %d = f32[16,128]{1,0:T(8,128)} add(%g, %g)
  ROOT %t = (s32[], f32[16,128]{1,0:T(8,128)}) tuple(%g, %d)
}

ENTRY %main (x: bf16[6,16,56,56,64], w: f32[3,3,3,64,192]) -> f32[2,3] {
  %x = bf16[6,16,56,56,64]{4,0,3,2,1:T(8,128)(2,1)} parameter(0), metadata={op_name="x"}
  %w = f32[3,3,3,64,192]{4,3,2,1,0:T(8,128)} parameter(1)
  %fusion.1 = bf16[6,16,56,56,192]{4,0,3,2,1:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, \
calls=%fused, metadata={op_name="jit(f)/Conv_2c/conv"}
  %near = f32[2,3]{1,0:T(2,128)S(1)} slice(%fusion.1), slice={[0:2]}
  %while.1 = (s32[], f32[16,128]{1,0:T(8,128)}) while(%near), condition=%body, body=%body
  %all-reduce.2 = (f32[2,3]{1,0:T(2,128)}, bf16[4]{0:T(256)}) all-reduce(%near, %near), to_apply=%b
  %ag = (f32[2,3]{1,0:T(2,128)}, f32[8,3]{1,0:T(8,128)}) all-gather-start(%near), dimensions={0}
  ROOT %agd = f32[8,3]{1,0:T(8,128)} all-gather-done(%ag)
}
"""


def test_an_array_has_the_padding_of_its_tiles():
    # 64 of 128 lanes, and 6 of 8 sublanes.
    (array,) = hlo.arrays_of("bf16[6,16,56,56,64]{4,0,3,2,1:T(8,128)(2,1)}")
    assert array.size == 2 * 6 * 16 * 56 * 56 * 64
    assert array.padded == 2 * 8 * 16 * 56 * 56 * 128
    assert not array.fast
    flag, near, scalar = hlo.arrays_of("(pred[3]{0:T(512)}, f32[2,3]{1,0:T(2,128)S(1)}, s32[])")
    assert (flag.size, flag.padded) == (3, 512)
    assert (near.size, near.padded, near.fast) == (24, 2 * 128 * 4, True)
    assert (scalar.size, scalar.padded) == (4, 4)
    (of_v4,) = hlo.arrays_of("f32[2,128]{1,0:T(2,128)S(3)}")
    assert of_v4.fast


def test_a_fusion_is_called_what_it_computes_and_loops_bodies_are_seen():
    found = {each.name: each for each in hlo.instructions(PROGRAM)}
    assert found["fusion.1"].kind == "convolution"
    assert found["fusion.1"].operands == ("x", "w")
    assert found["fusion.1"].origin == "jit(f)/Conv_2c/conv"
    assert (found["d"].kind, found["d"].loop) == ("add", "body")
    assert "c" not in found  # A fusion's own instructions move nothing.


def test_bytes_are_those_of_operands_and_results_that_are_not_in_the_chips_own_memory():
    x, w, y = 2 * 8 * 16 * 56 * 56 * 128, 4 * 27 * 64 * 256, 2 * 8 * 16 * 56 * 56 * 256
    moved = hlo.traffic(hlo.instructions(PROGRAM))
    assert moved["convolution"] == x + w + y
    assert moved["slice"] == y
    assert moved["add"] == 3 * 4 * 16 * 128
    assert "while" not in moved and "parameter" not in moved
    (largest,) = hlo.largest(hlo.instructions(PROGRAM), 1)
    assert largest["bytes"] == y
    assert largest["array"] == "bf16[6,16,56,56,192]{4,0,3,2,1:T(8,128)(2,1)}"


def test_collectives_have_the_bytes_that_are_sent_and_donated_arguments_are_counted():
    assert hlo.collectives(PROGRAM) == [("all-reduce", 24 + 8), ("all-gather", 8 * 3 * 4)]
    assert hlo.donated(PROGRAM) == 2


def test_a_program_that_does_not_fit_says_by_how_much():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (44.00G) exceeds available HBM (15.75G)."
    )
    assert hlo.memory_error(message) == "44.00G of 15.75G"


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["--config=nothing"], "nothing: no such file"),
        (["--config.batchsize=1"], "batchsize"),
        (["--program", "sing"], "invalid choice: 'sing'"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        tpu_compile.main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_clips_that_are_no_whole_groups_are_refused():
    config = {"grad_accum_steps": 2, "norm_group_size": 6}
    programs._check_groups(config, 24)
    with pytest.raises(ValueError, match="18 clips per chip: wanted a multiple of 12"):
        programs._check_groups(config, 18)


@pytest.mark.parametrize("each,wanted", [(1.0, 88), (3.0, 24), (20.0, 0), (0.09, 1000)])
def test_the_largest_batch_that_fits_is_found_in_a_few_programs(each, wanted):
    compiled = []

    def need(clips):
        compiled.append(clips)
        memory = 10 + each * clips
        return memory if memory < 150 else None  # The compiler gives up.

    assert batches.largest(need, 100, 8) == wanted
    assert len(compiled) <= 6 and (wanted in compiled or not wanted)


def test_the_fastest_batch_is_one_that_fits():
    case = dict(topology="v5e", program="train", forms="tpu")
    other = case | dict(forms="rocm", clips=12)
    results = [
        (case | dict(clips=6), dict(fits=True, clips_per_second=82)),
        (case | dict(clips=24), dict(fits=True, clips_per_second=77)),
        (case | dict(clips=48), dict(fits=False)),
        (other, dict(fits=True, clips_per_second=90)),
    ]
    assert tpu_compile._fastest(results, **case) == 6
    assert tpu_compile._fastest(results, **case | dict(program="forward")) == 0


def test_clips_to_choose_from_are_whole_groups():
    config = {"grad_accum_steps": 2, "norm_group_size": 6}
    assert programs.step_of_clips("train", config) == 12
    assert programs.step_of_clips("train", config | {"norm_group_size": None}) == 8
    assert programs.step_of_clips("evaluate", config) == 1
    # Whole micro-batches, too.
    config = {"grad_accum_steps": 3, "norm_group_size": None}
    programs._check_groups(config, programs.step_of_clips("train", config))


@pytest.mark.slow  # Compiles two programs.
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_training_step_for_tpus_sends_one_all_reduce_and_donates_its_state(tmp_path):
    command = [
        *(sys.executable, str(REPOSITORY / "experiments/tpu_compile.py")),
        *("--config=moving_shapes:c3d", "--program", "train", "--clips", "2", "--classes", "4"),
        *("--topology", "v5e:2x2", "v4:2x2x2", "--json", str(tmp_path / "found.json")),
        *("--config.norm_group_size=2", "--config.train_clips.crop=32"),
        "--config.model.width=0.1",
    ]
    # The options for fast tests are for programs on this CPU.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    table = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    results = [*json.loads((tmp_path / "found.json").read_text()).values()]
    assert [each["topology"] for each in results] == ["v5e:2x2", "v4:2x2x2"]
    network = models.build("c3d", num_classes=4, width=0.1)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 32, 32, 3)))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(variables))
    state = jax.eval_shape(lambda tree: initial_state(tree, optimizers.sgd(lr=1.0)[0]), variables)
    for each in results:
        assert f"| {each['topology']} | train | 2 | tpu | yes |" in table.stdout
        # Gradients, statistics, loss and accuracy, all in float32: no clip and no activation.
        assert each["collectives"] == [["all-reduce", 4 * (numbers + 2)]]
        assert each["donated"] == len(jax.tree.leaves(state))
        assert each["outputs"] < 10_000  # Scalars.
