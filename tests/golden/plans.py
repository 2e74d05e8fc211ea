"""Golden steps of levels, small crops and bases: one step each, with everything a method may have (README.md)."""
import numpy as np
import torch
import torch.nn.functional as F

import common
from common import Margin, f32, measure, nchw
from network import Network, is_statistic, random_tensors, shapes
from steps import ARCH, BATCH, DECAY, EMA, GROUPS, LR, QUEUE, SIZE, STEM, TEMPERATURE, WIDTH

DIM = 16
FEATURES = 8 * WIDTH
HEAD_BN = {"moco": "none", "simclr": "all", "byol": "hidden", "mocov3": "all"}
CASES = {name: dict(base="moco", csml=True, levels=("res5",), alignment="global", crops=(), weights={"res5": 1.0})
         for name in ("csml_global", "csml_patch", "csml_patch_lite", "csml_crops", "csml_simclr", "csml_byol",
                      "csml_mocov3", "simclr", "byol", "mocov3")}
for _name in ("csml_global", "csml_patch", "csml_patch_lite"):
    CASES[_name].update(levels=("res5", "res4"), weights={"res5": 1.0, "res4": 0.5}, alignment=_name[5:])
CASES["csml_crops"].update(crops=(12, 8, 8))
for _name in ("simclr", "byol", "mocov3"):
    CASES[_name].update(base=_name, csml=False)
    CASES["csml_" + _name].update(base=_name)
SEEDED = sorted(CASES)  # a case draws by its place here; later ones go to the end, so that the others stay as they are
for _name, _options in (("csml_simclr_partners", dict(partners=True)), ("csml_global_crops", dict(crops=(12, 8, 8))),
                        ("csml_patch_crops", dict(crops=(12, 8, 8))), ("csml_mocov3_partners", dict(partners=True)),
                        ("csml_simclr_constant", dict(constant=True))):
    CASES[_name] = {**CASES[_name.rsplit("_", 1)[0]], **_options}
    SEEDED.append(_name)
WINDOW, STRIDE = 2, 1  # of the 4x4 map of res4


def mlp_shapes(name, bn, sizes):
    """Linear [- BN] - ReLU - Linear [- BN without gamma and beta], numbered as in a Sequential."""
    (i, h, o), out = sizes, {}
    out[f"{name}.0.weight"] = (h, i)
    if bn == "none":
        out[f"{name}.0.bias"] = (h,)
        out.update({f"{name}.2.weight": (o, h), f"{name}.2.bias": (o,)})
        return out
    out.update({f"{name}.1.{leaf}": (h,) for leaf in ("weight", "bias", "running_mean", "running_var")})
    out[f"{name}.3.weight"] = (o, h)
    if bn == "hidden":
        out[f"{name}.3.bias"] = (o,)
    else:
        out.update({f"{name}.4.{leaf}": (o,) for leaf in ("running_mean", "running_var")})
    return out


def head_shapes(case, predictor):
    out = mlp_shapes("fc", HEAD_BN[case["base"]], (FEATURES, FEATURES, DIM))
    if "res4" in case["levels"]:
        c = 4 * WIDTH
        for block in range(2):
            p = f"heads.res4.stage.{block}."
            convs = {"conv1": (FEATURES, c, 3), "conv2": (FEATURES, FEATURES, 3)}
            if block == 0:
                convs["downsample.0"] = (FEATURES, c, 1)
            for conv, (k, i, r) in convs.items():
                out[p + conv + ".weight"] = (k, i, r, r)
                bn = conv.replace("conv", "bn").replace("downsample.0", "downsample.1")
                out.update({f"{p}{bn}.{leaf}": (k,) for leaf in ("weight", "bias", "running_mean", "running_var")})
            c = FEATURES
        out.update(mlp_shapes("heads.res4.fc", HEAD_BN[case["base"]], (FEATURES, FEATURES, DIM)))
    if predictor:
        out.update(mlp_shapes("predictors.res5", "hidden", (DIM, FEATURES, DIM)))
    return out


