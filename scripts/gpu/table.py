"""What was seen against what was asked: one row per claim, and the Markdown for docs/gpu.md."""
from stages import FAIL, NOT_RUN, PASS

PRECISIONS = ["fp32", "tf32", "bf16", "fp16"]


def times_of(times, work, side, modes=None):
    return [t for t in times if t["work"] == work and t["side"] == side and "ms" in t and
            (modes is None or t["mode"] in modes)]


def fastest(times):
    return min(times, key=lambda t: t["ms"], default=None)


def label(t):
    rate = f", {t['images_per_second']:,.0f} images/s" if t.get("images_per_second") else ""
    return f"{t['ms']:.3g} ms ({t['ms_min']:.3g} .. {t['ms_max']:.3g}){rate}, {t['precision']}, {t['mode']}"


def extra(t):
    """Bytes beyond what the work starts from."""
    if not t or t.get("memory_bytes") is None or t.get("memory_before_bytes") is None:
        return None
    return max(1, t["memory_bytes"] - t["memory_before_bytes"])


def why_not(seen, work):
    """The first reason for which a work has no times."""
    for entry in [*seen["checks"], *seen["times"]]:
        if entry["work"] == work and entry.get("why"):
            return entry["why"]
    return "not reached"


def speed(seen, work, title, bar, goal, against=None):
    """Ratio of times: PyTorch's fastest (of all, or of the modes `against`) to ours, both in their fastest precision."""
    ours = fastest(times_of(seen["times"], work, "csml"))
    all_theirs = times_of(seen["times"], work, "pytorch")
    theirs = fastest([t for t in all_theirs if against is None or t["mode"] in against])
    row = {"row": title, "first_bar": f"{bar}x" if bar else "", "goal": goal, "state": NOT_RUN, "ratio": None,
           "csml": label(ours) if ours else "", "pytorch": label(theirs) if theirs else ""}
    if not ours or not theirs:
        return {**row, "why": why_not(seen, work)}
    row["ratio"] = theirs["ms"] / ours["ms"]
    others = [f"{r:.2f}x {name}" for name, t in (("eager", fastest([t for t in all_theirs if t["mode"] == "eager"])),
                                                 ("compiled", fastest([t for t in all_theirs if t["mode"] != "eager"])))
              if t for r in [t["ms"] / ours["ms"]]]
    state = PASS if not bar or row["ratio"] >= bar else FAIL
    return {**row, "state": state, "why": ", ".join(others)}


def less(seen, work, title, bar, goal, bytes_of):
    """Ratio of memory: ours to PyTorch's least."""
    ours = fastest(times_of(seen["times"], work, "csml"))
    theirs = min((t for t in times_of(seen["times"], work, "pytorch") if bytes_of(t)), key=bytes_of, default=None)
    row = {"row": title, "first_bar": f"at most {bar:.3g}x", "goal": goal, "state": NOT_RUN, "ratio": None, "csml": "",
           "pytorch": ""}
    if not ours or not theirs or not bytes_of(ours):
        return {**row, "why": why_not(seen, work)}
    ratio = bytes_of(ours) / bytes_of(theirs)
    text = lambda t: f"{bytes_of(t) / 2**20:,.1f} MiB, {t['precision']}, {t['mode']}"
    return {**row, "csml": text(ours), "pytorch": text(theirs), "ratio": ratio, "state": PASS if ratio <= bar else FAIL,
            "why": ""}


def stage_row(seen, title, bar, prefixes):
    """All stages of these names passed."""
    stages = [s for s in seen["stages"] if s["stage"].startswith(tuple(prefixes))]
    row = {"row": title, "first_bar": bar, "goal": "", "csml": "", "pytorch": "", "ratio": None}
    ran = [s for s in stages if s["state"] != NOT_RUN]
    failed = [s for s in ran if s["state"] == FAIL]
    missing = [f"{s['stage']}: {s['why']}" for s in stages if s["state"] == NOT_RUN]
    row["csml"] = f"{len(ran) - len(failed)} of {len(stages)} passed" if stages else ""
    if failed:
        return {**row, "state": FAIL, "why": "; ".join(f"{s['stage']}: {s['why']}" for s in failed)}
    return {**row, "state": PASS if ran and not missing else NOT_RUN, "why": "; ".join(missing) or
            ("" if ran else "not reached")}


