"""The report page: one HTML file with everything in it, that opens from disk and never touches the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from html import escape

from search.look.analysis import Analysis, Point, PointStatus
from search.report.assets import SCRIPT, STYLE
from search.report.evidence_figures import forecast_figure, history_figure, knob_figures, rank_figure
from search.report.pareto_figure import pareto_figure
from search.report.plot import figure_json, plotly_script
from search.report.style import Figure, byte_unit, rung_style, show, view_range
from search.study.config import StudyConfig
from search.study.next_steps import export_command

REPORT_FILE = "report.html"
QUESTIONS = {
    "best": "the lowest val_bpb that fits under the caps",
    "front": "the whole trade-off between val_bpb and bytes",
}
# Nothing may be loaded from anywhere; scripts and styles are inline, downloads of a figure are data and blob URLs.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def report_html(study: StudyConfig, analysis: Analysis, *, made: str = "") -> str:
    """The page.

    Args:
        made: when and in what state of the study it was written, for the footer.
    """
    figures = [_main_section(study, analysis), *_evidence_sections(study, analysis), _knob_section(study, analysis)]
    scripts = f"<script>{plotly_script()}</script>\n<script>{SCRIPT}</script>" if analysis.points else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(study.name)} · pgolf</title>
<style>{STYLE}</style>
</head>
<body>
{_header(study, analysis)}
<main>
{"".join(figures)}
{_forecast_section(analysis)}
{_table_section(study, analysis)}
</main>
<footer>{escape(made)}</footer>
{scripts}
</body>
</html>
"""


def _header(study: StudyConfig, analysis: Analysis) -> str:
    cap = study.caps.artifact_bytes
    caps = f"{cap:,} bytes, {study.caps.train_seconds:,.0f} s training, {study.caps.eval_seconds:,.0f} s evaluation"
    return f"""<header>
<p class="eyebrow">pgolf study</p>
<h1>{escape(study.name)}</h1>
<p class="lead">Looks for {QUESTIONS[study.question]}. Caps: {caps}. Space: {escape(study.space)}.</p>
<div class="cards">{"".join(_cards(study, analysis))}</div>
{_rung_table(study, analysis)}
</header>"""


def _cards(study: StudyConfig, analysis: Analysis) -> Iterable[str]:
    if analysis.best is None:
        yield _card("Best feasible trial", "none yet", _why_nothing(analysis))
        return
    best = analysis.point(analysis.best)
    size, cap = best.artifact_bytes or 0, study.caps.artifact_bytes
    seeds = len(best.val_bpb_seeds)
    spread = f"± {best.val_bpb_sd:.4f} over {seeds} seeds" if best.val_bpb_sd is not None else "one seed"
    yield _card("Best val_bpb", f"{best.val_bpb:.4f}", f"{_trial_button(best.trial_id)}, {spread}")
    meter = f'<span class="meter"><span style="width:{min(1.0, size / cap):.2%}"></span></span>'
    yield _card("Artifact", f"{size / cap:.1%} of the cap", f"{meter}{size:,} bytes, {cap - size:,} to spare")
    if analysis.comparison and analysis.comparison.best != analysis.comparison.control:
        delta = analysis.comparison
        yield _card(
            "Against the control",
            f"{delta.delta_bpb:+.4f} bpb".replace("-", "−"),
            f"{escape(delta.note)}; control is {_trial_button(delta.control)}",
        )
    elif analysis.comparison:
        yield _card("Against the control", "none better", escape(analysis.comparison.note))
    else:
        yield _card("Against the control", "unknown", f"no control has a score at {escape(best.rung)} yet")
    agreement = next((a for a in reversed(analysis.rank_agreement) if a.pairs), None)
    if agreement:
        rho = "too few" if agreement.spearman is None else f"{agreement.spearman:+.2f}".replace("-", "−")
        pairs = len(agreement.pairs)
        yield _card(
            "Rank agreement",
            rho,
            f"Spearman, {escape(agreement.lower)} to {escape(agreement.upper)}, {pairs} pair{'s' * (pairs != 1)}",
        )


def _card(title: str, value: str, note: str) -> str:
    return f'<div class="card"><h2>{title}</h2><p class="value">{value}</p><p class="note">{note}</p></div>'


def _why_nothing(analysis: Analysis) -> str:
    if not analysis.points:
        return "No trial has been asked for yet. Start the study with pgolf search, then make this page again."
    counts = Counter("over a cap" if p.status == "complete" else p.status for p in analysis.points)
    return "Trials so far: " + ", ".join(f"{number} {status}" for status, number in sorted(counts.items())) + "."


