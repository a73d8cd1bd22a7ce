"""Records the live page while the demo trains, for the documentation: `make docs-picture`.

A moving picture for the first page, and three that stand still: wide, on a tablet and on a phone.

Runs in .venv-browser; the demo runs with the Python that is given.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parents[1]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
SIZE = {"width": 1280, "height": 1470}  # down to the groups
SHOWN = (800, 919)
EVERY_S, FRAME_MS, LAST_FRAME_MS = 3.0, 250, 3000
SECONDS = 100
STILLS_SECONDS = 60  # at most, for what follows the moving picture
STILLS = {  # name: width, height, colours, and what is at the top; None: all of the page, with one level in full
    "view-wide": (1280, 800, "light", None),
    "view-tablet": (820, 1180, "dark", "#chart-mass"),
    "view-phone": (390, 844, "light", "#chart-group-mass"),
}
PICTURES = "() => document.images.length > 0 && [...document.images].every((image) => image.naturalWidth)"
MAX_BYTES = 1_000_000


def frames(browser: Browser, url: str) -> list[Image.Image]:
    """Returns what the page shows, every three seconds."""
    page = browser.new_page(viewport=SIZE, locale="en-US", color_scheme="dark")
    page.goto(url)
    taken = []
    began_s = time.monotonic()
    while time.monotonic() - began_s < SECONDS:
        time.sleep(EVERY_S)
        taken.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB").resize(SHOWN, Image.Resampling.LANCZOS))
    page.close()
    return taken


def take_stills(browser: Browser, url: str) -> None:
    """Writes docs/view-*.png."""
    for name, (width, height, scheme, top) in STILLS.items():
        page = browser.new_page(
            viewport={"width": width, "height": height}, locale="en-US", color_scheme=scheme, bypass_csp=True
        )
        page.goto(url)
        page.add_style_tag(content="#rows tr:nth-child(n + 8) { display: none }")
        page.wait_for_function(PICTURES)
        if top is None:
            page.locator("#rows button").first.click()
            page.wait_for_selector("#level-past canvas")
        elif page.locator(f"{top} .button").count():
            page.locator(f"{top} .button").click()
        if top is not None:
            page.locator(top).evaluate("(element) => element.scrollIntoView()")
        page.wait_for_function(PICTURES)
        still = Image.open(io.BytesIO(page.screenshot(full_page=top is None))).convert("RGB")
        still.quantize().save(ROOT / f"docs/{name}.png", optimize=True)  # 256 colours: a third of the size
        page.close()


def main() -> None:
    """Records, and writes docs/view.webp, in the best quality that is small enough, and the stills."""
    command = [sys.argv[1], str(ROOT / "examples/minigrid_demo.py"), "--seconds", str(SECONDS + STILLS_SECONDS)]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--out", str(Path(folder, "demo.png"))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as demo:  # noqa: S603  our own
            url = next(word for word in demo.stdout.readline().split() if word.startswith("http"))
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
                taken = frames(browser, url)
                take_stills(browser, url)
                browser.close()
            demo.stdout.read()  # until it ends: it has more to say
    picture = ROOT / "docs/view.webp"
    durations = [FRAME_MS] * (len(taken) - 1) + [LAST_FRAME_MS]
    for quality in range(80, 0, -10):
        taken[0].save(picture, save_all=True, append_images=taken[1:], duration=durations, loop=0, quality=quality)
        if picture.stat().st_size <= MAX_BYTES:
            break
    print(f"{picture}: {len(taken)} frames, {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