def check_row(seen, work, title):
    checks = [c for c in seen["checks"] if c["work"] == work]
    row = {"row": f"{title}: the same as PyTorch", "first_bar": "error at most 4x PyTorch's own", "goal": "",
           "pytorch": "", "ratio": None, "csml": ", ".join(f"{c['precision']} {c['state']}" for c in checks)}
    failed = [c for c in checks if c["state"] == FAIL]
    if failed:
        return {**row, "state": FAIL, "why": "; ".join(f"{c['precision']}: {c['why']}" for c in failed)}
    missing = [f"{c['precision']}: {c['why']}" for c in checks if c["state"] == NOT_RUN]
    return {**row, "state": PASS if checks and not missing else NOT_RUN,
            "why": "; ".join(missing) or ("" if checks else "not reached")}


def doctor_row(seen):
    """Warnings are read, failures fail."""
    row = stage_row(seen, "csml doctor", "nothing that will fail", ["doctor"])
    found = {health: [f for f in seen["findings"] if f["health"] == health] for health in ("ok", "warn", "fail")}
    if seen["findings"]:
        row["csml"] = f"{len(found['ok'])} ok, {len(found['warn'])} to look at, {len(found['fail'])} that will fail"
        row["why"] = "; ".join(f"{f['check']}: {f['text']}" for f in [*found["fail"], *found["warn"]])
    return row


def golden_row(seen, precision):
    """The quantity that comes nearest to what it is allowed; a test that ended badly has failed where it told nothing."""
    stage = next((s for s in seen["stages"] if s["stage"] == "golden_steps"), {"state": NOT_RUN, "why": "not reached"})
    row = {"row": f"golden steps in {precision}", "first_bar": "PyTorch's in f64, to rounding", "goal": "", "csml": "",
           "pytorch": "", "ratio": None, "state": stage["state"], "why": stage["why"]}
    lines = [line for line in seen["golden"] if line["precision"] == precision]
    if not lines:
        return {**row, "state": NOT_RUN if stage["state"] == NOT_RUN else FAIL, "why": row["why"] or "told nothing"}
    share = lambda line: float("inf") if line["error"] is None else line["error"] / line["allowed"]  # null: not finite
    text = lambda line: f"{line['method']} {line['quantity']} {line['error']}, allowed {line['allowed']:.2g}"
    wrong = [line for line in lines if not line["passed"]]
    row["csml"] = f"{len(lines) - len(wrong)} of {len(lines)}, at most {max(map(share, lines)):.2f} of what is allowed"
    return {**row, "state": FAIL if wrong else PASS, "why": "; ".join(map(text, wrong))}


def exposed_row(seen):
    """The better size of bucket."""
    row = stage_row(seen, "exposed share of the gradients' reductions", "at most 10 %", ["buckets_"])
    best = min(seen["buckets"], key=lambda b: b["exposed_share"], default=None)
    row.update(goal="G18", csml="")
    if best is None or row["state"] == FAIL:
        return row
    row["csml"] = (f"{100 * best['exposed_share']:.1f} % of {best['copies_alone_ms']:.3g} ms, {best['count']} buckets of "
                   f"{best['mib']:g} MiB, {best['precision']}")
    return {**row, "state": PASS if best["exposed_share"] <= 0.1 else FAIL}


