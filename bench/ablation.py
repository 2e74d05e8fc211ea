#!/usr/bin/env python3
"""Trains the variants of the method one after the other and tabulates their online k-NN.

usage: bench/ablation.py --csml build/ci/csml --data DIR --out RUNS [--set ladder,bases,...] [--seeds 0,1] [--epochs 30]
                         [--equal-compute MINUTES] [--threads 1] [--report]

(python3's standard library; DIR holds CIFAR-10's binary files)

Every run is `csml pretrain --preset cifar10-small` with the flags of VARIANTS below, in RUNS/VARIANT-eEPOCHS-sSEED; one
that is done is not run again, one that was cut goes on. With --equal-compute every variant gets as many epochs as fit
into so many minutes of processor time, by the rate of a short run of its own (RUNS/rates.json). --report only prints the
tables of what is there.
"""
import argparse
import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

LEVELS = ["--set", "method.levels=res4,res5"]
CROPS = ["--set", "method.crop_sizes=24,16", "--set", "method.crop_counts=1,2"]

# name -> flags of csml pretrain. Each set changes one thing at a time.
VARIANTS = {
    "ladder": {
        "moco": ["--method", "moco"],
        "cross": ["--method", "csml"],
        "cross+levels": ["--method", "csml", *LEVELS],
        "cross+levels+crops": ["--method", "csml", *LEVELS, *CROPS],
        "moco+levels": ["--method", "moco", *LEVELS],
        "moco+crops": ["--method", "moco", *CROPS],
    },
    "alignment": {
        "levels-global": ["--method", "csml", *LEVELS],
        "levels-patch": ["--method", "csml", *LEVELS, "--set", "method.alignment=patch"],
        "levels-patch-lite": ["--method", "csml", *LEVELS, "--set", "method.alignment=patch-lite"],
    },
    "bases": {
        f"{name}{'+csml' if over else ''}": ["--method", "csml", "--set", f"method.base={name}"] if over
        else ["--method", name]
        for name in ("simclr", "byol", "mocov3") for over in (False, True)
    },
    "cross-samples": {
        "neighbour": ["--method", "csml"],
        "random-partner": ["--method", "csml", "--set", "method.partner=random"],
        "no-partner-term": ["--method", "csml", "--set", "method.terms=q,m"],
        "no-mixed-term": ["--method", "csml", "--set", "method.terms=q,p"],
        "k-1": ["--method", "csml", "--set", "method.neighbors=1"],
        "late": ["--method", "csml", "--set", "method.warmup_epochs=15", "--set", "method.warmup_gates_mixed=true"],
    },
    "decisions": {
        "crops-statistics": ["--method", "moco", *CROPS, "--set", "method.crop_statistics=true"],
        "crops-no-statistics": ["--method", "moco", *CROPS, "--set", "method.crop_statistics=false"],
        "moco-unshuffled": ["--method", "moco", "--set", "method.shuffle=false"],
        "moco-filtered": ["--method", "moco", "--set", "method.queue_filter=0.9"],
    },
}


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csml", required=True)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's binary files")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--set", default="ladder", help=f"of {', '.join(VARIANTS)}; several by comma")
    parser.add_argument("--only", default="", help="variants by comma; empty: all of the sets")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--equal-compute", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


def command(o, flags, epochs, seed, out):
    return [o.csml, "pretrain", "--preset", "cifar10-small", *flags, "--epochs", str(epochs), "--seed", str(seed),
            "--threads", str(o.threads), "--workers", "0", "--device", "cpu",
            "--data", f"cifar10:{o.data}", "--test-data", f"cifar10:{o.data}?split=test", "--out", str(out)]


def processor_seconds(arguments):
    """Runs a command; its processor time. A failure ends the script with its last line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
    if done.returncode:
        sys.exit(f"{shlex.join(arguments)}\nended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def evaluations(run):
    """[(epoch, top-1)] of a run's online k-NN."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = [json.loads(line) for line in lines]
    return [(r["epoch"], r["top1"]) for r in rows if r["kind"] == "eval"]


def seconds_per_epoch(o, name, flags):
    """Of a variant, from the difference of two short runs, so that start and evaluation do not count."""
    path = o.out / "rates.json"
    rates = json.loads(path.read_text()) if path.exists() else {}
    if name not in rates:
        took = []
        for steps in (10, 40):
            short = [*command(o, flags, 30, 0, o.out / "rate"), "--overwrite", "--set", f"train.max_steps={steps}",
                     "--set", "eval.knn_every_epochs=0"]
            took.append(processor_seconds(short))
        images = 5000 // 128 * 128
        rates[name] = (took[1] - took[0]) / (30 * 128) * images
        path.write_text(json.dumps(rates, indent=1))
    return rates[name]


def report(o, runs):
    """A table of sets of (variant, epochs, flags)."""
    seeds = o.seeds.split(",")
    print("| | epochs | CPU min | " + " | ".join(f"seed {s}" for s in seeds) + " | mean |")
    print("| --- " * (4 + len(seeds)) + "|")
    for name, epochs, _ in runs:
        last, minutes = [], []
        for seed in seeds:
            run = o.out / f"{name}-e{epochs}-s{seed}"
            done = run / "cpu_seconds"
            last.append(evaluations(run)[-1][1] if done.exists() else None)
            minutes += [float(done.read_text()) / 60] if done.exists() else []
        known = [v for v in last if v is not None]
        mean = f"{sum(known) / len(known):.2f}" if known else ""
        cost = f"{sum(minutes) / len(minutes):.1f}" if minutes else ""
        print(f"| {name} | {epochs} | {cost} | " + " | ".join("" if v is None else f"{v:.2f}" for v in last) +
              f" | {mean} |")


def main():
    o = options()
    o.out.mkdir(parents=True, exist_ok=True)
    unknown = [s for s in o.set.split(",") if s not in VARIANTS]
    if unknown:
        sys.exit(f"--set {unknown[0]}: unknown; there are {', '.join(VARIANTS)}")
    runs = []
    for chosen in o.set.split(","):
        for name, flags in VARIANTS[chosen].items():
            if o.only and name not in o.only.split(","):
                continue
            epochs = o.epochs
            if o.equal_compute:
                epochs = max(1, round(o.equal_compute * 60 / seconds_per_epoch(o, name, flags)))
            runs.append((name, epochs, flags))
    for seed in [] if o.report else o.seeds.split(","):
        for name, epochs, flags in runs:
            out = o.out / f"{name}-e{epochs}-s{seed}"
            spent = out / "cpu_seconds"
            if spent.exists():
                continue
            arguments = command(o, flags, epochs, seed, out)
            print(shlex.join(arguments), file=sys.stderr)
            seconds = processor_seconds(arguments)
            spent.write_text(str(seconds))
            print(f"{out.name}: {evaluations(out)[-1][1]:.2f} after {epochs} epochs, {seconds / 60:.1f} CPU minutes",
                  file=sys.stderr, flush=True)
    report(o, runs)


if __name__ == "__main__":
    main()
