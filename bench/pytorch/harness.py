"""What all of PyTorch's sides share: precisions, compilation, the update of a training step, timing, memory.

PyTorch gets what its users would give it: channels_last, autocast with a gradient scaler in fp16, TF32 for what stays in
f32 (not in "fp32", which is f32 throughout), cudnn.benchmark, fused or foreach SGD, gradients set to None. Runs from
PyTorch 1.13, on the CPU too; what a version lacks is an Unavailable, by name."""
import contextlib
import inspect
import statistics
import time

import torch

PRECISIONS = ("fp64", "fp32", "tf32", "bf16", "fp16")
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
MODES = {"eager": None, "compile": "default", "compile-graphs": "reduce-overhead", "compile-max": "max-autotune"}


class Unavailable(Exception):
    """This PyTorch or this device cannot run that; says why."""


class Setting:
    """Device, precision and mode of one run."""

    def __init__(self, device="cuda", precision="fp32", mode="eager"):
        self.device, self.precision, self.mode = torch.device(device), precision, mode
        self.on_gpu = self.device.type == "cuda"
        self.dtype = torch.float64 if precision == "fp64" else torch.float32  # of parameters and inputs
        self.half = HALF.get(precision)
        if mode != "eager" and not hasattr(torch, "compile"):
            raise Unavailable(f"PyTorch {torch.__version__} has no torch.compile")
        if not self.on_gpu and precision in ("tf32", "fp16"):
            raise Unavailable(f"{precision} needs a GPU")

    def activate(self):
        """Sets PyTorch's global switches; before work of this setting is made and run."""
        tf32 = self.precision not in ("fp64", "fp32")
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        return self

    def put(self, tensor):
        """On the device: floating point in the precision of parameters, images in channels_last."""
        tensor = tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    def network(self, model):
        return model.to(self.device, self.dtype).to(memory_format=torch.channels_last).train()

    def autocast(self):
        return torch.autocast(self.device.type, self.half) if self.half else contextlib.nullcontext()

    def compiled(self, function):
        return torch.compile(function, mode=MODES[self.mode]) if MODES[self.mode] else function

    def begin_step(self):
        if self.mode == "compile-graphs":  # the graphs' memory of the last step may be used again
            torch.compiler.cudagraph_mark_step_begin()

    def synchronize(self):
        if self.on_gpu:
            torch.cuda.synchronize()


class Update:
    """backward and SGD with momentum, as PyTorch's recipes write it."""

    def __init__(self, setting, parameters, learning_rate, momentum, weight_decay):
        known, self.parameters = inspect.signature(torch.optim.SGD).parameters, list(parameters)
        fast = {"fused": True} if setting.on_gpu and "fused" in known else {"foreach": True} if "foreach" in known else {}
        self.optimizer = torch.optim.SGD(self.parameters, learning_rate, momentum=momentum, weight_decay=weight_decay,
                                         **fast)
        scaling = setting.on_gpu and setting.precision == "fp16"
        self.scaler = (torch.amp.GradScaler("cuda", enabled=scaling) if hasattr(torch.amp, "GradScaler") else
                       torch.cuda.amp.GradScaler(enabled=scaling))
        self.scale = self.scaler.get_scale()

    def step(self, loss):
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def applied(self):
        """Whether the last step changed the parameters: the scaler skips those whose gradient overflowed, and lowers
        the scale. A first step that was skipped leaves fused SGD's buffers undefined, so they are dropped."""
        before, self.scale = self.scale, self.scaler.get_scale()
        if self.scale < before:
            self.optimizer.state.clear()
        return self.scale >= before

    def buffers(self):
        """The momentum buffers: after the first step gradient + weight_decay * parameter."""
        return [self.optimizer.state[p]["momentum_buffer"] for p in self.parameters]


@torch.no_grad()
def ema(averages, values, momentum):
    """averages <- momentum averages + (1 - momentum) values: the authors' loop over parameters, in its fastest form."""
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(averages, values, 1 - momentum)
    else:
        torch._foreach_mul_(averages, momentum)
        torch._foreach_add_(averages, values, alpha=1 - momentum)


def flat(tensors):
    """All values in a row, in f64 on the CPU."""
    return torch.cat([t.detach().double().cpu().flatten() for t in tensors])


def first_step(work):
    """Runs a case until its step took effect."""
    for _ in range(40):
        loss = work.step()
        if work.applied():
            return loss
    raise RuntimeError("no finite gradient in 40 steps")


def measure(setting, step, warmup, windows, seconds):
    """Milliseconds of one step in each of `windows` windows of about `seconds`, after `warmup` steps: by CUDA events on
    a GPU, which wait for all that was queued; by the clock elsewhere. And the peak of memory in use in the windows, bytes
    (None on the CPU)."""
    for _ in range(warmup):
        step()
    setting.synchronize()
    start = time.perf_counter()
    for _ in range(3):
        step()
    setting.synchronize()
    count = max(1, round(3 * seconds / (time.perf_counter() - start)))
    if setting.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    results = []
    for _ in range(windows):
        if setting.on_gpu:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(count):
                step()
            end.record()
            end.synchronize()
            results.append(begin.elapsed_time(end) / count)
        else:
            start = time.perf_counter()
            for _ in range(count):
                step()
            results.append(1e3 * (time.perf_counter() - start) / count)
    return results, torch.cuda.max_memory_allocated() if setting.on_gpu else None


def summary(times, memory):
    return {"ms": statistics.median(times), "ms_min": min(times), "ms_max": max(times), "windows": len(times),
            "memory_bytes": memory}
