"""Checkpoints: saving, damage, other steps, other runs, earlier versions."""

import functools
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from support.small_run import read_log, read_weights

from i3d_jax.training import checkpoints, loop, optimizers, validation
from i3d_jax.training.step import EarlierState, State, initial_state


def shapes_of(state):
    """A state without its numbers, as `Checkpoints.restore` takes it."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """A folder with checkpoints of steps 2, 4 and 6, and their states.

    Every parameter equals the step. The run of the last one has another seed.
    """
    folder = tmp_path_factory.mktemp("three")
    parts = dict(
        batch_stats={},
        opt_state=(),
        skipped=jnp.zeros(2, jnp.int32),
        validation=validation.initial(),
    )
    states = [State(jnp.int32(step), jnp.full(5, float(step)), **parts) for step in (2, 4, 6)]
    for state, seed in zip(states, (0, 0, 1), strict=True):
        about = {"config": {"seed": seed}}
        with checkpoints.Checkpoints(folder / "checkpoints", max_to_keep=9, about=about) as saved:
            saved.save(int(state.step), state)
    return folder, states


def restored(folder, states, refuse=lambda about: None):
    """The step that is restored from a run's folder, and the value of its parameters."""
    with checkpoints.Checkpoints(folder / "checkpoints", max_to_keep=9) as saved:
        step, state = saved.restore(shapes_of(states[0]), refuse)
        saved.save(step + 1, state._replace(step=jnp.int32(step + 1)))  # Nothing is in its way.
    return step, float(state.params[1])


def swap_last_two(folder):
    """Renames checkpoint 6 to 4, and 4 to 6."""
    (folder / "6").rename(folder / "x")
    (folder / "4").rename(folder / "6")
    (folder / "x").rename(folder / "4")


def test_initial_state_is_one_program_and_saving_compiles_none(tmp_path, programs):
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 2, 6)}
    params = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    tx, _ = optimizers.sgd(lr=0.1)
    variables = {"params": params, "batch_stats": {"mean": np.ones(7, np.float32)}}
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    state = initial_state(variables, tx, ema=True)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(1, state)
    assert len(programs()) == 1


@pytest.mark.parametrize(
    "change,step,moved,why",
    [
        (swap_last_two, 2, ["4", "6"], "step 6: is the checkpoint of step 4"),
        (
            lambda folder: shutil.copytree(folder / "4", folder / "1000000"),
            6,
            ["1000000"],
            "step 1000000: is the",
        ),
        (
            lambda folder: (folder / f"{10**30}").symlink_to("4"),
            6,
            [f"{10**30}"],
            "is the checkpoint of step 4",
        ),
        (
            lambda folder: (folder / "6" / "crc32c" / "metadata").write_text("[]"),
            4,
            ["6"],
            "step 6: its checksums are",
        ),
        (
            lambda folder: (folder / "6" / "about" / "metadata").write_text("{"),
            4,
            ["6"],
            "step 6: cannot be restored",
        ),
    ],
)
def test_checkpoints_in_a_folder_of_another_step_are_set_aside(
    three_checkpoints, change, step, moved, why, tmp_path, capsys
):
    folder, states = three_checkpoints
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "set_aside" / "6").mkdir(parents=True)  # Set aside earlier; it stays.
    change(tmp_path / "checkpoints")
    assert restored(tmp_path, states) == (step, step)
    said = capsys.readouterr().err
    assert why in said
    aside = f"{tmp_path / 'set_aside'}: {', '.join(moved)}"
    assert f"goes on from step {step}; moved to {aside}\n" in said
    wanted = {"6", *(f"{name}.1" if name == "6" else name for name in moved)}
    assert {path.name for path in (tmp_path / "set_aside").iterdir()} == wanted
    assert not list((tmp_path / "set_aside" / "6").iterdir())


def test_checkpoints_of_another_run_are_not_restored(three_checkpoints, tmp_path, capsys):
    folder, states = three_checkpoints
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)

    def refuse(about, wanted):
        return None if about.get("config") == wanted else "is another's"

    assert restored(tmp_path, states, functools.partial(refuse, wanted={"seed": 0})) == (4, 4.0)
    assert "step 6: is another's\n" in capsys.readouterr().err
    message = r"none of the steps \[2, 4, 5\] can be restored"
    with pytest.raises(checkpoints.DamagedError, match=message):
        restored(tmp_path, states, functools.partial(refuse, wanted={"seed": 2}))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4", "5"]


def test_checkpoints_tell_their_run_without_a_config_file(
    finished_c3d_run, c3d_config, tmp_path, capsys
):
    shutil.copytree(finished_c3d_run[0] / "checkpoints", tmp_path / "checkpoints")
    message = r"none of the steps \[4, 6\] can be restored"
    with pytest.raises(checkpoints.DamagedError, match=message):
        loop.train(str(tmp_path), **c3d_config | {"seed": 1})
    said = capsys.readouterr().err
    assert "step 6: is of another run: its config.seed is 0, this run's 1\n" in said
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "6"}


