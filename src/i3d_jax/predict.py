"""Classify the action in video files.

    python -m i3d_jax.predict video.mp4
    python -m i3d_jax.predict --stream both video.mp4
    python -m i3d_jax.predict --json --top-k 3 *.mp4 > predictions.jsonl
    python -m i3d_jax.predict --weights runs/i3d/weights.safetensors folder/
    python -m i3d_jax.predict --timeline out match.mp4
    python -m i3d_jax.predict --video seen.mp4 --picture seen.png --explain match.mp4

Videos are taken as in the paper's test (section 3): 25 frames per second, short side 256, centre
crop 224, the first 10 seconds. The network runs over all of these at once, and its logits are
averaged. Flow is computed for networks that take it, as by `python -m i3d_jax.flow`. With several
--weights the logits are added: --stream both is Two-Stream I3D (rgb_imagenet and flow_imagenet).

With --timeline DIR the whole video is classified, however long it is, and DIR gets for each video
NAME the classes over time: NAME.json, with the start, end and centre of each row in seconds, its
likeliest classes and those of the video's mean; and NAME.png, a picture of them.

With --video OUT.mp4 or --picture OUT.png the whole of one video is classified, and drawn with its
classes as bars and over time: as a video, or as a contact sheet. --explain adds heat maps: where
the network sees the likeliest class, or that of --explain-class, by Grad-CAM. Flow is drawn in
colours if a network takes it, or with --show-flow.

Predictions go to stdout. A video that cannot be read is named on stderr; the others go on, and the
exit status is 1.
"""

import argparse
import importlib
import json
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import tqdm

from i3d_jax import cli, compilation, files, flow, models, pixels, video, weights
from i3d_jax.models import Network
from i3d_jax.prefetch import prefetch
from i3d_jax.timeline import report, rows
from i3d_jax.video import listing

if TYPE_CHECKING:
    from i3d_jax.timeline import drawing

# Of "rgb", uint8 [T, H, W, 3], and "flow", f32 [T, H, W, 2] in [-1, 1], what a network takes.
Streams = dict[str, np.ndarray]


class Classifier(NamedTuple):
    """A network with its weights.

    Attributes:
      logits: a function from one clip's streams to its logits, f32 [K]. Clips are padded by looping
        to lengths of the network's timing (I3D: multiples of 16 frames), so that few are compiled.
      network: the network.
      info: what is known of the weights.
      variables: of the network, on the device.
    """

    logits: Callable[[Streams], np.ndarray]
    network: Network
    info: weights.Info
    variables: Any = None


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
        return network.apply(variables, models.as_network_input(pixels.streams_to_unit(streams)))

    apply = jax.jit(apply, compiler_options=models.compiler_options())

    def logits(streams: Streams) -> np.ndarray:
        ticks = timing.ticks({name: len(frames) for name, frames in streams.items()}, most)
        looped = {
            name: pixels.loop(frames, ticks * timing.frames(name))[None]
            for name, frames in streams.items()
        }
        return np.asarray(apply(variables, looped))[0]

    return Classifier(logits, network, info, variables)


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
    streams = {
        stream: np.stack([*rows.frames_of(path, stream, info, settings, most)])
        for stream, (most, _) in info.footprint.items()
    }
    rows.check_length(path, {name: len(clip) for name, clip in streams.items()}, network, info)
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
    weights.check_streams(names, [one.info for one in loaded], stream)
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
    parser.add_argument(
        "--timeline",
        type=pathlib.Path,
        metavar="DIR",
        help="folder for the classes over time of whole videos, as JSON and PNG",
    )
    _add_drawing_flags(parser)
    flags = parser.parse_args(arguments)
    compilation.enable_persistent_cache()
    try:
        pairs, paths, wanted, explainer = [], [], _drawing(flags), None
        if flags.timeline:
            pairs = report.targets(flags.videos, flags.timeline)
        else:
            paths = [path for name in flags.videos for path in _videos(name)]
        if flags.timeline:
            importlib.import_module("matplotlib.figure")  # Some environments lack it: say so now.
        if wanted:
            wanted.check_files(paths)
        names = flags.weights or weights.DEFAULTS[flags.stream or "rgb"]
        classifiers = load_classifiers(names, flags.stream)
        if flags.timeline or wanted:
            _check_equal_rows(names, classifiers)
        if wanted:
            networks = [(one.network, one.variables, one.info) for one in classifiers]
            explainer = wanted.explainer(names, networks)
    except (OSError, ValueError) as error:
        cli.print_error(error)
        return 2
    with warnings.catch_warnings():
        warnings.simplefilter("default", video.DamageWarning)
        warnings.showwarning = lambda message, *_: tqdm.tqdm.write(str(message), file=sys.stderr)
        if flags.timeline:
            return _predict_timelines(pairs, names, classifiers, flags)
        if wanted:
            return _predict_drawn(paths[0], classifiers, wanted, explainer, flags)
        return _predict_all(paths, classifiers, flags)


