"""Run the paper's test on a data set, or fuse the streams of several tests.

    python -m i3d_jax.evaluate --weights runs/i3d/weights.safetensors \\
        --dataset moving_shapes/videos --data-dir runs/data --out results/i3d
    python -m i3d_jax.evaluate --fuse results/i3d results/i3d_flow --out results/two_stream_i3d

The network runs over each video's first 10 seconds, or over as many frames as its weights say
(table 1: 250 frames, 240, 50, or 25 RGB frames with 250 of flow), centre-cropped. Its logits are
averaged; of ConvNet+LSTM the last are taken. Shorter videos are taken whole; I3D's are padded by
looping to a multiple of 16 frames, so that few lengths are compiled. --fuse adds the logits of
tests, as Two-Stream I3D does its streams'.

OUT gets scores.json (top-1, top-5 and mean per-class accuracy with 95 % Wilson intervals, and how
many clips were used), predictions.jsonl (a line per clip: id, label, frames, top classes, logits),
confusion.csv and confusion.png. If interrupted, run the same command again: it resumes.
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
    parser.add_argument(
        "--batch-size", type=cli.positive, default=8, help="videos at a time (default: 8)"
    )
    parser.add_argument(
        "--frames",
        type=int,
        help="of a video to use, at 25 per second; 0: all (default: as the weights say, 10 s)",
    )
    parser.add_argument(
        "--chunk",
        type=cli.positive,
        help="frames of a video in memory at a time; changes no result (default: all)",
    )
    parser.add_argument(
        "--limit", type=cli.positive, help="how many clips of the split to take (default: all)"
    )
    parser.add_argument("--threads", type=cli.positive, default=2, help="that decode (default: 2)")
    flags = vars(parser.parse_args(arguments))
    compilation.enable_persistent_cache()
    name, folders, out = flags.pop("weights"), flags.pop("fuse"), flags.pop("out")
    if name and not flags["dataset"]:
        parser.error("--dataset is missing")
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
        f"{out}: top-1 {interval('top1')}, top-5 {interval('top5')}, "
        f"mean per-class {interval('mean_class')} (95 % Wilson intervals) "
        f"on {result['clips']} clips"
        + "".join(f"; {each}" for each in own)
        + f"; {result['about']['split']} has {datasets.coverage(result['about'])}"
    )


if __name__ == "__main__":
    cli.run(main)
