// The style sheet of report.html.
#pragma once

namespace csml {

inline constexpr const char* kReportStyle = R"css(
:root { color-scheme: light dark;
  --page: #f7f7f5; --card: #ffffff; --text: #1c1e21; --muted: #6a7076; --grid: #e7e7e3; --edge: #e0e0db;
  --line-0: #2563c9; --line-1: #d9640b; --line-2: #0f8f7a; --line-3: #8b3fc4; --good: #15803d; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15171a; --card: #1d2024; --text: #e8e9eb; --muted: #979da5; --grid: #2c3036; --edge: #2f343a;
  --line-0: #6aa5ff; --line-1: #ff9a4d; --line-2: #3fcbb3; --line-3: #c892f5; --good: #4ade80; --warn: #fbbf24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 72px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 14px; letter-spacing: -0.005em; }
h3 { font-size: 15px; margin: 0; font-weight: 600; }
p { margin: 0 0 12px; } header p, section > p, figcaption p { color: var(--muted); }
code, pre, td.value { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 13px; }
pre { overflow-x: auto; padding: 12px 14px; background: var(--card); border: 1px solid var(--edge); border-radius: 8px;
  margin: 0 0 12px; white-space: pre-wrap; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 12px; margin: 22px 0 0; }
.tile { background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 25px; line-height: 1.25; font-weight: 600; letter-spacing: -0.01em;
  font-variant-numeric: tabular-nums; }
.tile span { display: block; color: var(--muted); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--edge); border-radius: 10px; padding: 14px 16px 8px; }
figcaption p { font-size: 13px; margin: 0 0 4px; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 13px; color: var(--muted); min-height: 21px; }
.legend b { color: var(--text); font-weight: 600; font-variant-numeric: tabular-nums; }
.key i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; vertical-align: middle; margin-right: 6px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--muted); font-size: 12px; font-family: inherit; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--grid); stroke-width: 1; }
.level { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 1.9; stroke-linejoin: round; stroke-linecap: round; }
.line-0 { stroke: var(--line-0); } .line-1 { stroke: var(--line-1); }
.line-2 { stroke: var(--line-2); } .line-3 { stroke: var(--line-3); }
.dot-0 { fill: var(--line-0); } .dot-1 { fill: var(--line-1); }
.dot-2 { fill: var(--line-2); } .dot-3 { fill: var(--line-3); }
.swatch-0 { background: var(--line-0); } .swatch-1 { background: var(--line-1); }
.swatch-2 { background: var(--line-2); } .swatch-3 { background: var(--line-3); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--edge); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 7px 14px; border-top: 1px solid var(--grid); vertical-align: top; }
thead th { border-top: 0; color: var(--muted); font-weight: 500; font-size: 13px; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.quiet { color: var(--muted); font-size: 13px; } tr.section th { font-weight: 600; padding-top: 14px; }
.row { display: flex; flex-wrap: wrap; gap: 10px; padding: 10px 0; border-top: 1px solid var(--grid); }
.picture { width: 104px; } .picture.query { margin-right: 8px; }
.picture img, .unreadable { display: block; width: 104px; height: 104px; object-fit: contain; border-radius: 6px;
  background: var(--grid); }
.picture img.pixels { image-rendering: pixelated; }
.picture.same img { outline: 3px solid var(--good); outline-offset: -3px; }
.picture.query img { outline: 2px solid var(--text); outline-offset: -2px; }
.picture span { display: block; font-size: 12px; line-height: 1.35; color: var(--muted); margin-top: 4px;
  overflow-wrap: anywhere; }
.unreadable { display: flex; align-items: center; justify-content: center; font-size: 12px; color: var(--muted); }
.verdict { font-size: 1.15rem; line-height: 1.45; margin: 18px 0 6px; padding: 12px 16px; background: var(--card);
  border-left: 5px solid var(--line-0); }
.verdict.warn { border-left-color: var(--warn); }
.verdict.fail { border-left-color: var(--warn); font-weight: 600; }
.rules tr.this td { font-weight: 600; }
.notes { list-style: none; padding: 0; margin: 18px 0 0; }
.notes li { padding: 7px 14px; border-left: 3px solid var(--line-0); background: var(--card); margin-bottom: 6px;
  border-radius: 0 6px 6px 0; }
.notes li.warn { border-left-color: var(--warn); }
details { margin-top: 14px; } summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
footer { margin-top: 56px; color: var(--muted); font-size: 13px; }
@media print { body { background: #fff; } figure, .tile, .scroll { break-inside: avoid; } }
)css";

}  // namespace csml
