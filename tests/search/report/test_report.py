"""The page and its points: whole, harmless, the same numbers everywhere, and drawn by a real browser."""

from __future__ import annotations

import base64
import csv
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from refusals import refused
from studies import CAP, add_trial, complete, make_realistic_study, make_spec, make_study

from search.commands.pareto import pareto
from search.look.analysis import analyse
from search.report.figure_style import CAP_COLOUR, RUNG_COLOURS, view_range
from search.report.page import report_html
from search.report.picture import HEIGHT, MOST_BYTES, SCALES, WIDTH, browse, picture_png
from search.report.texts import FORBIDDEN, printable
from search.study.config import StudyConfig
from search.study.ledger import TrialRecord, read_records
from trials.rungs import Rung
from trials.spec import TrialResult


def page(study: StudyConfig, records: tuple[TrialRecord, ...] | None = None, *, made: str = "") -> str:
    """The page without plotly.js, which is 4.8 MB of somebody else's text."""
    html = report_html(study, analyse(study, read_records(study) if records is None else records), made=made)
    return re.sub(r"<script>/\*.*?</script>", "", html, count=1, flags=re.DOTALL)


def invoke(*args: str) -> str:
    """What `pgolf pareto` prints."""
    return CliRunner().invoke(pareto, list(args), catch_exceptions=False).stdout


def test_the_page_holds_every_trial_and_loads_nothing(tmp_path: Path) -> None:
    """One file for file://: no script, style, image or frame from anywhere, and a policy that forbids it."""
    study = make_realistic_study(tmp_path / "study")
    html = page(study)
    for record in read_records(study):
        assert f'data-row="{record.spec.trial_id}"' in html
        assert f'data-card="{record.spec.trial_id}"' in html
    assert not re.search(r"<(link|iframe|img|object|embed|base)\b", html)
    assert not re.search(r"\bsrc\s*=|@import|url\(|https?://", html)
    assert "default-src &#x27;none&#x27;" in html or "default-src 'none'" in html
    assert f"pgolf export {study.dir} --trial full/0000 --out submissions/8xh100-depth-full-0000" in html


def test_plotly_is_embedded_once(tmp_path: Path) -> None:
    """A second copy would cost 4.8 MB."""
    study = make_realistic_study(tmp_path / "study")
    html = report_html(study, analyse(study, read_records(study)))
    assert 3e6 < len(html) < 7e6


def test_whatever_a_trial_says_is_text(tmp_path: Path) -> None:
    """Markup in parameters, labels and errors reaches the reader as characters."""
    evil = "</script><script>alert(1)</script>"
    study = make_study(tmp_path, name="a<b>&c")
    add_trial(study, "proxy/0000", complete(1.4, 10**7), params={evil: evil, "n": 1}, label="<i>")
    add_trial(study, "proxy/0001", complete(1.5, 10**7), params={evil: "x", "n": 2})
    add_trial(study, "proxy/0002", TrialResult(status="failed", error=f"line\n{evil}"))
    html = page(study)
    assert "<script>alert" not in html
    assert "<i>" not in html
    assert "<title>a&lt;b&gt;&amp;c · pgolf</title>" in html


HOSTILE = (
    "</script><script>hacked()</script>",
    "<img src=x onerror=hacked()>",
    "\"' onmouseover='hacked()' x=\"",
    "{{ 7 * 7 }}{% raw %}",
    "<!-- <script>",
    "\x00\x08\x1b[31mred\x1b[0m\x85",
    "\ud800 half a pair",
    "lines\u2028apart\u2029",
    "<b>bold</b> <a href='javascript:hacked()'>link</a>",
)


def study_that_says(word: str, folder: Path) -> tuple[StudyConfig, tuple[TrialRecord, ...]]:
    """A study with `word` wherever it may choose its words; the names of studies and rungs cannot hold a slash."""
    name = word.replace("/", "|")
    rungs = (Rung(name="proxy", steps=500, trials=16), Rung(name=name, steps=900))
    study = make_study(folder, name=name, rungs=rungs)
    failed = TrialResult(status="failed", error=f"{word}\n{word}")
    trials = (
        ("proxy/0000", complete(1.4, 10**7), {"params": {word: word, "n": 1}, "label": "control"}),
        ("proxy/0001", complete(1.5, 10**7), {"params": {word: "x", "n": 2}, "predicted_bytes": 10**7}),
        ("proxy/0002", failed, {"predicted_bytes": 10**7, "label": word}),
        (f"{name}/0000", complete(1.3, 10**7), {"parent": 0, "label": word}),
        (f"{name}/0001", complete(1.4, CAP + 1), {"parent": 1, "label": word}),
        (f"{name}/0002", None, {"parent": 1, "predicted_bytes": 10**7}),
    )
    specs = [replace(make_spec(study, trial_id), **changes) for trial_id, _, changes in trials]
    return study, tuple(TrialRecord(spec=s, result=r) for s, (_, r, _) in zip(specs, trials, strict=True))


