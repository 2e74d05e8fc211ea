#!/usr/bin/env python3
"""PyTorch's side of csml's benchmarks: the same work, checked, then timed. Prints one JSON object a line:
{"kind": "check", "passed", "quantities": [...]} and {"kind": "time", "ms", "images_per_second", ...}, both with case and
precision; a run that cannot be made has "unavailable" or "error" instead of numbers.

    csml bench --step moco --preset moco-v2-imagenet-r50-200ep --set method.bn_group_size=0 --batch 16 --exchange m.st
    bench/pytorch/run.py --case moco --check --exchange m.st --precision fp32       # do both compute the same?
    bench/pytorch/run.py --case moco --batch 256 --precision fp16 bf16 --mode eager compile
    bench/pytorch/run.py --case info_nce --size 256,65536,128,1

Cases and modules: resnet50, resnet18, resnet18_cifar (supervised.py), moco, csml (moco.py), info_nce, top_k, commit; sizes
as csml bench --part has them. Exit code: 0, 1 where a check failed or a run broke, 3 where the device is missing.
"""
import argparse
import gc
import itertools
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import torch  # noqa: E402

from check import compare  # noqa: E402
from commit import Commit  # noqa: E402
from exchange import Exchange  # noqa: E402
from harness import MODES, PRECISIONS, Setting, Unavailable, measure, summary  # noqa: E402
from info_nce import InfoNce  # noqa: E402
from moco import CsMl, Moco  # noqa: E402
from supervised import NETWORKS, Supervised  # noqa: E402
from top_k import TopK  # noqa: E402

STEPS = {"moco": Moco, "csml": CsMl}
PARTS = {"info_nce": InfoNce, "top_k": TopK, "commit": Commit}
SIZES = {"info_nce": {"queries": 256, "queue_rows": 65536, "dim": 128, "positives": 1},
         "top_k": {"queries": 256, "rows": 65536, "dim": 128, "nearest": 5}, "commit": {"parameters": 28000000}}
CASES = [*NETWORKS, *STEPS, *PARTS]


def maker(case, batch, size, exchange=None):
    """setting -> the case"""
    if case in PARTS:
        return lambda setting: PARTS[case](setting, size, exchange)
    if case in STEPS:
        return lambda setting: STEPS[case](setting, batch, exchange)
    return lambda setting: Supervised(setting, case, batch, exchange)


def attempt(run, line):
    """One run's line; what fails must not cost the runs after it."""
    try:
        return {**line, **run()}
    except Unavailable as reason:
        return {**line, "unavailable": str(reason)}
    except Exception as error:  # out of memory, a compiler that gives up, a shape that does not fit
        return {**line, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--batch", type=int, default=256, help="images per step")
    parser.add_argument("--size", help="of a part, as csml bench --part has it")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp16"])
    parser.add_argument("--mode", choices=MODES, nargs="+", default=["eager"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--exchange", nargs="+", help="files of csml bench --exchange; times start from the first one's "
                                                      "weights and inputs instead of random ones of --batch or --size")
    parser.add_argument("--check", action="store_true", help="compare with csml's results in the exchange files, one per "
                                                             "precision, instead of timing")
    parser.add_argument("--warmup", type=int, default=5, help="steps before timing")
    parser.add_argument("--windows", type=int, default=5, help="timed windows; the median is reported")
    parser.add_argument("--seconds", type=float, default=1, help="about the length of a window")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds after which no further run begins")
    args = parser.parse_args()
    begin = time.monotonic()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"run.py: PyTorch {torch.__version__} sees no GPU", file=sys.stderr)
        return 3
    sizes = SIZES.get(args.case, {})
    size = [int(n) for n in args.size.split(",")] if args.size else list(sizes.values())
    about = {"torch": torch.__version__, "case": args.case, **({"size": size} if size else {"batch": args.batch})}
    if args.device.startswith("cuda"):
        about.update(device=torch.cuda.get_device_name(args.device), cudnn=torch.backends.cudnn.version())
    broken = False

    def tell(line):
        nonlocal broken
        broken |= "error" in line or line.get("passed") is False
        print(json.dumps(line), flush=True)

    def exchange_of(path):
        exchange = Exchange(path)
        if exchange.notes["case"] != args.case:
            raise ValueError(f"{path} is of {exchange.notes['case']}")
        return exchange, maker(args.case, None, [exchange.notes[name] for name in sizes], exchange)

    def check(path, precision):
        exchange, make = exchange_of(path)
        rows = compare(make, exchange, Setting(args.device, precision), Setting(args.device, "fp64"))
        return {"passed": all(row["passed"] for row in rows), "quantities": rows}

    def timed(precision, mode):
        setting = Setting(args.device, precision, mode).activate()
        if mode != "eager":
            torch._dynamo.reset()
        make = exchange_of(args.exchange[0])[1] if args.exchange else maker(args.case, args.batch, size)
        begin = time.monotonic()
        work = make(setting)
        before = torch.cuda.memory_allocated() if setting.on_gpu else None
        result = summary(*measure(setting, work.step, args.warmup, args.windows, args.seconds))
        if work.count:
            result["images_per_second"] = 1e3 * work.count / result["ms"]
        return {**result, "memory_before_bytes": before, "seconds": time.monotonic() - begin}

    if args.check:
        if len(args.exchange or []) != len(args.precision):
            parser.error("--check takes as many files in --exchange as precisions")
        for path, precision in zip(args.exchange, args.precision):
            tell(attempt(lambda: check(path, precision), {**about, "kind": "check", "precision": precision}))
    else:
        for mode, precision in itertools.product(args.mode, args.precision):
            line = {**about, "kind": "time", "precision": precision, "mode": mode}
            if time.monotonic() - begin > args.budget:
                tell({**line, "unavailable": "no time left"})
            else:
                tell(attempt(lambda: timed(precision, mode), line))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
