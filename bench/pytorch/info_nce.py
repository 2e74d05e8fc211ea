"""Multi-positive InfoNCE against a queue, value and gradient to the queries."""
import torch
import torch.nn.functional as F

from harness import flat


def info_nce(query, positives, weights, queue, temperature):
    """mean_i sum_j w_j (log(exp(s_ij) + sum_n exp(q_i.n / T)) - s_ij),  s_ij = q_i.b_ij / T: one softmax per positive,
    their common negatives once. query and each positive [B, D], queue [K, D]: unit rows."""
    scaled = query / temperature
    logits = scaled @ queue.T.to(scaled.dtype)
    negatives = torch.logsumexp(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, 1)
    loss = 0
    for weight, positive in zip(weights, positives):
        s = (scaled * positive).sum(1).to(negatives.dtype)
        loss = loss + weight * (torch.logaddexp(s, negatives) - s).mean()
    return loss


class InfoNce:
    """In 16 bits all rows lie on the device in that type, as csml's do: nothing is converted in a step."""
    count = 0  # not about images

    def __init__(self, setting, size, exchange=None):
        b, k, d, p = size
        if exchange:
            query, queue, weights = exchange["query"], exchange["queue"], exchange["weights"]
            positives = [exchange[f"positive.{j}"] for j in range(p)]
            self.temperature = exchange.notes["temperature"]
        else:
            rows = lambda n: F.normalize(torch.randn(n, d), dim=1)
            query, queue, weights, positives = rows(b), rows(k), torch.full((p,), 1 / p), [rows(b) for _ in range(p)]
            self.temperature = 0.2
        self.setting, dtype = setting, setting.half or setting.dtype
        self.query, self.queue = setting.put(query).to(dtype).requires_grad_(), setting.put(queue).to(dtype)
        self.positives, self.weights = [setting.put(x).to(dtype) for x in positives], setting.put(weights)
        self.loss = setting.compiled(info_nce)

    def step(self):
        self.setting.begin_step()
        self.query.grad = None
        with self.setting.autocast():
            loss = self.loss(self.query, self.positives, self.weights, self.queue, self.temperature)
        loss.backward()
        return loss

    def applied(self):
        return True

    def results(self, loss):
        return {"loss": flat([loss]), "gradient": flat([self.query.grad])}

    def of_exchange(self, exchange):
        return {"loss": flat([exchange["loss"]]), "gradient": flat([exchange["dquery"]])}
