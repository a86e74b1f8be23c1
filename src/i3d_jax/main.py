"""Trains the model that a config describes.

    python -m i3d_jax.main --config=configs/moving_shapes.py --workdir=runs/moving_shapes
    python -m i3d_jax.main --config=configs/moving_shapes.py --workdir=runs/slower --config.optimizer.lr=0.05

The same command resumes a run that was stopped. Every key that a config has can be set as --config.KEY=VALUE.

On several machines each runs the same command; TPU pods, SLURM and Open MPI tell JAX the rest. Elsewhere:

    python -m i3d_jax.main ... --coordinator=HOST:PORT --num-processes=2 --process-id=0
"""

import os
import re
import sys
import textwrap
import traceback
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from i3d_jax import cli, compilation, distributed, video, weights
from i3d_jax.stopping import StoppedError
from i3d_jax.training import checkpoints, loop
from i3d_jax.training.config import ConfigError, check_arguments

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="The run: a Python file with get_config().", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder: checkpoints, logs, weights.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of process 0 of a run of several."
)
_PROCESSES = flags.DEFINE_integer(
    "num-processes", None, "How many processes the run has.", lower_bound=1
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat",
    100,
    "Seconds after which a process that gives no sign of life ends the others.",
    lower_bound=1,
)
_PROCESS = flags.DEFINE_integer("process-id", None, "Which of them this is, from 0.", lower_bound=0)


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake on it is one line on stderr and exit status 2."""
    try:
        for argument, following in zip(argv, [*argv[1:], ""], strict=True):
            path = following if argument == "--config" else argument.partition("--config=")[2]
            if path and not os.path.exists(path.split(":")[0]):
                raise ValueError(f"--config: {path.split(':')[0]}: no such file")
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise ValueError(f"unexpected argument {rest[1]!r}; options start with --")
        for flag, value in (("config", _CONFIG.value), ("workdir", _WORKDIR.value)):
            if value is None:
                raise ValueError(f"--{flag} is missing")
    except (
        flags.Error,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OSError,
        SyntaxError,
    ) as error:
        fail(error, " (--help for help)")
    return rest


def fail(error: Exception, hint: str = "") -> NoReturn:
    lines = (str(error) or repr(error)).strip().splitlines()
    # What a config's own code raises, ml_collections puts at the end of a traceback.
    message = f"{lines[0]} {lines[-1]}" if lines[0].endswith("parsing config file:") else lines[0]
    unknown = re.match(r"\W*'(\w+)", message)
    if unknown and isinstance(
        error, KeyError | AttributeError
    ):  # ml_collections gives the bare name.
        message = f"the config has no {unknown[1]!r}"
    print(f"python -m i3d_jax.main: {message}{hint}", file=sys.stderr)
    if distributed.failed_only_here(error):
        distributed.exit_without_waiting(2)
    sys.exit(2)


def main(_: list[str]) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step it takes.
    compilation.enable_persistent_cache()
    config = _CONFIG.value.to_dict()
    try:
        check_arguments("config", loop.train, config, workdir="")
        distributed.initialize(
            _COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _HEARTBEAT.value
        )
        result = loop.train(os.path.expanduser(str(_WORKDIR.value)), **config)
    except (
        ConfigError,
        loop.DivergedError,
        weights.WeightsError,
        checkpoints.DamagedError,
        distributed.ProcessError,
        video.VideoError,
        OSError,
    ) as error:
        fail(error)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            what = textwrap.shorten(str(error), 200)
            fail(
                MemoryError(
                    f"{what}; --config.grad_accum_steps takes a batch in parts, --config.remat=True keeps less of it"
                )
            )
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        if not distributed.failed_only_here(
            error
        ):  # What cannot be compiled, for one: starting again mends nothing.
            sys.exit(2)
        print(
            "python -m i3d_jax.main: if a process was lost, start all again: the run goes on",
            file=sys.stderr,
        )
        distributed.exit_without_waiting(1)
    except RuntimeError as error:  # JAX_PLATFORMS names what is not there.
        if "Unable to initialize backend" not in str(error):
            raise
        fail(error)
    except StoppedError as stopped:
        print(f"python -m i3d_jax.main: {stopped}", file=sys.stderr)
        sys.exit(stopped.status)
    if not distributed.is_first_process():
        return
    splits = dict.fromkeys(
        name.removesuffix("_annotated") for name in result if name.endswith("_annotated")
    )
    shares = [
        f"{split} {result[f'{split}_used']} of {result[f'{split}_annotated']}" for split in splits
    ]
    print(
        f"{_WORKDIR.value}: top-1 {result['top1']:.1%}, top-5 {result['top5']:.1%} on {result['clips']} test clips "
        f"after {result['steps']} steps ({result['seconds']:.0f} s); annotated clips used: {', '.join(shares)}"
    )


if __name__ == "__main__":
    cli.run(lambda: app.run(main, flags_parser=parse))