def _add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--video",
        type=pathlib.Path,
        metavar="OUT.mp4",
        help="draw the classes of every moment of a video beside it",
    )
    parser.add_argument(
        "--picture",
        type=pathlib.Path,
        metavar="OUT.png",
        help="draw moments of a video, and its classes over time, as one picture",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="draw heat maps: where the likeliest class is seen",
    )
    parser.add_argument(
        "--explain-class", metavar="NAME", help="draw heat maps of this class instead"
    )
    parser.add_argument(
        "--show-flow", action="store_true", help="draw the flow, also of networks that take RGB"
    )


def _drawing(flags: argparse.Namespace) -> "drawing.Drawing | None":
    """What shall be drawn; None: nothing. Raises a ValueError for flags that contradict."""
    if not (flags.video or flags.picture):
        for flag in "explain_class", "explain", "show_flow":
            if getattr(flags, flag):
                flag = flag.replace("_", "-")
                raise ValueError(f"--{flag} wants --video OUT.mp4 or --picture OUT.png")
        return None
    if flags.timeline:
        raise ValueError("--timeline goes neither with --video nor with --picture")
    from i3d_jax.timeline import drawing  # Some environments lack what it needs.

    return drawing.Drawing(
        flags.video,
        flags.picture,
        flags.explain or flags.explain_class is not None,
        flags.explain_class,
        flags.show_flow,
        flags.top_k,
    )


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


def _report(path, logits, frames, classes, top_k, as_json, **more) -> str:
    best = report.top_classes(logits, classes, top_k)
    if as_json:
        return json.dumps({"video": path, "frames": frames, "top": best} | more)
    named = [(cli.escape_unprintable(each["class"]), each) for each in best]
    width = max(len(name) for name, _ in named)
    lines = [
        f"  {name:{width}}  {each['probability']:7.2%}  logit {each['logit']:7.3f}"
        for name, each in named
    ]
    to = "".join(f" -> {cli.escape_unprintable(each)}" for each in more.values())
    return "\n".join([f"{path} ({frames} frames){to}", *lines])


def _check_equal_rows(names: list[str], classifiers: list[Classifier]) -> None:
    """Raises a ValueError if rows of logits cannot be added, since they differ in time."""
    spans = [
        rows.row_spans(each.network.timing, 10**3) * rows.tick_seconds(each.network, each.info)
        for each in classifiers
    ]
    for name, its_spans in zip(names, spans, strict=True):
        if not np.array_equal(its_spans, spans[0]):
            raise ValueError(f"{name}: its predictions lie elsewhere in time than {names[0]}'s")


