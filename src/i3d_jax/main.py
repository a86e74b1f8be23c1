"""Train the model that a config describes.

    python -m i3d_jax.main --config=moving_shapes --workdir=runs/i3d
    python -m i3d_jax.main --config=moving_shapes --workdir=runs/slow --config.optimizer.lr=0.005
    python -m i3d_jax.main --config=moving_shapes:frames --print-config

The same command resumes a run that was stopped. CONFIG is the name of one that is installed
(kinetics, transfer, moving_shapes) or a file, perhaps with :ARGUMENT. Every key can be set as
--config.KEY=VALUE, also one that the config leaves out; --print-config lists all.

On several machines each runs the same command. TPU pods, SLURM and Open MPI tell JAX the rest.
Elsewhere:

    python -m i3d_jax.main ... --coordinator=HOST:PORT --num-processes=2 --process-id=0
"""

import argparse
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
from absl import logging

from i3d_jax import cli, compilation, distributed, video, weights
from i3d_jax.stopping import StoppedError
from i3d_jax.training import checkpoints, config_files, loop
from i3d_jax.training.config import ConfigError, check_arguments

MISTAKES = (
    ConfigError,
    loop.DivergedError,
    weights.WeightsError,
    checkpoints.DamagedError,
    distributed.ProcessError,
    video.VideoError,
    OSError,
)


def parse(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command line's options, and the config."""
    parser = cli.parser("i3d_jax.main", __doc__)
    parser.add_argument("--config", metavar="NAME|FILE[:ARGUMENT]", help="the run")
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder")
    parser.add_argument("--print-config", action="store_true", help="print all keys, and end")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0 of several")
    parser.add_argument("--num-processes", type=cli.positive, metavar="N", help="of the run")
    parser.add_argument("--process-id", type=int, metavar="I", help="of this process, from 0")
    parser.add_argument(
        "--heartbeat",
        type=cli.positive,
        default=100,
        metavar="SECONDS",
        help="without a sign of a process, after which the others end (default: 100)",
    )
    options, rest = parser.parse_known_args(arguments)
    try:
        config_files.check_options(rest)  # A misspelt --workdir is no missing one.
        if options.config is None:
            raise ConfigError("--config is missing")
        if options.workdir is None and not options.print_config:
            raise ConfigError("--workdir is missing")
        return options, config_files.override(config_files.load(options.config), rest)
    except ConfigError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> int:
    options, config = parse(arguments)
    if options.print_config:
        print(config_files.describe(config))
        return 0
    logging.set_verbosity(logging.WARNING)  # Orbax tells every step it takes.
    compilation.enable_persistent_cache()
    try:
        check_arguments("config", loop.train, config, workdir="")
        distributed.initialize(
            options.coordinator, options.num_processes, options.process_id, options.heartbeat
        )
        result = loop.train(os.path.expanduser(options.workdir), **config)
    except MISTAKES as error:
        _fail(error)
    except jax.errors.JaxRuntimeError as error:
        return _after_runtime_error(error)
    except RuntimeError as error:  # JAX_PLATFORMS names a platform that is not there.
        if "Unable to initialize backend" not in str(error):
            raise
        _fail(error)
    except StoppedError as stopped:
        cli.print_error(str(stopped))
        return stopped.status
    if distributed.is_first_process():
        print(_summary(options.workdir, result))
    return 0


def _fail(error: Exception) -> NoReturn:
    """Ends the command for a mistake, without waiting for processes that may not know of it."""
    print(f"{cli.program()}: {(str(error) or repr(error)).splitlines()[0]}", file=sys.stderr)
    if distributed.failed_only_here(error):
        distributed.exit_without_waiting(2)
    sys.exit(2)


def _after_runtime_error(error: Exception) -> int:
    """The exit status after an error of JAX's: memory is short, or a process was lost."""
    if "RESOURCE_EXHAUSTED" in str(error):
        less = "--config.grad_accum_steps or --config.remat=True makes a step take less"
        _fail(MemoryError(f"{textwrap.shorten(str(error), 200)}; {less}"))
    if jax.process_count() == 1:
        raise error
    traceback.print_exc()
    if not distributed.failed_only_here(error):
        return 2  # It cannot be compiled, for one: starting again would not help.
    cli.print_error("if a process was lost, start all processes again: the run resumes")
    distributed.exit_without_waiting(1)


def _summary(workdir: str, result: dict[str, Any]) -> str:
    end = "_annotated"
    splits = [name.removesuffix(end) for name in result if name.endswith(end)]
    coverage = [f"{split} {result[f'{split}_used']} of {result[split + end]}" for split in splits]
    return (
        f"{workdir}: top-1 {result['top1']:.1%}, top-5 {result['top5']:.1%} "
        f"on {result['clips']} test clips after {result['steps']} steps "
        f"({result['seconds']:.0f} s); annotated clips used: {', '.join(coverage)}"
    )


if __name__ == "__main__":
    cli.run(main)
