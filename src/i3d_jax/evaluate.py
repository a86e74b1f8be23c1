"""The paper's test: networks on whole videos, and the fusion of streams.

    python -m i3d_jax.evaluate --weights runs/i3d/weights.safetensors --dataset moving_shapes/videos --out results/i3d
    python -m i3d_jax.evaluate --fuse results/i3d results/i3d_flow --out results/two_stream_i3d

A network is convolutional over a video's first 10 seconds, or what its weights' description says (table 1's test
footprints: 250 frames, 240, 50, or 25 RGB frames with 250 of flow), centre-cropped; its predictions are averaged as
logits, of ConvNet+LSTM the last is taken. Shorter videos are taken whole, up to whole windows or snippets; I3D's are
looped up to a multiple of 16 frames, so that few lengths are compiled. --fuse adds the logits of runs, as Two-Stream I3D
does its streams'.

OUT gets `predictions.jsonl` (a line per clip: id, label, frames, the five likeliest classes, logits, those of the streams if
there are two), `scores.json` (top-1, top-5, mean per-class accuracy with 95 % Wilson intervals, the number of clips
really used), `confusion.csv` and `confusion.png`. The same command goes on where it was stopped.
"""

import pathlib

from i3d_jax import cli, compilation, datasets, video, weights
from i3d_jax.evaluation import protocol, results


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("i3d_jax.evaluate", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--weights", help="name or file, see `python -m i3d_jax.weights list`")
    what.add_argument(
        "--fuse", nargs="+", type=pathlib.Path, metavar="DIR", help="results whose logits to add"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the results")
    parser.add_argument("--dataset", help="data set and config, moving_shapes/videos for one")
    parser.add_argument("--data-dir", help="where TFDS keeps prepared data sets (default: its own)")
    parser.add_argument("--split", default="validation", help="default: validation")
    parser.add_argument("--batch-size", type=int, default=8, help="videos at a time (default: 8)")
    parser.add_argument(
        "--frames",
        type=int,
        help="of a video to use, at 25 per second; 0: all (default: as the weights say, 10 s)",
    )
    parser.add_argument(
        "--chunk", type=int, help="frames of a video in memory at a time; changes no result"
    )
    parser.add_argument(
        "--limit", type=int, help="how many clips of the split to take (default: all)"
    )
    parser.add_argument("--threads", type=int, default=2, help="that decode (default: 2)")
    flags = vars(parser.parse_args(arguments))
    compilation.enable_persistent_cache()
    name, folders, out = flags.pop("weights"), flags.pop("fuse"), flags.pop("out")
    if name and not flags["dataset"]:
        parser.error("--dataset is missing")
    for flag in ("batch_size", "chunk", "limit", "threads"):
        if flags[flag] is not None and flags[flag] < 1:
            parser.error(f"--{flag.replace('_', '-')}: {flags[flag]} is not a positive number")
    try:
        result = (
            results.fuse(folders, out) if folders else protocol.evaluate_weights(out, name, **flags)
        )
    except (results.EvaluationError, weights.WeightsError, video.VideoError, OSError) as error:
        cli.print_error(error)
        return 2
    print(report(out, result))
    return 0


def report(out: pathlib.Path, result: dict) -> str:
    def interval(name: str) -> str:
        return f"{result[name]:.1%} ({result[f'{name}_low']:.1%} to {result[f'{name}_high']:.1%})"

    own = [
        f"{stream} alone {result[f'{stream}_top1']:.1%}"
        for stream in results.STREAMS
        if f"{stream}_top1" in result
    ]
    return (
        f"{out}: top-1 {interval('top1')}, top-5 {interval('top5')}, mean per-class {interval('mean_class')} "
        f"(95 % Wilson intervals) on {result['clips']} clips"
        + "".join(f"; {each}" for each in own)
        + f"; {result['about']['split']} has {datasets.coverage(result['about'])}"
    )


if __name__ == "__main__":
    cli.run(main)