def initial_tensors(case, rng):
    trunk = {n: v for n, v in random_tensors(ARCH, STEM, WIDTH, rng).items()}
    q = {**trunk}
    for name, shape in head_shapes(case, case["base"] in ("byol", "mocov3")).items():
        if len(shape) == 4:
            value = rng.normal(0, np.sqrt(2 / (shape[0] * shape[2] * shape[3])), shape)
        elif len(shape) == 2:
            value = rng.normal(0, 1 / np.sqrt(shape[1]), shape)
        elif name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("weight"):
            value = 1 + 0.2 * rng.normal(size=shape)
        else:
            value = 0.2 * rng.normal(size=shape)
        q[name] = f32(value)
    k = {n: v if is_statistic(n) else f32(v + 0.05 * np.abs(v).mean() * rng.normal(size=v.shape))
         for n, v in q.items() if not n.startswith("predictors.")}
    return q, k


class Encoder(Network):
    """Trunk and heads over one dict of tensors; every call replaces the running statistics it uses."""

    def __init__(self, tensors):
        super().__init__(ARCH, STEM, tensors, GROUPS)

    def norm(self, x, name):
        if name + ".weight" in self.t:
            return super().norm(x, name)
        n = x.shape[1]
        self.t.update({name + ".weight": torch.ones(n, dtype=x.dtype), name + ".bias": torch.zeros(n, dtype=x.dtype)})
        y = super().norm(x, name)
        del self.t[name + ".weight"], self.t[name + ".bias"]
        return y

    def mlp(self, x, name):
        if name + ".1.running_mean" not in self.t:
            x = self.relu(F.linear(x, self.t[name + ".0.weight"], self.t[name + ".0.bias"]))
            return F.linear(x, self.t[name + ".2.weight"], self.t[name + ".2.bias"])
        x = self.relu(self.norm(F.linear(x, self.t[name + ".0.weight"]), name + ".1"))
        x = F.linear(x, self.t[name + ".3.weight"], self.t.get(name + ".3.bias"))
        return self.norm(x, name + ".4") if name + ".4.running_mean" in self.t else x

    def head_of(self, level, x):
        """res5: pooled features; res4: a map of any size."""
        if level == "res5":
            return self.mlp(x, "fc")
        for block in range(2):
            x = self.block(x, f"heads.res4.stage.{block}.", 2 if block == 0 else 1)
        return self.mlp(x.mean((2, 3)), "heads.res4.fc")

    def project(self, level, x):
        z = self.head_of(level, x)
        return F.normalize(self.mlp(z, "predictors.res5") if "predictors.res5.0.weight" in self.t else z)


def cut(maps, corner, size=WINDOW):
    return torch.stack([m[:, y:y + size, x:x + size] for m, (y, x) in zip(maps, corner)])


def best_corners(maps, windows):
    """Per image, the corner whose window has the largest sum of cosines with the key's."""
    corners = []
    with torch.no_grad():
        unit, key = F.normalize(maps, dim=1), F.normalize(windows, dim=1)
        places = range(0, maps.shape[2] - WINDOW + 1, STRIDE)
        for m, k in zip(unit, key):
            scores = {(y, x): float((m[:, y:y + WINDOW, x:x + WINDOW] * k).sum()) for y in places for x in places}
            order = sorted(scores, key=scores.get, reverse=True)
            gap = torch.tensor(scores[order[0]] - scores[order[1]], dtype=maps.dtype)
            with torch.enable_grad():
                Margin.see(gap)
            corners.append(order[0])
    return corners


def plan(case):
    """Views, keys (in the order of their forwards) and terms per direction: (anchor, [(key, weight)]), crops apart."""
    symmetric = case["base"] != "moco"
    if not case["csml"]:
        return ["q", "k"], ["k", "q"], [[("q", [("k", "one")])], [("k", [("q", "one")])]]
    views = ["q", "k", "p", "kp"] + [f"c{i}" for i in range(len(case["crops"]))]
    forward = [("q", [("k", "w0"), ("kp", "w1")]), ("p", [("kp", "w0"), ("k", "w1")]),
               ("m", [("k", "lam"), ("kp", "mal")])]
    back = [("k", [("q", "w0"), ("p", "w1")]), ("kp", [("p", "w0"), ("q", "w1")]), ("mb", [("q", "lam"), ("p", "mal")])]
    return views, ["k", "kp"] + (["q", "p"] if symmetric else []), [forward] + ([back] if symmetric else [])


