"""Nearest neighbours: a matrix product and torch.topk, in blocks of queries whose scores take at most 1 GiB. In 16 bits
PyTorch's scores are rounded to that type, and the search is no longer exact; csml's are f32."""
import torch

from harness import flat

BLOCK_BYTES = 1 << 30


class TopK:
    count = 0  # not about images

    def __init__(self, setting, size, exchange=None):
        m, n, d, self.k = size
        if exchange:
            queries, rows, exclude = exchange["queries"], exchange["rows"], exchange["exclude"]
        else:
            values = lambda count: torch.randint(9, (count, d)).float() / 4 - 1
            queries, rows, exclude = values(m), values(n), torch.arange(m) % n
        self.setting, dtype = setting, setting.half or setting.dtype
        self.queries, self.rows = setting.put(queries).to(dtype), setting.put(rows).to(dtype)
        self.exclude = setting.put(exclude).long()[:, None]
        self.block = max(1, BLOCK_BYTES // (len(rows) * self.rows.element_size()))
        self.search = setting.compiled(self.search_block)

    def search_block(self, queries, exclude):
        scores = queries @ self.rows.T
        return scores.scatter_(1, exclude, float("-inf")).topk(self.k)

    @torch.no_grad()
    def step(self):
        self.setting.begin_step()
        found = [self.search(*block) for block in zip(self.queries.split(self.block), self.exclude.split(self.block))]
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    def applied(self):
        return True

    def results(self, found):
        return {"scores": flat([found[0]]), "index": flat([found[1]])}

    def of_exchange(self, exchange):
        return {"scores": flat([exchange["scores"]]), "index": flat([exchange["index"]])}

    @torch.no_grad()
    def sorted(self):
        """The same by a stable sort, equal scores by lower index: what is right. Never in 16 bits, which would round
        scores."""
        index, scores, rows = [], [], self.rows.to(self.setting.dtype)
        for queries, exclude in zip(self.queries.to(self.setting.dtype).split(256), self.exclude.split(256)):
            s = (queries @ rows.T).scatter_(1, exclude, float("-inf"))
            values, order = torch.sort(s, dim=1, descending=True, stable=True)
            scores.append(values[:, :self.k])
            index.append(order[:, :self.k])
        return torch.cat(scores), torch.cat(index)
