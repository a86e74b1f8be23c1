"""The command that classifies live sources."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from support.processes import wait_until
from support.small_networks import clip, small
from support.small_weights import INFO, small_variables
from support.streams import free_udp_port, udp_stream
from support.videos import moving

from i3d_jax import live, models, pixels, video, weights
from i3d_jax.timeline import rows
from i3d_jax.video import h264
from i3d_jax.video.capture import Capture, find_source

SIZES = dict(short_side=40, crop=32)


def logits_of(name, info=INFO, variables=None, frames=16):
    """A network as a stream, and its variables."""
    network = models.build(info.model, num_classes=7, **info.options)
    variables = small_variables() if variables is None else variables
    return rows.LogitStream(network, variables, info, frames), network, variables


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with tiny weights and videos of 96 and of 20 frames."""
    folder = tmp_path_factory.mktemp("live")
    weights.save(folder / "w.safetensors", small_variables(), INFO)
    for count in 96, 20:
        (folder / f"{count}.mp4").write_bytes(h264.encode(moving(count, 48, 64)))
    return folder


def all_predictions(path, logits, average=0.0, stride=1, fps=25.0):
    with Capture(find_source(str(path)), drop=False, stride=stride, fps=fps, **SIZES) as capturing:
        return [*live.predictions(capturing, logits, average)]


def one_pass(network, variables, path, frames, stride=1):
    """The rows of one pass over a video, f32 [rows, K]; the last frame is repeated."""
    decoded = video.decode(path, stride=stride, **SIZES)
    whole = pixels.to_unit(decoded[np.minimum(np.arange(frames), len(decoded) - 1)])
    _, ends = jax.jit(lambda x: network.apply(variables, x, endpoints=True))(whole[None])
    return np.asarray(ends["Logits"])[0]


@pytest.mark.parametrize("chunk", [8, 16])
def test_predictions_of_a_file_are_those_of_one_pass_over_its_frames(chunk, files):
    logits, network, variables = logits_of("i3d", frames=chunk)
    found = all_predictions(files / "96.mp4", logits)
    wanted = one_pass(network, variables, files / "96.mp4", 96)
    assert len(wanted) == 11  # 96 / 8 - 1.
    # Row s covers frames 8 s to 8 s + 16; its centre is at 8 s + 8.
    steps = [round((each.centre * 25 - 8) / 8) for each in found]
    assert steps[-1] == 10 and sorted(set(steps)) == steps
    for step, each in zip(steps, found, strict=True):
        np.testing.assert_allclose(each.logits, wanted[step], rtol=2e-5)
        assert each.start == pytest.approx(8 * step / 25)
        assert each.end == pytest.approx((8 * step + 16) / 25)
    # 7 steps and a chunk behind: a chunk of 16 gives two rows, of which the newest is taken.
    assert steps == ([*range(11)] if chunk == 8 else [0, 2, 4, 6, 8, 10])


def test_at_the_end_the_last_frame_is_repeated_up_to_a_multiple_of_16(files):
    logits, network, variables = logits_of("i3d")
    found = all_predictions(files / "20.mp4", logits)
    wanted = one_pass(network, variables, files / "20.mp4", 32)
    # Row 2 covers frames 16 to 32, of which the video has 4.
    assert [each.end for each in found][-1] == pytest.approx(20 / 25)
    np.testing.assert_allclose(found[-1].logits, wanted[2], rtol=2e-5)


def test_logits_are_averaged_over_the_rows_of_the_last_seconds(files):
    logits, network, variables = logits_of("i3d")
    wanted = one_pass(network, variables, files / "96.mp4", 96)
    # A row every 0.32 s: three lie within 0.96 s.
    found = all_predictions(files / "96.mp4", logits, 0.96)
    np.testing.assert_allclose(found[0].logits, wanted[0], rtol=2e-5)
    for number, each in enumerate(found[1:], 1):
        last = 2 * number
        np.testing.assert_allclose(each.logits, wanted[last - 2 : last + 1].mean(0), rtol=2e-5)
        assert each.start == pytest.approx(8 * (last - 2) / 25)


