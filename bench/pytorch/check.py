"""Whether csml and PyTorch do the same work: both from the weights and inputs of one exchange file, in one precision,
each against PyTorch in f64 (with units at their ReLU's corner on the side it took: corners.py).

    error(x) = |x - f64| / |f64|  (2-norms over all values of a quantity; by tensor: the largest error of any)
    csml's error may be 4 times PyTorch's own in that precision, at least FLOOR and at most CEILING."""
from corners import Reference, error
from harness import first_step

TIMES = 4
FLOOR = {"fp32": 1e-4, "tf32": 2e-3, "bf16": 2e-2, "fp16": 4e-3}
FLOOR_OF_PARAMETERS = 5e-7  # kept in f32 by both in every precision, and moved by little
BY_TENSOR = "gradient by tensor"
CEILING = 0.5  # beyond it a gradient no longer points where it should


def compare(make, exchange, setting, reference):
    """Rows {"quantity", "csml", "pytorch", "allowed", "passed", "moved", "unmoved"}; `make(setting)`: the case, from the
    exchange. Of csml and of PyTorch, "moved": how many units at their ReLU's corner took another side than in f64 and had
    to be moved there (corners.py); "unmoved": the errors with none moved."""
    work = make(setting.activate())
    theirs = work.results(first_step(work))
    ours, rows = work.of_exchange(exchange), []
    if hasattr(work, "sorted"):
        return exact(work, ours, theirs)
    truth, floor = Reference(make, reference), FLOOR[setting.precision]
    finest = BY_TENSOR if setting.precision == "fp32" else "gradient"
    (right, our_moves), (their_right, their_moves) = (truth.beside(results, finest, floor) for results in (ours, theirs))
    for name in right:
        if name == BY_TENSOR != finest:  # one tensor's error in 16 bits says little
            continue
        row = {"quantity": name, "csml": error(ours[name], right[name]), "pytorch": error(theirs[name], their_right[name])}
        row["allowed"] = min(max(TIMES * row["pytorch"], FLOOR_OF_PARAMETERS if "parameters" in name else floor), CEILING)
        rows.append({**row, "passed": row["csml"] <= row["allowed"], "moved": [our_moves, their_moves],
                     "unmoved": [error(side[name], truth.results[name]) for side in (ours, theirs)]})
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
