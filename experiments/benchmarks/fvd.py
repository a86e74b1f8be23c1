"""What FVD depends on, what its error bar is worth, and what it costs.

    python experiments/benchmarks/fvd.py conventions --weights rgb_scratch --out runs/fvd
    python experiments/benchmarks/fvd.py errors runs/fvd/real.npz runs/fvd/generated.npz
    python experiments/benchmarks/fvd.py speed --weights rgb_scratch
    python experiments/benchmarks/fvd.py scale

`conventions` renders videos of moving shapes, 128x96: "real" ones, others of the same kind, and
"generated" ones, which are blurred and have noise. It prints their distances by every convention,
and saves the measured sets in OUT.

`errors` draws features from normal distributions with the means and covariances of two measured
sets, so that the distance of infinitely many is known, and prints for several numbers of clips: the
mean distance, its standard deviation, what the bootstrap says of it, how often the interval has the
mean, and what a line over 1/N, as in FVD-infinity, gives for infinitely many.

`speed` times clips of 16 frames through the network, beside PyTorch if it is installed (extra
`benchmark`). `scale` runs the command with a small network on 5,000 and on 10,000 clips of an
array, and prints seconds and memory of the whole process.
"""

import argparse
import pathlib
import sys
import tempfile
from typing import Any

import features
import harness
import jax
import jax.numpy as jnp
import model
import numpy as np

from i3d_jax import fvd, models, weights
from i3d_jax.datasets import moving_shapes
from i3d_jax.fvd import __main__ as command
from i3d_jax.fvd import measuring, saved
from i3d_jax.video import h264

HEIGHT, WIDTH, FRAMES = 96, 128, 16
KINDS = "real", "other", "generated"
NUMBERS = 256, 512, 1024, 2048  # Of clips, in `errors`.
SCALES = 5000, 10_000  # Of clips, in `scale`.


