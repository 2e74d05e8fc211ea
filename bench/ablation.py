#!/usr/bin/env python3
"""Trains the variants of the method one after the other and tabulates how they are judged.

usage: bench/ablation.py --csml build/ci/csml --data DIR --out RUNS [--task cifar10] [--set ladder,bases,...]
                         [--only "VARIANT;..."] [--seeds 0,1] [--epochs 30] [--equal-compute MINUTES] [--size 32]
                         [--threads 1] [--judge] [--against VARIANT] [--report]

(python3's standard library; DIR holds CIFAR-10's binary files, or Fashion-MNIST's IDX files)

Every run is `csml pretrain` with the preset of its task and the flags of variants() below, in
RUNS/VARIANT-eEPOCHS-sSEED; one that is done is not run again, one that was cut goes on. Several of these may work at
once with the same RUNS and other --only or --seeds. With --equal-compute every variant gets as many epochs as fit into
so many minutes of processor time, by the rate of a short run of its own (RUNS/rates.json). --judge adds a linear probe
and fine-tuning on 1 % of the labels (two draws) to the online k-NN. --against prints every variant's difference from
another one, paired by seed, with its standard error. --report only prints the tables of what is there.
"""
import argparse
import json
import resource
import shlex
import statistics
import subprocess
import sys
import typing
from pathlib import Path


class Task(typing.NamedTuple):
    """What the variants are trained and judged on; {} in a SPEC is --data."""
    preset: str
    train: str
    test: str
    images: int  # of an epoch
    size: int  # pixels of the preset's views
    keys: tuple = ()


TASKS = {
    "cifar10": Task("cifar10-small", "cifar10:{}", "cifar10:{}?split=test", 5000, 32),
    "cifar10-50k": Task("cifar10-small", "cifar10:{}", "cifar10:{}?split=test", 50000, 32),
    # No warm-up, for the neighbours are good from the start; the queue is a twentieth of the images.
    "fashion-mnist": Task("fashion-mnist-cpu", "idx:{}?limit=10000", "idx:{}?split=test", 10000, 28,
                          ("method.queue=512", "method.warmup_epochs=0", "eval.knn_train_limit=0",
                           "eval.knn_every_epochs=4")),
}


def sets(*values):
    """Flags of csml pretrain: --set for every KEY=VALUE."""
    return [flag for value in values for flag in ("--set", value)]


PURITIES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def variants(size):
    """name -> flags of csml pretrain, for views of `size` pixels."""
    csml = ["--method", "csml"]
    levels = sets("method.levels=res4,res5")
    crops = sets(f"method.crop_sizes={size * 3 // 4},{size // 2}", "method.crop_counts=1,2")
    pair = [*csml, *sets("method.terms=q,p")]
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
        "q alone": [*csml, *sets("method.terms=q")],
        "own keys": [*pair, *sets("method.weights=1,0")],
        "own keys, mixed": [*csml, *sets("method.weights=1,0", "method.partner=random")],
        "neighbours": pair,
        "random": [*pair, *sets("method.partner=random")],
        **{f"purity {share}": [*pair, *sets("method.partner=labels", f"method.partner_purity={share}")]
           for share in PURITIES},
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
    # What neighbours are worth, apart from two images a step and from mixing; "purity P" uses labels: a measurement.
    "purity": ["own keys", *(f"purity {share}" for share in PURITIES)],
    "neighbours": ["moco", "q alone", "own keys", "random", "neighbours", "own keys, mixed", "cross"],
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
    parser.add_argument("--data", required=True, help="folder of the task's files")
    parser.add_argument("--task", default="cifar10", choices=list(TASKS))
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--set", default="ladder", help=f"of {', '.join(SETS)}; several by comma")
    parser.add_argument("--only", default="", help="variants by semicolon; empty: all of the sets")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--equal-compute", type=float, default=0, metavar="MINUTES")
    parser.add_argument("--size", type=int, default=0, help="pixels of a view and of the test; 0: the preset's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--against", default="", metavar="VARIANT")
    parser.add_argument("--report", action="store_true")
    return parser.parse_args()


def images(o):
    """SPEC of the training and of the test images."""
    task = TASKS[o.task]
    return task.train.format(o.data), task.test.format(o.data)


def command(o, flags, epochs, seed, out):
    smaller = sets(f"augment.crop_size={o.size}", f"eval.size={o.size}", f"eval.resize={o.size}")
    task = TASKS[o.task]
    train, test = images(o)
    return [o.csml, "pretrain", "--preset", task.preset, *sets(*task.keys), *flags, *(smaller if o.size else []),
            "--epochs", str(epochs), "--seed", str(seed),
            "--threads", str(o.threads), "--workers", "0", "--device", "cpu",
            "--data", train, "--test-data", test, "--out", str(out)]


