#!/usr/bin/env python3
"""PyTorch's side of the GPU comparison: the supervised ResNet-50 training step and the MoCo v2 step, each eager and
compiled, in bf16 and fp16 (autocast, channels_last), on data that is already on the card. Prints one JSON object per
case, a line each: {"case", "mode", "dtype", "batch", "images_per_second" | "pairs_per_second", "ms", "memory_gib", ...}.

    python3 bench/pytorch_gpu.py                                   # everything: eager and compiled, batch 32 and 256
    python3 bench/pytorch_gpu.py --case moco --batch 256 --mode eager --dtype fp16

PyTorch gets what its users would give it: channels_last, autocast, cudnn.benchmark, foreach or fused SGD, zero_grad to
None, a gradient scaler for fp16, TF32 for what stays in f32. The supervised step is cross-entropy with SGD (momentum
0.9, decay 1e-4). The MoCo v2 step (Chen et al. 2020; He et al. 2020) is that of the authors' code on one card: query
forward and backward, momentum update, key forward without gradient on a shuffled batch, InfoNCE against a queue of
65,536 at temperature 0.2, queue update, SGD. Its batch norms see the whole batch; csml's bn_group_size must be the
batch to compare.
"""
import argparse
import copy
import itertools
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
import torchvision

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MODES = {"eager": None, "compile": "default", "compile-max": "max-autotune", "compile-graphs": "reduce-overhead"}


def sgd(parameters, learning_rate):
    return torch.optim.SGD(parameters, learning_rate, momentum=0.9, weight_decay=1e-4, fused=True)


def images(batch, size):
    return torch.randn(batch, 3, size, size, device="cuda").contiguous(memory_format=torch.channels_last)


def compiled(function, mode):
    return torch.compile(function, mode=MODES[mode]) if MODES[mode] else function


class Supervised:
    unit = "images_per_second"

    def __init__(self, batch, dtype, mode):
        model = torchvision.models.resnet50(weights=None).cuda().to(memory_format=torch.channels_last).train()
        self.dtype, self.optimizer = dtype, sgd(model.parameters(), 0.1)
        self.scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        self.x, self.labels = images(batch, 224), torch.randint(1000, (batch,), device="cuda")
        self.loss = compiled(lambda x, labels: F.cross_entropy(model(x), labels), mode)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", self.dtype):
            loss = self.loss(self.x, self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss


class Moco:
    unit = "pairs_per_second"
    queue_size, dim, temperature, momentum = 65536, 128, 0.2, 0.999

    def __init__(self, batch, dtype, mode):
        def encoder():
            model = torchvision.models.resnet50(weights=None)
            model.fc = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.ReLU(),
                                           torch.nn.Linear(2048, self.dim))
            return model.cuda().to(memory_format=torch.channels_last).train()

        query = encoder()
        key = copy.deepcopy(query).requires_grad_(False)
        self.pairs = list(zip(key.parameters(), query.parameters()))
        self.dtype, self.batch, self.optimizer = dtype, batch, sgd(query.parameters(), 0.03)
        self.scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        self.x_q, self.x_k = images(batch, 224), images(batch, 224)
        self.queue = F.normalize(torch.randn(self.queue_size, self.dim, device="cuda"), dim=1)
        self.at = 0
        self.key = compiled(lambda x: F.normalize(key(x), dim=1), mode)
        self.loss = compiled(lambda x, k, queue: self.info_nce(F.normalize(query(x), dim=1), k, queue), mode)

    def info_nce(self, q, k, queue):
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ queue.T.to(q.dtype)], 1).float() / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():  # the authors' loop over parameters, in its fastest form
            torch._foreach_lerp_([k for k, _ in self.pairs], [q for _, q in self.pairs], 1 - self.momentum)
            shuffle = torch.randperm(self.batch, device="cuda")
            with torch.autocast("cuda", self.dtype):
                k = self.key(self.x_k[shuffle])[torch.argsort(shuffle)].clone()
        with torch.autocast("cuda", self.dtype):
            loss = self.loss(self.x_q, k, self.queue)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        with torch.no_grad():
            self.queue[self.at:self.at + self.batch] = k.float()
            self.at = (self.at + self.batch) % self.queue_size
        return loss


CASES = {"supervised": Supervised, "moco": Moco}


def measure(work, warmup, windows, seconds):
    """Seconds of one step, per window of at least `seconds`, by the wall clock around a synchronised card."""
    for _ in range(warmup):
        work.step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(3):
        work.step()
    torch.cuda.synchronize()
    count = max(1, round(seconds / ((time.perf_counter() - start) / 3)))
    results = []
    for _ in range(windows):
        start = time.perf_counter()
        for _ in range(count):
            work.step()
        torch.cuda.synchronize()
        results.append((time.perf_counter() - start) / count)
    return results


def run(case, mode, dtype, batch, args):
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    line = {"case": case, "mode": mode, "dtype": dtype, "batch": batch}
    try:
        work = CASES[case](batch, DTYPES[dtype], mode)
        times = measure(work, args.warmup, args.windows, args.seconds)
    except Exception as error:  # one case that fails must not cost the others
        return {**line, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    median = statistics.median(times)
    return {**line, CASES[case].unit: round(batch / median, 2), "ms": round(1e3 * median, 3),
            "ms_min": round(1e3 * min(times), 3), "ms_max": round(1e3 * max(times), 3), "windows": len(times),
            "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--mode", choices=MODES, nargs="+", default=["eager", "compile", "compile-max"])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--warmup", type=int, default=10, help="steps before timing")
    parser.add_argument("--windows", type=int, default=7, help="timed windows; the median is reported")
    parser.add_argument("--seconds", type=float, default=2, help="about the length of a window")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("pytorch_gpu: no GPU that PyTorch can use", file=sys.stderr)
        return 3
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    about = {"torch": torch.__version__, "device": torch.cuda.get_device_name(),
             "cudnn": torch.backends.cudnn.version()}
    for case, mode, dtype, batch in itertools.product(args.case, args.mode, args.dtype, args.batch):
        print(json.dumps({**run(case, mode, dtype, batch, args), **about}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
