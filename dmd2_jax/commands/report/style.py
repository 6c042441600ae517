"""The looks of the page and what moves in it."""

__all__ = ["SCRIPT", "STYLE"]

# Colours are told apart in both schemes, and by dashes where they are not.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --panel: #f6f7f9; --ink: #1b1f24; --soft: #57606a; --rule: #d8dde3;
  --link: #1f5a94; --warn: #fff4d6;
  --s0: #1f5a94; --s1: #b3520a; --s2: #3a7a26; --s3: #8e3b8a;
  --s4: #a3272f; --s5: #0b7676; --s6: #6f5c00; --s7: #5a5f66;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --panel: #1d2126; --ink: #e8eaed; --soft: #a6aeb8; --rule: #3a414a;
    --link: #8fc0f0; --warn: #43380f;
    --s0: #7db4e8; --s1: #f0a05a; --s2: #8fcb74; --s3: #d794d3;
    --s4: #f08a8f; --s5: #5fd0cf; --s6: #d3bf4a; --s7: #b8bdc4;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
html { scroll-behavior: smooth; scroll-padding-top: 3.2rem; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0 auto; padding: 0 1rem 3rem; max-width: 82rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; margin: 1.2rem 0 0.4rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.4rem; padding-bottom: 0.2rem;
     border-bottom: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0.8rem 0 0.4rem; }
p { margin: 0.4rem 0; max-width: 60rem; }
footer, caption, .last, .interval, small { color: var(--soft); }
footer { margin-top: 3rem; font-size: 0.85rem; }
.runs { list-style: none; margin: 0; padding: 0; }
.key { width: 30px; height: 12px; vertical-align: middle; }
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 0 1.2rem;
      margin: 0.6rem -1rem 0; padding: 0.4rem 1rem; background: var(--paper);
      border-bottom: 1px solid var(--rule); }
nav a { color: var(--link); padding: 0.25rem 0; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.warning { background: var(--warn); padding: 0.5rem 0.8rem; border-radius: 6px; }
.scroll { width: fit-content; max-width: 100%; overflow-x: auto; margin: 0.6rem 0;
          border: 1px solid var(--rule); border-radius: 6px; }
table { border-collapse: collapse; font-size: 0.92rem; overflow-wrap: normal;
        font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0.4rem 0.7rem; font-size: 0.85rem; }
th, td { text-align: right; padding: 0.35rem 0.7rem; border-top: 1px solid var(--rule);
         vertical-align: top; white-space: nowrap; }
thead th { min-width: 5rem; max-width: 12rem; white-space: normal; }
th:first-child, td:first-child { text-align: left; }
thead th { background: var(--panel); vertical-align: bottom; }
tbody th { font-weight: normal; white-space: normal; min-width: 9rem; max-width: 20rem; }
#config th, #config td { text-align: left; }
#config td { min-width: 8rem; max-width: 26rem; white-space: normal; overflow-wrap: anywhere; }
.of { display: block; font-size: 0.85rem; }
.interval { font-size: 0.85rem; }
code { font: 0.88em ui-monospace, SFMono-Regular, Menlo, "Liberation Mono", monospace; }
.charts { display: grid; gap: 0.8rem; margin: 0.6rem 0;
          grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); }
.chart { margin: 0; padding: 0.6rem 0.7rem; background: var(--panel); border-radius: 8px; }
.chart figcaption { font-weight: 600; font-size: 0.92rem; }
.chart > svg { display: block; width: 100%; height: auto; }
.chart text { fill: var(--soft); font: 11px system-ui, "Liberation Sans", sans-serif; }
.last { margin: 0; font-size: 0.82rem; display: flex; flex-wrap: wrap; gap: 0 0.8rem; }
.rule { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.faint { stroke-width: 1; opacity: 0.35; stroke-dasharray: none !important; }
.line.s0 { stroke: var(--s0); }
.line.s1 { stroke: var(--s1); stroke-dasharray: 7 3; }
.line.s2 { stroke: var(--s2); stroke-dasharray: 2 2.5; }
.line.s3 { stroke: var(--s3); stroke-dasharray: 9 3 2 3; }
.line.s4 { stroke: var(--s4); stroke-dasharray: 4 2; }
.line.s5 { stroke: var(--s5); stroke-dasharray: 12 3; }
.line.s6 { stroke: var(--s6); stroke-dasharray: 1 3; }
.line.s7 { stroke: var(--s7); stroke-dasharray: 6 2 2 2 2 2; }
.dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); } .dot.s2 { fill: var(--s2); }
.dot.s3 { fill: var(--s3); } .dot.s4 { fill: var(--s4); } .dot.s5 { fill: var(--s5); }
.dot.s6 { fill: var(--s6); } .dot.s7 { fill: var(--s7); }
.name.s0 { color: var(--s0); } .name.s1 { color: var(--s1); } .name.s2 { color: var(--s2); }
.name.s3 { color: var(--s3); } .name.s4 { color: var(--s4); } .name.s5 { color: var(--s5); }
.name.s6 { color: var(--s6); } .name.s7 { color: var(--s7); }
details { margin: 0.8rem 0; }
summary { cursor: pointer; padding: 0.3rem 0; color: var(--link); }
.slider { display: flex; flex-wrap: wrap; gap: 0.4rem 1rem; align-items: center;
          margin: 0.6rem 0; }
.slider label { min-width: 8rem; font-variant-numeric: tabular-nums; }
.slider input { flex: 1 1 14rem; max-width: 40rem; min-height: 2rem; accent-color: var(--link); }
.columns { display: grid; gap: 1rem;
           grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.column { min-width: 0; }
.frames { list-style: none; margin: 0; padding: 0 0 0.5rem; display: flex; gap: 0.8rem;
          overflow-x: auto; }
.frames li { flex: none; width: min(100%, 60rem); }
figure.pictures, .frames figure { margin: 0; max-width: 60rem; }
.pictures img, .frames img { display: block; width: 100%; height: auto; border-radius: 4px; }
.pictures img { background: #ffffff; }
.pictures figcaption, .frames figcaption { font-size: 0.85rem; color: var(--soft); }
@media print { nav, .slider { display: none; } }
"""

# Shows one grid of each run, the newest that is no newer than where the slider stands.
SCRIPT = """
"use strict";
const slider = document.getElementById("when");
if (slider) {
  const steps = JSON.parse(slider.dataset.steps);
  const show = () => {
    const step = steps[Number(slider.value)];
    document.getElementById("shown").textContent = step;
    slider.setAttribute("aria-valuetext", slider.dataset.unit + " " + step);
    for (const row of document.querySelectorAll(".frames")) {
      const grids = Array.from(row.children);
      const past = grids.filter((grid) => Number(grid.dataset.step) <= step);
      const chosen = past.length ? past[past.length - 1] : grids[0];
      for (const grid of grids) grid.hidden = grid !== chosen;
      row.removeAttribute("tabindex");
    }
  };
  slider.addEventListener("input", show);
  slider.parentElement.hidden = false;
  show();
}
"""
