#!/usr/bin/env python3
"""csml knn and csml linear beside scikit-learn and faiss on the same feature files, alternating, on the same threads.

usage: bench/evaluation.py CSML [--size 50000,10000,2048] [--classes 100] [--k 200] [--rounds 3] [--threads 2]
                           [--tasks knn,linear] [--folder DIR]

Features: a Gaussian mixture, one mean per class, f32, drawn by seeds and written as `csml embed` writes them. Every
rival runs in a process of its own and reads the same two files. What is not installed is left out by name.

knn     csml knn; faiss.IndexFlatIP; sklearn NearestNeighbors(algorithm="brute", metric="cosine"); the vote of the
        rivals is numpy's. All must agree on top-1 but for a few images (rounding at the border of two classes).
linear  csml linear with one rate and with its grid of six; sklearn LogisticRegression (L-BFGS, C = 1, 100 iterations).
        Another optimiser and regularisation: accuracies are shown, not compared. (SGDClassifier, one classifier against
        the rest per class, takes twenty times as long as either.)

CPU seconds are user and system time of the work itself: of all of csml's process, of the rivals without the start of
the interpreter. Memory is the largest resident set of the whole process.
"""
import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time

TEMPERATURE = 0.07
LATENT, SEPARATION = 64, 3.3
RIVALS = {
    "knn": ["csml", "faiss", "scikit-learn"],
    "linear": ["csml, one rate", "csml, six rates", "scikit-learn L-BFGS"],
}
KNN_TOLERANCE = 0.05  # percentage points


def make_features(path, rows, dim, classes, seed):
    """Row i is of class i mod classes: in LATENT dimensions, as many as features of an encoder really use, the mean of its
    class plus noise; mapped to `dim` dimensions, with a little noise in each."""
    import numpy as np
    common = np.random.default_rng(1)
    means = SEPARATION * common.standard_normal((classes, LATENT), dtype=np.float32) / LATENT ** 0.5
    spread = common.standard_normal((LATENT, dim), dtype=np.float32) / LATENT ** 0.5
    random = np.random.default_rng(seed)
    description = {"features": {"dtype": "F32", "shape": [rows, dim], "data_offsets": [8 * rows, 8 * rows + 4 * rows * dim]},
                   "labels": {"dtype": "I64", "shape": [rows], "data_offsets": [0, 8 * rows]}}
    header = json.dumps(description).encode()
    header += b" " * (-len(header) % 8)
    labels = np.arange(rows, dtype=np.int64) % classes
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        labels.tofile(file)
        for first in range(0, rows, 1000):
            part = labels[first:first + 1000]
            latent = means[part] + random.standard_normal((len(part), LATENT), dtype=np.float32)
            (latent @ spread + 0.1 * random.standard_normal((len(part), dim), dtype=np.float32)).tofile(file)


def read_features(path):
    import numpy as np
    with open(path, "rb") as file:
        length, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    array = lambda name, dtype: np.fromfile(path, dtype, count=int(np.prod(header[name]["shape"])),
                                            offset=8 + length + header[name]["data_offsets"][0])
    return array("features", np.float32).reshape(header["features"]["shape"]), array("labels", np.int64)


def vote(similarity, index, labels, truth, classes):
    """Top-1 in percent of the vote sum over neighbours of exp(similarity / T)."""
    import numpy as np
    score = np.zeros((len(truth), classes))
    np.add.at(score, (np.arange(len(truth))[:, None], labels[index]), np.exp(similarity / TEMPERATURE, dtype=np.float64))
    return 100 * float((score.argmax(1) == truth).mean())


def rival(which, o):
    """One rival's work in this process: {"top1", "seconds", "cpu_seconds"}."""
    import numpy as np
    if which == "faiss":
        import faiss
        faiss.omp_set_num_threads(o.threads)
    elif which == "scikit-learn":
        from sklearn.neighbors import NearestNeighbors
    else:
        from sklearn.linear_model import LogisticRegression
    start, cpu = time.perf_counter(), time.process_time()
    (train, labels), (test, truth) = read_features(o.train), read_features(o.test)
    if which in ("faiss", "scikit-learn"):
        if which == "faiss":
            for rows in train, test:
                faiss.normalize_L2(rows)
            index = faiss.IndexFlatIP(train.shape[1])
            index.add(train)
            similarity, near = index.search(test, o.k)
        else:
            distance, near = NearestNeighbors(n_neighbors=o.k, algorithm="brute",
                                              metric="cosine").fit(train).kneighbors(test)
            similarity = 1 - distance
        top1 = vote(similarity, near, labels, truth, o.classes)
    else:
        import warnings
        warnings.simplefilter("ignore")  # not converged in 100 iterations
        model = LogisticRegression(C=1, max_iter=100)
        top1 = 100 * float((model.fit(train, labels).predict(test) == truth).mean())
    print(json.dumps({"top1": top1, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}))


