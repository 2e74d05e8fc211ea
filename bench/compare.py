#!/usr/bin/env python3
"""Runs both sides of a comparison alternately, in one call on one machine, and prints a table of ratios.

    python3 bench/compare.py --csml build/cpu/csml --images FOLDER            # every case
    python3 bench/compare.py --csml build/cpu/csml --cases resnet50 --rounds 5 --json compare.json

Each side is a command that prints a JSON object on standard output; the key named in the table is its rate, larger is
better. Both are run `rounds` times in the order A B, B A, A B ...; the medians and their ratio (csml / reference) are
reported, with the smallest and largest rate of either side.
"""
import argparse
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
TORCH = "{python} {here}/pytorch_cpu.py --threads {threads} --windows {windows} --seconds {seconds}"
CSML = "{csml} bench --json"
LOADER = "{python} {here}/pil_loader.py {images} --windows {windows} --seconds {seconds}"

# case: (csml command, reference command, key of the rate in both). Both sides get OMP_NUM_THREADS = --threads.
CASES = {
    "resnet50_b16": (CSML + " --step resnet50 --batch 16", TORCH + " --case resnet50 --batch 16", "images_per_second"),
    "resnet50_b32": (CSML + " --step resnet50 --batch 32", TORCH + " --case resnet50 --batch 32", "images_per_second"),
    "resnet18_b64": (CSML + " --step resnet18 --batch 64", TORCH + " --case resnet18 --batch 64", "images_per_second"),
    "resnet18_cifar_b64": (CSML + " --step resnet18_cifar --batch 64", TORCH + " --case resnet18_cifar --batch 64",
                           "images_per_second"),
    # In CPU time on both sides: bench/pil_loader.py counts nothing else.
    "two_crop_loader": (CSML + " --loader folder:{images} --workers 0 --threads 1", LOADER, "pairs_per_core_second"),
}
# Rates of the reference alone: what its convolutions take of the whole step.
FLOORS = {
    "resnet50_b16": TORCH + " --case resnet50 --batch 16 --convolutions",
    "resnet50_b32": TORCH + " --case resnet50 --batch 32 --convolutions",
    "resnet18_b64": TORCH + " --case resnet18 --batch 64 --convolutions",
    "resnet18_cifar_b64": TORCH + " --case resnet18_cifar --batch 64 --convolutions",
}


def run(command, key, threads):
    """The rate that a command reports: the last line of its output that is a JSON object."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"exit code {done.returncode}: {command}")
    try:
        return float(json.loads(done.stdout[done.stdout.index("{"):])[key])
    except (ValueError, KeyError) as error:
        raise SystemExit(f"no JSON object with the key {key!r} from: {command} ({error})")


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def compare(case, rounds, fill, threads, floor):
    ours, theirs, key = CASES[case]
    rates = {"csml": [], "reference": []}
    for i in range(rounds):
        sides = [("csml", ours), ("reference", theirs)]
        for side, command in sides if i % 2 == 0 else reversed(sides):
            rates[side].append(run(fill(command), key, threads))
            print(f"{case} {side} {rates[side][-1]:.3f}", file=sys.stderr)
    out = {"case": case, "unit": key, "threads": threads, "rounds": rounds}
    for side, values in rates.items():
        out.update({side: statistics.median(values), side + "_min": min(values), side + "_max": max(values)})
    out["ratio"] = out["csml"] / out["reference"]
    if floor and case in FLOORS:
        out["reference_convolutions_only"] = run(fill(FLOORS[case]), key, threads)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csml", default=str(HERE.parent / "build/cpu/csml"), help="the csml binary")
    parser.add_argument("--python", default=sys.executable, help="a python with torch and torchvision")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all that can run")
    parser.add_argument("--images", help="folder of JPEG files for the loader case")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=3, help="timed windows in each run of the reference")
    parser.add_argument("--seconds", type=float, default=5, help="least length of a window of the reference")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--floor", action="store_true", help="also time the reference's convolutions alone")
    parser.add_argument("--json", help="also write the results to this file")
    args = parser.parse_args()
    cases = args.cases or [c for c in CASES if args.images or "{images}" not in CASES[c][0]]
    if any("{images}" in CASES[c][0] for c in cases) and not args.images:
        parser.error("two_crop_loader needs --images FOLDER")
    fill = lambda command: command.format(here=HERE, **{k: shlex.quote(str(v)) for k, v in vars(args).items()})
    results = [compare(case, args.rounds, fill, args.threads, args.floor) for case in cases]
    print(f"{processor()}, {args.threads} threads, median of {args.rounds} alternating rounds\n")
    print("| case | csml | reference | ratio | csml range | reference range | reference, convolutions only |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for r in results:
        floor = f"{r['reference_convolutions_only']:.2f}" if "reference_convolutions_only" in r else ""
        unit = r["unit"].replace("_per_core_second", "/s of one core's CPU time").replace("_per_second", "/s")
        print(f"| {r['case']}, {unit} | {r['csml']:.2f} | {r['reference']:.2f} | "
              f"**{r['ratio']:.2f}** | {r['csml_min']:.2f} .. {r['csml_max']:.2f} | {r['reference_min']:.2f} .. "
              f"{r['reference_max']:.2f} | {floor} |")
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"processor": processor(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
