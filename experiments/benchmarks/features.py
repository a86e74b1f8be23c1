"""What features of a long video cost: streamed, in one pass, in pieces, in windows, as a command.

    python experiments/benchmarks/features.py network [--frames 512]
    python experiments/benchmarks/features.py command [--minutes 1]

`network` runs I3D RGB in float32 on noise of 224x224, in turns: one pass of 64 frames and of the
whole video; `streaming.step` with chunks of several sizes; pieces of 128 frames that overlap so far
that they have the same predictions; and windows of 16 frames, one every 8. PyTorch computes the
same windows if it is installed (extra `benchmark`). It prints milliseconds per frame, the ratio to
the pass of 64 frames in the same round, and temporary memory.

`command` runs `python -m i3d_jax.features` on a video of noise that it writes, 340x256 at 25 frames
per second, and prints seconds and memory of the whole process. The weights are random.
"""

import argparse
import functools
import pathlib
import subprocess
import sys
import tempfile
import time

import harness
import jax
import jax.numpy as jnp
import model
import numpy as np

from i3d_jax import cli, models, weights
from i3d_jax.models import streaming
from i3d_jax.video import h264

CHUNKS = 16, 24, 32, 64  # Frames.
PASS, PIECE, WINDOW, STRIDE = 64, 128, 16, 8
BASE = f"one pass of {PASS}"
# Frames that a prediction of I3D sees before its own 8, and from these on.
BEFORE, AFTER = 48, 62
SIZE, CLASSES = 224, 400


def task(frames: int) -> model.Task:
    return model.Task("i3d", 1, {"rgb": frames}, SIZE, classes=CLASSES)


def one_pass(frames: int, about: dict):
    """A function that computes the predictions of a video at once."""
    one = task(frames)
    network = one.build()

    def predictions(variables, video):
        return network.apply(variables, video, endpoints=True)[1]["Logits"]

    given = one.variables, jnp.asarray(one.streams()["rgb"])
    program = model.compiled(predictions, given, about, models.compiler_options())
    return functools.partial(model.call_and_wait, program, *given)


