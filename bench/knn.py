#!/usr/bin/env python3
"""k-NN search of csml beside scikit-learn and faiss, alternating in one run on the same machine and threads.

usage: bench/knn.py CSML [--size N,M,D,K] [--rounds R] [--threads T]

All three find the K nearest of N unit rows for M unit queries of D dimensions; csml's time includes the vote. scikit-learn:
NearestNeighbors(algorithm="brute", metric="cosine"), faiss: IndexFlatIP. What is not installed is left out by name.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def child(which, size, threads):
    """Seconds of one search in a process of its own."""
    import numpy as np
    n, m, d, k = size
    random = np.random.default_rng(0)
    rows = lambda count: (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))(
        random.uniform(-1, 1, (count, d)).astype(np.float32))
    bank, queries = rows(n), rows(m)
    if which == "scikit-learn":
        from sklearn.neighbors import NearestNeighbors
        index = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine").fit(bank)
        search = lambda: index.kneighbors(queries)
    else:
        import faiss
        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(d)
        index.add(bank)
        search = lambda: index.search(queries, k)
    start, cpu = time.perf_counter(), time.process_time()
    search()
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csml")
    parser.add_argument("--size", default="10000,2000,2048,200")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    o = parser.parse_args()
    size = [int(x) for x in o.size.split(",")]
    if o.child:
        return child(o.child, size, o.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": str(o.threads), "OPENBLAS_NUM_THREADS": str(o.threads)}
    times = {}
    for _ in range(o.rounds):
        for which in ("csml", "scikit-learn", "faiss"):
            if times.get(which) is None and which in times:
                continue
            command = ([o.csml, "bench", "--knn", o.size, "--windows", "1", "--seconds", "0", "--warmup", "1", "--json",
                        "--threads", str(o.threads)] if which == "csml" else
                       [sys.executable, __file__, o.csml, "--size", o.size, "--threads", str(o.threads), "--child", which])
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                print(f"{which}: left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                times[which] = None
                continue
            got = json.loads(done.stdout)
            times.setdefault(which, []).append(got["ms"] / 1e3 if which == "csml" else got["seconds"])
    n, m, d, k = size
    print(f"{n} x {m} x {d}, k {k}, {o.threads} threads, {o.rounds} rounds, seconds: median (least .. largest)")
    for which, seconds in times.items():
        if seconds:
            print(f"{which:<14}{statistics.median(seconds):8.2f} ({min(seconds):.2f} .. {max(seconds):.2f})")


if __name__ == "__main__":
    main()