OWN = {("q", "k"), ("p", "kp"), ("k", "q"), ("kp", "p")}


def step(case, q, k, queues, inputs):
    views, key_names, directions = plan(case)
    dtype = next(iter(q.values())).dtype
    x = {v: nchw(inputs[f"view{i}"], dtype) for i, v in enumerate(views)}
    weights = {"one": 1.0}
    if case["csml"]:
        w0, w1 = inputs["weights"].tolist()
        lam = float(inputs["lambda"][0])
        weights.update(w0=w0, w1=w1, lam=lam, mal=1 - lam)
        y0, x0, y1, x1 = inputs["box"].tolist()
        for mixed, a, b in (("m", "q", "p"), ("mb", "k", "kp")):
            x[mixed] = x[a].clone()
            x[mixed][:, :, y0:y1, x0:x1] = x[b][:, :, y0:y1, x0:x1]
    params = {n: t.requires_grad_() for n, t in q.items() if not is_statistic(n)}
    fq, fk = Encoder(q), Encoder(k)
    trunks, embeddings, keys, windows = {}, {}, {}, {}

    def trunk(a):
        if a not in trunks:
            trunks[a] = fq.forward(x[a])
        return trunks[a]

    def source(out, level):
        return out["features"] if level == "res5" else out["layer3"]

    def anchor(a, level):
        if (a, level) not in embeddings:
            embeddings[a, level] = fq.project(level, source(trunk(a), level))
        return embeddings[a, level]

    by_patch = case["alignment"] != "global"
    if case["base"] != "simclr":
        with torch.no_grad():
            for i, name in enumerate(key_names):
                perm = torch.from_numpy(inputs[f"perm{i}"]).long()
                out = fk.forward(x[name][perm])
                for level in case["levels"]:
                    feature = source(out, level)
                    if by_patch and level == "res4":
                        feature = cut(feature, [inputs["corner"].tolist()] * BATCH)
                        windows[name] = torch.empty_like(feature)
                        windows[name][perm] = feature
                    z = F.normalize(fk.head_of(level, feature))
                    keys[name, level] = torch.empty_like(z)
                    keys[name, level][perm] = z

    def positive(b, level):
        if case["base"] != "simclr":
            return keys[b, level]
        return anchor(b, level).detach() if case.get("constant") else anchor(b, level)

    own_rows = torch.eye(BATCH, dtype=torch.bool)

    def pair_loss(a, b, negatives, excluded):
        """Mean over the batch of one (M+1)-way cross-entropy, or BYOL's distance."""
        s = (a * b).sum(1, keepdim=True)
        if case["base"] == "byol":
            return (2 - 2 * s).mean()
        logits = (a @ negatives.t()) / TEMPERATURE
        if excluded is not None:
            logits = logits.masked_fill(excluded, -float("inf"))
        return F.cross_entropy(torch.cat([s / TEMPERATURE, logits], 1), torch.zeros(len(a), dtype=torch.long))

    def negatives(level, direction):
        if case["base"] == "moco":
            return queues[level], None
        if case["base"] == "byol":
            return None, None
        names = ["q", "k"] if case["base"] == "simclr" else ["q"] if direction else ["k"]
        if case.get("partners"):
            names += ["p", "kp"] if case["base"] == "simclr" else ["p"] if direction else ["kp"]
        return torch.cat([positive(b, level) for b in names]), torch.cat([own_rows] * len(names), 1)

    factor = {"moco": 1.0, "simclr": 0.5, "byol": 1.0, "mocov3": 2 * TEMPERATURE}[case["base"]]
    total = 0
    for level in case["levels"]:
        level_loss = 0
        for direction, terms in enumerate(directions):
            bank, excluded = negatives(level, direction)
            for a, positives in terms:
                targets = [positive(b, level) for b, _ in positives]
                for (b, w), target in zip(positives, targets):
                    if by_patch and level == "res4" and (case["alignment"] == "patch" or (a, b) in OWN):
                        maps = trunk(a)["layer3"]
                        z = fq.project(level, cut(maps, best_corners(maps, windows[b])))
                    else:
                        z = anchor(a, level)
                    level_loss = level_loss + weights[w] * pair_loss(z, target, bank, excluded) * factor / len(terms)
        total = total + case["weights"][level] * level_loss
    if case["crops"]:
        crops = 0
        for i in range(len(case["crops"])):
            for b, w in (("k", "w0"), ("kp", "w1")):
                crops = crops + weights[w] * pair_loss(anchor(f"c{i}", "res5"), keys[b, "res5"], queues["res5"], None)
        total = 0.5 * total + 0.5 * crops
    total.backward()

    out = {"loss": total.detach()}
    for n, t in params.items():
        out["grad/" + n] = t.grad if t.grad is not None else torch.zeros_like(t)
    with torch.no_grad():
        after_q = {n: t.detach() - LR * (out["grad/" + n] + DECAY * t.detach()) for n, t in params.items()}
        after_q.update({n: t for n, t in fq.t.items() if is_statistic(n)})
        out.update({"after/q/" + n: t for n, t in after_q.items()})
        if case["base"] != "simclr":
            for n, t in fk.t.items():
                out["after/k/" + n] = t if is_statistic(n) else EMA * t + (1 - EMA) * after_q[n]
        for level, queue in queues.items():
            pushed = queue.clone()
            pushed[:BATCH] = keys["k", level]
            out["after/queue." + level] = pushed
    return {n: t.detach() for n, t in out.items()}


