"""The look of the page and its behaviour: one style sheet and one script, both written into the page."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --soft: #59636e; --line: #d9dee4; --link: #1f6fc9;
  --good: #116b3c; --good-panel: #e3f5ea; --bad: #a3262a; --bad-panel: #fdeaea; --part: #7a5200; --part-panel: #fdf3dc;
  --heat-0: rgba(47,126,216,0); --heat-1: rgba(47,126,216,0.55); --heat-2: #0b3a75;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --panel: #1d2126; --ink: #e6e9ed; --soft: #9da7b3; --line: #363d46; --link: #7db5f5;
    --good: #7ddba3; --good-panel: #16301f; --bad: #ff9b98; --bad-panel: #3a1b1c; --part: #f0c668; --part-panel: #33290f;
    --heat-0: rgba(47,126,216,0); --heat-1: rgba(47,126,216,0.7); --heat-2: #d6e9ff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 44px 0 10px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 14px 0 2px; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 80ch; }
a { color: var(--link); }
code, pre { font: 0.875em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); }
.outcome { font-size: 1.1rem; margin: 8px 0; max-width: none; }
.badge { font-size: 0.8rem; font-weight: 600; padding: 1px 9px; border-radius: 10px; border: 1px solid currentColor; white-space: nowrap; }
.badge.good, td .good { color: var(--good); } .badge.bad, td .bad { color: var(--bad); } .badge.part { color: var(--part); }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 0; font-size: 0.9rem; }
.notes { background: var(--part-panel); border-radius: 8px; padding: 8px 14px; margin: 14px 0; }
.notes ul { margin: 0; padding-left: 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0; font-size: 0.94rem; }
th, td { text-align: left; vertical-align: top; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
@media (min-width: 700px) { td:first-child { min-width: 9em; } }
td.text { min-width: 10em; overflow-wrap: anywhere; }
.run { white-space: nowrap; } .long.run { white-space: normal; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 0.75em; height: 0.75em; border-radius: 2px; margin-right: 6px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 22px 26px; margin-top: 12px; }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
figure { margin: 0; min-width: 0; }
figure h3 { margin: 0 0 2px; } figure.wide { grid-column: 1 / -1; }
figcaption { font-size: 0.875rem; line-height: 1.4; max-width: 90ch; margin-top: 4px; }
figure figure h3 { font-weight: 500; color: var(--soft); }
.plot { width: 100%; } .film video, .film img { max-width: 100%; border-radius: 8px; }
fieldset { border: 0; padding: 0; margin: 12px 0 0; font-size: 0.9rem; } legend { float: left; margin-right: 10px; color: var(--soft); }
fieldset label { margin-right: 14px; white-space: nowrap; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
details > pre, .prompt > pre { background: var(--panel); border-radius: 8px; padding: 10px 14px; margin-top: 8px; }
.prompt { margin: 18px 0 26px; }
.answers { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; margin-top: 8px; }
.answers.single { grid-template-columns: minmax(0, 1fr); }
.answer { border: 1px solid var(--line); border-left-width: 5px; border-radius: 8px; padding: 6px 12px 10px; }
.answer pre, .prompt > pre { max-height: 22em; overflow-y: auto; }
.answer.good { background: var(--good-panel); border-left-color: var(--good); } .answer.good .mark { color: var(--good); }
.answer.bad { background: var(--bad-panel); border-left-color: var(--bad); } .answer.bad .mark { color: var(--bad); }
.answer.part { background: var(--part-panel); border-left-color: var(--part); } .answer.part .mark { color: var(--part); }
.mark { font-weight: 700; }
.where { font-size: 0.85rem; color: var(--soft); display: flex; justify-content: space-between; gap: 10px; flex-wrap: wrap; }
@media (max-width: 640px) { .answers { grid-template-columns: minmax(0, 1fr); } body { font-size: 15px; } }
@media print { h2, figure, .prompt { break-inside: avoid; } fieldset, nav { display: none; } }
"""

SCRIPT = """
(() => {
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const charts = read("charts"), clocks = read("clocks");
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // No button that would send a chart's data to a server.
  const OPTIONS = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtons: [["toImage", "resetScale2d"]] };
  const chosen = document.querySelector("input[name=clock]:checked");
  let clock = chosen ? chosen.value : "iteration";

  // The clock is kept thinned; between its points time runs evenly.
  const at = (table, iteration) => {
    const from = table.iteration, to = table[clock];
    let low = 0, high = from.length - 1;
    if (high < 0 || iteration <= from[0]) return to[0];
    if (iteration >= from[high]) return to[high];
    while (high - low > 1) { const middle = (low + high) >> 1; if (from[middle] <= iteration) low = middle; else high = middle; }
    return to[low] + (to[high] - to[low]) * (iteration - from[low]) / (from[high] - from[low]);
  };

  const draw = (place, chart) => {
    const ink = colour("--ink"), line = colour("--line"), page = colour("--page");
    const timed = chart.data.some(trace => trace.meta);
    const data = chart.data.map(trace => {
      const own = { ...trace };
      if (own.type === "heatmap") own.colorscale = [0, 0.3, 1].map((share, i) => [share, colour("--heat-" + i)]);
      if (own.meta && clock !== "iteration") own.x = own.x.map(iteration => at(clocks[own.meta.run][own.meta.clock], iteration));
      return own;
    });
    const layout = {
      margin: { l: 56, r: 12, t: 26, b: 48 }, hovermode: "x unified", height: chart.height,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      hoverlabel: { bgcolor: page, bordercolor: line, font: { color: ink }, namelength: -1 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: ink },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, bgcolor: "rgba(0,0,0,0)" },
      ...chart.layout,
    };
    for (const name of ["xaxis", "yaxis"])
      layout[name] = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...chart.layout[name] };
    if (timed) Object.assign(layout.xaxis, { title: { text: clock }, unifiedhovertitle: { text: clock + " %{x:.4~g}" } });
    if (timed && clock !== "iteration") delete layout.xaxis.range;
    return Plotly.react(place, data, layout, OPTIONS);
  };

  const places = [...document.querySelectorAll(".plot")];
  const drawAll = () => places.forEach((place, i) => setTimeout(() => draw(place, charts[i])));
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.querySelectorAll("input[name=clock]").forEach(choice =>
    choice.addEventListener("change", () => { clock = choice.value; drawAll(); }));
})();
"""
