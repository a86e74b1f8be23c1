"""Live streams for tests: MPEG-TS over UDP on the loopback address, and JPEGs over HTTP."""

import contextlib
import http.server
import io
import socket
import threading
import time

import av
import numpy as np

from support.videos import numbered

NUMBERS = 70  # Frames have the numbers 0 to 69 again and again.


def free_udp_port():
    """A free port of the loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def udp_stream(frames=None, rate=25, lasts=1e9, begin=None):
    """Sends an MPEG-TS stream at its speed, as a camera does, until the block ends.

    Args:
      frames: uint8 [T, H, W, 3], sent again and again; None: those of `numbered`.
      rate: frames per second.
      lasts: number of frames after which it falls silent.
      begin: an event to wait for before the first frame; None: at once.

    Yields:
      the stream's URL.
    """
    frames = numbered(NUMBERS) if frames is None else frames
    port, over = free_udp_port(), threading.Event()

    def send():
        if begin is not None:
            begin.wait()
        url = f"udp://127.0.0.1:{port}?pkt_size=1316"
        with av.open(url, "w", format="mpegts") as target:
            stream = target.add_stream("libx264", rate=rate)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            stream.options = {"g": "5", "tune": "zerolatency", "preset": "ultrafast", "crf": "12"}
            start, number = time.monotonic(), 0
            while number < lasts and not over.wait(start + number / rate - time.monotonic()):
                image = av.VideoFrame.from_ndarray(frames[number % len(frames)], format="rgb24")
                image.pts = number
                target.mux(stream.encode(image))
                number += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield f"udp://127.0.0.1:{port}"
    finally:
        over.set()
        if begin is not None:
            begin.set()
        thread.join()


@contextlib.contextmanager
def jpeg_stream(count, rate):
    """Serves `numbered` frames over HTTP as network cameras do: JPEGs without timestamps.

    Args:
      count: of frames.
      rate: frames per second.

    Yields:
      the stream's URL.
    """
    images = [_jpeg(image) for image in numbered(count)]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            start = time.monotonic()
            with contextlib.suppress(OSError):  # The reader has gone.
                for number, image in enumerate(images):
                    time.sleep(max(0, start + number / rate - time.monotonic()))
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}"
                    self.wfile.write(head.encode() + b"\r\n\r\n" + image + b"\r\n")

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/video"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mjpeg") as target:
        stream = target.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuvj420p"
        target.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        target.mux(stream.encode())
    return file.getvalue()
