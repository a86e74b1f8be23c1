"""A training run of seconds: its config for tests of the command line, and readers of results."""

import json
import pathlib
import socket
from typing import Any

from i3d_jax import weights

# C3D on a few moving shapes: of all networks it compiles in the shortest time.
CONFIG = """
from i3d_jax.datasets import moving_shapes

KINDS = "videos", "images"
moving_shapes.CLIPS_PER_CLASS = {kind: {"train": 2, "validation": 1} for kind in KINDS}


def get_config():
    from ml_collections import ConfigDict

    return ConfigDict(
        dict(
            steps=24,
            batch_size=8,
            norm_group_size=2,
            model=dict(name="c3d", width=0.1, dropout=0.5, norm_decay=0.9),
            dataset=dict(name="moving_shapes/videos", data_dir="DATA"),
            train_clips=dict(rgb=(16, 1), crop=32, flip=True),
            eval_clips=dict(rgb=(16, 1), crop=32, batch_size=8),
            optimizer=dict(lr=1e-4),
            log_every=1,
            checkpoint_every=4,
            validate_every=12,
        )
    )
"""


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes the config into a folder, in which the run also keeps its data set."""
    path = folder / "config.py"
    path.write_text(CONFIG.replace("DATA", str(folder / "data")))
    return path


def free_port() -> int:
    """A free port, for the coordinator of a run of several processes."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def read_log(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The logged scalars of a run, without timings and memory, which differ from run to run."""
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    measured = "clips_per_second", "input_wait", "memory_mb"
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


def read_weights(workdir: pathlib.Path) -> Any:
    """The variables that a run saved at its end."""
    return weights.read(workdir / "weights.safetensors")[0]
