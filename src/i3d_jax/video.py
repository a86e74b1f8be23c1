"""Video files: decoding to frames at a given rate, resizing, cropping, looping, and encoding.

Frames are uint8 [T, H, W, 3], RGB, or uint8 [T, H, W, 2], flow: u and v in pixels to the next frame, truncated to [-20, 20],
as 128 + 127 / 20 of them, so that no motion is exactly 128. A video is whatever FFmpeg opens, through PyAV: a path, or the
bytes of a file. Flow is stored as one grey video, u above v.
"""

import collections
import concurrent.futures
import io
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np

FPS = 25.0  # Of everything the paper trains and tests on.
MAX_FLOW = 20.0  # Pixels; the paper's truncation.


class VideoError(ValueError):
    """A file that is no video, or cannot be decoded; the message names it."""


def decode(
    video: str | os.PathLike | bytes,
    *,
    stream: str = "rgb",
    fps: float = FPS,
    short_side: int | None = None,
    start: int = 0,
    frames: int | None = None,
    stride: int = 1,
    threads: int = 0,
) -> np.ndarray:
    """Decodes a video at a constant frame rate.

    Frame i is the one shown nearest to time i / fps, by the file's timestamps, so that sources of any or of varying
    rate keep their speed. Frames are turned upright as the file's metadata says. Memory is bounded by what is returned.

    Args:
      video: path, or the bytes of a whole file.
      stream: "rgb", or "flow" for a file that `encode` wrote flow to.
      fps: frames per second to return.
      short_side: pixels; the frames are resized to it (bilinear, aspect kept). None keeps their size, as flow must.
      start: first frame to return, found by seeking, counted at `fps`.
      frames: how many to return at most. None: all.
      stride: returns one frame in so many.
      threads: of the decoder; 0 lets it choose.

    Returns:
      uint8 [T, H, W, 3] or, of flow, [T, H, W, 2]; T >= 1.

    Raises:
      VideoError: missing, empty, not a video, no video stream, not decodable, or shorter than `start`.
      ValueError: flow is to be resized.
    """
    if stream == "flow" and short_side is not None:
        raise ValueError(f"short_side is {short_side}, but flow cannot be resized")
    name = f"{len(video)} bytes of video" if isinstance(video, bytes) else os.fspath(video)
    images: list[np.ndarray] = []
    try:
        with av.open(io.BytesIO(video) if isinstance(video, bytes) else f"file:{name}") as container:
            assert isinstance(container, av.container.InputContainer)
            if not container.streams.video:
                raise VideoError(f"{name}: has no video stream")
            track = container.streams.video[0]
            track.thread_type = "SLICE" if threads == 1 else "AUTO"
            track.codec_context.thread_count = threads
            if start:
                _seek(container, track, start / fps)
            previous, image, size = None, np.empty(0), None
            scaler = av.video.reformatter.VideoReformatter()  # One for all frames: making it costs more than using it.
            for index, frame in _resample(container.decode(track), track, fps):
                if frames is not None and index > start + (frames - 1) * stride:
                    break
                if index < start or (index - start) % stride:
                    continue
                if size is None:  # A stream may change its size; all frames get the first one's.
                    size = frame.height, frame.width
                    size = size if short_side is None else resized(*size, short_side)
                if frame is not previous:
                    image, previous = _pixels(frame, size, scaler, stream), frame
                images.append(image)
    except av.error.FFmpegError as error:
        raise VideoError(f"{name}: cannot be decoded: {error.strerror}") from None
    if not images:
        raise VideoError(f"{name}: has no frame" + (f" {start} at {fps:g} frames per second" if start else ""))
    return np.stack(images)


