"""Golden training steps of MoCo and CsMl: three steps, each from a stored state, and ten steps in a row."""
import numpy as np
import torch
import torch.nn.functional as F

import common
from common import Margin, f32, hash_uniform, measure, nchw, nhwc
from network import Network, is_statistic, random_tensors

ARCH, STEM, WIDTH, DIM = "resnet18", "cifar", 2, 16
BATCH, SIZE, GROUPS, QUEUE = 8, 16, 2, 20
TEMPERATURE, EMA, LR, MOMENTUM, DECAY = f32(0.2), f32(0.99), f32(0.06), f32(0.9), f32(5e-4)
VIEWS = {"moco": ("q", "k"), "csml": ("q", "k", "p", "kp")}


class State:
    """q and k networks (parameters and running statistics), SGD buffers (None before the first step), queue, ptr."""

    def __init__(self, q, k, buffers, queue, ptr):
        self.q, self.k, self.buffers, self.queue, self.ptr = q, k, buffers, queue, ptr

    def cast(self, dtype, memory_format=torch.contiguous_format):
        def move(tensors):
            return {n: t.to(dtype).clone(memory_format=memory_format if t.dim() == 4 else torch.preserve_format)
                    for n, t in tensors.items()}
        return State(move(self.q), move(self.k), self.buffers and move(self.buffers), self.queue.to(dtype).clone(),
                     self.ptr)

    def named(self, prefix):
        out = {prefix + "q/" + n: t for n, t in self.q.items()}
        out.update({prefix + "k/" + n: t for n, t in self.k.items()})
        buffers = self.buffers or {n: torch.zeros_like(t) for n, t in self.q.items() if not is_statistic(n)}
        out.update({prefix + "momentum/" + n: t for n, t in buffers.items()})
        out[prefix + "queue"] = self.queue
        return out


def initial_state(seed):
    """Different q and k, so that a mix-up of the two shows."""
    rng = np.random.default_rng([4, seed])
    q = random_tensors(ARCH, STEM, WIDTH, rng, DIM)
    k = {n: v if is_statistic(n) else f32(v + 0.05 * np.abs(v).mean() * rng.normal(size=v.shape)) for n, v in q.items()}
    queue = rng.normal(size=(QUEUE, DIM))
    queue /= np.linalg.norm(queue, axis=1, keepdims=True)
    tensors = [{n: torch.from_numpy(v) for n, v in net.items()} for net in (q, k)]
    return State(*tensors, None, torch.from_numpy(f32(queue)), 0)


def drawn_inputs(method, seed, step):
    """Views of one image share a smooth pattern; the box and permutations are drawn."""
    rng = np.random.default_rng([5, seed, step])
    pattern = {}
    out = {}
    for view in VIEWS[method]:
        source = view[-1] if method == "csml" and view in ("p", "kp") else "q"
        if source not in pattern:
            pattern[source] = np.kron(rng.normal(size=(BATCH, 4, 4, 3)), np.ones((1, 4, 4, 1)))
        out["view_" + view] = f32(pattern[source] + 0.5 * rng.normal(size=(BATCH, SIZE, SIZE, 3)))
    return {**out, **drawn_constants(method, rng, step)}


def hashed_inputs(method, seed, step):
    """For the ten steps: view value = f32(3.4 * u - 1.7) from the hash of its name (README.md), nothing stored."""
    rng = np.random.default_rng([6, seed, step])
    out = {}
    for view in VIEWS[method]:
        u = hash_uniform(f"{method}/ten/{step}/view_{view}", BATCH * SIZE * SIZE * 3)
        out["view_" + view] = f32(3.4 * u - 1.7).reshape(BATCH, SIZE, SIZE, 3)
    return {**out, **drawn_constants(method, rng, step)}


