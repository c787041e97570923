"""The main figure as a PNG for places that show no page: a browser without a window draws it.

plotly's own kaleido 1.5 would draw the same picture. It starts Chrome as well and brings two packages more, so the
browser is called directly.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from pgolf_model.errors import UserError
from search.look.analysis import Analysis
from search.report.page import render
from search.report.pareto_figure import pareto_figure
from search.report.plot import checked
from search.report.sections import Plot
from search.study.config import StudyConfig

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# No window, no network, no questions; the document is printed once nothing is left to run.
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=8000",
    "--dump-dom",
)
TIMEOUT_SECONDS = 120
PICTURE = re.compile(r'data-picture="data:image/png;base64,([^"]+)"')
WIDTH, HEIGHT = 1000, 560  # CSS pixels; a README shows about 850 of them side by side
SCALES = (2.0, 1.5, 1.0)  # pixels to a CSS pixel; many screens have two
FONT_SIZE = 14  # CSS pixels; the page has 12
MOST_BYTES = 150_000  # of a picture in a repository


def picture_png(study: StudyConfig, analysis: Analysis) -> bytes:
    """The main figure as a PNG on white: at the first of `SCALES` at which it takes at most 150 kB, else at the last.

    Raises:
        UserError: no trial has a score, or there is no browser, or it draws nothing.
    """
    if all(point.val_bpb is None for point in analysis.points):
        raise UserError(f"nothing to draw: no trial of study {study.name} has a score yet")
    picture = b""
    for scale in SCALES:
        picture = drawn(picture_html(study, analysis, scale=scale))
        if len(picture) <= MOST_BYTES:
            break
    return picture


def picture_html(study: StudyConfig, analysis: Analysis, *, scale: float) -> str:
    """A page that draws the main figure, light wherever it is opened, and then holds it as a PNG in `data-picture`.

    Args:
        scale: pixels of the PNG to a CSS pixel.
    """
    figure = pareto_figure(study, analysis)
    figure["layout"] |= {"font": {"size": FONT_SIZE}, "paper_bgcolor": "#ffffff"}
    plot = Plot(name="picture", label="val_bpb against artifact bytes for every trial", figure=checked(figure))
    image = {"format": "png", "width": WIDTH, "height": HEIGHT, "scale": scale}
    return render("picture.html.j2", title=study.name, plot=plot, image=image)


def drawn(html: str) -> bytes:
    """The PNG that a page of `picture_html` holds once a browser has drawn it.

    A screenshot would depend on the window, whose size in Chromium is not that of the page in it.

    Raises:
        UserError: there is no browser, or it draws nothing.
    """
    with tempfile.TemporaryDirectory(prefix="pgolf-picture-") as folder:
        page = Path(folder, "page.html")
        page.write_text(html, encoding="utf-8")
        done = browse(page)
    found = PICTURE.search(done.stdout)
    if not found:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise UserError(f"{done.args[0]} drew no picture (exit code {done.returncode}): {last}")
    return base64.b64decode(found[1])


def browse(page: Path) -> subprocess.CompletedProcess[str]:
    """Open a file in a browser without a window; stdout is the document after its scripts ran.

    The browser's profile lies beside the file.

    Raises:
        UserError: there is no browser, or it does not come to an end.
    """
    browser = find_browser()
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run as root in a sandbox
    command = [browser, *FLAGS, *root, f"--user-data-dir={page.parent / 'profile'}", page.as_uri()]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"{browser} has drawn nothing in {TIMEOUT_SECONDS} s") from None


def find_browser() -> str:
    """The path of the first of `BROWSERS` that is installed.

    Raises:
        UserError: none is.
    """
    for name in BROWSERS:
        path = shutil.which(name)
        if path:
            return path
    raise UserError(f"no browser to draw with: looked for {', '.join(BROWSERS)}", hint="apt-get install chromium")
