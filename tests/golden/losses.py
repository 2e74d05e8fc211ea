"""Golden cases of losses, search and optimizers: InfoNCE, cross-entropy, top-k and k-NN, LARS, AdamW."""
import numpy as np
import torch
import torch.nn.functional as F

import common
from common import f32, measure


def unit_rows(rng, *shape):
    x = rng.normal(size=shape)
    return f32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def prefixed(prefix, tensors):
    return {("err/" + prefix + n[4:] if n.startswith("err/") else prefix + n): v for n, v in tensors.items()}


def info_nce(inputs, temperature, through_norm=False):
    """query [B,D], positives [P,B,D], weights [P], queue [K,D] -> loss, terms [P], dquery (or dv, v = query)."""
    def run(dtype, _):
        t = {n: torch.from_numpy(np.array(v)).to(dtype) for n, v in inputs.items()}
        v = t["query"].requires_grad_()
        a = F.normalize(v) if through_norm else v
        z = a @ t["queue"].t() / f32(temperature)
        terms = []
        for b in t["positives"]:
            s = (a * b).sum(1, keepdim=True) / f32(temperature)
            terms.append((torch.logsumexp(torch.cat([s, z], 1), 1) - s[:, 0]).mean())
        terms = torch.stack(terms)
        loss = (t["weights"] * terms).sum()
        loss.backward()
        return {"loss": loss, "terms": terms, "dv" if through_norm else "dquery": v.grad,
                "positive_similarity": (a * t["positives"]).sum(2).mean(1), "negative_similarity":
                (a @ t["queue"].t()).mean()}

    return {**inputs, **measure(run), "temperature": np.array([temperature], np.float32)}


def losses():
    rng = np.random.default_rng(7)
    out = {}
    small = dict(query=f32([[0.6, 0.8]]), positives=f32([[[1, 0]], [[0, 1]]]), weights=f32([0.5, 0.5]),
                 queue=f32([[-1, 0], [0, -1], [0.8, -0.6]]))
    out.update(prefixed("info_nce/small/", info_nce(small, 0.2)))
    # dquery of the small case is not tangential; dv is the gradient through the normalisation.
    out.update({"info_nce/small/" + n: v for n, v in info_nce(small, 0.2, True).items() if n == "dv"})
    random = dict(query=unit_rows(rng, 5, 24), positives=unit_rows(rng, 3, 5, 24), weights=f32([0.5, 0.3, 0.2]),
                  queue=unit_rows(rng, 37, 24))
    out.update(prefixed("info_nce/random/", info_nce(random, 0.1)))
    sharp = dict(random, query=random["positives"][0].copy())
    out.update(prefixed("info_nce/sharp/", info_nce(sharp, 0.01)))
    free = dict(random, query=f32(3 * rng.normal(size=(5, 24))))
    out.update(prefixed("info_nce/unnormalised/", info_nce(free, 0.1, True)))

    logits, labels = f32(4 * rng.normal(size=(9, 11))), rng.integers(11, size=9).astype(np.int32)
    logits[2, labels[2]] = 30

    def cross_entropy(dtype, _):
        x = torch.from_numpy(logits).to(dtype).requires_grad_()
        loss = F.cross_entropy(x, torch.from_numpy(labels).long())
        loss.backward()
        return {"loss": loss, "dlogits": x.grad}

    correct = np.array([(logits.argmax(1) == labels).sum()], np.float32)
    out.update(prefixed("cross_entropy/", {"logits": logits, "labels": labels, "correct": correct,
                                           **measure(cross_entropy)}))
    common.write("losses.safetensors", out, {})


def knn():
    """Top-k of 7 queries in a bank of 60 with an equal pair and exclusions; weighted votes exp(score / T)."""
    rng = np.random.default_rng(8)
    bank, queries = unit_rows(rng, 60, 16), unit_rows(rng, 7, 16)
    bank[41] = bank[17]
    queries[3] = bank[17]
    queries[5] = bank[30]
    exclude = np.array([-1, 4, -1, -1, 59, 30, 0], np.int32)
    labels = rng.integers(3, size=60).astype(np.int32)
    k, classes, temperature = 5, 3, 0.07
    scores = queries.astype(np.float64) @ bank.astype(np.float64).T
    masked = scores.copy()
    masked[np.arange(7)[exclude >= 0], exclude[exclude >= 0]] = -np.inf
    index = np.lexsort((np.broadcast_to(np.arange(60), masked.shape), -masked), axis=1)[:, :k]
    top = np.take_along_axis(masked, index, 1)
    votes = np.zeros((7, classes))
    for i in range(7):
        np.add.at(votes[i], labels[index[i]], np.exp(top[i] / temperature))
    out = dict(bank=bank, queries=queries, exclude=exclude, labels=labels, scores=f32(top),
               index=index.astype(np.int32), votes=f32(votes), prediction=votes.argmax(1).astype(np.int32))
    out["err/scores"] = np.array([2e-7], np.float32)
    out["err/votes"] = np.array([2e-7 / temperature], np.float32)
    common.write("knn.safetensors", out, dict(k=k, classes=classes, temperature=temperature))


