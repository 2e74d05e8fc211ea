"""ResNets as plain functions of a dict of torchvision-named tensors, with batch norm in contiguous groups."""
import numpy as np
import torch
import torch.nn.functional as F

from common import Margin

BLOCKS = {"resnet18": ("basic", (2, 2, 2, 2)), "resnet50": ("bottleneck", (3, 4, 6, 3))}

# Gamma of a residual branch's last batch norm: with 1, a deep random network amplifies rounding a hundredfold.
RESIDUAL_GAMMA = 0.3


def shapes(arch, stem, width, head=None):
    """{name: shape} in torchvision's order and layout; head = (hidden, dim) adds fc.0 and fc.2."""
    kind, depths = BLOCKS[arch]
    expansion = 4 if kind == "bottleneck" else 1
    out = {}

    def conv_bn(conv, bn, k, c, r):
        out[conv + ".weight"] = (k, c, r, r)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            out[f"{bn}.{leaf}"] = (k,)

    conv_bn("conv1", "bn1", width, 3, 3 if stem == "cifar" else 7)
    c = width
    for stage, depth in enumerate(depths):
        planes = width * 2**stage
        for block in range(depth):
            p = f"layer{stage + 1}.{block}."
            if kind == "basic":
                sizes = [(planes, c, 3), (planes, planes, 3)]
            else:
                sizes = [(planes, c, 1), (planes, planes, 3), (planes * 4, planes, 1)]
            for i, size in enumerate(sizes):
                conv_bn(f"{p}conv{i + 1}", f"{p}bn{i + 1}", *size)
            if block == 0 and (stage > 0 or c != planes * expansion):
                conv_bn(p + "downsample.0", p + "downsample.1", planes * expansion, c, 1)
            c = planes * expansion
    if head:
        out.update({"fc.0.weight": (c, c), "fc.0.bias": (c,), "fc.2.weight": (head, c), "fc.2.bias": (head,)})
    return out


def is_statistic(name):
    return name.endswith(("running_mean", "running_var"))


def random_tensors(arch, stem, width, rng, head=None):
    """He-normal (fan out) filters, gamma around 1, beta around 0, random running statistics; f32 arrays."""
    out, last = {}, "bn3" if arch == "resnet50" else "bn2"
    for name, shape in shapes(arch, stem, width, head).items():
        if len(shape) == 4:
            value = rng.normal(0, np.sqrt(2 / (shape[0] * shape[2] * shape[3])), shape)
        elif name.startswith("fc."):
            bound = 1 / np.sqrt(shape[-1] if len(shape) == 2 else shapes(arch, stem, width, head)["fc.0.weight"][1])
            value = rng.uniform(-bound, bound, shape)
        elif name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            value = (RESIDUAL_GAMMA if name.split(".")[-2] == last else 1) * (1 + 0.2 * rng.normal(size=shape))
        else:
            value = 0.2 * rng.normal(size=shape)
        out[name] = value.astype(np.float32)
    return out


class Network:
    """forward() of one network; `tensors` holds parameters and running statistics, the latter replaced in training."""

    def __init__(self, arch, stem, tensors, groups=1, train=True):
        self.kind, self.depths = BLOCKS[arch]
        self.stem, self.t, self.groups, self.train = stem, tensors, groups, train

    def conv(self, x, name, stride=1):
        w = self.t[name + ".weight"]
        return F.conv2d(x, w, stride=stride, padding=w.shape[2] // 2)

    def norm(self, x, name):
        gamma, beta = self.t[name + ".weight"], self.t[name + ".bias"]
        mean, var = self.t[name + ".running_mean"], self.t[name + ".running_var"]
        if not self.train:
            return F.batch_norm(x, mean, var, gamma, beta, False, 0.1, 1e-5)
        parts, means, variances = [], [], []
        for part in x.chunk(self.groups):
            m, v = mean.clone(), var.clone()
            parts.append(F.batch_norm(part, m, v, gamma, beta, True, 0.1, 1e-5))
            means.append(m)
            variances.append(v)
        self.t[name + ".running_mean"] = torch.stack(means).mean(0)
        self.t[name + ".running_var"] = torch.stack(variances).mean(0)
        return torch.cat(parts)

    @staticmethod
    def relu(x):
        Margin.see(x)
        return F.relu(x)

    def block(self, x, p, stride):
        y = x
        if self.kind == "basic":
            y = self.relu(self.norm(self.conv(y, p + "conv1", stride), p + "bn1"))
            y = self.norm(self.conv(y, p + "conv2"), p + "bn2")
        else:
            y = self.relu(self.norm(self.conv(y, p + "conv1"), p + "bn1"))
            y = self.relu(self.norm(self.conv(y, p + "conv2", stride), p + "bn2"))
            y = self.norm(self.conv(y, p + "conv3"), p + "bn3")
        if p + "downsample.0.weight" in self.t:
            x = self.norm(self.conv(x, p + "downsample.0", stride), p + "downsample.1")
        return self.relu(y + x)

    def forward(self, x):
        """NCHW images -> {stem, layer1..4 (NCHW), features [N, C]}."""
        out = {}
        x = self.relu(self.norm(self.conv(x, "conv1", 1 if self.stem == "cifar" else 2), "bn1"))
        if self.stem == "imagenet":
            pool_margin(x)
            x = F.max_pool2d(x, 3, 2, 1)
        out["stem"] = x
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                x = self.block(x, f"layer{stage + 1}.{block}.", 2 if stage > 0 and block == 0 else 1)
            out[f"layer{stage + 1}"] = x
        out["features"] = x.mean((2, 3))
        return out

    def head(self, features):
        hidden = self.relu(F.linear(features, self.t["fc.0.weight"], self.t["fc.0.bias"]))
        return F.linear(hidden, self.t["fc.2.weight"], self.t["fc.2.bias"])


def pool_margin(x):
    if x.dtype != torch.float64:
        return
    n, c, h, w = x.shape
    windows = F.unfold(F.pad(x.detach(), (1, 1, 1, 1)), 3, stride=2).reshape(n, c, 9, -1)
    top = windows.topk(2, dim=2).values
    gap = (top[:, :, 0] - top[:, :, 1])[top[:, :, 0] > 0]
    Margin.see(gap)
