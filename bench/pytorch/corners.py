"""The f64 reference of a comparison, and ReLUs at their corner.

A unit whose ReLU's input is nearer to 0 than f32's rounding may be open in f32 and closed in f64: the gradient has a jump
there, and both sides of it are right. Of the 10^5 to 10^6 units of a small network few are so near, often none, but one of
them moves the gradient by up to 1e-2, a hundred times more than all rounding. So the reference's gradient is taken on the
side of each such unit that the judged result took: whatever else is wrong with a result stays wrong."""
from unittest import mock

import torch
import torch.nn.functional as F

from harness import first_step

# |input| / root mean square of the ReLU's inputs. Measured in the MoCo step of tests/rival_test.py: PyTorch's error of
# these inputs in f32 is 7e-7 (first layer) to 6e-6; the farthest unit that took another side in 40 seeds was at 5e-6.
AT_CORNER = 1e-5
MOST = 64  # with more units at their corner csml and PyTorch both have many on the other side, and alike in effect


class Relu:
    """In place of F.relu. `moved`: units (call, index) that take the other side; `near`: [(distance, unit)] of those
    within AT_CORNER. Calls without gradient (the momentum encoder's) do not count: there a corner moves nothing."""

    def __init__(self, moved=()):
        self.moved, self.near, self.calls = moved, [], 0

    def __call__(self, x, inplace=False):
        if not torch.is_grad_enabled():
            return torch.relu(x)
        inputs = x.detach().reshape(-1)
        distance = inputs.abs() / inputs.square().mean().sqrt()
        for i in (distance < AT_CORNER).nonzero().flatten().tolist():
            self.near.append((float(distance[i]), (self.calls, i)))
        opened = inputs > 0
        for call, i in self.moved:
            if call == self.calls:
                opened[i] = ~opened[i]
        self.calls += 1
        return x * opened.view(x.shape)


class Reference:
    def __init__(self, make, setting):
        self.make, self.setting = make, setting
        self.results, near = self.run()
        self.corners = [unit for _, unit in sorted(near)]

    def run(self, moved=()):
        """A case's results in f64 with units on the other side, and the units at their corner."""
        work, relu = self.make(self.setting.activate()), Relu(moved)
        with mock.patch.object(F, "relu", relu):
            loss = first_step(work)
        return work.results(loss), relu.near

    def beside(self, results, quantity, enough):
        """The reference that a side's results are judged by, and how many units it moved: those that lessen the quantity's
        error, the nearest to its corner first, as long as the error is above `enough`. Over again after each round that
        moved one: of two jumps, removing the first may lessen the error only when the second is gone."""
        right, moved, again = self.results, (), 0 < len(self.corners) <= MOST
        best = error(results[quantity], right[quantity]) if again else 0
        while again and best > enough:
            again = False
            for unit in self.corners:
                if unit in moved or best <= enough:
                    continue
                other, _ = self.run((*moved, unit))
                its = error(results[quantity], other[quantity])
                if its < best:
                    best, right, moved, again = its, other, (*moved, unit), True
        return right, len(moved)


def error(x, right):
    """|x - right| / |right|; of pieces the largest"""
    if not torch.is_tensor(x):
        return float(torch.tensor(list(map(error, x, right)), dtype=torch.float64).max())  # NaN where one is
    return float(torch.linalg.vector_norm(x - right) / torch.linalg.vector_norm(right))