def streamed(size: int, frames: int, about: dict):
    """A function that goes on with a stream, by `frames` in chunks of `size`."""
    one = task(size)
    network, chunk = one.build(), jnp.asarray(one.streams()["rgb"])
    state = streaming.start(network, one.variables, chunk)

    def step(variables, state, chunk):
        state, ends = streaming.step(variables, state, chunk, network=network)
        return state, ends["Logits"].values

    given = one.variables, state, chunk
    program = model.compiled(step, given, about, models.compiler_options())

    def run():
        nonlocal state
        for _ in range(frames // size):
            state, logits = program(one.variables, state, chunk)
        jax.block_until_ready(logits)

    return run


def pieces(frames: int) -> int:
    """How many pieces of PIECE frames together have all predictions of a video."""
    number, done = 0, 0
    while done < frames // STRIDE - 1:
        start = min(max(0, done * STRIDE - BEFORE), frames - PIECE)
        last = start + PIECE == frames
        done = frames // STRIDE - 1 if last else (start + PIECE - AFTER) // STRIDE + 1
        number += 1
    return number


def network_table(frames: int, rounds: int) -> tuple[str, dict]:
    """Measures the network; returns the table and the results."""
    about: dict[str, dict] = {}

    def noted(name: str) -> dict:
        return about.setdefault(name, {})

    # Of each variant: a function, the frames of video that it covers, and calls for all of these.
    made = {BASE: (one_pass(PASS, noted(BASE)), PASS, 1)}
    for size in CHUNKS:
        name = f"streamed in chunks of {size}"
        covered = -(-PASS // size) * size
        made[name] = streamed(size, covered, noted(name)), covered, 1
    made[f"one pass of {frames}"] = (
        one_pass(frames, noted(f"one pass of {frames}")),
        frames,
        1,
    )
    name = f"{frames} frames in pieces of {PIECE}"
    made[name] = one_pass(PIECE, noted(name)), frames, pieces(frames)
    name = f"windows of {WINDOW}, one every {STRIDE}"
    made[name] = one_pass(WINDOW, noted(name)), STRIDE, 1
    if model.torch_is_here():
        window = task(WINDOW)
        for form in ("PyTorch, float32", "PyTorch, float32, channels last"):
            made[f"{name}: {form}"] = model.of_torch(window, form), STRIDE, 1
    seconds = harness.interleaved({name: run for name, (run, _, _) in made.items()}, rounds)
    per_frame = {
        name: [each * calls / covered for each in seconds[name]]
        for name, (_, covered, calls) in made.items()
    }
    result = harness.summary(per_frame, BASE)
    result = {name: each | about.get(name, {}) for name, each in result.items()}
    rows = {
        name: [
            harness.spread(
                {
                    "seconds": 1e3 * each["seconds"],
                    "spread": [1e3 * edge for edge in each["spread"]],
                }
            ),
            f"{1 / each['times_as_fast']:.2f}x",
            f"{each['megabytes']:.0f} MB" if "megabytes" in each else "",
        ]
        for name, each in result.items()
    }
    heads = ["", "milliseconds per frame", "time", "temporary memory"]
    return harness.table(rows, heads), {"network": result}


def write_video(path: pathlib.Path, minutes: float) -> None:
    """Writes a video of blurred noise that moves, 340x256."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (80, 100), np.uint8).repeat(8, 0).repeat(8, 1)

    def frames():
        for number in range(round(minutes * 60 * 25)):
            top, left = number % 300, 3 * number % 400
            yield np.repeat(scene[top : top + 256, left : left + 340, None], 3, -1)

    path.write_bytes(h264.encode(frames()))


def write_weights(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes random weights of I3D for both streams."""
    found = {}
    for stream, channels in models.CHANNELS.items():
        network = models.build("i3d", num_classes=CLASSES)
        zeros = jnp.zeros((1, 9, 32, 32, channels))
        variables = jax.device_get(jax.jit(network.init)(jax.random.key(0), zeros))
        found[stream] = folder / f"{stream}.safetensors"
        classes = tuple(f"class {number}" for number in range(CLASSES))
        info = weights.Info("i3d", classes, footprint={stream: (250, 1)})
        weights.save(found[stream], variables, info)
    return found


def measure_process(command: list[str]) -> tuple[float, float]:
    """Runs a command; returns its seconds, and the most megabytes that its process had."""
    code = (
        "import resource, subprocess, sys; status = subprocess.run(sys.argv[1:]).returncode;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
    )
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - began, int(done.stdout.splitlines()[-1]) / 1024


def command_table(minutes: float, rounds: int) -> tuple[str, dict]:
    """Measures the command; returns the table and the results."""
    variants = {
        "RGB": ["rgb"],
        "flow, fast": ["flow", "--flow-preset", "fast"],
        "flow, opencv": ["flow"],
    }
    result: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        made = write_weights(folder)
        short, long = folder / "short.mp4", folder / "long.mp4"
        write_video(short, 1 / 25)
        write_video(long, minutes)
        for name, (stream, *others) in variants.items():
            for number in range(rounds):

                def run(path: pathlib.Path, number=number, stream=stream, others=others):
                    out = folder / f"{stream}{number}{path.stem}{len(others)}"
                    module = [sys.executable, "-m", "i3d_jax.features", str(path)]
                    flags = ["--out", str(out), "--weights", str(made[stream]), *others]
                    return measure_process([*module, *flags])

                few, whole = run(short), run(long)
                per_minute = (whole[0] - few[0]) / (minutes - 1 / 25)
                now = {"seconds": per_minute, "start": few[0], "megabytes": whole[1]}
                if name not in result or per_minute < result[name]["seconds"]:
                    result[name] = now
    rows = {
        name: [
            f"{each['seconds']:.0f} s",
            f"{each['start']:.0f} s",
            f"{each['megabytes']:.0f} MB",
        ]
        for name, each in result.items()
    }
    heads = [
        f"{minutes:g} minutes of video",
        "seconds per minute of video",
        "start",
        "memory of the process",
    ]
    return harness.table(rows, heads), {"command": result}


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("what", choices=("network", "command"))
    parser.add_argument("--frames", type=cli.positive, default=512, help="of the long video")
    parser.add_argument("--minutes", type=float, default=1, help="of the command's video")
    flags: argparse.Namespace = parser.parse_args()
    if flags.frames % PASS or flags.frames <= PIECE:
        parser.error(f"--frames: {flags.frames}, wanted a multiple of {PASS} above {PIECE}")
    if flags.what == "network":
        text, result = network_table(flags.frames, flags.rounds)
    else:
        text, result = command_table(flags.minutes, flags.rounds)
    about = harness.about("jax", "jaxlib", "flax", "torch")
    about |= {"device": jax.devices()[0].device_kind}
    harness.report(text, result, about, flags.json)


if __name__ == "__main__":
    main()