def judge(o, run):
    """Writes RUN/judged.json: top-1 of a linear probe, and of fine-tuning on each draw of 1 % of the labels."""
    path = run / "judged.json"
    if path.exists():
        return
    train, test = images(o)
    common = ["--checkpoint", str(run), "--train", train, "--test", test, "--threads", str(o.threads),
              "--workers", "0", "--device", "cpu", "--json", "--quiet"]

    def top1(*arguments):
        done = subprocess.run([o.csml, *arguments, *common], stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)["top1"]

    few = [top1("finetune", "--labels", "1%", "--seed", draw, "--lr-trunk", "0.01", "--lr-head", "0.2",
                "--eval-every", "20", "--overwrite", "--out", str(run / f"few-{draw}")) for draw in ("0", "1")]
    path.write_text(json.dumps({"linear": top1("linear"), "few": few}))


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
        rates[name] = (took[1] - took[0]) / (30 * 128) * (TASKS[o.task].images // 128 * 128)
        path.write_text(json.dumps(rates, indent=1))
    return rates[name]


def folder(o, name, epochs, seed):
    return o.out / f"{name.replace(', ', '-').replace(' ', '-')}-e{epochs}-s{seed}"


def results(o, name, epochs):
    """seed -> {"k-NN", "linear", "1 %", "minutes"} of the runs of a variant that are done; what is not known is absent."""
    out = {}
    for seed in o.seeds.split(","):
        run = folder(o, name, epochs, seed)
        if not (run / "cpu_seconds").exists():
            continue
        out[seed] = {"k-NN": evaluations(run)[-1][1], "minutes": float((run / "cpu_seconds").read_text()) / 60}
        if (run / "judged.json").exists():
            judged = json.loads((run / "judged.json").read_text())
            out[seed] |= {"linear": judged["linear"], "1 %": statistics.mean(judged["few"])}
    return out


JUDGES = ("k-NN", "linear", "1 %")


def table(header, rows):
    print("| " + " | ".join(header) + " |\n" + "| --- " * len(header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def report(o, runs):
    """Of sets of (variant, epochs, flags): every seed's last k-NN, the means of all judges, and differences."""
    seeds = o.seeds.split(",")
    known = {name: results(o, name, epochs) for name, epochs, _ in runs}

    def mean(values):
        return f"{statistics.mean(values):.2f}" if values else ""

    rows = []
    for name, epochs, _ in runs:
        done = known[name]
        of = {judge: [r[judge] for r in done.values() if judge in r] for judge in JUDGES}
        rows.append([name, str(epochs), mean([r["minutes"] for r in done.values()]),
                     *(f"{done[s]['k-NN']:.2f}" if s in done else "" for s in seeds),
                     f"{statistics.stdev(of['k-NN']):.2f}" if len(of["k-NN"]) > 1 else "", *map(mean, of.values())])
    table(["", "epochs", "CPU min", *(f"seed {s}" for s in seeds), "deviation", *JUDGES], rows)
    if not o.against:
        return
    rows = []
    for name, epochs, _ in runs:
        cells = []
        for judge in JUDGES:
            both = [known[name][s][judge] - known[o.against][s][judge] for s in seeds
                    if judge in known[name].get(s, {}) and judge in known[o.against].get(s, {})]
            error = f" ± {statistics.stdev(both) / len(both) ** 0.5:.2f}" if len(both) > 1 else ""
            cells.append(f"{statistics.mean(both):+.2f}{error} ({len(both)})" if both else "")
        if name != o.against:
            rows.append([name, *cells])
    table([f"less {o.against}", *JUDGES], rows)


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
    if o.against and o.against not in only:
        sys.exit(f"--against {o.against}: not among the variants chosen")
    runs = []
    for name in only:
        flags = variants(o.size or TASKS[o.task].size)[name]
        epochs = o.epochs
        if o.equal_compute:
            epochs = max(1, round(o.equal_compute * 60 / seconds_per_epoch(o, name, flags)))
        runs.append((name, epochs, flags))
    for seed in [] if o.report else o.seeds.split(","):
        for name, epochs, flags in runs:
            out = folder(o, name, epochs, seed)
            spent = out / "cpu_seconds"
            if spent.exists():
                if o.judge:
                    judge(o, out)
                continue
            arguments = command(o, flags, epochs, seed, out)
            print(shlex.join(arguments), file=sys.stderr)
            seconds = processor_seconds(arguments)
            spent.write_text(str(seconds))
            if o.judge:
                judge(o, out)
            print(f"{out.name}: {evaluations(out)[-1][1]:.2f} after {epochs} epochs, {seconds / 60:.1f} CPU minutes",
                  file=sys.stderr, flush=True)
    report(o, runs)


if __name__ == "__main__":
    main()
