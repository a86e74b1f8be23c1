"""Classify the action in video files.

    python -m i3d_jax.predict video.mp4
    python -m i3d_jax.predict --stream both video.mp4
    python -m i3d_jax.predict --json --top-k 3 *.mp4 > predictions.jsonl
    python -m i3d_jax.predict --weights runs/i3d/weights.safetensors folder/

Videos are taken as in the paper's test (section 3): 25 frames per second, short side 256, centre
crop 224, the first 10 seconds. The network runs over all of these at once, and its logits are
averaged. Flow is computed for networks that take it, as by `python -m i3d_jax.flow`. With several
--weights the logits are added: --stream both is Two-Stream I3D (rgb_imagenet and flow_imagenet).

Predictions go to stdout. A video that cannot be read is named on stderr; the others go on, and the
exit status is 1.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from i3d_jax import cli, compilation, flow, models, pixels, video, weights
from i3d_jax.flow.videos import flow_of_frames
from i3d_jax.models import Network
from i3d_jax.prefetch import prefetch
from i3d_jax.video import listing

# Of "rgb", uint8 [T, H, W, 3], and "flow", f32 [T, H, W, 2] in [-1, 1], what a network takes.
Streams = dict[str, np.ndarray]


class Classifier(NamedTuple):
    """A network with its weights.

    Attributes:
      logits: a function from one clip's streams to its logits, f32 [K]. Clips are padded by looping
        to lengths of the network's timing (I3D: multiples of 16 frames), so that few are compiled.
      info: what is known of the weights.
    """

    logits: Callable[[Streams], np.ndarray]
    network: Network
    info: weights.Info


def classifier(name_or_path: str = "rgb_scratch") -> Classifier:
    """Returns the classifier of weights.

    Args:
      name_or_path: of published weights, or a file (`weights.load`).

    Raises:
      weights.WeightsError: the weights cannot be had, or do not fit their model.
    """
    network, variables, info = weights.network(name_or_path)
    variables = jax.device_put(variables)
    timing = network.timing
    most = {stream: frames for stream, (frames, _) in info.footprint.items()}

    def apply(variables, streams):
        unit = {
            name: pixels.to_unit(frames) if frames.dtype == np.uint8 else frames
            for name, frames in streams.items()
        }
        return network.apply(variables, models.as_network_input(unit))

    apply = jax.jit(apply, compiler_options=models.compiler_options())

    def logits(streams: Streams) -> np.ndarray:
        ticks = timing.ticks({name: len(frames) for name, frames in streams.items()}, most)
        looped = {
            name: pixels.loop(frames, ticks * timing.frames(name))[None]
            for name, frames in streams.items()
        }
        return np.asarray(apply(variables, looped))[0]

    return Classifier(logits, network, info)


def read_clips(
    path: str, network: Network, info: weights.Info, settings: flow.TVL1 = flow.OPENCV
) -> Streams:
    """Decodes a video as its network takes it.

    Args:
      path: of the video.
      network: that it is for.
      info: of the network's weights.
      settings: of the optical flow, if the network takes it.

    Returns:
      [T, crop, crop, C] of every stream; T is at most 250 for I3D.

    Raises:
      video.VideoError: it cannot be read, or has fewer frames than the network needs (I3D: 9).
    """
    streams = {}
    for stream, (most, stride) in info.footprint.items():
        if stream == "rgb":
            clip = video.decode(
                path,
                fps=info.fps,
                short_side=info.short_side,
                crop=info.crop,
                frames=most,
                stride=stride,
            )
        else:
            grey = video.grey(
                path, fps=info.fps, short_side=info.short_side, frames=(most - 1) * stride + 1
            )
            flows = itertools.islice(flow_of_frames(grey, settings), None, None, stride)
            clip = np.concatenate(
                [pixels.crop(pixels.flow_unit(each)[None], info.crop) for each in flows]
            )
        least = network.timing.least * network.timing.frames(stream)
        if len(clip) < least:
            found = f"{len(clip)} frames at {info.fps / stride:g} per second"
            raise video.VideoError(path, f"too short: {found}, and at least {least} are needed")
        streams[stream] = clip
    return streams


def read_all_clips(
    paths: list[str], classifiers: Sequence[Classifier], settings: flow.TVL1 = flow.OPENCV
) -> Iterator[tuple[str, list[Streams] | video.VideoError]]:
    """Reads videos for classifiers, one video ahead.

    Args:
      paths: of the videos.
      classifiers: that the clips are for.
      settings: of the optical flow.

    Yields:
      (path, what `read_clips` returns for each classifier) in order. Whatever goes wrong in reading
      a video takes the clips' place as a VideoError, so that no other video is lost by it.
    """

    def attempt(path: str) -> tuple[str, list[Streams] | video.VideoError]:
        try:
            return path, [
                read_clips(path, each.network, each.info, settings) for each in classifiers
            ]
        except video.VideoError as error:
            return path, error
        except Exception as error:  # noqa: BLE001 - see above
            return path, video.VideoError(path, f"cannot be read: {cli.one_line(error)}")

    return prefetch(attempt, paths, 1)


def load_classifiers(names: list[str], stream: str | None) -> list[Classifier]:
    """The classifiers of weights whose logits are to be added.

    Args:
      names: of published weights, or files.
      stream: that they must take together: "rgb", "flow" or "both". None: any.

    Raises:
      weights.WeightsError: also if they do not see it, or tell different classes apart.
    """
    loaded = [classifier(name) for name in names]
    seen = {each for one in loaded for each in one.info.footprint}
    if stream is not None and seen != ({"rgb", "flow"} if stream == "both" else {stream}):
        raise weights.WeightsError(
            f"{', '.join(names)}: weights for {' and '.join(sorted(seen))}, not for {stream}"
        )
    for name, one in zip(names, loaded, strict=True):
        if one.info.classes != loaded[0].info.classes:
            raise weights.WeightsError(
                f"{name}: has other classes than {names[0]}, their logits cannot be added"
            )
    return loaded


def main(arguments: list[str] | None = None) -> int:
    parser = cli.parser("i3d_jax.predict", __doc__)
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="any file that FFmpeg decodes, or a folder of them",
    )
    parser.add_argument(
        "--stream",
        choices=weights.DEFAULTS,
        help="what to look at (default: as the weights do, or rgb)",
    )
    parser.add_argument(
        "--weights",
        action="append",
        metavar="NAME|FILE",
        help="see `python -m i3d_jax.weights list`; may be given more than once "
        "(default: by --stream rgb_scratch, flow_imagenet, or rgb_imagenet and flow_imagenet)",
    )
    parser.add_argument(
        "--flow-preset",
        choices=flow.PRESETS,
        default="opencv",
        help="how flow is made (default: opencv)",
    )
    parser.add_argument(
        "--top-k", type=cli.positive, default=5, help="classes to print (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per video")
    flags = parser.parse_args(arguments)
    compilation.enable_persistent_cache()
    try:
        paths = [path for name in flags.videos for path in _videos(name)]
        classifiers = load_classifiers(
            flags.weights or weights.DEFAULTS[flags.stream or "rgb"], flags.stream
        )
    except (OSError, listing.FolderError, weights.WeightsError) as error:
        cli.print_error(error)
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("default", video.DamageWarning)
        warnings.showwarning = lambda message, *_: tqdm.tqdm.write(str(message), file=sys.stderr)
        return _predict_all(paths, classifiers, flags)


def _predict_all(paths: list[str], classifiers: list[Classifier], flags: argparse.Namespace) -> int:
    """Prints the predictions of every video; returns the exit status."""
    status = 0
    videos = read_all_clips(paths, classifiers, flow.PRESETS[flags.flow_preset])
    for path, clips in tqdm.tqdm(videos, total=len(paths), unit="video", disable=None):
        found = (
            clips
            if isinstance(clips, video.VideoError)
            else _classified(path, clips, classifiers, flags)
        )
        if isinstance(found, video.VideoError):
            tqdm.tqdm.write(cli.one_line(found), file=sys.stderr)
            status = 1
        else:
            tqdm.tqdm.write(found)
    return status


def _videos(name: str) -> list[str]:
    """A video or, of a folder, those below it."""
    return (
        [os.path.join(name, path) for path in listing.find_videos(pathlib.Path(name))]
        if os.path.isdir(name)
        else [name]
    )


def _classified(
    path: str, clips: list[Streams], classifiers: list[Classifier], flags: argparse.Namespace
) -> str | video.VideoError:
    """The predictions of a video as text, or what went wrong."""
    try:
        logits = np.sum(
            [each.logits(clip) for each, clip in zip(classifiers, clips, strict=True)], 0
        )
    except Exception as error:  # noqa: BLE001 - it is this video's, and the others go on
        return video.VideoError(path, f"cannot be classified: {cli.one_line(error)}")
    frames = len(next(iter(clips[0].values())))
    return _report(path, logits, frames, classifiers[0].info.classes, flags.top_k, flags.json)


def _report(path, logits, frames, classes, top_k, as_json) -> str:
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = [
        (classes[i], float(logits[i]), float(probabilities[i]))
        for i in np.argsort(-logits, kind="stable")[:top_k]
    ]
    if as_json:
        found = [
            {"class": name, "logit": logit, "probability": probability}
            for name, logit, probability in best
        ]
        return json.dumps({"video": path, "frames": frames, "top": found})
    best = [(cli.escape_unprintable(name), *numbers) for name, *numbers in best]
    width = max(len(name) for name, *_ in best)
    lines = [
        f"  {name:{width}}  {probability:7.2%}  logit {logit:7.3f}"
        for name, logit, probability in best
    ]
    return "\n".join([f"{path} ({frames} frames)", *lines])


if __name__ == "__main__":
    cli.run(main)
