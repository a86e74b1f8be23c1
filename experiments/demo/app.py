"""The page of `python -m i3d_jax.demo` for a hosted space, which starts this file."""

import os

from i3d_jax import cli
from i3d_jax.demo.__main__ import main

# The space's proxy comes from outside of its container.
HOST = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")
PORT = os.environ.get("GRADIO_SERVER_PORT", "7860")
# Two shared cores take about two seconds for one of video.
LIMITS = ["--max-seconds", "20", "--max-megabytes", "50"]

if __name__ == "__main__":
    cli.run(lambda: main(["--host", HOST, "--port", PORT, "--weights", "rgb_imagenet", *LIMITS]))