class Elements(HTMLParser):
    """A page taken apart as a browser would: its tags with the names of their attributes, its text, its figures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = [("",)]
        self.text = ""
        self.figures: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        if "data-figure" in self.tags[-1]:
            self.figures.append("")

    def handle_data(self, data: str) -> None:
        if "data-figure" in self.tags[-1]:
            self.figures[-1] += data
        elif self.tags[-1][0] not in ("script", "style"):
            self.text += data


@pytest.mark.parametrize("word", HOSTILE)
def test_whatever_a_study_says_is_text(tmp_path: Path, word: str) -> None:
    """Names, rungs, parameters, labels and errors reach the reader as characters: no element and no attribute more."""
    html = page(*study_that_says(word, tmp_path / "study"), made=word)
    hostile, harmless = Elements(html), Elements(page(*study_that_says("word", tmp_path / "harmless"), made="word"))
    assert hostile.tags == harmless.tags
    assert printable(word) in hostile.text
    assert not FORBIDDEN.search(html)
    assert len(hostile.figures) == 6
    assert all(json.loads(figure)["data"] for figure in hostile.figures)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], "the study has no trials yet"),
        ([TrialResult(status="diverged", error="loss is nan at step 3")], "no trial has a score yet"),
        ([complete(1.4, CAP + 5)], "Trials so far: 1 over a cap."),
        ([complete(1.4, CAP - 5)], "no control has a score at proxy yet"),
    ],
)
def test_a_study_with_little_to_show_says_so(tmp_path: Path, results: list[TrialResult], expected: str) -> None:
    """Nothing asked, nothing scored, nothing feasible, a single trial."""
    study = make_study(tmp_path)
    for number, result in enumerate(results):
        add_trial(study, f"proxy/{number:04d}", result)
    assert expected in page(study)


def test_trials_far_off_do_not_squash_the_view_and_are_counted(tmp_path: Path) -> None:
    """One trial at 8.21 bpb lies above the view, which the page says; nothing below is ever cut."""
    (low, high), above = view_range([1.2, 1.25, 1.3, 1.31, 8.0])
    assert low < 1.2
    assert 1.31 < high < 1.5
    assert above == 1
    assert view_range([1.2, 1.3]) == (pytest.approx((1.194, 1.306)), 0)
    assert view_range([]) == ((0.0, 1.0), 0)
    assert "1 trial with a much higher val_bpb is above the view" in page(make_realistic_study(tmp_path / "study"))


def test_json_and_csv_print_the_same_points(tmp_path: Path) -> None:
    """Every number of every point, and the front of the document is the points' front at that rung."""
    study = make_realistic_study(tmp_path / "study")
    data = json.loads(invoke(str(study.dir), "--json"))
    rows = list(csv.DictReader(invoke(str(study.dir), "--csv").splitlines(keepends=True)))
    assert len(rows) == len(data["points"]) == 25
    for row, point in zip(rows, data["points"], strict=True):
        for name, value in point.items():
            if name == "params":
                assert {k: row[f"params.{k}"] for k in value} == {k: str(v) for k, v in value.items()}
            elif isinstance(value, list):
                assert row[name] == " ".join(map(str, value))
            else:
                assert row[name] == ("" if value is None else str(value)), name
    on_front = {p["trial_id"] for p in data["points"] if p["on_front"] and p["rung"] == data["front_rung"]}
    assert set(data["front"]) == on_front
    assert (data["study"], data["caps"]["artifact_bytes"]) == ("8xh100-depth", CAP)
    assert not (study.dir / "report.html").exists()


def test_the_page_goes_into_the_study_or_where_asked(tmp_path: Path) -> None:
    """Its path is what is printed."""
    study = make_realistic_study(tmp_path / "study")
    assert invoke(str(study.dir)) == f"{study.dir / 'report.html'}\n"
    assert invoke(str(study.dir), "--out", str(tmp_path / "new" / "page.html")) == f"{tmp_path}/new/page.html\n"
    assert (tmp_path / "new" / "page.html").read_text().endswith("</html>\n")
    result = CliRunner().invoke(pareto, [str(study.dir), "--json", "--csv"])
    assert (result.exit_code, "exclude each other" in result.stderr) == (2, True)


PROBE = """
<script>
const problems = [];
addEventListener('error', event => problems.push(event.message));
addEventListener('securitypolicyviolation', event => problems.push(event.violatedDirective));
console.error = text => problems.push(String(text));
addEventListener('load', () => setTimeout(() => {
  const heads = [...document.querySelectorAll('table.trials thead button')];
  heads.find(head => head.textContent === 'val_bpb').click();
  document.querySelector('[data-show="proxy/0003"]').click();
  const main = document.getElementById('plot-main');
  document.body.dataset.probe = JSON.stringify({problems,
    svgs: document.querySelectorAll('.main-svg').length,
    paths: main.querySelectorAll('.scatterlayer path.point').length,
    first: document.querySelector('table.trials tbody tr').dataset.row,
    shown: [...document.querySelectorAll('[data-card]:not([hidden])')].map(card => card.dataset.card)});
}, 500));
</script>
"""


