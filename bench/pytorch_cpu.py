#!/usr/bin/env python3
"""PyTorch's side of the CPU comparison: one supervised fp32 training step (forward, cross-entropy, backward, SGD with
momentum), channels_last, eager; and the floor set by its convolutions alone. Prints one JSON object per case, a line
each: {"case", "batch", "threads", "images_per_second", "ms", "torch", ...}.

    python3 bench/pytorch_cpu.py --case resnet50 --batch 16 32 --threads 2
    python3 bench/pytorch_cpu.py --case resnet18_cifar --batch 64 --convolutions
"""
import argparse
import inspect
import json
import statistics
import sys
import time

import torch
import torchvision

CASES = {"resnet50": dict(size=224, classes=1000, batch=16), "resnet18": dict(size=32, classes=10, batch=64),
         "resnet18_cifar": dict(size=32, classes=10, batch=64)}


def build(case):
    if case == "resnet50":
        return torchvision.models.resnet50(weights=None)
    model = torchvision.models.resnet18(weights=None, num_classes=10)
    if case == "resnet18":  # torchvision's own 7x7 stem and max pool, on 32 px images
        return model
    model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = torch.nn.Identity()
    return model


def sgd(model):
    extra = {"foreach": True} if "foreach" in inspect.signature(torch.optim.SGD).parameters else {}
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, **extra)


def training_step(case, batch):
    """A function that does one step on a fixed random batch."""
    size, classes = CASES[case]["size"], CASES[case]["classes"]
    model = build(case).to(memory_format=torch.channels_last).train()
    optimizer = sgd(model)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(classes, (batch,))

    def step():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def convolution_step(case, batch):
    """Every convolution of the network once forward, backward to its input (but the first) and to its weights, each on
    its own tensors of the shape it has in the network."""
    size = CASES[case]["size"]
    model, shapes = build(case).eval(), []

    def see(module, inputs, output):
        shapes.append((module, inputs[0].shape, output.shape))

    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(see)
    with torch.no_grad():
        model(torch.zeros(1, 3, size, size))
    work = []
    for module, x_shape, y_shape in shapes:
        tensors = [torch.randn(batch, *shape[1:]).contiguous(memory_format=torch.channels_last)
                   for shape in (x_shape, y_shape)]
        weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
        work.append((*tensors, weight, module.stride, module.padding, x_shape[1] != 3))

    def step():
        for x, dy, w, stride, padding, data_gradient in work:
            torch.nn.functional.conv2d(x, w, None, stride, padding)
            torch.ops.aten.convolution_backward(dy, x, w, None, stride, padding, (1, 1), False, (0, 0), 1,
                                                (data_gradient, True, False))

    return step


def measure(step, warmup, windows, seconds):
    """Median seconds of one step over `windows` windows of at least `seconds` each, after `warmup` steps."""
    for _ in range(warmup):
        step()
    results = []
    for _ in range(windows):
        start, count = time.perf_counter(), 0
        while True:
            step()
            count += 1
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                break
        results.append(elapsed / count)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="resnet50")
    parser.add_argument("--batch", type=int, nargs="+", help="images per step (default 16, or 64 at 32 px)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--convolutions", action="store_true", help="the convolutions alone instead of the whole step")
    parser.add_argument("--warmup", type=int, default=2, help="steps before timing")
    parser.add_argument("--windows", type=int, default=5, help="timed windows; the median is reported")
    parser.add_argument("--seconds", type=float, default=5, help="least length of a window")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for batch in args.batch or [CASES[args.case]["batch"]]:
        make = convolution_step if args.convolutions else training_step
        times = measure(make(args.case, batch), args.warmup, args.windows, args.seconds)
        median = statistics.median(times)
        print(json.dumps({"case": args.case, "convolutions_only": args.convolutions, "batch": batch,
                          "threads": args.threads, "images_per_second": round(batch / median, 4),
                          "ms": round(1e3 * median, 3), "ms_min": round(1e3 * min(times), 3),
                          "ms_max": round(1e3 * max(times), 3), "windows": len(times), "torch": torch.__version__}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
