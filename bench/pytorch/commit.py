"""What ends a step: SGD with momentum and the momentum encoder over N parameters in tensors of ResNet-50's sizes, and in
16-bit training the casts of both encoders' weights, which autocast makes in every step."""
import itertools

import torch

from harness import Update, ema, flat
from resnet import ResNet


def split(vector):
    """Consecutive pieces of the sizes of ResNet-50 with MoCo v2's head, over and over."""
    sizes, left = [], len(vector)
    with torch.no_grad():
        network = [p.numel() for p in ResNet(50, dim=128).parameters()]
    for size in itertools.cycle(network):
        if left == 0:
            return [piece.clone() for piece in vector.split(sizes)]
        sizes.append(min(size, left))
        left -= sizes[-1]


class Commit:
    count = 0  # not about images

    def __init__(self, setting, size, exchange=None):
        n, = size
        if exchange:
            parameters, gradient, self.notes = exchange["parameters"][:n], exchange["gradient"][:n], exchange.notes
        else:
            parameters, gradient = 0.01 * torch.randn(n), torch.randn(n)
            self.notes = {"learning_rate": 0.03, "momentum": 0.9, "weight_decay": 1e-4, "key_momentum": 0.999}
        self.setting, n = setting, self.notes
        self.parameters = [p.requires_grad_() for p in split(setting.put(parameters))]
        self.key = [p.detach().clone() for p in self.parameters]
        for p, g in zip(self.parameters, split(setting.put(gradient))):
            p.grad = g
        self.half = [[torch.empty_like(p, dtype=setting.half) for p in self.parameters] for _ in range(2)
                     ] if setting.half else []
        self.optimizer = Update(setting, self.parameters, n["learning_rate"], n["momentum"], n["weight_decay"]).optimizer
        self.run = setting.compiled(self.commit)

    def commit(self):
        self.optimizer.step()
        ema(self.key, self.parameters, self.notes["key_momentum"])
        with torch.no_grad():
            for half, full in zip(self.half, (self.parameters, self.key)):
                if hasattr(torch, "_foreach_copy_"):
                    torch._foreach_copy_(half, full)
                else:
                    for h, f in zip(half, full):
                        h.copy_(f)

    def step(self):
        self.run()

    def applied(self):
        return True

    def results(self, _):
        return {"parameters": flat(self.parameters), "key parameters": flat(self.key)}

    def of_exchange(self, exchange):
        count = sum(p.numel() for p in self.parameters)
        return {"parameters": flat([exchange["after"][:count]]), "key parameters": flat([exchange["key"][:count]])}