def idle_row(seen):
    row = {"row": "idle time inside a step", "first_bar": "at most 1 %", "goal": "G7", "pytorch": "", "ratio": None,
           "csml": "", "state": NOT_RUN, "why": "not reached"}
    for stage in seen["stages"]:
        if stage["stage"] == "idle":
            row["why"] = stage["why"]
            if stage.get("idle_share") is not None:
                row.update(csml=f"{100 * stage['idle_share']:.2f} %", state=PASS if stage["idle_share"] <= 0.01 else FAIL)
    return row


def rows(seen, works):
    eager, title = ["eager"], {w.name: w.title for w in works}
    out = [
        doctor_row(seen),
        stage_row(seen, "every kernel and gradient, recorded steps, golden steps in f32", "all", ["test_", "start"]),
        stage_row(seen, "training in 16 bits: master weights, replay, loss scale, resuming", "all",
                  ["test_precision", "test_bench"]),
        *[golden_row(seen, precision) for precision in PRECISIONS],
        stage_row(seen, "compute-sanitizer: memcheck, racecheck, synccheck on a small set", "all", ["sanitizer_"]),
        stage_row(seen, "replay = eager, bit for bit, with CSML_DETERMINISTIC=1", "equal bytes", ["replay_"]),
        stage_row(seen, "CPU = card from one seed, first steps", "2e-3 of the loss", ["seed_"]),
        *[check_row(seen, w.name, w.title) for w in works if w.checked],
        {"row": "MoCo on CIFAR-10, 200 epochs, k-NN", "first_bar": "82.6 +- 0.7", "goal": "", "csml": "", "pytorch": "",
         "ratio": None, "state": NOT_RUN, "by_hand": True, "why": "longer than this check: csml pretrain --preset cifar10-r18-moco "
                                                 "--data cifar10:DIR --device cuda, then csml knn"},
    ]
    bars = {"resnet50_b256": (1.0, "G1, G2: 1.5x eager, 1.25x compiled", eager), "moco_b256": (1.2, "G5: 1.75x", eager),
            "moco_b32": (2, "G6: 2.5x", eager), "info_nce_256": (6, "G9: 10x", None), "top_k_256": (8, "G11: 15x", None),
            "top_k_mining": (8, "G11: 15x", None), "commit": (5, "G8: 0.4 ms", None)}
    for name in title:
        bar, goal, against = bars.get(name, (None, "", None))
        out.append(speed(seen, name, title[name], bar, goal, against))
    out.append(less(seen, "info_nce_256", "InfoNCE: memory beyond its inputs", 1 / 20, "", extra))
    out.append(less(seen, "moco_b256", "peak memory of the MoCo step", 0.8, "G13: 0.6x", lambda t: t.get("memory_bytes")))
    out.append(exposed_row(seen))
    out.append(idle_row(seen))
    return out


def cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def markdown(seen):
    """A section of docs/gpu.md."""
    card, lines = seen["card"], []
    lines.append(f"## {card.get('name', 'no card')}, {seen['date'][:10]}, commit {seen['commit'][:12]}\n")
    lines.append(f"Driver {card.get('driver_version', '?')} (CUDA {seen['cuda_of_driver'] or '?'}), PyTorch "
                 f"{seen['torch'] or 'absent'}; `scripts/gpu_check.sh {' '.join(seen['arguments'])}`, "
                 f"{seen['seconds']:.0f} s. Ratios: PyTorch's time over csml's, each side in its fastest precision, which "
                 "stands beside it; of memory, csml's over PyTorch's.\n")
    lines.append("| | first bar | goal | csml | PyTorch | ratio | |")
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for r in seen["rows"]:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        state = f"**{r['state']}**" if r["state"] == FAIL else r["state"]
        cells = [r["row"], r["first_bar"], r["goal"], r["csml"], r["pytorch"], ratio,
                 state + (f": {r['why']}" if r["why"] else "")]
        lines.append("| " + " | ".join(cell(c) for c in cells) + " |")
    return "\n".join(lines) + "\n"