def drawn(case, seed):
    rng = np.random.default_rng([7, seed, SEEDED.index(case["name"])])
    views, key_names, _ = plan(case)
    inputs, pattern = {}, {}
    for i, view in enumerate(views):
        size = case["crops"][int(view[1:])] if view[0] == "c" else SIZE
        image = "p" if view in ("p", "kp") else "q"
        if image not in pattern:
            pattern[image] = rng.normal(size=(BATCH, 4, 4, 3))
        smooth = np.kron(pattern[image], np.ones((1, size // 4, size // 4, 1)))
        inputs[f"view{i}"] = f32(smooth + 0.5 * rng.normal(size=(BATCH, size, size, 3)))
    if case["base"] != "simclr":
        for i in range(len(key_names)):
            inputs[f"perm{i}"] = rng.permutation(BATCH).astype(np.int32)
    if case["csml"]:
        inputs.update(box=np.array([3, 2, 11, 13], np.int32), weights=np.array([0.6, 0.4], np.float32))
        inputs["lambda"] = np.array([1 - 8 * 11 / SIZE**2], np.float32)
    if case["alignment"] != "global":
        inputs["corner"] = rng.integers(4 - WINDOW + 1, size=2).astype(np.int32)
    q, k = initial_tensors(case, rng)
    queues = {}
    if case["base"] == "moco":
        for level in case["levels"]:
            rows = rng.normal(size=(QUEUE, DIM))
            queues[level] = f32(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return q, k, queues, inputs


def plan_file(name):
    case = {**CASES[name], "name": name}

    def run(seed, dtype, memory_format=torch.contiguous_format):
        q, k, queues, inputs = drawn(case, seed)

        def move(tensors):
            return {n: torch.from_numpy(v).to(dtype).clone(
                memory_format=memory_format if v.ndim == 4 else torch.preserve_format) for n, v in tensors.items()}
        return step(case, move(q), move(k), move(queues), inputs)

    margin = 1e-6
    seed = common.first_seed(lambda s: run(s, torch.float64), margin)
    smallest = Margin.smallest
    out = measure(lambda dtype, memory_format: run(seed, dtype, memory_format))
    q, k, queues, inputs = drawn(case, seed)
    out.update({"before/q/" + n: v for n, v in q.items()})
    if case["base"] != "simclr":
        out.update({"before/k/" + n: v for n, v in k.items()})
    out.update({"before/queue." + level: v for level, v in queues.items()})
    out.update(inputs)
    common.write(f"plans_{name}.safetensors", out, {"seed": seed, "kink_margin": smallest})


FILES = {f"plans_{name}": lambda name=name: plan_file(name) for name in CASES}
