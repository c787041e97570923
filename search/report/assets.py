"""How the report page looks and what it does when clicked: its style sheet and its script, embedded by report.py."""

STYLE = """
:root { --paper: #ffffff; --raised: #f6f7f9; --ink: #1b1f24; --soft: #59636e; --line: #d8dee4; --accent: #0072b2;
  --good: #00694d; --good-bg: #dff3ec; --bad: #7d4a00; --bad-bg: #fbeeda; --changed: #e5f1fa; --tip: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --raised: #1d2127; --ink: #e6e9ed; --soft: #a3adb8;
  --line: #343b44; --accent: #6db9e8; --good: #7fdcbc; --good-bg: #163a30; --bad: #f2c078; --bad-bg: #40301a;
  --changed: #1b3242; --tip: #262c34; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica,
  Arial, sans-serif; }
header, main, footer { max-width: 1480px; margin: 0 auto; padding: 0 clamp(14px, 2.5vw, 36px); }
header { padding-top: 26px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 8px; }
h3 { font-size: 16px; margin: 0 0 8px; }
.eyebrow { margin: 0; color: var(--soft); font-size: 13px; }
.lead { margin: 4px 0 18px; color: var(--soft); max-width: 90ch; }
section { margin-top: 34px; min-width: 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(220px, 100%), 1fr)); gap: 12px; }
.card { background: var(--raised); border-radius: 10px; padding: 14px 16px; }
.card h2 { font-size: 13px; font-weight: 500; color: var(--soft); margin: 0; }
.card .value { font-size: 27px; font-weight: 650; line-height: 1.3; margin: 0; font-variant-numeric: tabular-nums; }
.note, .caption, .empty { color: var(--soft); font-size: 13px; margin: 4px 0 0; }
.caption { max-width: 110ch; margin-bottom: 8px; }
.empty { font-size: 15px; background: var(--raised); border-radius: 10px; padding: 30px; text-align: center; }
.meter { display: block; height: 6px; border-radius: 3px; background: var(--line); margin: 3px 0 5px;
  overflow: hidden; }
.meter span { display: block; height: 100%; background: var(--accent); }
.split { display: grid; grid-template-columns: minmax(0, 1fr) 350px; gap: 26px; align-items: start; }
.trio { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(380px, 100%), 1fr)); gap: 0 30px; }
.plot { height: 380px; } #plot-main { height: 600px; }
.plot.small { height: 180px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(250px, 100%), 1fr)); gap: 18px 20px; }
figure { margin: 0; min-width: 0; } figcaption { font-size: 12px; color: var(--soft); }
figcaption b { color: var(--ink); }
.detail { background: var(--raised); border-radius: 10px; padding: 16px; max-height: 690px; overflow: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; }
table.rungs { margin-top: 16px; } table.trials { width: 100%; } table.trials th, table.trials td { padding: 4px 7px; }
table.trials tbody tr:hover { background: var(--raised); }
table.trials tr.chosen { background: var(--changed); }
table.knobs { width: 100%; margin-top: 12px; } table.knobs th, table.knobs td { padding: 2px 8px 2px 0; }
table.knobs th { font-weight: 400; } tr.changed td:nth-child(2) { font-weight: 650; }
tr.changed { background: var(--changed); }
table.knobs td { overflow-wrap: anywhere; white-space: normal; }
td.num, table.trials th:nth-child(n+3):nth-child(-n+13) { text-align: right; }
td.text { min-width: 190px; white-space: normal; overflow-wrap: anywhere; color: var(--soft); line-height: 1.3; }
.zero { color: var(--line); }
.tag { font-size: 12px; font-weight: 500; padding: 1px 7px; border-radius: 9px; background: var(--line);
  margin-right: 4px; }
.tag.ok { background: var(--good-bg); color: var(--good); } .tag.bad { background: var(--bad-bg); color: var(--bad); }
.swatch { margin-right: 6px; font-size: 13px; }
.reason { color: var(--bad); font-size: 13px; margin: 8px 0 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 2px 12px; margin: 0; font-size: 13px;
  font-variant-numeric: tabular-nums; } dt { color: var(--soft); } dd { margin: 0; }
.command { display: flex; gap: 8px; align-items: start; margin: 12px 0 0; }
code, pre { font: 12px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.command code { flex: 1; background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: 6px 8px;
  overflow-wrap: anywhere; }
pre { max-height: 260px; overflow: auto; background: var(--paper); padding: 8px; border-radius: 6px; }
summary { cursor: pointer; font-size: 13px; margin-top: 8px; }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
button.link { color: var(--accent); white-space: nowrap; } button.link:hover { text-decoration: underline; }
button[data-copy] { border: 1px solid var(--line); border-radius: 6px; padding: 1px 8px; font-size: 12px; }
thead th[aria-sort=ascending] button::after { content: " ▲"; }
thead th[aria-sort=descending] button::after { content: " ▼"; }
button:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
footer { color: var(--soft); font-size: 13px; padding-top: 30px; padding-bottom: 40px; }
@media (max-width: 1020px) { .split { grid-template-columns: minmax(0, 1fr); } .detail { max-height: none; } }
@media (max-width: 620px) { #plot-main { height: 500px; } .card .value { font-size: 23px; } h1 { font-size: 25px; } }
@media print { .detail { max-height: none; } button[data-copy] { display: none; } }
"""