def test_damaged_metadata_of_orbax_are_named(three_checkpoints, tmp_path):
    folder, states = three_checkpoints
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "6" / "_CHECKPOINT_METADATA").write_text("[1]")
    message = "a step's _CHECKPOINT_METADATA is damaged; move the step away"
    with pytest.raises(checkpoints.DamagedError, match=message):
        restored(tmp_path, states)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    assert restored(tmp_path, states) == (4, 4.0)


def test_damaged_checkpoints_are_skipped_with_a_message(
    finished_c3d_run, c3d_config, tmp_path, capsys
):
    folder, _ = finished_c3d_run
    loop.train(str(tmp_path), **c3d_config | {"steps": 4})
    files = [path for path in (tmp_path / "checkpoints" / "4").rglob("*") if path.is_file()]
    data = max(files, key=lambda path: path.stat().st_size)
    bad = bytearray(data.read_bytes())
    bad[len(bad) // 2] ^= 1
    data.write_bytes(bad)
    log = (tmp_path / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(log.replace(b"step", b"s\xf4ep", 1))
    loop.train(str(tmp_path), **c3d_config)
    said = capsys.readouterr().err
    assert "checkpoints: step 4: " in said and "log.jsonl: line 1 left out, since damaged" in said
    assert [path.name for path in (tmp_path / "set_aside").glob("?")] == ["4"]
    assert [line["step"] for line in read_log(tmp_path) if "loss" in line] == [2, 3, 4, 5, 6]
    jax.tree.map(np.testing.assert_array_equal, read_weights(tmp_path), read_weights(folder))


def test_checkpoints_of_earlier_versions_are_restored(tmp_path):
    """Their states have the fields `bad` and `average`."""
    tx, _ = optimizers.sgd(lr=0.1)
    variables = {"params": {"w": jnp.zeros((3, 4))}, "batch_stats": {"mean": jnp.zeros(7)}}
    leaves, structure = jax.tree.flatten(initial_state(variables, tx, ema=True))
    # Every leaf has its own value, so that a leaf in another's place is found.
    leaves = [jnp.full_like(leaf, number) for number, leaf in enumerate(leaves, 2)]
    state = jax.tree.unflatten(structure, leaves)._replace(step=jnp.int32(3))
    earlier = EarlierState(*state)
    assert earlier.bad is state.skipped and earlier.average is state.ema_params
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(3, earlier)
    like = shapes_of(state)
    with checkpoints.Checkpoints(tmp_path) as saved:
        with pytest.raises(checkpoints.DamagedError):
            saved.restore(like)
        step, found = saved.restore(like, earlier=EarlierState(*like))
        saved.save(4, found._replace(step=jnp.int32(4)))
    assert step == 3 and isinstance(found, State)
    assert jax.tree.structure(found) == structure
    jax.tree.map(np.testing.assert_array_equal, found, state)

    # The next checkpoint has today's names, and is restored by the same call.
    with checkpoints.Checkpoints(tmp_path) as saved:
        step, found = saved.restore(like, earlier=EarlierState(*like))
    assert step == 4 and isinstance(found, State)
    jax.tree.map(np.testing.assert_array_equal, found, state._replace(step=jnp.int32(4)))


def test_if_all_checkpoints_are_damaged_it_is_an_error_and_they_stay(tmp_path):
    state = {"w": jnp.arange(1000.0)}
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.restore(shapes_of(state)) is None
        saved.save(1, state)
        saved.wait()
        step, restored = saved.restore(shapes_of(state))
        assert step == 1 and (restored["w"] == state["w"]).all()
        with pytest.raises(RuntimeError, match="step 1 was not saved"):
            saved.save(1, state)
        with pytest.raises(ValueError, match=r"none of the steps \[1\] can be restored"):
            saved.restore(shapes_of({"w": state["w"][:999]}))
        assert saved.all_steps() == [1]


def test_a_full_disk_is_one_error_and_earlier_checkpoints_stay(tmp_path, monkeypatch):
    state = {"w": jnp.arange(1000.0)}
    with (
        pytest.raises(checkpoints.SaveError, match="it takes 0.0 MB, and 0.0 MB are free"),
        checkpoints.Checkpoints(tmp_path, max_to_keep=1) as saved,
    ):
        saved.save(1, state)
        saved.wait()
        monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=100))
        saved.save(2, state)
    with checkpoints.Checkpoints(tmp_path) as saved:
        assert saved.restore(shapes_of(state))[0] == 1


def test_a_half_written_checkpoint_leaves_the_one_before(tmp_path):
    """A limit on the size of files stands in for a disk that runs full during the save."""
    program = """
import resource, signal, sys
import jax, jax.numpy as jnp, numpy as np
from i3d_jax.training import checkpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
state = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(1000, 1000)).astype("f"))}
try:
    with checkpoints.Checkpoints(sys.argv[1], max_to_keep=1) as saved:
        saved.save(1, state)
        saved.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        saved.save(2, state)
        saved.wait()
except checkpoints.SaveError as error:
    print(error)
with checkpoints.Checkpoints(sys.argv[1]) as saved:
    w = jax.ShapeDtypeStruct((1000, 1000), jnp.float32, sharding=state["w"].sharding)
    print(saved.restore({"w": w})[0])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    message, step = done.stdout.splitlines()
    assert "cannot save a checkpoint" in message and "File too large" in message
    assert "are as they were" in message
    assert step == "1"
