"""What the golden cases share: the hash generator, random numbers, layouts, and error bounds from PyTorch's fp32."""
import contextlib
import os

import numpy as np
import torch

import safetensors

HERE = os.path.dirname(os.path.abspath(__file__))
SIZE_LIMIT = 1_400_000


def hash_uniform(name, count):
    """count values in [0, 1): splitmix64(FNV-1a64(name) + i) >> 40, times 2^-24. Exact in f32."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    z = np.arange(count, dtype=np.uint64) + np.uint64(seed) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) * 2.0**-24


def hashed_tensor(name, shape):
    """The value of a network tensor that is not stored: computed in f64, rounded once to f32 (README.md). Each filter
    has mean zero: otherwise the mean of the positive activations drowns what tells one image from another."""
    u = hash_uniform(name, int(np.prod(shape)))
    if len(shape) == 4:
        u = (2 * u - 1) * np.sqrt(3.0) * np.sqrt(2.0 / (shape[0] * shape[2] * shape[3]))
        filters = u.reshape(shape[0], -1)
        u = filters - filters.cumsum(1)[:, -1:] / filters.shape[1]
    elif name.endswith(("running_mean", "bias")):
        u = 0.2 * u - 0.1
    else:
        u = 0.5 + u
    return u.astype(np.float32).reshape(shape)


def f32(value):
    """Rounds a hyperparameter or an array to f32, so that every run sees the same value."""
    return float(np.float32(value)) if np.isscalar(value) else np.asarray(value).astype(np.float32)


def nhwc(t):
    return t.permute(0, 2, 3, 1) if t.dim() == 4 else t


def nchw(array, dtype):
    t = torch.from_numpy(np.array(array)).to(dtype)
    return t.permute(0, 3, 1, 2).contiguous() if t.dim() == 4 else t


@contextlib.contextmanager
def fp32_variant(kind):
    """One of PyTorch's own ways through the same fp32 computation."""
    with torch.backends.mkldnn.flags(enabled=kind != "native"):
        yield torch.channels_last if kind == "channels_last" else torch.contiguous_format


FP32_VARIANTS = ("onednn", "channels_last", "native")


def measure(case):
    """case(dtype, memory_format) -> {name: tensor}. Returns the fp64 results as f32 arrays and, for each, err/<name> =
    max|fp32 - fp64| / max|fp64|, the largest over PyTorch's fp32 variants."""
    with torch.backends.mkldnn.flags(enabled=True):
        exact = {name: t.detach().numpy().astype(np.float64) for name, t in
                 case(torch.float64, torch.contiguous_format).items()}
    out = {name: np.atleast_1d(value.astype(np.float32)) for name, value in exact.items()}
    worst = dict.fromkeys(exact, 0.0)
    for kind in FP32_VARIANTS:
        with fp32_variant(kind) as memory_format:
            for name, t in case(torch.float32, memory_format).items():
                worst[name] = max(worst[name], relative_error(t.detach().numpy(), exact[name]))
    out.update({"err/" + name: np.array([value], np.float32) for name, value in worst.items()})
    return out


def relative_error(value, exact):
    scale = np.abs(exact).max()
    return float(np.abs(value.astype(np.float64) - exact).max() / scale) if scale > 0 else 0.0


class Margin:
    """Distance of a run from the kinks of ReLU and max pooling: a rounding error above it would change a gradient by
    more than rounding, so the cases are chosen with a margin well above fp32 error."""
    smallest = float("inf")

    @classmethod
    def reset(cls):
        cls.smallest = float("inf")

    @classmethod
    def see(cls, t):
        if t.dtype == torch.float64 and t.numel() and torch.is_grad_enabled():
            cls.smallest = min(cls.smallest, float(t.detach().abs().min()))


def first_seed(run, margin, tries=200):
    """The first seed whose fp64 run stays `margin` away from every kink."""
    for seed in range(tries):
        Margin.reset()
        run(seed)
        if Margin.smallest >= margin:
            return seed
    raise SystemExit(f"no seed of {tries} has a margin of {margin}")


def write(name, tensors, metadata):
    path = os.path.join(HERE, name)
    safetensors.save(path, tensors, {"made_by": "tests/golden/make_golden.py", "torch": torch.__version__, **metadata})
    size = os.path.getsize(path)
    if size > SIZE_LIMIT:
        raise SystemExit(f"{name}: {size} bytes, more than {SIZE_LIMIT}")
    print(f"{name:40s} {size:9d} bytes, {len(tensors):5d} tensors")
