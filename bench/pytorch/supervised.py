"""The supervised training step: forward, mean cross-entropy, backward, SGD with momentum."""
import torch
import torch.nn.functional as F

from harness import Update, flat
from resnet import ResNet, load

NETWORKS = {"resnet50": dict(depth=50, stem="imagenet", size=224, classes=1000),
            "resnet18": dict(depth=18, stem="imagenet", size=32, classes=10),
            "resnet18_cifar": dict(depth=18, stem="cifar", size=32, classes=10)}


class Supervised:
    def __init__(self, setting, case, batch, exchange=None):
        n = NETWORKS[case]
        if exchange:
            images, labels, notes = exchange.images("images"), exchange["labels"], exchange.notes
        else:
            images, labels = torch.randn(batch, 3, n["size"], n["size"]), torch.randint(n["classes"], (batch,))
            notes = {"learning_rate": 0.03, "momentum": 0.9, "weight_decay": 1e-4}
        self.model = ResNet(n["depth"], n["stem"], classes=n["classes"])
        if exchange:
            load(self.model, exchange.under("before/"))
        self.setting, self.model = setting, setting.network(self.model)
        self.images, self.labels, self.count = setting.put(images), setting.put(labels).long(), len(labels)
        self.update = Update(setting, self.model.parameters(), notes["learning_rate"], notes["momentum"],
                             notes["weight_decay"])
        self.loss = setting.compiled(lambda x, labels: F.cross_entropy(self.model(x), labels))

    def step(self):
        self.setting.begin_step()
        with self.setting.autocast():
            loss = self.loss(self.images, self.labels)
        self.update.step(loss)
        return loss

    def applied(self):
        return self.update.applied()

    def results(self, loss):
        return {"loss": flat([loss]), **gradient(self.update.buffers()), "parameters": flat(self.model.parameters()),
                "statistics": statistics(self.model)}

    def of_exchange(self, exchange):
        """The other side's results under the same names."""
        return {"loss": flat([exchange["loss"]]), **gradient(of(self.model, exchange, "buffer/")),
                "parameters": like(self.model, exchange, "after/"),
                "statistics": statistics_like(self.model, exchange, "after/")}


def of(model, exchange, prefix):
    """An exchange's tensors in the order of a network's parameters."""
    return [exchange[prefix + name] for name, _ in model.named_parameters()]


def like(model, exchange, prefix):
    return flat(of(model, exchange, prefix))


def gradient(tensors):
    """As one quantity and tensor by tensor."""
    pieces = [flat([t]) for t in tensors]
    return {"gradient": torch.cat(pieces), "gradient by tensor": pieces}


def statistics(model):
    """Running means and variances, flat."""
    return flat(t for name, t in model.named_buffers() if "running" in name)


def statistics_like(model, exchange, prefix):
    return flat(exchange[prefix + name] for name, _ in model.named_buffers() if "running" in name)