def lars_update(p, g, buffer, lr, decay, momentum, trust, excluded, form):
    """One step of LARS. form "moco_v3": trust ||p|| / ||g + wd p||; form "solo": trust ||p|| / (||g|| + wd ||p|| +
    eps), both 1 where a norm is zero; excluded tensors (one dimension) take neither decay nor adaptation."""
    d = g
    if not excluded:
        d = g + decay * p
        pn, gn = p.norm(), g.norm()
        denominator = d.norm() if form == "moco_v3" else gn + decay * pn + 1e-8
        if pn > 0 and denominator > 0 and (form == "moco_v3" or gn > 0):
            d = d * (trust * pn / denominator)
    buffer = momentum * buffer + d
    return p - lr * buffer, buffer


def optim():
    """SGD, LARS (both common forms), AdamW: `steps` updates of four tensors; w2 starts at zero (no adaptation)."""
    rng = np.random.default_rng(9)
    shapes = {"w0": (4, 3, 3, 3), "w1": (7, 5), "w2": (3, 4), "bias": (6,)}
    steps, hyper = 3, dict(lr=0.3, decay=1e-2, momentum=0.9, trust=1e-2)
    hyper = {n: f32(v) for n, v in hyper.items()}
    adam = {n: f32(v) for n, v in dict(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.05).items()}
    out = {f"param/{n}": f32(rng.normal(size=s) * (n != "w2")) for n, s in shapes.items()}
    for i in range(steps):
        out.update({f"grad{i}/{n}": f32(rng.normal(size=s)) for n, s in shapes.items()})
    inputs = dict(out)

    def start(dtype):
        return [{n: torch.tensor(inputs[f"{group}/{n}"], dtype=dtype) for n in shapes}
                for group in ("param", *(f"grad{i}" for i in range(steps)))]

    def lars(form):
        def run(dtype, _):
            p, *grads = start(dtype)
            buffer, result = {n: torch.zeros_like(t) for n, t in p.items()}, {}
            for i, grad in enumerate(grads):
                for n in shapes:
                    p[n], buffer[n] = lars_update(p[n], grad[n], buffer[n], hyper["lr"], hyper["decay"],
                                                  hyper["momentum"], hyper["trust"], n == "bias", form)
                    result.update({f"{i}/param/{n}": p[n], f"{i}/buffer/{n}": buffer[n]})
            return result
        return run

    def library(make, keys):
        def run(dtype, _):
            p, *grads = start(dtype)
            p = {n: t.requires_grad_() for n, t in p.items()}
            optimizer, result = make(p.values()), {}
            for i, grad in enumerate(grads):
                for n in shapes:
                    p[n].grad = grad[n]
                optimizer.step()
                result.update({f"{i}/param/{n}": p[n].detach().clone() for n in shapes})
                result.update({f"{i}/{ours}/{n}": optimizer.state[p[n]][theirs].clone() for n in shapes
                               for ours, theirs in keys.items()})
            return result
        return run

    cases = {"sgd/": library(lambda p: torch.optim.SGD(p, hyper["lr"], hyper["momentum"], weight_decay=hyper["decay"]),
                             {"buffer": "momentum_buffer"}),
             "adamw/": library(lambda p: torch.optim.AdamW(p, adam["lr"], (adam["beta1"], adam["beta2"]), adam["eps"],
                                                           adam["decay"]),
                               {"first": "exp_avg", "second": "exp_avg_sq"}),
             "lars_moco_v3/": lars("moco_v3"), "lars_solo/": lars("solo")}
    for prefix, case in cases.items():
        out.update(prefixed(prefix, measure(case)))
    common.write("optim.safetensors", out, {"lars_sgd": hyper, "adamw": adam, "steps": steps, "excluded": "bias"})
