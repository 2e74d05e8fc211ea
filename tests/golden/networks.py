"""Golden cases of whole networks and of the batch-norm variants."""
import numpy as np
import torch
import torch.nn.functional as F

import common
from common import Margin, measure, nchw, nhwc
from network import Network, is_statistic, random_tensors


def network_file(name, arch, stem, width, batch, size, margin):
    def inputs(seed):
        rng = np.random.default_rng([1, seed])
        tensors = random_tensors(arch, stem, width, rng)
        channels = 8 * width * (4 if arch == "resnet50" else 1)
        return (tensors, common.f32(rng.normal(size=(batch, size, size, 3))),
                common.f32(0.5 + rng.normal(size=(batch, channels))))

    def run(seed, dtype, memory_format, backward):
        tensors, image, r = inputs(seed)
        t = {n: nchw_weight(v, dtype, memory_format) for n, v in tensors.items()}
        x = nchw(image, dtype).contiguous(memory_format=memory_format).requires_grad_(backward)
        for n, v in t.items():
            v.requires_grad_(backward and not is_statistic(n))
        out = Network(arch, stem, dict(t), train=False).forward(x) if backward else {}
        result = {"eval/" + n: nhwc(v) for n, v in out.items()}
        net = Network(arch, stem, dict(t), train=True)
        if not backward:
            Margin.reset()
        out = net.forward(x)
        result.update({"train/" + n: nhwc(v) for n, v in out.items()})
        if backward:
            loss = (out["features"] * nchw(r, dtype)).sum()
            loss.backward()
            result["train/loss"] = loss
            result["grad/input"] = nhwc(x.grad)
            result.update({"grad/" + n: v.grad for n, v in t.items() if not is_statistic(n)})
            result.update({"running/" + n: net.t[n] for n in t if is_statistic(n)})
        return result

    seed = common.first_seed(lambda s: run(s, torch.float64, torch.contiguous_format, False), margin)
    smallest = Margin.smallest
    tensors, image, r = inputs(seed)
    out = measure(lambda dtype, memory_format: run(seed, dtype, memory_format, True))
    out.update(input=image, r=r)
    metadata = dict(arch=arch, stem=stem, width=width, eps=1e-5, bn_momentum=0.1, seed=seed, kink_margin=smallest)
    common.write(f"{name}_weights.safetensors", tensors, metadata)
    common.write(f"{name}.safetensors", out, metadata)


def nchw_weight(array, dtype, memory_format):
    t = torch.from_numpy(array).to(dtype)
    return t.contiguous(memory_format=memory_format) if t.dim() == 4 else t


def resnet18_cifar():
    network_file("resnet18_cifar", "resnet18", "cifar", 8, 6, 16, 1e-5)


def resnet50_imagenet():
    network_file("resnet50_imagenet", "resnet50", "imagenet", 4, 4, 64, 3e-5)


def splitbn():
    """One batch norm in contiguous groups: plain, with ReLU, and relu(bn(x) + residual); batch 8."""
    out = {}
    for groups in (1, 2, 4, 8):
        for variant in ("plain", "relu", "residual_relu"):
            p = f"groups{groups}/{variant}/"

            def inputs(seed, groups=groups, variant=variant):
                rng = np.random.default_rng([2, groups, len(variant), seed])
                c = 12
                v = dict(x=rng.normal(size=(8, 3, 5, c)) * rng.uniform(0.5, 2, c) + rng.normal(size=c),
                         residual=rng.normal(size=(8, 3, 5, c)), dy=rng.normal(size=(8, 3, 5, c)),
                         gamma=1 + 0.3 * rng.normal(size=c), beta=0.3 * rng.normal(size=c),
                         running_mean=rng.normal(size=c), running_var=rng.uniform(0.5, 2, c))
                return {n: common.f32(a) for n, a in v.items() if n != "residual" or variant == "residual_relu"}

            def run(seed, dtype, memory_format, groups=groups, variant=variant):
                v = {n: nchw(a, dtype) for n, a in inputs(seed).items()}
                leaves = [n for n in ("x", "residual", "gamma", "beta") if n in v]
                v["x"] = v["x"].contiguous(memory_format=memory_format)
                for n in leaves:
                    v[n].requires_grad_()
                net = Network("resnet18", "cifar", {"bn.weight": v["gamma"], "bn.bias": v["beta"], "bn.running_mean":
                              v["running_mean"], "bn.running_var": v["running_var"]}, groups=groups)
                y = net.norm(v["x"], "bn")
                if "residual" in v:
                    y = y + v["residual"]
                if variant != "plain":
                    y = net.relu(y)
                (y * v["dy"]).sum().backward()
                result = {"y": nhwc(y), "running_mean_after": net.t["bn.running_mean"],
                          "running_var_after": net.t["bn.running_var"]}
                result.update({"d" + n: nhwc(v[n].grad) for n in leaves})
                return result

            seed = common.first_seed(lambda s: run(s, torch.float64, torch.contiguous_format),
                                     0 if variant == "plain" else 1e-4)
            for n, a in {**inputs(seed), **measure(lambda d, m: run(seed, d, m))}.items():
                out["err/" + p + n[4:] if n.startswith("err/") else p + n] = a
    common.write("splitbn.safetensors", out, dict(eps=1e-5, bn_momentum=0.1))


def pooling():
    """3x3 stride 2 pad 1 max pooling with ties, and global average pooling, forward and backward."""
    rng = np.random.default_rng(3)
    values = common.f32(rng.integers(-3, 4, size=(2, 7, 10, 5)))

    def run(dtype, memory_format):
        x = nchw(values, dtype).requires_grad_()
        y = F.max_pool2d(x, 3, 2, 1)
        dy = torch.arange(y.numel(), dtype=dtype).reshape(y.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        y.backward(dy)
        return {"max/y": nhwc(y), "max/dy": nhwc(dy), "max/dx": nhwc(x.grad), "mean/y": x.mean((2, 3))}

    common.write("pooling.safetensors", {"x": values, **measure(run)}, {"window": 3, "stride": 2, "pad": 1})