def run(which, task, o):
    """Starts one rival and waits; adds "memory" in bytes. None, said on standard error, where it cannot run."""
    files = ["--train-features", o.train, "--test-features", o.test]
    if which.startswith("csml"):
        more = {"csml": ["knn", "--k", o.k, "--temperature", TEMPERATURE],
                "csml, one rate": ["linear", "--learning-rates", o.rate],
                "csml, six rates": ["linear"]}[which]
        command = [o.csml, *more, *files, "--json", "--quiet", "--threads", o.threads]
    else:
        command = [sys.executable, __file__, o.csml, "--child", which, "--train", o.train, "--test", o.test, "--k", o.k,
                   "--classes", o.classes, "--threads", o.threads]
    environment = {**os.environ, "OMP_NUM_THREADS": str(o.threads), "OPENBLAS_NUM_THREADS": str(o.threads),
                   "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([str(x) for x in command], stdout=subprocess.PIPE, stderr=errors, text=True,
                                   env=environment)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            print(f"{which}: left out: {(errors.read().strip().splitlines() or ['no message'])[-1]}", file=sys.stderr)
            return None
    got = json.loads(output)
    return {"top1": got["top1"], "seconds": got["seconds"], "memory": usage.ru_maxrss * 1024,
            "cpu_seconds": got.get("cpu_seconds", usage.ru_utime + usage.ru_stime)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csml")
    parser.add_argument("--size", default="50000,10000,2048", help="training rows, test rows, dimension")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--k", type=int, default=200)
    parser.add_argument("--rate", type=float, default=1, help="learning rate of the run with one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", default="knn,linear")
    parser.add_argument("--only", help="these rivals alone, separated by ;")
    parser.add_argument("--folder", help="for the feature files, which then stay")
    for hidden in "--child", "--train", "--test":
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.child == "features":
        rows, dim = (int(x) for x in o.size.split(","))
        return make_features(o.train, rows, dim, o.classes, o.seed)
    if o.child:
        return rival(o.child, o)
    n, m, dim = (int(x) for x in o.size.split(","))
    wrong = False
    if o.folder:
        os.makedirs(o.folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        o.train, o.test = (os.path.join(o.folder or temporary, f"{side}_{rows}x{dim}_{o.classes}.safetensors")
                           for side, rows in (("train", n), ("test", m)))
        for path, rows, seed in ((o.train, n, 2), (o.test, m, 3)):
            if not os.path.exists(path):
                # In a process of its own: what starts a rival must be small, for its memory counts as the rival's.
                subprocess.run([sys.executable, __file__, o.csml, "--child", "features", "--train", path, "--size",
                                f"{rows},{dim}", "--classes", str(o.classes), "--seed", str(seed)], check=True)
        print(f"{n} x {m} features of dimension {dim} ({4e-6 * (n + m) * dim:.0f} MB), {o.classes} classes, {o.threads} "
              f"threads, {o.rounds} rounds: median (least .. largest)")
        for task in o.tasks.split(","):
            results = {which: [] for which in RIVALS[task] if not o.only or which in o.only.split(";")}
            for _ in range(o.rounds):
                for which, got in results.items():
                    if got is not None:
                        one = run(which, task, o)
                        results[which] = None if one is None else got + [one]
            title = f"k-NN, k = {o.k}" if task == "knn" else "linear"
            print(f"\n{title:<22}{'top-1 %':>8}  {'CPU s':>26}  {'wall s':>26}  {'peak MB':>8}")
            for which, got in results.items():
                if not got:
                    continue
                spread = lambda key: "{:8.2f} ({:.2f} .. {:.2f})".format(
                    statistics.median(r[key] for r in got), min(r[key] for r in got), max(r[key] for r in got))
                print(f"{which:<22}{got[0]['top1']:8.2f}  {spread('cpu_seconds'):>26}  {spread('seconds'):>26}  "
                      f"{max(r['memory'] for r in got) / 1e6:8.0f}")
            top1 = [got[0]["top1"] for got in results.values() if got]
            if task == "knn" and max(top1, default=0) - min(top1, default=0) > KNN_TOLERANCE:
                print(f"the accuracies differ by more than {KNN_TOLERANCE} points", file=sys.stderr)
                wrong = True
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
