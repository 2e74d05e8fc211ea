"""The MoCo v2 step (He et al. 2020; Chen et al. 2020) and, on the same parts, the CsMl step (docs/method.md, section 2).
Batch norms see the whole batch, as on one GPU."""
import copy

import torch
import torch.nn.functional as F

from harness import Update, ema, flat
from info_nce import info_nce
from resnet import ResNet, load
from supervised import gradient, like, of, statistics, statistics_like

DEFAULTS = {"depth": 50, "stem": "imagenet", "width": 64, "dim": 128, "temperature": 0.2, "key_momentum": 0.999,
            "learning_rate": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "lambda": 0.75}
QUEUE, SIZE = 65536, 224


class Moco:
    """Key forward in permuted order, query forward, InfoNCE against the queue, backward, SGD, momentum encoder, push."""
    views = 2  # q, k

    def __init__(self, setting, batch, exchange=None):
        n = {**DEFAULTS, **(exchange.notes if exchange else {})}
        network = ResNet(n["depth"], n["stem"], n["width"], dim=n["dim"])
        if exchange:
            load(network, exchange.under("before/"))
            views = [exchange.images(f"view.{v}") for v in range(self.views)]
            permutations = [exchange[f"permutation.{v}"].long() for v in range(self.views // 2)]
            queue, weights, box = exchange["queue"], exchange["weights"].tolist(), exchange["box"].tolist()
        else:
            views = [torch.randn(batch, 3, SIZE, SIZE) for _ in range(self.views)]
            permutations = [torch.randperm(batch) for _ in range(self.views // 2)]
            queue, weights = F.normalize(torch.randn(QUEUE, n["dim"]), dim=1), [0.5, 0.5]
            box = [SIZE // 8, SIZE // 4, SIZE // 8 + SIZE // 2, SIZE // 4 + SIZE // 2]
        self.setting, self.count, self.at = setting, len(views[0]), 0
        self.temperature, self.key_momentum = n["temperature"], n["key_momentum"]
        self.rows, self.columns = slice(box[0], box[2]), slice(box[1], box[3])
        self.query = setting.network(network)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.pairs = list(self.key.parameters()), list(self.query.parameters())
        self.x = [setting.put(view) for view in views]
        self.permutations = [(p.to(setting.device), torch.argsort(p).to(setting.device)) for p in permutations]
        self.queue = setting.put(queue.clone())
        self.own, self.pair, self.mixed = (setting.put(torch.tensor(weights)) for weights in
                                           ([1.0], weights, [n["lambda"], 1 - n["lambda"]]))
        self.update = Update(setting, self.query.parameters(), n["learning_rate"], n["momentum"], n["weight_decay"])
        self.embed_key = setting.compiled(lambda x: F.normalize(self.key(x), dim=1))
        self.loss = setting.compiled(self.loss_of)

    def embed(self, x):
        return F.normalize(self.query(x), dim=1)

    def term(self, anchor, keys, weights):
        return info_nce(anchor, keys, weights, self.queue, self.temperature)

    def loss_of(self, x_q, k):
        return self.term(self.embed(x_q), [k], self.own)

    def keys(self, view, number):
        """Embeddings of the momentum encoder, computed in permuted order, in the batch's order."""
        forward, back = self.permutations[number]
        with torch.no_grad(), self.setting.autocast():
            # Cloned: a compiled graph's output lives until its next run only.
            return self.embed_key(self.x[view][forward].contiguous(memory_format=torch.channels_last))[back].clone()

    def inputs(self):
        """Arguments of the loss, made without gradient."""
        return self.x[0], self.keys(1, 0)

    def step(self):
        self.setting.begin_step()
        arguments = self.inputs()
        with self.setting.autocast():
            loss = self.loss(*arguments)
        self.update.step(loss)
        ema(self.pairs[0], self.pairs[1], self.key_momentum)
        with torch.no_grad():
            k = arguments[1]
            self.queue[self.at:self.at + len(k)] = k.to(self.queue.dtype)
            self.at = (self.at + len(k)) % len(self.queue)
        return loss

    def applied(self):
        return self.update.applied()

    def results(self, loss):
        return {"loss": flat([loss]), **gradient(self.update.buffers()), "parameters": flat(self.query.parameters()),
                "key parameters": flat(self.key.parameters()), "statistics": statistics(self.query),
                "key statistics": statistics(self.key), "keys": flat([self.queue[:self.count]])}

    def of_exchange(self, exchange):
        return {"loss": flat([exchange["loss"]]), **gradient(of(self.query, exchange, "buffer/")),
                "parameters": like(self.query, exchange, "after/"),
                "key parameters": like(self.key, exchange, "key/"),
                "statistics": statistics_like(self.query, exchange, "after/"),
                "key statistics": statistics_like(self.key, exchange, "key/"), "keys": flat([exchange["keys"]])}


class CsMl(Moco):
    """Three query forwards (q, p, m = q with a box of p), two key forwards (k, kp); only k is pushed.
    L = (w0 E(q,k) + w1 E(q,kp) + w0 E(p,kp) + w1 E(p,k) + lambda E(m,k) + (1 - lambda) E(m,kp)) / 3"""
    views = 4  # q, k, p, kp

    def loss_of(self, x_q, k, x_p, kp):
        x_m = x_q.clone()
        x_m[:, :, self.rows, self.columns] = x_p[:, :, self.rows, self.columns]
        return (self.term(self.embed(x_q), [k, kp], self.pair) + self.term(self.embed(x_p), [kp, k], self.pair) +
                self.term(self.embed(x_m), [k, kp], self.mixed)) / 3

    def inputs(self):
        return self.x[0], self.keys(1, 0), self.x[2], self.keys(3, 1)
