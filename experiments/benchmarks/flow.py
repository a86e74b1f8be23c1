"""TV-L1 here and in OpenCV: seconds per pair of frames, and how far the flow is from OpenCV's and from known motions.

    python experiments/benchmarks/flow.py [VIDEO] [--sample RGB.gif FLOW.gif] [--json flow.json]

VIDEO gives the frames, 340x256; without it they are synthetic. OpenCV takes part if it is installed (extra `benchmark`), with its
default threads, ours with as many batches at a time as there are cores, or on the accelerator. Rounds are interleaved, figures
are medians. --sample are the release's sample clip and its flow, whose pairs 2 to 37 are compared with.
"""

import functools
import itertools
import pathlib

import harness
import jax
import motions
import numpy as np

from i3d_jax import flow
from i3d_jax.flow.videos import flow_of_frames

HEIGHT, WIDTH = 256, 340
KINDS, LENGTHS = ("shift", "turn", "zoom"), (1.0, 5.0, 10.0)


def methods(batch: int | None) -> dict:
    """By name: grey frames uint8 [T + 1, H, W] -> flow [T, H, W, 2]."""

    def ours(preset):
        return lambda frames: np.stack(
            list(flow_of_frames(frames, flow.PRESETS[preset], batch_size=batch))[:-1]
        )

    found = {preset: ours(preset) for preset in flow.PRESETS}
    try:
        import cv2
    except ImportError:
        cv2 = None
    if not hasattr(cv2, "optflow"):
        print("OpenCV with its contributed modules is not installed and does not take part")
        return found
    method = cv2.optflow.DualTVL1OpticalFlow_create()

    def opencvs(frames):
        return np.stack([method.calc(*pair, None) for pair in itertools.pairwise(frames)])

    return {"OpenCV": opencvs, **found}


def frames_of(path: pathlib.Path | None, number: int) -> np.ndarray:
    """Grey frames, uint8 [number, 256, 340]: the middle of a video's, or of a texture that turns."""
    if path is None:
        return np.stack(
            [motions.moving(*motions.motion("turn", 2.0 * index))[1] for index in range(number)]
        )
    from i3d_jax import video

    frames = np.stack(list(video.grey(path, short_side=HEIGHT, frames=number)))
    left = (frames.shape[2] - WIDTH) // 2
    if left < 0 or frames.shape[1] != HEIGHT:
        raise SystemExit(
            f"{path}: {frames.shape[1]}x{frames.shape[2]}, wanted frames of {WIDTH}x{HEIGHT} at least"
        )
    return frames[:, :, left : left + WIDTH]


def endpoint_error(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - wanted, axis=-1)


def speed(made: dict, frames: np.ndarray, rounds: int) -> dict:
    """Per method seconds per pair, and by how much it is faster than the first of them."""
    pairs = len(frames) - 1
    seconds = harness.interleaved(
        {name: functools.partial(method, frames) for name, method in made.items()}, rounds
    )
    per_pair = {name: [each / pairs for each in rounds] for name, rounds in seconds.items()}
    return harness.summary(per_pair, than=next(iter(made)))


def difference(found: np.ndarray, wanted: np.ndarray) -> dict:
    error = endpoint_error(found, wanted)
    return {
        "mean": float(error.mean()),
        "median": float(np.median(error)),
        "p99": float(np.quantile(error, 0.99)),
    }


def sample(made: dict, rgb: pathlib.Path, released: pathlib.Path) -> dict:
    from i3d_jax import video

    frames = np.stack(list(video.grey(rgb, short_side=224)))[2:39]
    wanted = 20 * (video.decode(released)[2:38, ..., :2] / 255 - 0.5)
    flows = {name: method(frames) for name, method in made.items()}
    reference = next(iter(flows.values()))
    return {
        name: {
            "correlation": [
                float(np.corrcoef(each[..., i].ravel(), wanted[..., i].ravel())[0, 1])
                for i in (0, 1)
            ],
            "to_the_first": difference(each, reference),
            "mean_motion": float(np.linalg.norm(each, axis=-1).mean()),
        }
        for name, each in flows.items()
    }


def known(made: dict) -> dict:
    """Mean end-point errors by motion, where pixels stay in the image and, in brackets, everywhere."""
    result = {}
    for kind in KINDS:
        for length in LENGTHS:
            first, second, wanted = motions.moving(*motions.motion(kind, length))
            inside, errors = motions.stays(wanted), {}
            for name, method in made.items():
                error = endpoint_error(method(np.stack([first, second]))[0], wanted)
                errors[name] = [float(error[inside].mean()), float(error.mean())]
            result[f"{kind}, {length:g} px"] = errors
    return result


def tables(result: dict) -> str:
    first = next(iter(result["speed"]))
    lines = [
        f"| method | s per pair | faster than {first} | mean, median, p99 difference to {first}, px |",
        "|---|---|---|---|",
    ]
    for name, each in result["speed"].items():
        apart = result["difference"][name]
        lines.append(
            f"| {name} | {harness.spread(each)} | {each['times_as_fast']:.1f}x "
            f"| {apart['mean']:.3f}, {apart['median']:.3f}, {apart['p99']:.3f} |"
        )
    lines.append(f"\nMean motion {result['mean_motion']:.2f} px.\n")
    lines += [
        f"| motion | {' | '.join(result['speed'])} |",
        "|---|" + "---|" * len(result["speed"]),
    ]
    for motion, errors in result["known"].items():
        lines.append(
            f"| {motion} | "
            + " | ".join(f"{inside:.3f} ({all_:.3f})" for inside, all_ in errors.values())
            + " |"
        )
    lines.append("\nMean end-point error in px, of pixels that stay in the image (of all).\n")
    if "sample" in result:
        lines += [
            f"| method | correlation u, v | difference to {first}, px | mean motion |",
            "|---|---|---|---|",
        ]
        for name, each in result["sample"].items():
            u, v = each["correlation"]
            lines.append(
                f"| {name} | {u:.3f}, {v:.3f} | {each['to_the_first']['mean']:.3f} | {each['mean_motion']:.2f} |"
            )
        lines.append("\nWith the release's sample flow, pairs 2 to 37.\n")
    return "\n".join(lines)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("video", nargs="?", type=pathlib.Path)
    parser.add_argument("--sample", nargs=2, type=pathlib.Path, metavar="GIF")
    parser.add_argument(
        "--pairs", type=harness.positive, default=16, help="to measure on (default: 16)"
    )
    parser.add_argument(
        "--batch",
        type=harness.positive,
        help="pairs at a time (default: 8 on a CPU, 64 on an accelerator)",
    )
    flags = parser.parse_args()
    about = harness.about("jax", "numpy", "opencv-contrib-python-headless") | {
        "device": jax.devices()[0].device_kind
    }
    made, frames = methods(flags.batch), frames_of(flags.video, flags.pairs + 1)
    result = {"speed": speed(made, frames, flags.rounds)}
    flows = {name: method(frames) for name, method in made.items()}
    reference = next(iter(flows.values()))
    result["difference"] = {name: difference(each, reference) for name, each in flows.items()}
    result["mean_motion"] = float(np.linalg.norm(reference, axis=-1).mean())
    result["known"] = known(made)
    if flags.sample:
        result["sample"] = sample(made, *flags.sample)
    harness.tell(tables(result), result, about, flags.json)


if __name__ == "__main__":
    main()
