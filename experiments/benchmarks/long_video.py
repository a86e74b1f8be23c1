"""How I3D's time and memory grow: with frames, clips, pixels and classes, and with a long video's frames taken in pieces.

    python experiments/benchmarks/long_video.py [--longest 512]

Forward passes, float32. Prints Markdown tables: seconds (median and spread over interleaved rounds), of which each frame, and temporary
memory. A video in pieces gives the predictions of the whole (`models/timing.py`): their difference is in the last table.
"""

import harness
import jax
import jax.numpy as jnp
import model
import numpy as np

from i3d_jax import cli, models

FRAMES, SIZE, CLASSES = 16, 224, 400
PIECE = 128  # Ticks, of one frame each.


def task(
    batch: int = 1, frames: int = FRAMES, size: int = SIZE, classes: int = CLASSES
) -> model.Task:
    return model.Task("i3d", batch, {"rgb": frames}, size, classes=classes)


def growth(variants: dict[str, dict], rounds: int) -> tuple[str, dict]:
    tasks = {name: task(**options) for name, options in variants.items()}
    about: dict[str, dict] = {
        name: {"frames": each.batch * each.frames["rgb"]} for name, each in tasks.items()
    }
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


def in_pieces(frames: int, rounds: int) -> tuple[str, dict]:
    """A long video as a whole, and piece by piece."""
    long = task(frames=frames)
    network, variables, video = long.build(), long.variables, long.streams()["rgb"]

    def predictions(variables, video):
        return network.apply(variables, video, endpoints=True)[1]["Logits"][0]

    windows = list(network.timing.windows(frames, PIECE))
    programs, about = {}, {"whole": {}, "in pieces": {}}
    for length in {window.stop - window.start for window in windows} | {frames}:
        one: dict = {}
        shapes = variables, jax.ShapeDtypeStruct((1, length, SIZE, SIZE, 3), jnp.float32)
        programs[length] = model.compiled(predictions, shapes, one, models.compiler_options())
        if length == frames:
            about["whole"] = one
        else:
            about["in pieces"]["megabytes"] = max(
                one["megabytes"], about["in pieces"].get("megabytes", 0)
            )

    def whole():
        return np.asarray(programs[frames](variables, video))

    def pieces():
        found = []
        for start, stop, first, last in windows:
            found.append(
                np.asarray(programs[stop - start](variables, video[:, start:stop]))[first:last]
            )
        return np.concatenate(found)

    result = harness.summary(
        harness.interleaved({"whole": whole, "in pieces": pieces}, rounds), "whole"
    )
    result = {name: each | about.get(name, {}) for name, each in result.items()}
    result["in pieces"]["difference"] = model.difference(pieces(), whole())
    rows = {
        f"{frames} frames, {name}": [
            harness.spread(each),
            f"{each['megabytes']:.0f} MB",
            f"{each['difference']:.1e}" if "difference" in each else "",
        ]
        for name, each in result.items()
    }
    heads = ["", "seconds", "temporary memory", "difference of predictions, of the greatest logit"]
    return harness.table(rows, heads), {"windows": len(windows), **result}


def main() -> None:
    parser = harness.parser(__doc__, rounds=3)
    parser.add_argument("--longest", type=cli.positive, default=512, help="frames (default: 512)")
    flags = parser.parse_args()
    if flags.longest <= PIECE:
        parser.error(f"--longest: {flags.longest}, wanted more than a piece's {PIECE} frames")
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
    table, result["pieces"] = in_pieces(flags.longest, flags.rounds)
    about = harness.about("jax", "jaxlib", "flax") | {"device": jax.devices()[0].device_kind}
    text = (
        f"Forward, 1 clip of {FRAMES}x{SIZE}x{SIZE}, {CLASSES} classes, but for what is varied\n\n"
    )
    harness.report(text + "\n\n".join([*tables, table]), result, about, flags.json)


if __name__ == "__main__":
    main()
