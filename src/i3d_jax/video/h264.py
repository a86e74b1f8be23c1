"""Writes H.264: the files that records hold, and videos for people to watch.

Records are RGB or flow at 25 frames per second. Their encoding is deterministic: the same frames
give the same bytes. Flow is one grey full-range video with u above v, quantised by
`pixels.flow_bytes`.
"""

import io
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from i3d_jax import files
from i3d_jax.video import decoding
from i3d_jax.video.decoding import FPS, OPEN_OPTIONS, VideoError

# A key frame every 16 frames keeps seeking cheap.
GOP, RGB_CRF, FLOW_CRF = 16, 18, 15
# Of videos that are watched: a player can jump to every other second.
WATCHED_GOP, WATCHED_CRF = 50, 20


def encode(
    frames: Iterable[np.ndarray], *, fps: int = 25, crf: int | None = None, gop: int = GOP
) -> bytes:
    """Encodes RGB or flow as an H.264 file (MP4).

    Frames are taken one by one, so they need not fit into memory. For smooth motion the default
    quality of flow adds little to the mean error of its 8 bits, 0.039 pixels.

    Args:
      frames: uint8 [H, W, 3] for RGB or [H, W, 2] for flow; H and W must be even.
      fps: frames per second.
      crf: x264's constant rate factor; lower is better. None: 18 for RGB, 15 for flow.
      gop: frames from one key frame to the next. Fewer make seeking cheaper.

    Returns:
      the file's bytes.

    Raises:
      ValueError: there are no frames, or they have another shape.
    """
    (height, width, channels), frames = _checked_shape("encode", frames, (3, 2))
    if channels == 3:
        images = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames)
        return _encode(images, height, width, "yuv420p", fps, RGB_CRF if crf is None else crf, gop)
    # u above v.
    stacks = (np.moveaxis(frame, -1, 0).reshape(2 * height, width) for frame in frames)
    images = (av.VideoFrame.from_ndarray(stack, format="gray") for stack in stacks)
    return _encode(images, 2 * height, width, "gray", fps, FLOW_CRF if crf is None else crf, gop)


def write(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    *,
    fps: int | Fraction = 25,
    crf: int = WATCHED_CRF,
    comment: str | None = None,
) -> int:
    """Writes frames as a video that phones and browsers play: H.264 in MP4, YUV 4:2:0, BT.709.

    Frames are taken one by one, so they need not fit into memory. The file replaces `path` when it
    is complete. A player can start before it has all of it.

    Args:
      path: of the MP4 file.
      frames: uint8 [H, W, 3]; H and W must be even.
      fps: frames per second.
      crf: x264's constant rate factor; lower is better.
      comment: text that the file has with it (see `comment_of`).

    Returns:
      the number of frames.

    Raises:
      ValueError: there are no frames, or they have another shape.
      OSError: the file cannot be written; the error names it.
    """
    (height, width, _), frames = _checked_shape("write", frames, (3,))
    scaler, count = av.video.reformatter.VideoReformatter(), 0

    def images() -> Iterator[av.VideoFrame]:
        nonlocal count
        # FFmpeg's default is BT.601, which players do not expect of videos of this size.
        options: dict[str, Any] = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
        options["interpolation"] = decoding.BILINEAR
        for count, frame in enumerate(frames, 1):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            yield scaler.reformat(image, format="yuv420p", **options)

    with files.atomic_write(pathlib.Path(path)) as temporary:
        try:
            muxing = {"movflags": "+faststart"}
            with av.open(f"file:{temporary}", "w", format="mp4", options=muxing) as container:
                if comment is not None:
                    container.metadata["comment"] = comment
                stream = _add_stream(container, height, width, "yuv420p", fps, WATCHED_GOP)
                stream.options = {"crf": str(crf), "preset": "fast"}
                encoder = stream.codec_context
                encoder.color_range = ColorRange.MPEG
                encoder.colorspace = Colorspace.ITU709
                encoder.color_primaries, encoder.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
                _mux_all(container, stream, images())
        except av.error.FFmpegError as error:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    return count


def comment_of(path: str | os.PathLike) -> str | None:
    """The comment that a video file has with it; None if it has none, or is no video."""
    try:
        with av.open(f"file:{os.fspath(path)}", **OPEN_OPTIONS) as container:
            return container.metadata.get("comment")
    except (av.error.FFmpegError, OSError):
        return None