def in_browser(html: str, folder: Path, probe: str = PROBE) -> dict[str, Any]:
    """What a probe saw on a page that a browser opened from disk."""
    folder.mkdir(exist_ok=True)
    (folder / "page.html").write_text(html.replace("<head>", "<head>" + probe, 1), encoding="utf-8")
    dom = browse(folder / "page.html").stdout
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found, dom[-2000:]
    seen: dict[str, Any] = json.loads(unescape(found.group(1)))
    return seen


@pytest.mark.browser
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    """Every figure is drawn, every trial with a size is a mark, sorting and choosing work, the console stays empty."""
    study = make_realistic_study(tmp_path / "study")
    probe = in_browser(report_html(study, analyse(study, read_records(study))), tmp_path)
    assert probe["problems"] == []
    assert probe["svgs"] >= 3 + 14
    assert probe["paths"] >= 25
    assert probe["first"] == "full/0000"
    assert probe["shown"] == ["proxy/0003"]


HARM = """
<script>
const problems = [];
window.hacked = () => problems.push('hacked');
addEventListener('error', event => problems.push(event.message));
addEventListener('securitypolicyviolation', event => problems.push(event.violatedDirective));
addEventListener('load', () => setTimeout(() => {
  const main = document.getElementById('plot-main');
  const marks = {curveNumber: main.data.findIndex(trace => trace.hovertext), pointNumber: 0};
  Plotly.Fx.hover(main, [marks]);
  document.querySelector('table.trials [data-show]').click();
  const drawn = [...document.querySelectorAll('svg text')].map(text => text.textContent).join(' ');
  document.body.dataset.probe = JSON.stringify({problems, drawn,
    strangers: document.querySelectorAll('img, svg a, svg img, script[src]').length,
    hovered: main.querySelector('.hoverlayer').textContent});
}, 500));
</script>
"""


@pytest.mark.browser
@pytest.mark.parametrize("word", HOSTILE)
def test_a_browser_runs_nothing_that_a_study_says(tmp_path: Path, word: str) -> None:
    """Neither the page nor plotly, which reads a subset of HTML, takes a study's words for more than words."""
    study, records = study_that_says(word, tmp_path / "study")
    probe = in_browser(report_html(study, analyse(study, records)), tmp_path, HARM)
    assert (probe["problems"], probe["strangers"]) == ([], 0)
    assert printable(word).split()[0] in probe["drawn"]
    assert printable(word).split()[0] in probe["hovered"]


PIXELS = """
<!doctype html><html><head></head><body><script>
const image = new Image();
image.onload = () => {
  const context = new OffscreenCanvas(image.width, image.height).getContext('2d'), colours = {};
  context.drawImage(image, 0, 0);
  const bytes = context.getImageData(0, 0, image.width, image.height).data;
  for (let i = 0; i < bytes.length; i += 4) {
    const colour = [...bytes.slice(i, i + 4)].map(value => value.toString(16).padStart(2, '0')).join('');
    colours[colour] = (colours[colour] || 0) + 1;
  }
  document.body.dataset.probe = JSON.stringify({size: [image.width, image.height], colours});
};
image.src = "data:image/png;base64,DATA";
</script></body></html>
"""


@pytest.mark.browser
def test_a_browser_draws_the_picture(tmp_path: Path) -> None:
    """A PNG of the promised shape and size with a figure on it: white paper, the colours of rungs and cap."""
    study = make_realistic_study(tmp_path / "study")
    path = tmp_path / "new" / "pareto.png"
    assert invoke(str(study.dir), "--png", str(path)) == f"{path}\n"
    assert not (study.dir / "report.html").exists()
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) <= MOST_BYTES
    seen = in_browser(PIXELS.replace("DATA", base64.b64encode(data).decode()), tmp_path, probe="")
    assert seen["size"] in [[scale * WIDTH, scale * HEIGHT] for scale in SCALES]
    colours = {colour: count / (seen["size"][0] * seen["size"][1]) for colour, count in seen["colours"].items()}
    assert 0.6 < colours["ffffffff"] < 0.95
    for colour in (RUNG_COLOURS[0], CAP_COLOUR):
        assert colours[f"{colour[1:].lower()}ff"] > 0.0003, colour


def test_a_picture_needs_a_browser_and_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without either the reason is said, with the package to install; nothing is written."""
    study = make_study(tmp_path / "study")
    with refused("no trial of study demo has a score yet"):
        picture_png(study, analyse(study, read_records(study)))
    add_trial(study, "proxy/0000", complete(1.4, CAP - 5))
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused("no browser to draw with: looked for chromium", hint="apt-get install chromium"):
        picture_png(study, analyse(study, read_records(study)))
    result = CliRunner().invoke(pareto, [str(study.dir), "--png", "x.png", "--csv"])
    assert (result.exit_code, "exclude each other" in result.stderr) == (2, True)
