"""TV-L1 of this package and of OpenCV: speed, differences, and errors on known motions.

    python experiments/benchmarks/flow.py [VIDEO] [--sample RGB.gif FLOW.gif] [--json flow.json]

The frames are 340x256 crops of VIDEO; without it they are synthetic. OpenCV takes part if it is
installed (extra `benchmark`), with its default number of threads. Ours runs on the accelerator, or
on a CPU with one batch per core at a time. Rounds are interleaved, and figures are medians.
--sample takes the sample clip of google-deepmind/kinetics-i3d and its flow; the benchmark compares
with the flow of pairs 2 to 37.
"""

import functools
import itertools
import pathlib

import harness
import jax
import motions
import numpy as np

from i3d_jax import cli, flow
from i3d_jax.flow.videos import flow_of_frames

HEIGHT, WIDTH = 256, 340
KINDS, LENGTHS = ("shift", "turn", "zoom"), (1.0, 5.0, 10.0)


def methods(batch: int | None) -> dict:
    """Functions that map grey frames, uint8 [T + 1, H, W], to flow [T, H, W, 2], by name.

    Args:
      batch: pairs of frames per batch; None: the default.
    """

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
    """Grey frames, uint8 [number, 256, 340].

    Args:
      path: a video, whose frames are cropped in the middle; None: a turning texture.
      number: of frames.
    """
    if path is None:
        return np.stack(
            [motions.moving(*motions.motion("turn", 2.0 * index))[1] for index in range(number)]
        )
    from i3d_jax import video

    frames = np.stack(list(video.grey(path, short_side=HEIGHT, frames=number)))
    left = (frames.shape[2] - WIDTH) // 2
    if left < 0 or frames.shape[1] != HEIGHT:
        raise SystemExit(
            f"{path}: {frames.shape[2]}x{frames.shape[1]}, "
            f"wanted frames of at least {WIDTH}x{HEIGHT}"
        )
    return frames[:, :, left : left + WIDTH]


def endpoint_error(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The length of the difference of two flows, per pixel."""
    return np.linalg.norm(found - wanted, axis=-1)


def speed(made: dict, frames: np.ndarray, rounds: int) -> dict:
    """Seconds per pair of frames of each method, compared with the first method.

    Args:
      made: result of `methods`.
      frames: grey, uint8 [T + 1, H, W].
      rounds: number of measurements.
    """
    pairs = len(frames) - 1
    variants = {name: functools.partial(method, frames) for name, method in made.items()}
    seconds = harness.interleaved(variants, rounds)
    per_pair = {name: [each / pairs for each in rounds] for name, rounds in seconds.items()}
    return harness.summary(per_pair, than=next(iter(made)))


def difference(found: np.ndarray, wanted: np.ndarray) -> dict:
    """Mean, median and 99th percentile of the end-point error."""
    error = endpoint_error(found, wanted)
    return {
        "mean": float(error.mean()),
        "median": float(np.median(error)),
        "p99": float(np.quantile(error, 0.99)),
    }


def sample(made: dict, rgb: pathlib.Path, released: pathlib.Path) -> dict:
    """Compares the methods on the published sample clip.

    Args:
      made: result of `methods`.
      rgb: the clip.
      released: its published flow.
    """
    from i3d_jax import video

    frames = np.stack(list(video.grey(rgb, short_side=224)))[2:39]
    wanted = 20 * (video.decode(released)[2:38, ..., :2] / 255 - 0.5)
    flows = {name: method(frames) for name, method in made.items()}
    reference = next(iter(flows.values()))
    result = {}
    for name, each in flows.items():
        u, v = (
            float(np.corrcoef(each[..., i].ravel(), wanted[..., i].ravel())[0, 1]) for i in (0, 1)
        )
        result[name] = {
            "correlation": [u, v],
            "to_the_first": difference(each, reference),
            "mean_motion": float(np.linalg.norm(each, axis=-1).mean()),
        }
    return result


def known(made: dict) -> dict:
    """Mean end-point errors by motion and method.

    Args:
      made: result of `methods`.

    Returns:
      for each motion and method (the mean over pixels that stay in the image, over all pixels).
    """
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
    """The results as Markdown."""
    first = next(iter(result["speed"]))
    lines = [
        f"| method | s per pair | faster than {first} "
        f"| mean, median, p99 difference to {first}, px |",
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
        cells = [f"{inside:.3f} ({everywhere:.3f})" for inside, everywhere in errors.values()]
        lines.append(f"| {motion} | {' | '.join(cells)} |")
    lines.append("\nMean end-point error in px, of pixels that stay in the image (of all).\n")
    if "sample" in result:
        lines += [
            f"| method | correlation u, v | difference to {first}, px | mean motion |",
            "|---|---|---|---|",
        ]
        for name, each in result["sample"].items():
            u, v = each["correlation"]
            mean, motion = each["to_the_first"]["mean"], each["mean_motion"]
            lines.append(f"| {name} | {u:.3f}, {v:.3f} | {mean:.3f} | {motion:.2f} |")
        lines.append("\nCompared with the published sample flow, pairs 2 to 37.\n")
    return "\n".join(lines)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument(
        "video", nargs="?", type=pathlib.Path, help="source of the frames (default: synthetic)"
    )
    parser.add_argument(
        "--sample",
        nargs=2,
        type=pathlib.Path,
        metavar=("RGB", "FLOW"),
        help="the published sample clip and its flow",
    )
    parser.add_argument(
        "--pairs", type=cli.positive, default=16, help="pairs of frames to measure on (default: 16)"
    )
    parser.add_argument(
        "--batch",
        type=cli.positive,
        help="pairs per batch (default: 8 on a CPU, 64 on an accelerator)",
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
    harness.report(tables(result), result, about, flags.json)


if __name__ == "__main__":
    main()
