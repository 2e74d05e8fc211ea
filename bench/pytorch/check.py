"""Whether csml and PyTorch do the same work: both from the weights and inputs of one exchange file, in one precision,
each against PyTorch in f64.

    error(x) = |x - f64| / |f64|  (2-norms over all values of a quantity)
    csml's error may be 4 times PyTorch's own in that precision, at least FLOOR and at most CEILING."""
import torch

from harness import first_step

TIMES = 4
FLOOR = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 2e-2, "fp16": 4e-3}
# A ReLU whose input is at rounding distance of 0 switches a path on one side and not on the other: one such unit moved
# the gradient of the small networks of tests/rival_test.py by 6e-3.
FLOOR_OF_GRADIENT = 1e-2
FLOOR_OF_PARAMETERS = 2e-6  # kept in f32 by both in every precision, and moved by little
CEILING = 0.5  # beyond it a gradient no longer points where it should


def compare(make, exchange, setting, reference):
    """Rows {"quantity", "csml", "pytorch", "allowed", "passed"}; `make(setting)`: the case, from the exchange."""
    def results(of):
        work = make(of.activate())
        return work, work.results(first_step(work))

    work, theirs = results(setting)
    ours, rows = work.of_exchange(exchange), []
    if hasattr(work, "sorted"):
        return exact(work, ours, theirs)
    truth = results(reference)[1]
    for name, right in truth.items():
        error = lambda x: float(torch.linalg.vector_norm(x - right) / torch.linalg.vector_norm(right))
        row = {"quantity": name, "csml": error(ours[name]), "pytorch": error(theirs[name])}
        floor = FLOOR_OF_PARAMETERS if "parameters" in name else FLOOR[setting.precision]
        if name == "gradient" and exchange.notes.get("case") not in ("info_nce",):
            floor = max(floor, FLOOR_OF_GRADIENT)
        row["allowed"] = min(max(TIMES * row["pytorch"], floor), CEILING)
        rows.append({**row, "passed": row["csml"] <= row["allowed"]})
    return rows


def exact(work, ours, theirs):
    """Of a search: inputs are such that every score is exact, so scores and indices must be equal, ties included. PyTorch
    promises no order of ties and is only reported."""
    right = dict(zip(("scores", "index"), (t.double().cpu().flatten() for t in work.sorted())))
    rows = []
    for name, truth in right.items():
        wrong = lambda x: float((x != truth).double().mean())
        rows.append({"quantity": name, "csml": wrong(ours[name]), "pytorch": wrong(theirs[name]), "allowed": 0.0,
                     "passed": wrong(ours[name]) == 0})
    return rows
