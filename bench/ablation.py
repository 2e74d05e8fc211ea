#!/usr/bin/env python3
"""Trains the variants of the method one after the other and tabulates their online k-NN.

usage: bench/ablation.py --csml build/ci/csml --data DIR --out RUNS [--set ladder,bases,...] [--only "VARIANT;..."]
                         [--seeds 0,1] [--epochs 30] [--equal-compute MINUTES] [--size 32] [--threads 1] [--report]

(python3's standard library; DIR holds CIFAR-10's binary files)

Every run is `csml pretrain --preset cifar10-small` with the flags of variants() below, in RUNS/VARIANT-eEPOCHS-sSEED;
one that is done is not run again, one that was cut goes on. Several of these may work at once with the same RUNS and
other --only or --seeds. With --equal-compute every variant gets as many epochs as fit into so many minutes of processor
time, by the rate of a short run of its own (RUNS/rates.json). --report only prints the table of what is there.
"""
import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
from pathlib import Path


def sets(*values):
    """Flags of csml pretrain: --set for every KEY=VALUE."""
    return [flag for value in values for flag in ("--set", value)]


def variants(size):
    """name -> flags of csml pretrain, for views of `size` pixels."""
    csml = ["--method", "csml"]
    levels = sets("method.levels=res4,res5")
    crops = sets(f"method.crop_sizes={size * 3 // 4},{size // 2}", "method.crop_counts=1,2")
    over = {base: [*csml, *sets(f"method.base={base}")] for base in ("simclr", "byol", "mocov3")}
    return {
        "moco": ["--method", "moco"],
        "moco+levels": ["--method", "moco", *levels],
        "moco+crops": ["--method", "moco", *crops],
        "cross": csml,
        "cross+levels": [*csml, *levels],
        "cross+levels+crops": [*csml, *levels, *crops],
        "levels-patch": [*csml, *levels, *sets("method.alignment=patch")],
        "levels-patch-lite": [*csml, *levels, *sets("method.alignment=patch-lite")],
        **{base: ["--method", base] for base in over},
        **{f"{base}+cross": flags for base, flags in over.items()},
        "random-partner": [*csml, *sets("method.partner=random")],
        "no-partner-term": [*csml, *sets("method.terms=q,m")],
        "no-mixed-term": [*csml, *sets("method.terms=q,p")],
        "own-key-only": [*csml, *sets("method.weights=1,0")],
        "k-1": [*csml, *sets("method.neighbors=1")],
        "late": [*csml, *sets("method.warmup_epochs=15", "method.warmup_gates_mixed=true")],
        "filtered": [*csml, *sets("method.queue_filter=0.9")],
        "simclr, keys constant": ["--method", "simclr", *sets("method.key_gradient=false")],
        "simclr+cross, keys constant": [*over["simclr"], *sets("method.key_gradient=false")],
        "simclr+cross, partners negative": [*over["simclr"], *sets("method.partner_negatives=true")],
        "mocov3+cross, partners negative": [*over["mocov3"], *sets("method.partner_negatives=true")],
        "moco+crops, no statistics": ["--method", "moco", *crops, *sets("method.crop_statistics=false")],
        "moco, norm in the head": ["--method", "moco", *sets("model.head_bn=all")],
        "moco, both directions": ["--method", "moco", *sets("method.directions=2")],
        "moco, momentum 0.9": ["--method", "moco", *sets("method.momentum=0.9")],
        "moco, queue of 256": ["--method", "moco", *sets("method.queue=256")],
        "moco, momentum 0.9, queue of 256": ["--method", "moco", *sets("method.momentum=0.9", "method.queue=256")],
        "moco, momentum 0, queue of 256": ["--method", "moco", *sets("method.momentum=0", "method.queue=256")],
        "mocov3, momentum 0": ["--method", "mocov3", *sets("method.momentum=0")],
        "moco, norm over the batch": ["--method", "moco", *sets("method.bn_group_size=0")],
        "simclr, norm over the batch": ["--method", "simclr", *sets("method.bn_group_size=0")],
        "simclr, no norm in the head": ["--method", "simclr", *sets("model.head_bn=none")],
        "simclr, one direction": ["--method", "simclr", *sets("method.directions=1")],
    }


