"""Serve a web page that shows what a network sees in a video.

    python -m i3d_jax.demo
    python -m i3d_jax.demo --weights rgb_imagenet --weights runs/i3d/weights.safetensors
    python -m i3d_jax.demo --host 0.0.0.0 --port 8080 --max-seconds 20

Visitors drop a video, or record one with their webcam. They see its classes over time, where the
network looked, and the optical flow, and can download the features. Videos are analysed one after
another; their files are removed when the visitor leaves.

The page offers the weights of --weights, and the published ones that are in the cache already. It
listens at this machine only, unless --host says otherwise; whoever reaches the port can use it.
Ctrl-C ends it. Needs gradio: pip install "i3d-jax-zoo[demo]".
"""

import argparse
import importlib.util
import os
import pathlib
import shutil
import socket
import tempfile
import threading
import warnings
from typing import TYPE_CHECKING

from i3d_jax import cli, compilation, weights
from i3d_jax.weights.published import PUBLISHED

if TYPE_CHECKING:
    from i3d_jax.demo.analysis import Network


def make_parser() -> cli.Parser:
    parser = cli.parser("i3d_jax.demo", __doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    add("--port", type=_port, default=7860, help="0 for any that is free (default: 7860)")
    add(
        "--weights",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="to offer, may be given more than once; see `python -m i3d_jax.weights list`",
    )
    add(
        "--max-seconds",
        type=cli.positive,
        default=60,
        help="length of the longest video (default: 60)",
    )
    add(
        "--max-megabytes",
        type=cli.positive,
        default=200,
        help="size of the largest file (default: 200)",
    )
    add("--top-k", type=cli.positive, default=5, help="classes to show (default: 5)")
    return parser


def _port(text: str) -> int:
    """A port, as `type=` of an argument."""
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port, wanted a number from 0 to 65535")


def main(arguments: list[str] | None = None) -> int:
    flags = make_parser().parse_args(arguments)
    if importlib.util.find_spec("gradio") is None:
        cli.print_error('needs gradio, which is not installed: pip install "i3d-jax-zoo[demo]"')
        return 2
    compilation.enable_persistent_cache()
    try:
        port = free_port(flags.host, flags.port)
        networks = _load(weights_to_offer(flags.weights))
    except (OSError, ValueError) as error:
        cli.print_error(error)
        return 2
    root = pathlib.Path(tempfile.mkdtemp(prefix="i3d_jax-demo-"))
    cli.exit_callbacks.append(lambda: shutil.rmtree(root, ignore_errors=True))
    try:
        _serve(root, networks, port, flags)
        threading.Event().wait()  # Until a signal comes.
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


def weights_to_offer(given: list[str]) -> list[str]:
    """The weights that the page offers: those given, and published ones that are in the cache.

    Raises:
      weights.WeightsError: there are none.
    """
    cached = [name for name in PUBLISHED if weights.cache_path(name).exists()]
    if not given and not cached:
        raise weights.WeightsError(
            "no weights are in the cache: `python -m i3d_jax.weights fetch rgb_scratch` downloads "
            "some (51 MB), or --weights names others"
        )
    return [*dict.fromkeys([*given, *cached])]


def free_port(host: str, port: int) -> int:
    """The port, or any free one for 0.

    Raises:
      OSError: the port is in use, or the address is not this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            return tried.getsockname()[1]
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from None


def _load(names: list[str]) -> "dict[str, Network]":
    """The networks of weights, by their labels."""
    from i3d_jax.demo.analysis import Network, label_of

    labels: dict[str, str] = {}
    for name in names:
        other = labels.setdefault(label_of(name), name)
        if other != name:
            raise weights.WeightsError(f"{name}: has the same name as {other}; rename one of them")
    return {label: Network(name) for label, name in labels.items()}


def _serve(
    root: pathlib.Path, networks: "dict[str, Network]", port: int, flags: argparse.Namespace
) -> None:
    """Starts the server and says where it is."""
    from i3d_jax.demo.visits import Visits
    from i3d_jax.video import DamageWarning

    visits = Visits(root)
    # Gradio reads these when it is imported.
    os.environ["GRADIO_TEMP_DIR"] = str(visits.served)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.pop("GRADIO_ALLOWED_PATHS", None)
    for each in "no_proxy", "NO_PROXY":  # It asks itself whether it runs.
        os.environ[each] = ",".join(
            [*filter(None, [os.environ.get(each)]), "localhost", "127.0.0.1", "::1", flags.host]
        )
    from i3d_jax.demo import page

    # The page tells its visitor.
    warnings.simplefilter("ignore", DamageWarning)

    limits = page.Limits(flags.max_seconds, flags.max_megabytes, flags.top_k)
    page.serve(page.build(networks, limits, visits), flags.host, port, limits)
    shown = f"[{flags.host}]" if ":" in flags.host else flags.host
    print(f"http://{shown}:{port}: {', '.join(networks)}; Ctrl-C ends it", flush=True)


if __name__ == "__main__":
    cli.run(main)