STATUS_COLUMNS: tuple[PointStatus, ...] = (
    "complete",
    "infeasible",
    "diverged",
    "failed",
    "timeout",
    "running",
    "interrupted",
)


def _rung_table(study: StudyConfig, analysis: Analysis) -> str:
    """Trials by rung and status, and the best of each rung."""
    shown = [s for s in STATUS_COLUMNS if s == "complete" or any(p.status == s for p in analysis.points)]
    rows = []
    for rung in study.rungs:
        at = [p for p in analysis.points if p.rung == rung.name]
        feasible = [p for p in at if p.feasible]
        best = min(feasible, key=lambda p: p.val_bpb or 0.0, default=None)
        counts = Counter(p.status for p in at)
        budget = " or ".join(
            [f"{rung.steps:,} steps"] * bool(rung.steps) + [f"{rung.seconds:,.0f} s"] * bool(rung.seconds)
        )
        cells = "".join(f"<td>{counts[s] or '<span class=zero>0</span>'}</td>" for s in shown)
        best_cell = f"{best.val_bpb:.4f} {_trial_button(best.trial_id)}" if best else "–"
        rows.append(
            f"<tr><th scope=row>{_swatch(study, rung.name)}{escape(rung.name)}</th><td>{budget}</td>"
            f"<td>{len(at)}</td>{cells}<td>{best_cell}</td></tr>"
        )
    heads = "".join(f"<th scope=col>{name}</th>" for name in ("rung", "budget", "trials", *shown, "best val_bpb"))
    return (
        f'<div class="scroll"><table class="rungs"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _swatch(study: StudyConfig, rung: str) -> str:
    """The rung's symbol in its colour, as the figures draw it."""
    colour, symbol = rung_style(study, rung)
    glyph = {"circle": "●", "diamond": "◆", "square": "■", "triangle-up": "▲", "pentagon": "⬟"}[symbol]
    return f'<span class="swatch" style="color:{colour}" aria-hidden="true">{glyph}</span>'


def _main_section(study: StudyConfig, analysis: Analysis) -> str:
    scored = [p for p in analysis.points if p.val_bpb is not None]
    if not analysis.points:
        body = '<p class="empty">Nothing to draw: the study has no trials yet.</p>'
    elif not scored:
        body = (
            '<p class="empty">Nothing to draw: no trial has a score yet. The table below says how each one ended.</p>'
            f'<div class="detail">{_details(study, analysis)}</div>'
        )
    else:
        figure = _figure(pareto_figure(study, analysis), "main", "val_bpb against artifact bytes for every trial")
        body = (
            f'<div class="split"><div>{figure}{_main_notes(study, analysis)}</div>'
            f'<aside class="detail" aria-live="polite">{_details(study, analysis)}</aside></div>'
        )
    return f'<section id="pareto"><h2>Bits per byte against bytes</h2>{body}</section>'


def _main_notes(study: StudyConfig, analysis: Analysis) -> str:
    """What the reader must know to read the main figure."""
    notes = ["Point at a trial for its configuration, click it to keep it at the side."]
    if len([r for r in study.rungs if any(p.rung == r.name and p.feasible for p in analysis.points)]) > 1:
        notes.append(
            f"Rungs had different training budgets and are not comparable: the front is that of "
            f"{escape(analysis.front_rung or '')}, dotted lines are the fronts of the rungs below."
        )
    _, above = view_range([p.val_bpb for p in analysis.points if p.val_bpb is not None])
    if above:
        notes.append(
            f"<strong>{above} trial{'s' * (above > 1)} with a much higher val_bpb "
            f"{'are' if above > 1 else 'is'} above the view</strong>; double-click the figure to see everything."
        )
    unscored = [p for p in analysis.points if p.val_bpb is None]
    if any(p.predicted_bytes for p in unscored):
        notes.append(
            "Trials without a score stand in the strip below at their forecast size: | forecast to be over a cap and "
            "never trained, × diverged or failed, ○ not ended, ▷ forecast beyond the right edge."
        )
    return f'<p class="caption">{" ".join(notes)}</p>'


def _evidence_sections(study: StudyConfig, analysis: Analysis) -> list[str]:
    """Can proxies be trusted, can forecasts be trusted, is the search still getting anywhere."""
    if not analysis.points:
        return []
    ranks, forecast = rank_figure(study, analysis), forecast_figure(study, analysis)
    history = history_figure(study, analysis)
    blocks = []
    if len(study.rungs) > 1:
        body = (
            _figure(ranks, "rank", "scores at one rung against the next")
            + "".join(f'<p class="caption">{escape(a.note)}</p>' for a in analysis.rank_agreement if a.pairs)
            if ranks
            else '<p class="empty">No promoted trial has a score at both rungs yet.</p>'
        )
        blocks.append(f'<section id="agreement"><h2>Do proxies rank as full runs do?</h2>{body}</section>')
    body = (
        _figure(forecast, "forecast", "forecast bytes against packed bytes")
        + f'<p class="caption">{escape(analysis.forecast.note if analysis.forecast else "")}</p>'
        if forecast
        else '<p class="empty">No complete trial had a forecast yet.</p>'
    )
    blocks.append(f'<section id="forecast"><h2>Were bytes forecast well?</h2>{body}</section>')
    body = (
        _figure(history, "history", "val_bpb in trial order and the best so far")
        + '<p class="caption">The line is the best feasible score so far at its rung; grey trials broke a cap.</p>'
        if history
        else '<p class="empty">No trial has a score yet.</p>'
    )
    blocks.append(f'<section id="history"><h2>Is the search still improving?</h2>{body}</section>')
    return [f'<div class="trio">{"".join(blocks)}</div>']


def _forecast_section(analysis: Analysis) -> str:
    """What trials that have not ended at the top rung would score there."""
    forecasts = analysis.full_forecasts
    if not forecasts:
        return ""
    rung = escape(forecasts[0].rung)
    rows = "".join(
        f"<tr><td>{_trial_button(f.trial_id)}</td><td>{f.source}</td><td><b>{f.val_bpb:.4f}</b></td>"
        f"<td>{f.low50:.4f} to {f.high50:.4f}</td><td>{f.low90:.4f} to {f.high90:.4f}</td></tr>"
        for f in forecasts
    )
    heads = "".join(
        f"<th scope=col>{name}</th>" for name in ("trial", "from its", f"val_bpb at {rung}", "50 %", "90 %")
    )
    known = max(f.num_pairs for f in forecasts)
    trials = f"{known} trial{'s' * (known != 1)}"
    basis = f"From how {trials} that {'has' if known == 1 else 'have'} a score at {rung} came out there."
    if any(f.few for f in forecasts):
        basis += " <strong>So few say little: the forecast is mostly a guess, and its intervals are wide.</strong>"
    return (
        f'<section id="full"><h2>What would they score at {rung}?</h2><p class="caption">{basis} Half of such '
        "forecasts should come true within the first interval, nine of ten within the second.</p>"
        f'<div class="scroll"><table class="rungs"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></section>"
    )


def _knob_section(study: StudyConfig, analysis: Analysis) -> str:
    knobs = knob_figures(study, analysis)
    if not knobs:
        return ""
    tiles = "".join(
        f"<figure><figcaption><b>{escape(name)}</b>{_rho(rho)}</figcaption>"
        f"{_figure(figure, f'knob{i}', f'val_bpb against {name}', small=True)}</figure>"
        for i, (name, rho, figure) in enumerate(knobs)
    )
    first = escape(study.rungs[0].name)
    scored = sum(p.val_bpb is not None for p in analysis.points if p.rung == study.rungs[0].name)
    caption = (
        f"val_bpb (up) against the knob (across) over {scored} trials, strongest rank correlation ρ first. Knobs were "
        "moved together and not at random, so a correlation is a hint and no cause. Filled trials were promoted, grey "
        "ones broke a cap."
    )
    return (
        f'<section id="knobs"><h2>What each knob did at {first}</h2><p class="caption">{caption}</p>'
        f'<div class="tiles">{tiles}</div></section>'
    )


def _rho(rho: float | None) -> str:
    return "" if rho is None else f" ρ = {rho:+.2f}".replace("-", "−")


def _figure(figure: Figure, name: str, label: str, *, small: bool = False) -> str:
    kind = "plot small" if small else "plot"
    return (
        f'<div class="{kind}" id="plot-{name}" role="img" aria-label="{escape(label)}"></div>'
        f'<script type="application/json" data-figure="plot-{name}">{figure_json(figure)}</script>'
    )


def _details(study: StudyConfig, analysis: Analysis) -> str:
    """One card per trial, of which one shows: the best at first, then whichever is clicked."""
    shown = analysis.best or next((p.trial_id for p in analysis.points if p.val_bpb is not None), None)
    shown = shown or analysis.points[0].trial_id
    return "".join(_detail(study, analysis, point, hidden=point.trial_id != shown) for point in analysis.points)


def _detail(study: StudyConfig, analysis: Analysis, point: Point, *, hidden: bool) -> str:
    control = next((p for p in analysis.points if p.rung == point.rung and p.label == "control"), None)
    control = control or next((p for p in analysis.points if p.label == "control"), None)
    compared = control is not None and control.params != point.params and bool(control.params)
    rows = []
    for name, value in point.params.items():
        other = control.params.get(name) if control and compared else None
        changed = compared and other != value
        extra = f"<td>{'–' if other is None else show(other)}</td>" if compared else ""
        rows.append(
            f"<tr{' class=changed' * changed}><th scope=row>{escape(name)}</th><td>{show(value)}</td>{extra}</tr>"
        )
    heads = "<tr><th scope=col>knob</th><th scope=col>value</th>"
    heads += "<th scope=col>control</th></tr>" if compared else "</tr>"
    tags = [
        word
        for word, holds in (
            ("best", point.trial_id == analysis.best),
            (point.label, bool(point.label)),
            ("on the front", point.on_front and point.rung == analysis.front_rung),
            ("over a cap", bool(point.over)),
            (point.status, point.status != "complete"),
        )
        if holds
    ]
    parent = f'<p class="note">Promoted from {_parent_button(study, point)}.</p>' if point.parent is not None else ""
    knobs = f'<table class="knobs"><thead>{heads}</thead><tbody>{"".join(rows)}</tbody></table>' if rows else ""
    return (
        f'<article data-card="{escape(point.trial_id)}"{" hidden" * hidden}>'
        f"<h3>{_swatch(study, point.rung)}{escape(point.trial_id)} "
        f"{''.join(f'<span class=tag>{escape(tag)}</span>' for tag in tags)}</h3>"
        f"{parent}{_measurements(study, point)}{_export(study, point)}{_error(point)}{knobs}</article>"
    )


def _measurements(study: StudyConfig, point: Point) -> str:
    scale, unit = byte_unit(study)
    rows: list[tuple[str, str]] = []
    if point.val_bpb is not None and point.artifact_bytes is not None:
        spread = f" ± {point.val_bpb_sd:.4f}" if point.val_bpb_sd is not None else ""
        rows += [
            ("val_bpb", f"<b>{point.val_bpb:.4f}</b>{spread}"),
            ("val_loss", f"{point.val_loss:.4f} nats per token"),
            ("before quantization", f"{point.pre_quant_val_bpb:.4f} (gap {point.quant_gap:+.4f})"),
            ("artifact", f"<b>{point.artifact_bytes:,}</b> B ({point.artifact_bytes / study.caps.artifact_bytes:.1%})"),
            ("model + code", f"{point.model_bytes:,} + {point.code_bytes:,} B"),
            ("parameters", f"{point.num_params:,}"),
            ("training", f"{point.steps:,} steps, {(point.tokens_seen or 0) / 1e6:,.1f} M tokens"),
            ("seconds", f"{point.train_seconds:,.1f} training, {point.eval_seconds:,.1f} scoring"),
            ("seeds", ", ".join(f"{s}: {v:.4f}" for s, v in zip(point.seeds, point.val_bpb_seeds, strict=False))),
        ]
    if point.predicted_bytes:
        interval = ""
        if point.predicted_low and point.predicted_high:
            interval = f" ({point.predicted_low / scale:,.2f} to {point.predicted_high / scale:,.2f})"
        rows.append(("forecast", f"{point.predicted_bytes / scale:,.2f} {unit}{interval}"))
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


def _export(study: StudyConfig, point: Point) -> str:
    if point.feasible:
        command = escape(export_command(study, point.trial_id))
        return f'<p class="command"><code>{command}</code><button type="button" data-copy>copy</button></p>'
    if not point.over:
        return ""
    allowed = {name: getattr(study.caps, name) for name in point.over}
    reasons = [f"{name} {getattr(point, name):,.0f} is over {allowed[name]:,.0f}" for name in point.over]
    return f'<p class="reason">Cannot be submitted: {escape("; ".join(reasons))}.</p>'


def _error(point: Point) -> str:
    if not point.error:
        return ""
    lines = point.error.strip().splitlines()
    last = f'<p class="reason">{escape(reason(point))}</p>'
    if len(lines) == 1:
        return last
    return f"{last}<details><summary>Everything it said</summary><pre>{escape(point.error)}</pre></details>"


def reason(point: Point) -> str:
    """Why a trial has no usable score, in a line: the last one of its error, as tracebacks end with the cause."""
    lines = [line.strip() for line in point.error.splitlines() if line.strip()]
    if lines:
        return lines[-1]
    return f"over the cap on {', '.join(point.over)}" if point.over else ""


TABLE_COLUMNS = (
    ("trial", "rung and number"),
    ("status", ""),
    ("val_bpb", "of the unpacked artifact, mean over seeds"),
    ("± sd", "standard deviation over seeds"),
    ("quant gap", "val_bpb minus that of the weights before quantization"),
    ("bytes", "code and compressed weights"),
    ("of cap", "artifact bytes as a share of the cap"),
    ("forecast", "packed bytes against the forecast"),
    ("params", "million parameters"),
    ("steps", ""),
    ("train s", "slowest seed"),
    ("eval s", "slowest seed"),
    ("seeds", "how many"),
    ("from", "trial it was promoted from"),
    ("export", "copy the command that makes the submission folder"),
    ("note", "label, or why there is no usable score"),
)


def _table_section(study: StudyConfig, analysis: Analysis) -> str:
    if not analysis.points:
        return ""
    heads = "".join(
        f'<th scope="col"{" title=" + chr(34) + escape(hint) + chr(34) if hint else ""}>'
        f'<button type="button">{name}</button></th>'
        for name, hint in TABLE_COLUMNS
    )
    rows = "".join(_table_row(study, analysis, point) for point in analysis.points)
    return (
        '<section id="trials"><h2>All trials</h2><p class="caption">Click a heading to sort, a trial to see its '
        'configuration beside the figure.</p><div class="scroll"><table class="trials"><thead><tr>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _table_row(study: StudyConfig, analysis: Analysis, point: Point) -> str:
    cap = study.caps.artifact_bytes
    error = point.artifact_bytes / point.predicted_bytes - 1 if point.artifact_bytes and point.predicted_bytes else None
    note = " · ".join(text for text in (point.label, reason(point)) if text)
    status = "over a cap" if point.over else point.status
    front = point.on_front and point.rung == analysis.front_rung
    copy = f'<button type="button" data-copy="{escape(export_command(study, point.trial_id))}">copy</button>'
    order = [rung.name for rung in study.rungs].index(point.rung) * 10**6 + point.number
    cells = [
        f'<td data-value="{order}">{_swatch(study, point.rung)}{_trial_button(point.trial_id)}</td>',
        f"<td><span class='tag {'ok' if point.feasible else 'bad'}'>{status}</span>"
        f"{'<span class=tag>front</span>' * front}</td>",
        _number(point.val_bpb, ".4f", strong=point.trial_id == analysis.best),
        _number(point.val_bpb_sd, ".4f"),
        _number(point.quant_gap, "+.4f"),
        _number(point.artifact_bytes, ",d"),
        _number(point.artifact_bytes and point.artifact_bytes / cap, ".1%"),
        _number(error, "+.2%"),
        _number(point.num_params and point.num_params / 1e6, ",.2f"),
        _number(point.steps, ",d"),
        _number(point.train_seconds, ",.0f"),
        _number(point.eval_seconds, ",.0f"),
        _number(len(point.val_bpb_seeds) or None, "d"),
        f"<td>{_parent_button(study, point)}</td>",
        f"<td>{copy if point.feasible else ''}</td>",
        f'<td class="text">{escape(note)}</td>',
    ]
    return f'<tr data-row="{escape(point.trial_id)}">{"".join(cells)}</tr>'


def _number(value: float | None, form: str, *, strong: bool = False) -> str:
    if value is None:
        return '<td class="num"></td>'
    text = format(value, form).replace("-", "−")
    return f'<td class="num" data-value="{value!r}">{f"<b>{text}</b>" if strong else text}</td>'


def _trial_button(trial_id: str) -> str:
    return f'<button type="button" class="link" data-show="{escape(trial_id)}">{escape(trial_id)}</button>'


def _parent_button(study: StudyConfig, point: Point) -> str:
    names = [rung.name for rung in study.rungs]
    below = names.index(point.rung) - 1
    return "" if point.parent is None or below < 0 else _trial_button(f"{names[below]}/{point.parent:04d}")