@pytest.mark.parametrize(
    "name,stride,chunk,ticks",
    [("inception", 5, 4, 1), ("convnet_lstm", 5, 4, 1), ("c3d", 1, 16, 16)],
)
def test_networks_of_frames_and_windows_are_live_too(name, stride, chunk, ticks, files):
    variables = jax.jit(small(name).init)(jax.random.key(0), clip({"rgb": (16, 1)}, 1))
    options = {"width": 0.1} | ({"norm_steps": 3} if name == "convnet_lstm" else {})
    info = weights.Info(name, INFO.classes, options, {"rgb": (240, stride)}, **SIZES)
    logits, network, _ = logits_of(name, info, variables, chunk)
    found = all_predictions(files / "96.mp4", logits, stride=stride)
    wanted = one_pass(network, variables, files / "96.mp4", -(-96 // stride), stride)
    size = abs(wanted).max()
    assert np.ptp(wanted, 0).max() > 0.01 * size > 0  # Rows differ.
    np.testing.assert_allclose(found[-1].logits, wanted[-1], rtol=0, atol=1e-4 * size)
    # The last row is one frame of 25 / stride per second, or 16.
    assert found[-1].end - found[-1].start == pytest.approx(ticks * stride / 25)


def test_frames_that_are_dropped_move_the_times_of_rows(files):
    class Jumpy:
        """A source of 25 frames per second whose frames 40 to 79 were dropped."""

        fps, stride, dropped = 25.0, 1, 40

        def __init__(self):
            image = np.zeros((32, 32, 3), np.uint8)
            numbers = [*range(40), *range(80, 136)]
            self.waiting = [live.LiveFrame(number, 0.0, image) for number in numbers]

        def take(self, count, _):
            taken, self.waiting = self.waiting[:count], self.waiting[count:]
            return taken

    logits, _, _ = logits_of("i3d", frames=8)
    found = [*live.predictions(Jumpy(), logits, 0)]  # pyright: ignore
    spans = [(round(each.start * 25), round(each.end * 25)) for each in found]
    assert spans[:6] == [(0, 16), (8, 24), (16, 32), (24, 40), (32, 88), (80, 96)]
    assert [each.dropped for each in found] == [40] * 11


def run(files, *arguments):
    return live.main(["--weights", str(files / "w.safetensors"), *map(str, arguments)])


def test_a_stream_over_udp_is_classified_as_json(files, capsys):
    with udp_stream(moving(70)) as url:
        assert run(files, "--json", "--seconds", "4", "--top-k", "2", url) == 0
    out, errors = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) >= 1
    for each in found:
        assert list(each) == ["time", "start", "end", "delay", "frames", "dropped", "top"]
        assert each["start"] < each["time"] < each["end"] and len(each["top"]) == 2
        # The middle of what it is about is 56 frames before the newest one.
        assert each["delay"] > 0
    assert [each["time"] for each in found] == sorted({each["time"] for each in found})
    started, *_, ended = errors.splitlines()
    assert started == f"{url}: compiling i3d"
    assert re.fullmatch(rf"{url}: \d+ frames computed, [\d.]+ per second; \d+ dropped", ended)
    late = "a class is 2.24 s late, for the network looks 56 frames ahead; "
    assert late + "a chunk of 16 frames comes every 0.64 s, and takes " in errors


def test_a_file_is_classified_in_lines(files, capsys):
    assert run(files, "--top-k", "2", "--chunk", "8", files / "20.mp4") == 0
    out, errors = capsys.readouterr()
    # The rows cover frames 0 to 16, 8 to 20, 16 to 20.
    assert len(out.splitlines()) == 3
    for line, centre in zip(out.splitlines(), ("0.32", "0.56", "0.72"), strict=True):
        assert re.fullmatch(rf" +{centre} s, [\d.]+ s ago: [a-g] [\d.]+%, [a-g] [\d.]+%", line)
    assert errors.splitlines()[-1].startswith(f"{files / '20.mp4'}: 20 frames computed, ")


@pytest.mark.slow  # Takes as long as its stream.
def test_who_is_too_slow_drops_frames_and_says_so(files, monkeypatch, capsys):
    feed = rows.LogitStream.feed

    def slow(self, streams):
        if self._slow:
            wait_until(lambda: captures[0].dropped >= self._slow)
            self._slow += 8
        return feed(self, streams)

    captures = []

    def capture(*arguments, **options):
        captures.append(Capture(*arguments, **options))
        rows.LogitStream._slow = 8
        return captures[-1]

    monkeypatch.setattr(rows.LogitStream, "_slow", 0, raising=False)
    monkeypatch.setattr(rows.LogitStream, "feed", slow)
    monkeypatch.setattr(live, "Capture", capture)
    with udp_stream(moving(70)) as url:
        assert run(files, "--json", "--chunk", "8", "--seconds", "8", url) == 0
    out, errors = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    dropped = [each["dropped"] for each in found]
    assert dropped == sorted(dropped) and dropped[0] >= 8 * 8
    assert errors.splitlines().count(f"{url}: falls behind; frames are dropped") == 1
    assert "packets" not in errors and f"{captures[0].dropped} dropped" in errors.splitlines()[-1]
    # Fewer frames than were captured, but the newest ones: at most 16 wait.
    assert found[-1]["frames"] + dropped[-1] >= captures[0].captured - 16 - 8


def command(files, *arguments):
    return [
        sys.executable,
        "-m",
        "i3d_jax.live",
        "--weights",
        files / "w.safetensors",
        *map(str, arguments),
    ]


def interrupted(files, tmp_path, number):
    """Runs the command on a stream, and stops it by a signal after its first prediction."""
    with udp_stream(moving(70)) as url, open(tmp_path / "out", "w") as out:
        process = subprocess.Popen(
            command(files, "--json", url), stdout=out, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: (tmp_path / "out").read_text().count("\n") or process.poll() is not None)
        process.send_signal(number)
        _, errors = process.communicate()
    return process.returncode, errors, url


@pytest.mark.slow  # Starts processes.
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order_with_a_summary(number, files, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, errors, url = interrupted(files, tmp_path, number)
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 128 + number
    assert re.fullmatch(
        rf"{url}: stopped; \d+ frames computed, [\d.]+ per second; \d+ dropped",
        errors.splitlines()[-1],
    )
    assert [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]


@pytest.mark.slow  # Starts a process.
def test_a_signal_ends_it_while_nothing_comes(files, tmp_path):
    url = f"udp://127.0.0.1:{free_udp_port()}"
    with open(tmp_path / "errors", "w") as errors:
        process = subprocess.Popen(command(files, url), stderr=errors)
        wait_until(lambda: " s late, " in (tmp_path / "errors").read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    summary = (tmp_path / "errors").read_text().splitlines()[-1]
    # Or the signal came before the source was opened.
    stopped = f"{url}: stopped; 0 frames computed, 0.0 per second; 0 dropped"
    assert summary in (stopped, "stopped by SIGTERM")


@pytest.mark.slow  # Starts a process.
def test_in_a_terminal_predictions_replace_each_other(files):
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        command(files, "--top-k", "3", files / "96.mp4"), stdout=writer, stderr=subprocess.DEVNULL
    )
    os.close(writer)
    text = b""
    while True:
        try:
            text += os.read(reader, 4096)
        except OSError:  # The other end is closed.
            break
    os.close(reader)
    assert process.wait() == 0
    first, *others = text.decode().replace("\r\n", "\n").split("\x1b[4A")
    # A line of times, and three classes; each later block goes up four lines and clears them.
    assert len(others) >= 1
    for block in (first, *others):
        lines = block.rstrip("\n").split("\n")
        assert len(lines) == 4 and all(line.startswith("\x1b[2K") for line in lines)
        assert " s ago" in lines[0] and lines[1].endswith("%")


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["/no/missing.mp4"], "missing.mp4: cannot be opened: No such file or directory"),
        (["/dev/video99"], "/dev/video99: cannot be opened: No such file or directory"),
        (["nonsense://x"], "nonsense://x: cannot be opened: Protocol not found"),
        (["--timeout", "0.2", "udp://127.0.0.1:PORT"], "nothing came for 0.2 s"),
        (["--chunk", "12", "udp://127.0.0.1:1"], "--chunk: 12 frames, wanted a multiple of 8"),
        (["--chunk", "512", "udp://127.0.0.1:1"], "--chunk: 512 is too large, wanted 256 or less"),
        (
            ["--average", "-1", "udp://127.0.0.1:1"],
            "argument --average: '-1' is not a number of seconds",
        ),
        (["--option", "x", "udp://127.0.0.1:1"], "--option: 'x', wanted NAME=VALUE"),
        (
            ["--weights", "rgb_scrach", "udp://127.0.0.1:1"],
            "rgb_scrach: no such file, and no published",
        ),
        ([], "the following arguments are required: SOURCE"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments, message, files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    try:
        status = run(files, *(each.replace("PORT", str(free_udp_port())) for each in arguments))
    except SystemExit as end:
        status = end.code
    out, errors = capsys.readouterr()
    assert status == 2 and out == ""
    assert message in errors.splitlines()[-1] and "Traceback" not in errors


def test_weights_that_take_flow_are_refused(files, tmp_path, capsys):
    info = weights.Info("i3d", INFO.classes, INFO.options, {"flow": (250, 1)}, **SIZES)
    weights.save(tmp_path / "w.safetensors", small_variables(channels=2), info)
    assert run(tmp_path, "udp://127.0.0.1:1") == 2
    assert "w.safetensors: these weights take flow; live has RGB only" in capsys.readouterr().err


def test_a_source_that_breaks_off_is_status_1(files, capsys, monkeypatch):
    # The stream is short. It begins when it is listened to, not while the network compiles.
    opened = threading.Event()

    class Opened(live.Capture):
        def __enter__(self):
            opened.set()
            return super().__enter__()

    monkeypatch.setattr(live, "Capture", Opened)
    with udp_stream(moving(70), lasts=60, begin=opened) as url:
        assert run(files, "--timeout", "4", url) == 1
    *_, error, summary = capsys.readouterr().err.splitlines()
    assert error.endswith(f"{url}: nothing came for 4 s") and "frames computed" in summary