def drawn_constants(method, rng, step):
    out = {"perm_k": rng.permutation(BATCH).astype(np.int32)}
    if method == "csml":
        out["perm_kp"] = rng.permutation(BATCH).astype(np.int32)
        cut = int(SIZE * np.sqrt(1 - rng.beta(2, 2)))
        cy, cx = rng.integers(SIZE, size=2)
        y0, x0 = max(cy - cut // 2, 0), max(cx - cut // 2, 0)
        y1, x1 = min(cy + cut // 2, SIZE), min(cx + cut // 2, SIZE)
        out["box"] = np.array([y0, x0, y1, x1], np.int32)
        out["lambda"] = np.array([1 - (y1 - y0) * (x1 - x0) / SIZE**2], np.float32)
        out["weights"] = np.array([0.5, 0.5] if step >= 2 else [1, 0], np.float32)
    return out


def embed(tensors, x):
    """Unit embeddings of one forward with grouped batch norm; updates the running statistics in `tensors`."""
    net = Network(ARCH, STEM, tensors, GROUPS)
    z = F.normalize(net.head(net.forward(x)["features"]))
    for name in tensors:
        if is_statistic(name):
            tensors[name] = net.t[name].detach()
    return z


def key_embed(tensors, x, perm):
    """shuffled[i] = x[perm[i]]; forward; keys[perm[i]] = out[i]. No gradient."""
    with torch.no_grad():
        out = embed(tensors, x[perm])
        keys = torch.empty_like(out)
        keys[perm] = out
    return keys


def info_nce(a, b, queue):
    """mean_i -log( exp(a_i.b_i/T) / (exp(a_i.b_i/T) + sum_n exp(a_i.n/T)) )"""
    logits = torch.cat([(a * b).sum(1, keepdim=True), a @ queue.t()], 1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(a), dtype=torch.long))


def train_step(method, state, inputs, lr):
    """One step, in place on `state`: forwards, loss against the old queue, SGD, EMA with the new q, push of k."""
    dtype = state.queue.dtype
    x = {view: nchw(inputs["view_" + view], dtype) for view in VIEWS[method]}
    perm = {view: torch.from_numpy(inputs["perm_" + view]).long() for view in ("k", "kp") if view in x}
    params = {n: t.requires_grad_() for n, t in state.q.items() if not is_statistic(n)}
    out = {}
    if method == "moco":
        q = embed(state.q, x["q"])
        k = key_embed(state.k, x["k"], perm["k"])
        terms = [info_nce(q, k, state.queue)]
        loss = terms[0]
    else:
        y0, x0, y1, x1 = inputs["box"].tolist()
        mixed = x["q"].clone()
        mixed[:, :, y0:y1, x0:x1] = x["p"][:, :, y0:y1, x0:x1]
        q, p, m = embed(state.q, x["q"]), embed(state.q, x["p"]), embed(state.q, mixed)
        k = key_embed(state.k, x["k"], perm["k"])
        kp = key_embed(state.k, x["kp"], perm["kp"])
        (w0, w1), lam = inputs["weights"].tolist(), float(inputs["lambda"][0])
        terms = [info_nce(a, b, state.queue) for a, b in ((q, k), (q, kp), (p, kp), (p, k), (m, k), (m, kp))]
        views = [w0 * terms[0] + w1 * terms[1], w0 * terms[2] + w1 * terms[3], lam * terms[4] + (1 - lam) * terms[5]]
        loss = sum(views) / 3
        out["loss_views"] = torch.stack(views)
    loss.backward()
    out.update(loss=loss.detach(), loss_terms=torch.stack(terms), keys=k)
    out.update({"grad/" + n: t.grad for n, t in params.items()})
    with torch.no_grad():
        buffers = {}
        for n, t in params.items():
            d = t.grad + DECAY * t
            buffers[n] = d if state.buffers is None else MOMENTUM * state.buffers[n] + d
            state.q[n] = t.detach() - lr * buffers[n]
            state.k[n] = EMA * state.k[n] + (1 - EMA) * state.q[n]
        state.buffers = buffers
        state.queue[(state.ptr + torch.arange(BATCH)) % QUEUE] = k
        state.ptr = (state.ptr + BATCH) % QUEUE
    return {n: t.detach() for n, t in out.items()}


def method_file(method, margin):
    def chain(seed):
        """The states 0..3 of the fp64 chain, each rounded to f32."""
        states = [initial_state(seed)]
        for step in range(3):
            state = states[-1].cast(torch.float64)
            train_step(method, state, drawn_inputs(method, seed, step), LR)
            states.append(state.cast(torch.float32))
        return states

    def ten(seed, dtype, memory_format):
        state = initial_state(seed).cast(dtype, memory_format)
        loss = [train_step(method, state, hashed_inputs(method, seed, i), f32(0.001))["loss"] for i in range(10)]
        final = {n: t for n, t in state.named("final/").items() if "/momentum/" not in n}
        return {"loss": torch.stack(loss), **final}

    def both(seed):
        """The ten steps may come three times as close to a kink."""
        chain(seed)
        if Margin.smallest >= margin:
            margins[0], Margin.smallest = Margin.smallest, 1
            ten(seed, torch.float64, torch.contiguous_format)
            margins[1], Margin.smallest = Margin.smallest, min(margins[0], 3 * Margin.smallest)

    margins = [0, 0]
    seed = common.first_seed(both, margin)
    states = chain(seed)
    out = {n: t.numpy() for n, t in states[0].named("state0/").items()}
    for step in range(3):
        inputs = drawn_inputs(method, seed, step)
        out.update({f"step{step}/{n}": v for n, v in inputs.items()})

        def run(dtype, memory_format, step=step, inputs=inputs):
            state = states[step].cast(dtype, memory_format)
            result = {f"step{step}/{n}": t for n, t in train_step(method, state, inputs, LR).items()}
            return {**result, **state.named(f"state{step + 1}/")}

        out.update(measure(run))
    out.update({f"state{i}/ptr": np.array([state.ptr], np.int64) for i, state in enumerate(states)})
    metadata = dict(arch=ARCH, stem=STEM, width=WIDTH, dim=DIM, batch=BATCH, size=SIZE, bn_groups=GROUPS, queue=QUEUE,
                    temperature=0.2, ema=0.99, lr=0.06, momentum=0.9, weight_decay=5e-4, seed=seed)
    common.write(f"{method}_steps.safetensors", out, {**metadata, "kink_margin": margins[0]})

    out = measure(lambda dtype, memory_format: ten(seed, dtype, memory_format))
    out["final/ptr"] = np.array([10 * BATCH % QUEUE], np.int64)
    for i in range(10):
        out.update({f"{i}/{n}": v for n, v in hashed_inputs(method, seed, i).items() if not n.startswith("view_")})
    common.write(f"{method}_ten.safetensors", out, {**metadata, "lr": 0.001, "kink_margin": margins[1]})


def moco_steps():
    method_file("moco", 1e-5)


def csml_steps():
    method_file("csml", 5e-6)
