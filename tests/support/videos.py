"""Makes small videos with known content."""

import fractions
import io

import av
import numpy as np

from i3d_jax.video import decoding


def numbered(count, height=48, width=64):
    """Grey frames whose brightness encodes their number."""
    return np.broadcast_to(
        (np.arange(count) * 3 + 20)[:, None, None, None], (count, height, width, 3)
    ).astype(np.uint8)


def numbers(frames):
    """The numbers of the frames of `numbered`."""
    return np.rint((frames.mean((1, 2, 3)) - 20) / 3).astype(int).tolist()


def waves(count, height=48, width=64):
    """Flow of up to 10 pixels that changes by up to one from pixel to pixel."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    return 10 * np.stack([np.sin(x / 10 + y / 13 + t / 5), np.cos(x / 11 - y / 10 + t / 6)], -1)


def moving(count, height=48, width=64):
    """Colours that move by 4 pixels a frame; smooth enough that 2x2 pixels may share one."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    waves = [np.sin((x + 4 * t) / 12 + c) * np.cos((y - 2 * t) / 14 + 2 * c) for c in range(3)]
    return (128 + 100 * np.stack(waves, -1)).astype(np.uint8)


def images(frames):
    """Converts FFmpeg's frames to RGB images."""
    return np.stack(
        [frame.to_ndarray(format="rgb24", interpolation=decoding.BILINEAR) for frame in frames]
    )


def encode(
    frames,
    times,
    container="matroska",
    codec="libx264",
    pix_fmt="yuv420p",
    time_base="1/1000",
    sound=0.0,
    **options,
):
    """Encodes frames as a video file, and returns its bytes.

    Args:
      frames: uint8 [T, H, W, 3].
      times: when each frame is shown, in units of `time_base`.
      container: FFmpeg's name of the format.
      codec: FFmpeg's name of the encoder.
      pix_fmt: pixel format of the stored frames.
      time_base: seconds, as a fraction.
      sound: seconds of silence to add as an audio stream.
      options: of the encoder; those of the muxer begin with mux_.
    """
    file = io.BytesIO()
    muxing = {name[4:]: str(options.pop(name)) for name in list(options) if name.startswith("mux_")}
    with av.open(file, "w", format=container, options=muxing) as target:
        stream = target.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.time_base = fractions.Fraction(time_base)
        stream.codec_context.thread_count = 1
        stream.options = {name.replace("_", "-"): str(value) for name, value in options.items()}
        voice = target.add_stream("libopus", rate=48000, layout="mono") if sound else None
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, fractions.Fraction(time_base)
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
        if voice:
            for start in range(0, round(48000 * sound), 960):
                frame = av.AudioFrame.from_ndarray(
                    np.zeros((1, 960), np.int16), format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts = 48000, start
                target.mux(voice.encode(frame))
            target.mux(voice.encode())
    return file.getvalue()


def copied(data, container, start=0.0, shift=0.0, last=None, **muxing):
    """Copies a file's packets without decoding, as `ffmpeg -c copy` cuts videos.

    Args:
      data: bytes of the file.
      container: FFmpeg's name of the new format.
      start: seconds; the copy begins with the first key frame from there on.
      shift: seconds that are added to all times.
      last: seconds for which the last frame is shown; None: as before.
      muxing: options of the muxer.
    """
    file = io.BytesIO()
    with (
        av.open(io.BytesIO(data)) as source,
        av.open(file, "w", format=container, options=muxing) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        begin = [
            packet.is_keyframe and packet.pts * packet.time_base >= start for packet in packets
        ].index(True)
        if last is not None:
            packets[-1].duration = round(last / packets[-1].time_base)
        for packet in packets[begin:]:
            ticks = round(shift / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, stream
            target.mux(packet)
    return file.getvalue()


def steady(count=40, container="mp4", first=0, **options):
    """A file of numbered frames at 25 per second, beginning at frame number `first`."""
    return encode(
        numbered(count), [40 * (first + number) for number in range(count)], container, **options
    )


MPEG4 = {"container": "avi", "codec": "mpeg4", "time_base": "1/25", "b": 4_000_000}


def exact_rgb(frame, height, width):
    """Converts an I420 frame to RGB from 0 to 255, [H, W, 3]; 2x2 pixels share a colour."""
    y, u, v = np.split(frame.ravel().astype(float), [height * width, height * width * 5 // 4])
    u, v = (np.kron(colour.reshape(height // 2, width // 2), np.ones((2, 2))) for colour in (u, v))
    return 255 * np.clip(colours(y.reshape(height, width), u, v), 0, 1)


def colours(y, cb, cr):
    """RGB from 0 to 1 by BT.601.

    Luma is 0.299 R + 0.587 G + 0.114 B; B - Y and R - Y are scaled to 224 steps.
    """
    luma = (y - 16) / 219
    blue, red = luma + (cb - 128) / 224 * 2 * (1 - 0.114), luma + (cr - 128) / 224 * 2 * (1 - 0.299)
    return np.stack([red, (luma - 0.299 * red - 0.114 * blue) / 0.587, blue], -1)


def damaged_mjpeg(numbers):
    """A file of 20 JPEG frames, some of which are overwritten with zeros."""
    data = bytearray(encode(numbered(20), [*range(0, 800, 40)], codec="mjpeg", pix_fmt="yuvj420p"))
    with av.open(io.BytesIO(data)) as file:
        places = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]
    for place, size in (places[number] for number in numbers):
        data[place + 8 : place + size - 8] = bytes(size - 16)
    return bytes(data)


def clip(count, seed=0, height=32, width=40):
    """RGB frames of a smooth texture that moves to the right by 1.5 pixels a frame."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    image = sum(np.sin((x - 1.5 * t) / a + y / b + c) for a, b, c in rng.uniform(3, 8, (6, 3)))
    return np.repeat((128 + 18 * image)[..., None], 3, -1).clip(0, 255).astype(np.uint8)