def render(kind: str, number: int) -> np.ndarray:
    """A video [T, H, W, 3]."""
    rng = np.random.default_rng([KINDS.index(kind), number])
    shape, movement = (
        rng.choice(sorted(names)) for names in (moving_shapes.SHAPES, moving_shapes.MOVEMENTS)
    )
    video, _ = moving_shapes.render(shape, movement, rng, FRAMES, WIDTH)
    video = video[:, (WIDTH - HEIGHT) // 2 :][:, :HEIGHT].astype(np.float32)
    if kind == "generated":
        small = video.reshape(FRAMES, HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((2, 4))
        video = small.repeat(2, 1).repeat(2, 2) + rng.normal(0, 4, video.shape)
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def write_videos(out: pathlib.Path, kind: str, number: int) -> None:
    folder = out / kind
    folder.mkdir(parents=True, exist_ok=True)
    for each in range(number):
        if not (path := folder / f"{each:05d}.mp4").exists():
            path.write_bytes(h264.encode(iter(render(kind, each))))


def conventions(flags: argparse.Namespace) -> tuple[str, dict]:
    """Measures all conventions on the same videos; returns the table and the results."""
    for kind in KINDS:
        write_videos(flags.out, kind, flags.number)
        if not (path := flags.out / f"{kind}.npz").exists():
            asked = [str(flags.out / kind), "--save", str(path), "--convention", "all"]
            # Every video has 16 frames, so that all samplings are one.
            assert command.main([*asked, "--clips", "first", "--weights", flags.weights]) == 0
    sets = {kind: saved.read(flags.out / f"{kind}.npz") for kind in KINDS}
    result: dict[str, dict] = {}
    rows = {}
    for name, row in fvd.CONVENTIONS.items():
        of = {kind: kept_features(sets[kind][name]) for kind in KINDS}
        found: dict[str, Any] = {}
        for kind in KINDS[1:]:
            both = of["real"], of[kind]
            error = fvd.bootstrap(*both, ddof=row.ddof).standard_error
            kernel = fvd.kernel_distance(*both).distance
            found[kind] = [fvd.distance(*both, ddof=row.ddof), error, kernel]
        mixed = fvd.distance(kept_features(sets["real"]["reference"]), of["real"])
        result[name] = {**found, "same videos, reference against this": mixed}
        cells = [f"{found[kind][0]:.1f} ± {found[kind][1]:.1f}" for kind in KINDS[1:]]
        rows[name] = [*cells[::-1], f"{found['generated'][2]:.3g}", f"{mixed:.1f}"]
    heads = [
        "convention",
        "generated",
        "other real",
        "KVD, generated",
        "real: reference against this",
    ]
    return harness.table(rows, heads), {"conventions": result}


def kept_features(one: tuple[dict, measuring.Measured]) -> np.ndarray:
    found = one[1].features
    assert found is not None
    return found


def errors(flags: argparse.Namespace) -> tuple[str, dict]:
    """Compares error bars and extrapolation with the truth; returns the table and the results."""
    rng = np.random.default_rng(0)
    populations = []
    for path in flags.files:
        measured = saved.read(path)["reference"][1].statistics
        values, vectors = np.linalg.eigh(measured.covariance())
        populations.append((measured.mean, vectors * np.sqrt(np.maximum(values, 0))[None]))
    real, generated = (fvd.Statistics(2, mean, factor @ factor.T) for mean, factor in populations)
    truth = fvd.distance(real, generated)

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        shape = number, populations[0][0].size
        real, generated = (
            mean[None] + rng.normal(size=shape) @ factor.T for mean, factor in populations
        )
        return real, generated

    rows: dict[str, list[str]] = {}
    result: dict[str, Any] = {"truth": truth}
    for number in NUMBERS:
        draws = [draw(number) for _ in range(flags.trials)]
        found = np.array([fvd.distance(*each) for each in draws])
        bars = [fvd.bootstrap(*each, replicates=50) for each in draws[: flags.bootstraps]]
        inside = np.mean([each.low <= found.mean() <= each.high for each in bars])
        limits = [fvd.extrapolate(*each) for each in draws[: flags.bootstraps]]
        one = {
            "mean": found.mean(),
            "deviation": found.std(ddof=1),
            "standard_error": float(np.mean([each.standard_error for each in bars])),
            "inside": inside,
            "extrapolated": float(np.mean(limits)),
            "extrapolated_deviation": float(np.std(limits, ddof=1)),
        }
        result[str(number)] = one
        rows[str(number)] = [
            f"{one['mean'] / truth:.3f}",
            f"{one['deviation'] / truth:.4f}",
            f"{one['standard_error'] / truth:.4f}",
            f"{inside:.0%}",
            f"{one['extrapolated'] / truth:.3f} ± {one['extrapolated_deviation'] / truth:.3f}",
        ]
    heads = [
        "clips",
        "mean",
        "its deviation",
        "bootstrap says",
        "interval has the mean",
        "from a line over 1/N",
    ]
    table = harness.table(rows, heads)
    real, generated = (kept_features(saved.read(path)["reference"]) for path in flags.files)
    result["held_out"] = predicted(real, generated) / fvd.distance(real, generated)
    text = f"Shares of the distance of infinitely many, {truth:.1f}:\n\n{table}\n\n"
    text += f"Of the measured distance of all, half predict {result['held_out']:.3f}."
    return text, {"errors": result}


def predicted(real: np.ndarray, generated: np.ndarray) -> float:
    """The distance of all features that a line over those of up to half of them predicts."""
    number, rng = len(real), np.random.default_rng(0)
    x, y = (each[rng.permutation(number)[: number // 2]] for each in (real, generated))
    limit = fvd.extrapolate(x, y)
    return limit + (fvd.distance(x, y) - limit) / 2


def speed(flags: argparse.Namespace) -> tuple[str, dict]:
    """Times clips of 16 frames; returns the table and the results."""
    network = measuring.load(flags.weights, "Logits")
    clips = [render("real", number) for number in range(network.batch_size)]
    how = measuring.Input("legacy", None, 1e-3)

    def ours() -> None:
        resized = [network.resized(place, clip, how) for place, clip in enumerate(clips)]
        network.features(resized, how.norm_epsilon).block_until_ready()

    variants = {"i3d_jax.fvd, with the resize": ours}
    task = model.Task("i3d", 1, {"rgb": FRAMES}, network.side, classes=400)
    if model.torch_is_here():
        for form in ("PyTorch, float32", "PyTorch, float32, channels last"):
            variants[form] = model.of_torch(task, form)
    seconds = harness.interleaved(variants, flags.rounds)
    seconds["i3d_jax.fvd, with the resize"] = [
        each / network.batch_size for each in seconds["i3d_jax.fvd, with the resize"]
    ]
    result = harness.summary(seconds, [*variants][-1])
    rows = {
        name: [f"{1 / each['seconds']:.2f}", f"{each['times_as_fast']:.2f}x"]
        for name, each in result.items()
    }
    return harness.table(rows, ["", "clips per second", "speed"]), {"speed": result}


def scale(flags: argparse.Namespace) -> tuple[str, dict]:
    """Runs the command on arrays of two sizes; returns the table and the results."""
    rows, result = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        network = models.build("i3d", num_classes=400, width=0.05)
        zeros = jnp.zeros((1, 9, 32, 32, 3))
        classes = tuple(f"class {number}" for number in range(400))
        info = weights.Info("i3d", classes, {"width": 0.05}, short_side=32, crop=32)
        path = folder / "small.safetensors"
        variables = jax.device_get(jax.jit(network.init)(jax.random.key(0), zeros))
        weights.save(path, variables, info)
        for number in SCALES:
            shape = number, FRAMES, 32, 32, 3
            array = np.lib.format.open_memmap(folder / "clips.npy", "w+", np.uint8, shape)
            array[:] = np.random.default_rng(0).integers(0, 256, shape[1:], np.uint8)[None]
            array[:, 0, 0, 0] += np.arange(3 * number).reshape(-1, 3).astype(np.uint8)
            del array
            asked = ["-m", "i3d_jax.fvd", str(folder / "clips.npy"), "--weights", str(path)]
            asked += ["--save", str(folder / "out.npz"), "--statistics-only"]
            measured = features.measure_process([sys.executable, *asked])
            result[str(number)] = {"seconds": measured[0], "megabytes": measured[1]}
            rows[f"{number:,}"] = [f"{measured[0]:.0f} s", f"{measured[1]:.0f} MB"]
    return harness.table(rows, ["clips", "time", "memory"]), {"scale": result}


def main() -> None:
    parser = harness.parser(__doc__)
    parts = parser.add_subparsers(required=True)
    for function in conventions, errors, speed, scale:
        part = parts.add_parser(function.__name__)
        part.set_defaults(run=function)
        if function in (conventions, speed):
            part.add_argument("--weights", default="rgb_scratch")
        if function is conventions:
            part.add_argument("--out", type=pathlib.Path, required=True)
            part.add_argument("--number", type=int, default=256)
        if function is errors:
            part.add_argument("files", nargs=2, type=pathlib.Path)
            part.add_argument("--trials", type=int, default=100)
            part.add_argument("--bootstraps", type=int, default=25)
    flags = parser.parse_args()
    text, result = flags.run(flags)
    harness.report(text, result, harness.about("jax", "numpy"), flags.json)


if __name__ == "__main__":
    main()