# Each set changes one thing at a time; a variant of two sets is trained once.
SETS = {
    "ladder": ["moco", "cross", "cross+levels", "cross+levels+crops", "moco+levels", "moco+crops"],
    "alignment": ["cross+levels", "levels-patch", "levels-patch-lite"],
    "bases": ["simclr", "simclr+cross", "byol", "byol+cross", "mocov3", "mocov3+cross"],
    "cross-samples": ["cross", "random-partner", "no-partner-term", "no-mixed-term", "own-key-only", "k-1", "late",
                      "filtered"],
    # What parts MoCo from SimCLR, one thing at a time.
    "between-bases": ["moco", "moco, norm in the head", "moco, both directions", "moco, momentum 0.9",
                      "moco, queue of 256", "moco, momentum 0.9, queue of 256", "moco, momentum 0, queue of 256",
                      "moco, norm over the batch", "mocov3", "mocov3, momentum 0", "simclr",
                      "simclr, no norm in the head", "simclr, one direction", "simclr, keys constant",
                      "simclr, norm over the batch"],
    "decisions": ["simclr", "simclr, keys constant", "simclr+cross", "simclr+cross, keys constant",
                  "simclr+cross, partners negative", "mocov3+cross", "mocov3+cross, partners negative", "moco+crops",
                  "moco+crops, no statistics"],
}


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csml", required=True)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's binary files")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--set", default="ladder", help=f"of {', '.join(SETS)}; several by comma")
    parser.add_argument("--only", default="", help="variants by semicolon; empty: all of the sets")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--equal-compute", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--size", type=int, default=32, help="pixels of a view and of the test; below 32 it is quicker")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


def command(o, flags, epochs, seed, out):
    smaller = sets(f"augment.crop_size={o.size}", f"eval.size={o.size}", f"eval.resize={o.size}")
    return [o.csml, "pretrain", "--preset", "cifar10-small", *flags, *(smaller if o.size != 32 else []),
            "--epochs", str(epochs), "--seed", str(seed),
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


def folder(o, name, epochs, seed):
    return o.out / f"{name.replace(', ', '-').replace(' ', '-')}-e{epochs}-s{seed}"


def report(o, runs):
    """A table of sets of (variant, epochs, flags): the last evaluations, their mean and sample deviation."""
    seeds = o.seeds.split(",")
    print("| | epochs | CPU min | " + " | ".join(f"seed {s}" for s in seeds) + " | mean | deviation |")
    print("| --- " * (5 + len(seeds)) + "|")
    for name, epochs, _ in runs:
        done = [folder(o, name, epochs, seed) / "cpu_seconds" for seed in seeds]
        last = [evaluations(path.parent)[-1][1] if path.exists() else None for path in done]
        minutes = [float(path.read_text()) / 60 for path in done if path.exists()]
        known = [v for v in last if v is not None]
        cells = ["" if v is None else f"{v:.2f}" for v in last]
        print("| " + " | ".join([name, str(epochs), f"{statistics.mean(minutes):.1f}" if known else "", *cells,
                                 f"{statistics.mean(known):.2f}" if known else "",
                                 f"{statistics.stdev(known):.2f}" if len(known) > 1 else ""]) + " |")


def main():
    o = options()
    o.out.mkdir(parents=True, exist_ok=True)
    unknown = [s for s in o.set.split(",") if s not in SETS]
    if unknown:
        sys.exit(f"--set {unknown[0]}: unknown; there are {', '.join(SETS)}")
    names = list(dict.fromkeys(name for chosen in o.set.split(",") for name in SETS[chosen]))
    only = [name.strip() for name in o.only.split(";")] if o.only else names
    unknown = [name for name in only if name not in names]
    if unknown:
        sys.exit(f"--only {unknown[0]}: not in --set {o.set}; there are {'; '.join(names)}")
    runs = []
    for name in only:
        flags = variants(o.size)[name]
        epochs = o.epochs
        if o.equal_compute:
            epochs = max(1, round(o.equal_compute * 60 / seconds_per_epoch(o, name, flags)))
        runs.append((name, epochs, flags))
    for seed in [] if o.report else o.seeds.split(","):
        for name, epochs, flags in runs:
            out = folder(o, name, epochs, seed)
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
