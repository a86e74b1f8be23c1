"""Takes a picture of the web page after a clip was analysed: `python -m i3d_jax.demo`.

    python docs/demo_picture.py CLIP docs/images/demo.png --weights rgb_scratch

It needs playwright and Chromium.
"""

import argparse
import io
import pathlib
import shutil
import subprocess
import sys

from PIL import Image
from playwright import sync_api

WIDTH, HEIGHT = 1000, 1230


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=pathlib.Path, help="video to analyse")
    parser.add_argument("target", type=pathlib.Path, help="PNG file to write")
    parser.add_argument("--weights", default="rgb_scratch", help="name or file of weights")
    parser.add_argument("--seconds", default="1.8", help="time to show")
    flags = parser.parse_args()
    command = [sys.executable, "-m", "i3d_jax.demo", "--port", "0", "--weights", flags.weights]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split(": ")[0]
            picture = take(address, flags.clip, flags.seconds)
        finally:
            server.terminate()
    # 256 colours are enough for it, and a third of the bytes.
    Image.open(io.BytesIO(picture)).convert("RGB").quantize().save(flags.target, optimize=True)
    print(f"{flags.target}: {flags.target.stat().st_size / 1e3:.0f} kB")


def take(address: str, clip: pathlib.Path, seconds: str) -> bytes:
    """A picture of the page at an address, with the results for a clip."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_default_timeout(120_000)
        page.goto(address)
        page.locator("input[type=file]").set_input_files(clip)
        page.locator("video").wait_for()
        page.get_by_role("button", name="Analyse").click()
        block = page.locator(".block", has=page.get_by_text("Where the network looked"))
        frame = block.locator("img").last
        before = frame.get_attribute("src")
        now = page.get_by_label("number input for Time in seconds")
        now.fill(seconds)
        now.press("Enter")
        sync_api.expect(frame).not_to_have_attribute("src", before or "")
        page.wait_for_function("[...document.images].every(image => image.complete)")
        picture = page.screenshot(full_page=True)
        browser.close()
    return picture


if __name__ == "__main__":
    main()
