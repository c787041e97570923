"""The page and its points: whole, harmless, the same numbers everywhere, and drawn by a real browser."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from studies import CAP, add_trial, complete, make_realistic_study, make_study

from search.commands.pareto import pareto
from search.look.analysis import analyse
from search.report.page import report_html
from search.report.style import view_range
from search.study.config import StudyConfig
from search.study.ledger import read_records
from trials.spec import TrialResult

CHROMIUM = Path("/usr/bin/chromium")


def page(study: StudyConfig) -> str:
    """The page without plotly.js, which is 4.8 MB of somebody else's text."""
    html = report_html(study, analyse(study, read_records(study)))
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


@pytest.mark.browser
def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    """Every figure is drawn, every trial with a size is a mark, sorting and choosing work, the console stays empty."""
    study = make_realistic_study(tmp_path / "study")
    html = report_html(study, analyse(study, read_records(study)))
    (tmp_path / "page.html").write_text(html.replace("<head>", "<head>" + PROBE, 1))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --virtual-time-budget=8000 --window-size=1400,1200 --dump-dom"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/page.html"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found, dom[-2000:]
    probe = json.loads(found.group(1).replace("&quot;", '"'))
    assert probe["problems"] == []
    assert probe["svgs"] >= 3 + 14
    assert probe["paths"] >= 25
    assert probe["first"] == "full/0000"
    assert probe["shown"] == ["proxy/0003"]