SCRIPT = """
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const mono = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';

// Colours come from the page, so that figures follow the reader's light or dark setting.
function themed(layout) {
  const ink = css('--ink'), line = css('--line'), soft = css('--soft');
  const narrow = innerWidth < 620;
  const out = {...layout, modebar: {bgcolor: 'rgba(0,0,0,0)', color: soft, activecolor: ink},
    font: {family: 'system-ui, sans-serif', size: 12, ...layout.font, color: soft},
    hoverlabel: {...layout.hoverlabel, bgcolor: css('--tip'), bordercolor: line,
      font: {family: mono, size: narrow ? 10 : 11, color: ink}, namelength: -1}};
  for (const axis of ['xaxis', 'yaxis', 'yaxis2']) if (layout[axis]) out[axis] = {zeroline: false, gridcolor: line,
    linecolor: line, tickcolor: line, automargin: true, ...layout[axis],
    title: {standoff: 8, ...layout[axis].title}};
  return out;
}

function select(id, scroll) {
  const card = document.querySelector(`[data-card="${CSS.escape(id)}"]`);
  if (!card) return;
  for (const other of document.querySelectorAll('[data-card]')) other.hidden = other !== card;
  for (const row of document.querySelectorAll('[data-row]')) row.classList.toggle('chosen', row.dataset.row === id);
  if (scroll) card.closest('.detail').scrollIntoView({behavior: 'smooth', block: 'nearest'});
}

for (const source of document.querySelectorAll('script[data-figure]')) {
  const div = document.getElementById(source.dataset.figure), figure = JSON.parse(source.textContent);
  Plotly.newPlot(div, figure.data, themed(figure.layout), {responsive: true, displaylogo: false,
    displayModeBar: div.id === 'plot-main' && innerWidth > 620 ? 'hover' : false,
    modeBarButtons: [['toImage', 'zoom2d', 'pan2d', 'zoomIn2d', 'zoomOut2d', 'resetScale2d']]});
  div.on('plotly_click', event => {
    const id = event.points[0].customdata;
    if (id) select(id, div.id === 'plot-main');
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change',
    () => Plotly.react(div, div.data, themed(figure.layout)));
}

document.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.show) select(button.dataset.show, true);
  if ('copy' in button.dataset) {
    const text = button.dataset.copy || button.parentElement.querySelector('code').textContent;
    navigator.clipboard.writeText(text).then(
      () => { button.textContent = 'copied'; }, () => prompt('Copy this:', text));
    setTimeout(() => { button.textContent = 'copy'; }, 1500);
  }
  const head = button.closest('table.trials thead th');
  if (head) sortBy(head);
});

function sortBy(head) {
  const table = head.closest('table'), column = head.cellIndex;
  const down = head.getAttribute('aria-sort') === 'ascending';
  for (const other of table.querySelectorAll('th')) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const key = row => { const cell = row.cells[column]; return cell.dataset.value ?? cell.textContent; };
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const x = key(a), y = key(b);
    if (!x || !y) return (x ? 0 : 1) - (y ? 0 : 1);  // trials without the number stay below, both ways
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows);
}
"""
