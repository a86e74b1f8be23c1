"""Says what happens in videos.

    python -m i3d_jax.predict video.mp4
    python -m i3d_jax.predict --json --top 3 *.mp4 > predictions.jsonl
    python -m i3d_jax.predict --weights runs/moving_shapes/weights.safetensors video.mp4

The paper's test protocol (section 3): 25 frames per second, short side 256, centre crop 224, the network convolutional over
the video's first 10 seconds, its predictions averaged. Predictions go to stdout; a video that cannot be read is named on
stderr, the others go on, and the exit status is then 1.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tqdm

from i3d_jax import video, weights
from i3d_jax.models import Network, layers


def classifier(
    name_or_path: str = "rgb_scratch",
) -> tuple[Callable[[np.ndarray], np.ndarray], Network, weights.Info]:
    """Returns a function from a clip, uint8 [T, H, W, 3], to its logits, f32 [K], and the network and what is known of it.

    Clips are looped up to the lengths of the network's timing (I3D: multiples of 16 frames), so that few are compiled;
    as they are, frame by frame, while `evaluate` loops the video that they were taken from.

    Args:
      name_or_path: RGB weights, see `weights.load`.

    Raises:
      weights.WeightsError: these cannot be had, or do not fit their model.
    """
    network, variables, info = weights.network(name_or_path)
    if info.stream != "rgb":
        raise weights.WeightsError(f"{name_or_path}: these are weights for {info.stream}, wanted RGB")
    variables = jax.device_put(variables)

    def apply(variables, clip):
        return network.apply(variables, video.to_unit(clip))

    apply = jax.jit(apply, compiler_options=layers.compiler_options())

    def classify(clip: np.ndarray) -> np.ndarray:
        ticks = network.timing.ticks({"rgb": len(clip)}, {"rgb": info.footprint["rgb"][0]})
        return np.asarray(apply(variables, video.loop(clip, ticks * network.timing.rgb)[None]))[0]

    return classify, network, info


def read_all(
    paths: list[str], network: Network, info: weights.Info
) -> Iterator[tuple[str, np.ndarray | video.VideoError]]:
    """Yields (path, what `read` returns or raises) in order, reading one video ahead."""

    def attempt(path: str) -> tuple[str, np.ndarray | video.VideoError]:
        try:
            return path, read(path, network, info)
        except video.VideoError as error:
            return path, error

    return video.ahead(attempt, paths, 1)


def read(path: str, network: Network, info: weights.Info) -> np.ndarray:
    """Decodes a video as its network wants it, uint8 [T, crop, crop, 3], T <= 250 for I3D.

    Raises:
      video.VideoError: it cannot be read, or has fewer frames than the network needs (I3D: 9).
    """
    most, stride = info.footprint["rgb"]
    frames = video.decode(path, fps=info.fps, short_side=info.short_side, frames=most, stride=stride)
    least = network.timing.least * network.timing.rgb
    if len(frames) < least:
        found = f"{len(frames)} frames at {info.fps / stride:g} per second"
        raise video.VideoError(path, f"too short: {found}, and at least {least} are needed")
    return video.crop(frames, info.crop)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m i3d_jax.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="any file that FFmpeg decodes")
    parser.add_argument("--weights", default="rgb_scratch", help="name or file, see `python -m i3d_jax.weights list`")
    parser.add_argument("--top", type=int, default=5, help="how many classes to print (default: 5)")
    parser.add_argument("--json", action="store_true", help="one JSON object per video")
    flags = parser.parse_args(arguments)
    if flags.top < 1:
        parser.error(f"--top: {flags.top} is not a positive number")
    try:
        classify, network, info = classifier(flags.weights)
    except weights.WeightsError as error:
        print(error, file=sys.stderr)
        return 2
    status = 0
    for path, clip in tqdm.tqdm(
        read_all(flags.videos, network, info), total=len(flags.videos), unit="video", disable=None
    ):
        if isinstance(clip, video.VideoError):
            tqdm.tqdm.write(str(clip), file=sys.stderr)
            status = 1
        else:
            tqdm.tqdm.write(_report(path, classify(clip), len(clip), info.classes, flags.top, flags.json))
    return status


def _report(path, logits, frames, classes, top, as_json) -> str:
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    best = [(classes[i], float(logits[i]), float(probabilities[i])) for i in np.argsort(-logits, kind="stable")[:top]]
    if as_json:
        found = [{"class": name, "logit": logit, "probability": probability} for name, logit, probability in best]
        return json.dumps({"video": path, "frames": frames, "top": found})
    width = max(len(name) for name, *_ in best)
    lines = [f"  {name:{width}}  {probability:7.2%}  logit {logit:7.3f}" for name, logit, probability in best]
    return "\n".join([f"{path} ({frames} frames)", *lines])


if __name__ == "__main__":
    sys.exit(main())
