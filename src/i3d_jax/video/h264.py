"""H.264 files, which records hold: RGB or flow at 25 frames per second, the same bytes every time.

Flow is one grey video of full range, u above v, of bytes as `pixels.flow_bytes` gives them.
"""

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np

from i3d_jax.video import decoding
from i3d_jax.video.decoding import FPS, TAGS, VideoError

# A key frame every 16 keeps seeking cheap.
GOP, RGB_CRF, FLOW_CRF = 16, 18, 15


def encode(
    frames: Iterable[np.ndarray], *, fps: int = 25, crf: int | None = None, gop: int = GOP
) -> bytes:
    """Encodes uint8 frames [H, W, 3], RGB, or [H, W, 2], flow, as an H.264 file (MP4); H and W must be even.

    A key frame every `gop` frames keeps seeking cheap, `fastdecode` the reading. `crf` is 18 for RGB
    and 15 for flow, if it is not given; where motion is smooth that adds little to the mean error of flow's 8 bits,
    0.039 pixels. Frames are taken one by one.

    Raises:
      ValueError: there are no frames, or none that can be encoded.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("encode: no frames")
    if first.ndim != 3 or first.shape[-1] not in (2, 3) or first.shape[0] % 2 or first.shape[1] % 2:
        raise ValueError(
            f"encode: frames of shape {first.shape}, wanted [H, W, 3 or 2] with even H and W"
        )
    height, width, channels = first.shape
    frames = itertools.chain([first], frames)
    if channels == 3:
        images = (av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames)
        return _encoded(images, height, width, "yuv420p", fps, RGB_CRF if crf is None else crf, gop)
    stacks = (
        np.moveaxis(frame, -1, 0).reshape(2 * height, width) for frame in frames
    )  # u above v.
    images = (av.VideoFrame.from_ndarray(stack, format="gray") for stack in stacks)
    return _encoded(images, 2 * height, width, "gray", fps, FLOW_CRF if crf is None else crf, gop)


class Transcoded(NamedTuple):
    """A video as records hold it: an H.264 file, and what is in it."""

    data: bytes
    frames: int
    height: int
    width: int


def transcode(
    path: str | os.PathLike, *, short_side: int, seconds: float | None = None
) -> Transcoded:
    """Makes a video file what records hold: H.264 at 25 frames per second, upright, of a given short side, without sound.

    The same bytes every time. The long side's last odd pixel is cut off. Frames are scaled as they are stored, in YUV, the
    colours converted to BT.601; there are never more than a few in memory.

    Args:
      seconds: of the video to take at most; None: all.

    Raises:
      VideoError: the file cannot be read to its end, or to `seconds`, without damage (see `video.shown`).
    """
    most = None if seconds is None else decoding.frames_in(seconds)
    images = decoding.yuv(path, short_side=short_side, frames=most, threads=1, strict=True)
    first = next(images)
    height, width = first[0].shape
    count = 0

    def converted() -> Iterator[av.VideoFrame]:
        nonlocal count
        previous, packed = None, np.empty((0, 0), np.uint8)
        for planes in itertools.chain([first], images):
            if planes is not previous:
                packed, previous = (
                    np.concatenate([part.ravel() for part in planes]).reshape(-1, width),
                    planes,
                )
            count += 1
            yield av.VideoFrame.from_ndarray(packed, format="yuv420p")

    data = _encoded(converted(), height, width, "yuv420p", round(FPS), RGB_CRF, GOP)
    return Transcoded(data, count, height, width)


def _encoded(
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
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = height, width
        stream.pix_fmt = pix_fmt
        if pix_fmt == "gray":
            stream.codec_context.color_range = (
                av.video.reformatter.ColorRange.JPEG
            )  # 0 to 255, not 16 to 235.
        stream.gop_size = gop
        stream.codec_context.thread_count = 1
        # x264's macroblock tree reads memory that it has not written (seen with AVX-512 at widths such as 72: up to 16
        # different files in 150 encodings of one video), and with runs of 16 frames it gains little.
        params = {"crf": crf, "preset": "fast", "tune": "fastdecode", "x264-params": "mbtree=0"}
        stream.options = {name: str(value) for name, value in params.items()}
        for image in images:
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    return file.getvalue()


def check_flow(path: str | os.PathLike) -> None:
    """Makes sure that a file is one that `encode` wrote flow to.

    Raises:
      VideoError: it is another; as flow it would show something else.
    """
    name = os.fspath(path)
    try:
        with av.open(f"file:{name}", **TAGS) as container:
            assert isinstance(container, av.container.InputContainer)
            track = container.streams.video[0]
            decoder = track.codec_context
            kind = container.format.name.split(",")[0], decoder.name, float(track.average_rate or 0)
            full = decoder.color_range == av.video.reformatter.ColorRange.JPEG
    except (av.error.FFmpegError, IndexError):
        raise VideoError(name, "cannot be decoded") from None
    if kind != ("mov", "h264", FPS) or not full:
        found = f"{kind[0]}, {kind[1]}, {kind[2]:g} frames per second, {'full' if full else 'not full'} range"
        raise VideoError(
            name,
            f"is not as `python -m i3d_jax.flow` writes it: {found}; wanted mov (MP4), h264, {FPS:g}, full range",
        )