def _checked_shape(
    function: str, frames: Iterable[np.ndarray], channels: tuple[int, ...]
) -> tuple[tuple[int, ...], Iterator[np.ndarray]]:
    """The shape of the first frame, and all frames; an error if H.264 cannot hold them."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"{function}: no frames")
    if (
        first.ndim != 3
        or first.shape[-1] not in channels
        or first.shape[0] % 2
        or first.shape[1] % 2
    ):
        wanted = " or ".join(map(str, channels))
        raise ValueError(
            f"{function}: frames of shape {first.shape}, wanted [H, W, {wanted}] with even H and W"
        )
    return first.shape, itertools.chain([first], frames)


class Transcoded(NamedTuple):
    """A video as records hold it.

    Attributes:
      data: the bytes of an H.264 file.
      frames: number of its frames.
      height: pixels.
      width: pixels.
    """

    data: bytes
    frames: int
    height: int
    width: int


def transcode(
    path: str | os.PathLike, *, short_side: int, seconds: float | None = None
) -> Transcoded:
    """Converts a video file to a record's form: upright H.264 at 25 frames per second, no sound.

    The same file gives the same bytes. Frames are scaled in YUV and their colours converted to
    BT.601; an odd last row or column is cut off. Only a few frames are in memory at a time.

    Args:
      path: the video file.
      short_side: pixels of the result's shorter side.
      seconds: takes so much of the video at most; None: all.

    Raises:
      VideoError: the file is damaged before its end, or before `seconds` (see
        `decoding.iter_frames`, strict).
    """
    max_frames = None if seconds is None else decoding.frame_count(seconds)
    images = decoding.yuv(path, short_side=short_side, frames=max_frames, threads=1, strict=True)
    first = next(images)
    height, width = first[0].shape
    count = 0

    def counted_frames() -> Iterator[av.VideoFrame]:
        nonlocal count
        previous, packed = None, np.empty((0, 0), np.uint8)
        for planes in itertools.chain([first], images):
            if planes is not previous:
                packed = np.concatenate([part.ravel() for part in planes]).reshape(-1, width)
                previous = planes
            count += 1
            yield av.VideoFrame.from_ndarray(packed, format="yuv420p")

    data = _encode(counted_frames(), height, width, "yuv420p", round(FPS), RGB_CRF, GOP)
    return Transcoded(data, count, height, width)


def _encode(
    images: Iterable[av.VideoFrame],
    height: int,
    width: int,
    pix_fmt: str,
    fps: int,
    crf: int,
    gop: int,
) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = _add_stream(container, height, width, pix_fmt, fps, gop)
        if pix_fmt == "gray":
            stream.codec_context.color_range = ColorRange.JPEG  # 0 to 255, not 16 to 235.
        stream.codec_context.thread_count = 1
        # x264's macroblock tree reads memory that it has not written, so that one video gives
        # different files (seen with AVX-512 at widths such as 72). With 16 frames from key frame to
        # key frame it gains little.
        params = {"crf": crf, "preset": "fast", "tune": "fastdecode", "x264-params": "mbtree=0"}
        stream.options = {name: str(value) for name, value in params.items()}
        _mux_all(container, stream, images)
    return file.getvalue()


def _add_stream(
    container: Any, height: int, width: int, pix_fmt: str, fps: int | Fraction, gop: int
) -> Any:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width, stream.pix_fmt, stream.gop_size = height, width, pix_fmt, gop
    return stream


def _mux_all(container: Any, stream: Any, images: Iterable[av.VideoFrame]) -> None:
    for image in images:
        container.mux(stream.encode(image))
    container.mux(stream.encode())


def check_flow(path: str | os.PathLike) -> None:
    """Checks that a file is a flow file that `encode` wrote. Any other would be misread as flow.

    Raises:
      VideoError: it is not.
    """
    name = os.fspath(path)
    try:
        with av.open(f"file:{name}", **OPEN_OPTIONS) as container:
            assert isinstance(container, av.container.InputContainer)
            track = container.streams.video[0]
            decoder = track.codec_context
            kind = container.format.name.split(",")[0], decoder.name, float(track.average_rate or 0)
            full_range = decoder.color_range == ColorRange.JPEG
    except (av.error.FFmpegError, IndexError):
        raise VideoError(name, "cannot be decoded") from None
    if kind != ("mov", "h264", FPS) or not full_range:
        found = f"{kind[0]}, {kind[1]}, {kind[2]:g} frames per second"
        raise VideoError(
            name,
            f"is not as `python -m i3d_jax.flow` writes it: {found}, "
            f"{'full' if full_range else 'not full'} range; "
            f"wanted mov (MP4), h264, {FPS:g}, full range",
        )