def _predict_timelines(
    pairs: list[tuple[str, pathlib.Path]],
    names: list[str],
    classifiers: list[Classifier],
    flags: argparse.Namespace,
) -> int:
    """Writes the timeline of every video; returns the exit status."""
    status = 0
    streams = [rows.LogitStream(one.network, one.variables, one.info) for one in classifiers]
    about = _settings(names, classifiers, flags)
    with tqdm.tqdm(unit="frame", disable=None) as bar:
        for number, (path, target) in enumerate(pairs):
            bar.set_description(f"{number}/{len(pairs)} videos")
            try:
                found = _timeline(path, classifiers, streams, flags, bar.update)
            except video.VideoError as error:
                tqdm.tqdm.write(cli.one_line(error), file=sys.stderr)
                status = 1
                continue
            try:
                _write_timeline(path, target, found, about, classifiers[0].info.classes, flags)
            except OSError as error:
                cli.print_error(error)
                return 2
    return status


def _timeline(path, classifiers, streams, flags, advance) -> rows.VideoRows:
    """The summed rows of a video; raises nothing but VideoErrors."""
    settings = flow.PRESETS[flags.flow_preset]
    try:
        found = [
            rows.video_rows(path, stream, one.info, settings, advance)
            for one, stream in zip(classifiers, streams, strict=True)
        ]
        return found[0]._replace(logits=np.sum([each.logits for each in found], 0))
    except video.VideoError:
        raise
    except Exception as error:
        raise video.VideoError(path, f"cannot be classified: {cli.one_line(error)}") from error


def _predict_drawn(
    path: str,
    classifiers: list[Classifier],
    wanted: "drawing.Drawing",
    explainer: "drawing.Explainer | None",
    flags: argparse.Namespace,
) -> int:
    """Draws a video and prints its mean; returns the exit status."""
    streams = [rows.LogitStream(one.network, one.variables, one.info) for one in classifiers]
    infos = [one.info for one in classifiers]
    settings = flow.PRESETS[flags.flow_preset]
    with tqdm.tqdm(unit="frame", disable=None) as bar:
        try:
            found = _timeline(path, classifiers, streams, flags, bar.update)
            wanted.draw(path, found, infos, explainer, settings, bar.update)
        except video.VideoError as error:
            tqdm.tqdm.write(cli.one_line(error), file=sys.stderr)
            return 1
        except OSError as error:
            cli.print_error(error)
            return 2
        except Exception as error:  # noqa: BLE001 - of the device's memory, for example
            tqdm.tqdm.write(f"{path}: cannot be drawn: {cli.one_line(error)}", file=sys.stderr)
            return 1
    outputs = {"annotated": flags.video, "picture": flags.picture}
    made = {name: str(out) for name, out in outputs.items() if out is not None}
    mean = found.logits.mean(0)
    print(_report(path, mean, found.frames, infos[0].classes, flags.top_k, flags.json, **made))
    return 0


def _settings(names, classifiers: list[Classifier], flags: argparse.Namespace) -> dict[str, Any]:
    """What a timeline was made with."""
    info = classifiers[0].info
    about: dict[str, Any] = {
        "weights": [
            {
                "name": name,
                "model": one.info.model,
                "fingerprint": weights.fingerprint(one.variables),
            }
            for name, one in zip(names, classifiers, strict=True)
        ],
        "fps": info.fps,
        "short_side": info.short_side,
        "crop": info.crop,
    }
    if any("flow" in one.info.footprint for one in classifiers):
        about["flow_preset"] = flags.flow_preset
    return about


def _write_timeline(
    path: str,
    target: pathlib.Path,
    found: rows.VideoRows,
    about: dict[str, Any],
    classes: Sequence[str],
    flags: argparse.Namespace,
) -> None:
    """Writes the files of a video's timeline and prints its mean."""
    json_file = target.with_name(f"{target.name}.json")
    about = about | {"frames": found.frames}
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = found.spans, found.logits, classes, flags.top_k
    report.write_picture(target.with_name(f"{target.name}.png"), path, *shown)
    files.write_json(json_file, report.describe(path, about, *shown))
    mean = found.logits.mean(0)
    text = _report(
        path, mean, found.frames, classes, flags.top_k, flags.json, timeline=str(json_file)
    )
    tqdm.tqdm.write(text)


if __name__ == "__main__":
    cli.run(main)
