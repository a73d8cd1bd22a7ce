"""Records the live page while the demo trains, as the moving picture of the first page: `make docs-picture`.

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
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
SIZE = {"width": 1280, "height": 1470}  # down to the groups
SHOWN = (800, 919)
EVERY_S, FRAME_MS, LAST_FRAME_MS = 3.0, 250, 3000
SECONDS = 100
MAX_BYTES = 1_000_000


def frames(url: str, demo: subprocess.Popen[str]) -> list[Image.Image]:
    """Returns what the page shows, every three seconds until the demo ends."""
    taken = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
        )
        page = browser.new_page(viewport=SIZE, locale="en-US", color_scheme="dark")
        page.goto(url)
        while demo.poll() is None and len(taken) < SECONDS / EVERY_S:
            time.sleep(EVERY_S)
            taken.append(
                Image.open(io.BytesIO(page.screenshot())).convert("RGB").resize(SHOWN, Image.Resampling.LANCZOS)
            )
        browser.close()
    return taken


def main() -> None:
    """Records, and writes docs/view.webp in the best quality that is small enough."""
    command = [sys.argv[1], str(ROOT / "examples/minigrid_demo.py"), "--seconds", str(SECONDS + 20)]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--out", str(Path(folder, "demo.png"))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as demo:  # noqa: S603  our own
            url = next(word for word in demo.stdout.readline().split() if word.startswith("http"))
            taken = frames(url, demo)
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