def encode(frames: np.ndarray, *, fps: int = 25, crf: int | None = None, gop: int = 16) -> bytes:
    """Encodes uint8 frames, RGB or flow, as an H.264 file (MP4), the same bytes every time; H and W must be even.

    A key frame every `gop` frames keeps seeking cheap, `fastdecode` the reading. `crf` is 18 for RGB
    and 15 for flow, if it is not given; where motion is smooth that adds little to the mean error of flow's 8 bits,
    0.039 pixels.
    """
    if frames.ndim != 4 or frames.shape[-1] not in (2, 3) or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"encode: frames of shape {frames.shape}, wanted [T, H, W, 3 or 2] with even H and W")
    flow = frames.shape[-1] == 2
    if flow:
        frames = np.moveaxis(frames, -1, 1).reshape(len(frames), -1, frames.shape[2])  # u above v.
    if crf is None:
        crf = 15 if flow else 18
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "gray" if flow else "yuv420p"
        if flow:
            stream.codec_context.color_range = av.video.reformatter.ColorRange.JPEG  # 0 to 255, not 16 to 235.
        stream.gop_size = gop
        stream.codec_context.thread_count = 1
        # x264's macroblock tree reads memory that it has not written (seen with AVX-512 at widths such as 72: up to 16
        # different files in 150 encodings of one video), and with runs of 16 frames it gains little.
        params = {"crf": crf, "preset": "fast", "tune": "fastdecode", "x264-params": "mbtree=0"}
        stream.options = {name: str(value) for name, value in params.items()}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="gray" if flow else "rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def resized(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter is `short_side`, the aspect kept to the pixel."""
    scale = short_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def crop(video: np.ndarray, size: int, corner: tuple[int, int] | None = None) -> np.ndarray:
    """Cuts a size x size window out of [T, H, W, C], at a corner (top, left) or in the centre."""
    height, width = video.shape[1:3]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size}x{size} out of frames of {height}x{width}")
    top, left = corner or ((height - size) // 2, (width - size) // 2)
    return video[:, top : top + size, left : left + size]


def to_unit(frames):
    """uint8 frames, of NumPy or JAX, as the networks take them: float32, RGB in [-1, 1] and flow / 20."""
    if frames.shape[-1] == 2:
        return (frames.astype(np.float32) - 128) / 127
    return frames.astype(np.float32) / 127.5 - 1


def flow_bytes(flow: np.ndarray) -> np.ndarray:
    """Flow in pixels [..., 2] as uint8, truncated to [-20, 20] (see above)."""
    return np.rint(128 + 127 / MAX_FLOW * np.clip(flow, -MAX_FLOW, MAX_FLOW)).astype(np.uint8)


def mirrored(frames: np.ndarray) -> np.ndarray:
    """uint8 frames, RGB or flow, with left and right exchanged; what moved right moves left then."""
    frames = frames[:, :, ::-1]
    if frames.shape[-1] == 2:
        frames = np.stack([np.minimum(256 - frames[..., 0].astype(np.int16), 255).astype(np.uint8), frames[..., 1]], -1)
    return frames


def loop(video: np.ndarray, frames: int) -> np.ndarray:
    """Repeats a video from its start until it has `frames` frames, or cuts it there."""
    return video[:frames] if len(video) >= frames else video[np.arange(frames) % len(video)]


def ahead(function: Callable[[Any], Any], items: Iterable[Any], threads: int) -> Iterator[Any]:
    """Yields `function` of the items in their order, working ahead in threads by one item each."""
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    running: collections.deque = collections.deque()
    try:
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # Whoever stops early does not wait for what is not wanted any more.


def _seek(container, stream, seconds: float) -> None:
    # Half a frame early: the frame nearest to the time wanted may lie before it.
    seconds -= 0.5 / float(stream.average_rate or FPS)
    offset = round(max(0.0, seconds) / stream.time_base) + (stream.start_time or 0)
    container.seek(offset, stream=stream)


def _resample(decoded, stream, fps: float) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (i, the decoded frame shown nearest to time i / fps) for i in order, from the first decoded frame on."""
    origin, step = stream.start_time, 1 / float(stream.average_rate or fps)
    frame, time, index = None, 0.0, 0
    for following in decoded:
        if origin is None:
            origin = following.pts or 0
        if following.pts is None:
            now = time + step if frame else 0.0
        else:
            now = float((following.pts - origin) * following.time_base)
        if frame is None:
            # After a seek the first frame decoded is a key frame somewhere before the time wanted.
            index = max(0, round(now * fps))
        else:
            while index / fps < (time + now) / 2:
                yield index, frame
                index += 1
        frame, time = following, max(now, time)
    if frame is not None:
        shown = float(frame.duration * stream.time_base) if frame.duration else step
        # The last frame is shown for its duration, and a video has one frame at least.
        while index / fps < time + shown - 1e-3 / fps or index == 0:
            yield index, frame
            index += 1


def _pixels(frame, size: tuple[int, int], scaler, stream: str) -> np.ndarray:
    height, width = size
    if stream == "flow":
        grey = scaler.reformat(frame, width, height, "gray").to_ndarray()
        return np.moveaxis(grey.reshape(2, -1, width), 0, -1)
    image = scaler.reformat(frame, width, height, "rgb24", interpolation="BILINEAR").to_ndarray()
    return np.rot90(image, round(frame.rotation / 90)) if frame.rotation else image
