#!/usr/bin/env python3
"""Curves of runs as SVG files: the figures of docs/reading-a-run.md.

usage: bench/plot_run.py --out FOLDER [--prefix TEXT] [--charts loss,knn,...] NAME=RUN [NAME=RUN ...]

(up to four runs; python3's standard library)

RUN is a run folder or a metrics.jsonl. Writes one file per chart that any run has values for, and says which. `csml
report` draws one run with its pictures and configuration; this puts runs over each other.
"""
import argparse
import json
import math
import os
import sys
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 310, 56, 16, 64, 40
LEGEND_ROW = 19
DOTS = 40  # a curve of at most so many points shows them
POINTS = 240  # of one curve at most; more are averaged
# file, title, what is drawn: (kind of line, key, what it is, factor); note; options
CHARTS = [
    ("loss", "Loss", [("step", "loss", "", 1)], "dashed: chance, the loss of an encoder that tells nothing apart",
     {"level": "chance"}),
    ("knn", "Online k-NN, top-1 %", [("eval", "top1", "", 1)], "first point: the untrained encoder", {}),
    ("similarity", "Cosine of a query to its keys", [("step", "positive_similarity", "positive", 1),
                                                     ("step", "negative_similarity", "negative", 1)],
     "thin: to the negatives", {}),
    ("spread", "Feature spread", [("step", "feature_spread", "", 1)], "1: over the whole sphere; 0: one point",
     {"zero": True}),
    ("neighbours", "Neighbours, %", [("event", "purity", "purity", 100), ("event", "churn", "churn", 100)],
     "purity: of the image's own class; thin: churn, new at this refresh", {"zero": True}),
    ("wait", "Waiting for data, % of the time", [("step", "data_wait", "", 100)], "", {"zero": True}),
]
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; fill: #6a7076; }
.title { font-weight: 600; font-size: 15px; fill: #1c1e21; } .page { fill: #ffffff; stroke: #e0e0db; }
.grid { stroke: #e7e7e3; } .level { fill: none; stroke-dasharray: 5 4; stroke-width: 1.3; stroke: var(--c); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: var(--c); } .thin { stroke-width: 1.1; }
circle { fill: var(--c); }
.c0 { --c: #2563c9; } .c1 { --c: #d9640b; } .c2 { --c: #0f8f7a; } .c3 { --c: #8b3fc4; }
@media (prefers-color-scheme: dark) {
text { fill: #979da5; } .title { fill: #e8e9eb; } .page { fill: #1d2024; stroke: #2f343a; } .grid { stroke: #2c3036; }
.c0 { --c: #6aa5ff; } .c1 { --c: #ff9a4d; } .c2 { --c: #3fcbb3; } .c3 { --c: #c892f5; } }
"""


def read_run(path):
    """Lines of a run by kind, each with its place "x" in epochs."""
    if os.path.isdir(path):
        path = os.path.join(path, "metrics.jsonl")
    lines = []
    with open(path, encoding="utf-8") as file:
        for text in file:
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                pass  # the torn last line of a run that is going on
    whole = [line["step"] / (line["epoch"] + 1) for line in lines if line.get("kind") == "epoch" and line["step"]]
    per_epoch = whole[0] if whole else max((line["step"] for line in lines), default=1)
    run = {"step": [], "epoch": [], "eval": [], "event": []}
    for line in lines:
        if line.get("kind") in run:
            line["x"] = line["step"] / per_epoch
            run[line["kind"]].append(line)
    return run


def curve(run, kind, key, factor):
    points = [(line["x"], line[key] * factor) for line in run[kind]
              if isinstance(line.get(key), (int, float)) and math.isfinite(line[key])]
    if not any(y for _, y in points):
        return []  # what the method has not, such as negatives
    size = max(1, -(-len(points) // POINTS))
    groups = [points[i:i + size] for i in range(0, len(points), size)]
    return [tuple(sum(values) / len(group) for values in zip(*group)) for group in groups]


def ticks(low, high, count):
    """Multiples of 1, 2 or 5 times a power of ten that cover [low, high]."""
    raw = max(high - low, 1e-9) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    return [step * i for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def number(value):
    return f"{value:.6g}".replace("-0", "0") if abs(value) < 1e-9 else f"{value:.6g}"


def draw(title, note, curves, levels, from_zero):
    """curves: (run's number, thin, label, points); levels: {height: run's number}."""
    everything = [p for *_, points in curves for p in points]
    values = [y for _, y in everything] + list(levels)
    ys = ticks(min(values + [0] * from_zero), max(values) or 1, 4)
    right = max(x for x, _ in everything) or 1
    xs = [x for x in ticks(0, right, 8) if x <= right * 1.0001]
    legend, row, at = [], 0, LEFT  # (x, row, text) of each curve
    for _, _, label, points in curves:
        text = f"{label} {points[-1][1]:.3g}"
        width = 24 + 7 * len(text) + 18
        if at + width > WIDTH - RIGHT and at > LEFT:
            row, at = row + 1, LEFT
        legend.append((at, row, text))
        at += width
    height = HEIGHT + LEGEND_ROW * row
    px = lambda x: LEFT + (WIDTH - LEFT - RIGHT) * x / right
    py = lambda y: height - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - ys[0]) / max(ys[-1] - ys[0], 1e-9)
    path = lambda points: "M" + "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
           f'aria-label="{escape(title)}"><style>{STYLE}</style>',
           f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
           f'<text class="title" x="{LEFT}" y="24">{escape(title)}</text>',
           f'<text x="{WIDTH - RIGHT}" y="24" text-anchor="end">{escape(note)}</text>']
    for y in ys:
        out.append(f'<path class="grid" d="M{LEFT} {py(y):.1f}H{WIDTH - RIGHT}"/>'
                   f'<text x="{LEFT - 8}" y="{py(y) + 4:.1f}" text-anchor="end">{number(y)}</text>')
    for x in xs:
        out.append(f'<text x="{px(x):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{number(x)}</text>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{height - 6}" text-anchor="end">epoch</text>')
    for y, which in levels.items():
        out.append(f'<path class="level c{which}" d="M{LEFT} {py(y):.1f}H{WIDTH - RIGHT}"/>')
    for (which, thin, _, points), (at, row, text) in zip(curves, legend):
        style = f'line c{which}{" thin" if thin else ""}'
        out.append(f'<path class="{style}" d="{path(points)}"/>')
        if len(points) <= DOTS:
            out += [f'<circle class="c{which}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="2.5"/>' for x, y in points]
        y = 43 + LEGEND_ROW * row
        out.append(f'<path class="{style}" d="M{at} {y}h18"/><text x="{at + 24}" y="{y + 4}">{escape(text)}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--prefix", default="", help="of the files' names")
    parser.add_argument("--charts", default=",".join(chart[0] for chart in CHARTS))
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    o = parser.parse_args()
    if len(o.runs) > 4 or not all("=" in run for run in o.runs):
        parser.error("one to four runs as NAME=RUN")
    runs = [(text.split("=", 1)[0], read_run(text.split("=", 1)[1])) for text in o.runs]
    os.makedirs(o.out, exist_ok=True)
    for file, title, what, note, options in CHARTS:
        if file not in o.charts.split(","):
            continue
        curves, levels = [], {}
        for which, (name, run) in enumerate(runs):
            for thin, (kind, key, label, factor) in enumerate(what):
                points = curve(run, kind, key, factor)
                if points:
                    curves.append((which, thin, f"{name} {label}".strip(), points))
            points = curve(run, "step", options["level"], 1) if "level" in options else []
            if points:
                levels.setdefault(round(points[-1][1], 4), which)
        if not curves:
            continue
        path = os.path.join(o.out, f"{o.prefix}{file}.svg")
        with open(path, "w", encoding="utf-8") as out:
            out.write(draw(title, note, curves, levels, options.get("zero", False)))
        print(path)


if __name__ == "__main__":
    sys.exit(main())
