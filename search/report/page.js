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
