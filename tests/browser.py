"""A page in headless Chromium, where that is installed."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

CHROMIUM = shutil.which("chromium")

QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", *QUIET]

LOOK = """
<script>
addEventListener("load", async () => {
  const frames = [...document.querySelectorAll("iframe")];
  const seen = frames.map(frame => {
    const page = frame.contentDocument;
    return {
      width: page.documentElement.scrollWidth,
      pictures: [...page.images].map(image => [image.complete, image.naturalWidth, image.clientWidth, image.alt]),
      dark: getComputedStyle(page.body).backgroundColor,
    };
  });
  document.body.textContent = JSON.stringify(seen);
});
</script>
"""


@dataclass
class Seen:
    """What a browser shows of a page.

    Attributes:
        width: of the content, in pixels.
        pictures: whether each is complete, its natural and its shown width, and its alternative text.
        background: the colour behind the text.
    """

    width: int
    pictures: list[tuple[bool, int, int, str]]
    background: str


def look(page: Path, width: int, folder: Path, *, dark: bool = False) -> tuple[Seen, list[str]]:
    """The page in a window of some width, and everything that the browser's console had to say."""
    frame = f'<!doctype html><iframe src="{page.as_uri()}" style="width:{width}px;height:900px;border:0"></iframe>'
    outer = folder / "look.html"
    outer.write_text(f"<body>{frame}{LOOK}</body>", encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    options = [scheme, "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    log = ["--enable-logging=stderr", "--v=0", "--window-size=1300,1000", "--virtual-time-budget=5000"]
    done = subprocess.run(  # noqa: S603
        [str(CHROMIUM), *FLAGS, *options, *log, outer.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    body = unescape(done.stdout.split("<body>")[1].split("</body>")[0])
    (found,) = json.loads(body)
    pictures = [tuple(picture) for picture in found["pictures"]]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(found["width"], pictures, found["dark"]), console
