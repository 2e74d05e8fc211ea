#!/usr/bin/env python3
"""Whole pretraining runs of several processes under mpirun, beside the same run of one process.

usage: mpi_test.py CSML CASE     CASE: equal | wide | resume | faults | bases | sync | accumulate | timeline | kit | same
Exits with 77 (skipped) where mpirun is absent or csml was built without MPI."""
import array
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CSML = sys.argv[1]
CASE = sys.argv[2]
WORK = tempfile.mkdtemp(prefix="csml_mpi_")
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",  # needs ptrace, which containers refuse
    # The launcher's and the library's own leaks at the end are not ours to find.
    "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0",
}
failures = []


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what)


def mpirun(processes):
    return ["mpirun", "-np", str(processes), "--oversubscribe", "--allow-run-as-root"]


RECIPE = {
    "model.depth": 18, "model.stem": "cifar", "model.width": 8, "model.dim": 16, "augment.crop_size": 16,
    "method.queue": 72, "method.bn_group_size": 4, "method.neighbors": 3, "method.refresh_epochs": 2,
    "eval.knn_every_epochs": 2, "eval.knn_k": 5, "eval.resize": 0, "eval.size": 16, "eval.batch_size": 12,
    "train.log_every_steps": 1, "train.checkpoint_every_steps": 1, "train.checkpoint_every_epochs": 1,
    "train.keep_checkpoints": 100, "comm.timeout_seconds": 120,
}


def arguments(out, method, batch=16, data="synthetic:shapes?limit=64&size=16", epochs=4, **settings):
    keys = {**RECIPE, **{name.replace("__", "."): value for name, value in settings.items()}}
    line = ["pretrain", "--out", os.path.join(WORK, out), "--method", method, "--data", data,
            "--batch-size", str(batch), "--epochs", str(epochs), "--workers", "1", "--quiet", "--json"]
    if "test" not in settings:
        line += ["--test-data", "synthetic:shapes?limit=30&size=16&split=test"]
    for key, value in keys.items():
        if key != "test":
            line += ["--set", f"{key}={value}"]
    return line


def run(processes, out, method, expect=0, **settings):
    """Runs to the end; returns (the answer or None, standard error)."""
    command = [CSML] if processes == 0 else mpirun(processes) + [CSML]
    done = subprocess.run(command + arguments(out, method, **settings), env=ENVIRONMENT, capture_output=True, text=True,
                          timeout=600)
    check(done.returncode == expect, f"{out}: exit code {done.returncode}, expected {expect}: {done.stderr[-2000:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    check(len(lines) == (1 if expect == 0 else len(lines)), f"{out}: {len(lines)} answers")
    return (json.loads(lines[0]) if lines else None), done.stderr


def tensors(path):
    """name -> (dtype, values) of a safetensors file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    result = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        values = array.array({"F32": "f", "I32": "i", "I64": "q"}[entry["dtype"]])
        values.frombytes(data[begin:end])
        result[name] = (entry["dtype"], values)
    return result


def checkpoint(out, step):
    return os.path.join(WORK, out, "checkpoints", f"step_{step:08d}")


def state(out, step):
    folder = checkpoint(out, step)
    return {**tensors(os.path.join(folder, "model.safetensors")), **tensors(os.path.join(folder, "state.safetensors"))}


def content(out, step):
    folder = checkpoint(out, step)
    files = [open(os.path.join(folder, name), "rb") for name in ("model.safetensors", "state.safetensors")]
    return [file.read() for file in files]


def steps(out, kind="step"):
    with open(os.path.join(WORK, out, "metrics.jsonl"), encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if line["kind"] == kind]


def compare(one, other, step, tolerance):
    """Every tensor: max |difference| / max |value| within the tolerance, the optimizer's within MOMENTUM; whole numbers
    equal."""
    a, b = state(one, step), state(other, step)
    check(a.keys() == b.keys(), f"{one} and {other}: other tensors")
    worst = {}
    for name, (dtype, values) in a.items():
        if dtype != "F32":
            check(values == b[name][1], f"{other}, step {step}: {name} differs from {one}")
            continue
        # Biases start at zero and are as small as the steps themselves: those count against 0.01.
        largest = max(max(map(abs, values)), 1e-30 if name.startswith("optimizer.") else 1e-2)
        difference = max(map(lambda x, y: abs(x - y), values, b[name][1])) / largest
        bound = MOMENTUM if name.startswith("optimizer.") else tolerance
        worst[name.split(".")[0]] = max(worst.get(name.split(".")[0], 0.0), difference)
        check(difference <= bound, f"{other}, step {step}: {name} is off by {difference:.1e} of its largest value, more "
                                   f"than {bound:.0e}")
    print(f"{other} against {one}, step {step}: worst of the largest value",
          ", ".join(f"{part} {value:.1e}" for part, value in worst.items()))


def fork(out, copy):
    shutil.copytree(os.path.join(WORK, out), os.path.join(WORK, copy))


# Differences are float rounding: oneDNN sums a batch that is cut elsewhere in another order. Per tensor, in parts of its
# largest value, measured on this recipe: one step 3e-7, the momentum 3e-6; ten steps at a small learning rate 3e-6
# (training itself doubles differences every few steps). A value within rounding of zero may fall on the other side of a
# ReLU, and its gradient then jumps: 1.4e-3 of the momentum's largest value at once, seen in one of 20 steps. What a wrong
# share, a wrong permutation or a missing reduction does is a hundred times as large.
ONE_STEP = 5e-5
TEN_STEPS = 2e-4
MOMENTUM = 5e-2


def one_step(method, **settings):
    """The step after a state that all share, by 1, 2 and 4 processes."""
    run(0, f"{method}_base", method, train__max_steps=5, **settings)
    for processes in (0, 2, 4):
        fork(f"{method}_base", f"{method}_{processes}")
        run(processes, f"{method}_{processes}", method, train__max_steps=6, **settings)
    for processes in (2, 4):
        compare(f"{method}_0", f"{method}_{processes}", 6, ONE_STEP)
        ours, theirs = steps(f"{method}_{processes}")[-1], steps(f"{method}_0")[-1]
        for key in ("loss", "positive_similarity", "negative_similarity", "feature_spread"):
            check(abs(ours[key] - theirs[key]) <= 1e-5 * max(1, abs(theirs[key])),
                  f"{method}, {processes} processes: {key} {ours[key]}, one process {theirs[key]}")
    check(content(f"{method}_base", 5) != content(f"{method}_0", 6), "a step changes nothing")


def case_equal():
    """One step and ten steps are those of one process; the same number of processes gives the same bits."""
    for method in ("moco", "csml"):
        one_step(method)
    slow = {"schedule.lr": 0.001}
    for processes in (0, 2, 4):
        run(processes, f"ten_{processes}", "csml", train__max_steps=10, **slow)
    for processes in (2, 4):
        compare("ten_0", f"ten_{processes}", 10, TEN_STEPS)
        mine, theirs = steps(f"ten_{processes}", "eval"), steps("ten_0", "eval")
        check(len(mine) == 2 and len(theirs) == 2, "two k-NN evaluations")
        check(mine[0]["top1"] == theirs[0]["top1"], "k-NN of the untrained encoder, shared out, is that of one process")
    run(4, "again_4", "csml", train__max_steps=10, **slow)
    check(content("ten_4", 10) == content("again_4", 10), "four processes twice: other bits")


def case_wide():
    """Spans of the key shuffle inside a process, wider, and across its borders; unreadable images."""
    for span in (4, 12):
        run(0, f"span{span}_1", "csml", batch=24, method__shuffle_span=span, train__max_steps=2)
        run(2, f"span{span}_2", "csml", batch=24, method__shuffle_span=span, train__max_steps=2)
        compare(f"span{span}_1", f"span{span}_2", 1, ONE_STEP)
    run(3, "span12_3", "csml", batch=24, method__shuffle_span=12, train__max_steps=1)  # 8 images each
    compare("span12_1", "span12_3", 1, ONE_STEP)
    images = os.path.join(WORK, "images")
    os.makedirs(images)
    for i in range(40):
        pixels = bytes((i * 37 + p * (3 + i % 5) + p * p // 7) % 256 for p in range(16 * 16 * 3))
        with open(os.path.join(images, f"image{i:02d}.ppm"), "wb") as file:
            file.write(b"P6\n16 16\n255\n" + (pixels if i not in (7, 23) else pixels[:50]))
    bad = dict(data=images, data__max_bad_share=0.2, test=None, epochs=2)
    for processes in (0, 2, 4):
        answer, _ = run(processes, f"bad_{processes}", "csml", **bad)
        check(answer and answer["bad_images"] == 2, f"{processes} processes: {answer} counts other than 2 bad images")
        with open(os.path.join(WORK, f"bad_{processes}", "bad_images.jsonl"), encoding="utf-8") as file:
            named = sorted(os.path.basename(json.loads(line)["path"]) for line in file)
        check(named == ["image07.ppm", "image23.ppm"], f"{processes} processes: {named} named as bad")
        if processes:
            compare("bad_0", f"bad_{processes}", 1, ONE_STEP)


def case_resume():
    """One process, then four, then two; a signal to one process stops all; the end is that of one process."""
    run(0, "whole", "csml", epochs=5)
    run(0, "parts", "csml", epochs=5, train__max_steps=6)
    run(4, "parts", "csml", epochs=5, train__max_steps=13)
    run(2, "parts", "csml", epochs=5)
    whole, parts = steps("whole"), steps("parts")
    check([line["step"] for line in parts] == list(range(1, 21)), "every step is told once")
    worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(whole, parts))
    print(f"1 -> 4 -> 2 processes: losses differ by at most {worst:.4f} in 20 steps")
    check(worst < 0.05, f"1 -> 4 -> 2 processes: a loss differs by {worst}")

    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1")):
        job, ranks = start(2, name, epochs=400)
        os.kill(ranks[1], number)
        code, errors = finish(job)
        check(code == 75, f"{name}: exit code {code}, expected 75: {errors[-1500:]}")
        step = steps(name)[-1]["step"]
        check(os.path.exists(os.path.join(checkpoint(name, step), "manifest.json")), f"{name}: no checkpoint of {step}")
        check(any(line["event"] == "stopped" for line in steps(name, "event")), f"{name}: not told in the log")
        run(4, name, "csml", epochs=400, train__max_steps=step + 2, **QUICK)
        check(steps(name)[-1]["step"] == step + 2, f"{name}: the same command does not go on")


QUICK = {"eval.knn_every_epochs": 0, "train.checkpoint_every_steps": 0, "train.checkpoint_every_epochs": 0}


def start(processes, out, epochs, **settings):
    """A running job and its processes' ids by rank, once it trains."""
    job = subprocess.Popen(mpirun(processes) + [CSML] + arguments(out, "csml", epochs=epochs, **{**QUICK, **settings}),
                           env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = os.path.join(WORK, out, "metrics.jsonl")
    for _ in range(6000):
        if os.path.exists(log) and open(log, encoding="utf-8").read().count('"kind":"step"') >= 3:
            break
        if job.poll() is not None:
            break
        time.sleep(0.02)
    ranks = {}
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/environ", encoding="utf-8", errors="replace") as file:
                variables = dict(line.split("=", 1) for line in file.read().split("\0") if "=" in line)
            with open(f"/proc/{entry}/cmdline", encoding="utf-8", errors="replace") as file:
                words = file.read().split("\0")
        except (OSError, ValueError):
            continue
        if words[0] == CSML and os.path.join(WORK, out) in words and "OMPI_COMM_WORLD_RANK" in variables:
            ranks[int(variables["OMPI_COMM_WORLD_RANK"])] = int(entry)
    check(sorted(ranks) == list(range(processes)), f"{out}: processes {ranks}")
    return job, ranks


def alive(process):
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def finish(job):
    try:
        _, errors = job.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        job.kill()
        return None, "still running after five minutes"
    return job.returncode, errors


def case_faults():
    """What cannot be shared out is refused with one line; a process that hangs or dies ends the job."""
    for name, settings, words in (
            ("group", {"method.bn_group_size": 0}, ["batch-norm group of 16", "2 processes", "8 of 16"]),
            ("odd", {"batch": 15, "method.bn_group_size": 5}, ["train.batch_size = 15", "2 processes"])):
        _, errors = run(2, name, "moco", expect=2, **settings)
        said = [line for line in errors.splitlines() if "csml: " in line]
        check(len(said) == 1 and all(word in said[0] for word in words), f"{name}: says {said}")
    _, errors = run(2, "usage", "moco", expect=2, train__nonsense=1)
    check("train.nonsense" in errors, f"an unknown key: {errors[-500:]}")

    job, ranks = start(4, "hang", epochs=4000, comm__timeout_seconds=5)
    os.kill(ranks[2], signal.SIGSTOP)
    code, errors = finish(job)
    check(code == 70, f"a process that hangs: exit code {code}, expected 70: {errors[-1500:]}")
    said = [line for line in errors.splitlines() if line.startswith("csml: ")]
    check(said and all("[rank 2]" not in line for line in said), f"a process that hangs: says {said}")
    check(all(re.search(r"\[rank \d\] .*\(call \d+\) has waited \d+ s for the other processes in step \d+; before it: ",
                        line) for line in said), f"a process that hangs: says {said}")
    print("\n".join(said))
    for rank in ranks.values():
        for _ in range(500):
            if not alive(rank):
                break
            time.sleep(0.02)
        check(not alive(rank), f"process {rank} is left behind")

    job, ranks = start(2, "dead", epochs=4000)
    os.kill(ranks[1], signal.SIGKILL)
    code, errors = finish(job)
    check(code not in (0, None), f"a process that dies: exit code {code}")
    answer, _ = run(2, "dead", "csml", epochs=4000, train__max_steps=1, **QUICK)
    check(answer and answer["steps"] == 1, "a run whose process died does not start again")


def case_bases():
    """Bases whose gradient crosses processes (negatives of the batch) or passes a predictor; keys shuffled inside a
    process, as two directions ask."""
    for method in ("simclr", "mocov3", "byol"):
        one_step(method, method__shuffle_span=4)


def case_sync():
    """Batch-norm groups that span processes: of all of them, and of two of four."""
    for method, group in (("moco", 0), ("csml", 8), ("simclr", 0)):
        settings = {"method.bn_sync": "true", "method.bn_group_size": group}
        if method == "simclr":
            settings["method.shuffle_span"] = 4
        one_step(method, **settings)
    _, errors = run(2, "odd", "moco", expect=2, batch=24, method__bn_sync="true", method__bn_group_size=8)
    check("whole processes' shares" in errors, f"a group across one and a half processes: {errors[-500:]}")


def case_accumulate():
    """A step in parts is the step in one piece, with one process and with two; levels and patches too."""
    levels = {"method.levels": '["res5", "res4"]', "method.alignment": "patch"}
    for name, method, settings in (("moco", "moco", {}), ("csml", "csml", levels)):
        run(0, f"{name}_base", method, train__max_steps=5, **settings)
        fork(f"{name}_base", f"{name}_whole")
        run(0, f"{name}_whole", method, train__max_steps=6, **settings)
        for processes, parts in ((0, 2), (0, 4), (2, 2)):
            out = f"{name}_{processes}_{parts}"
            fork(f"{name}_base", out)
            run(processes, out, method, train__max_steps=6, train__accumulate=parts, **settings)
            compare(f"{name}_whole", out, 6, ONE_STEP)
            ours, theirs = steps(out)[-1], steps(f"{name}_whole")[-1]
            for key in ("loss", "positive_similarity", "negative_similarity", "lr", "momentum", "queue_fill"):
                check(abs(ours[key] - theirs[key]) <= 1e-5 * max(1, abs(theirs[key])), f"{out}: {key} {ours[key]}, in one "
                                                                                       f"piece {theirs[key]}")
    for words, settings in ((["parts of 2", "at most 4 parts"], {"train.accumulate": 8}),
                            (["whole batch"], {"train.accumulate": 2, "method.name": "simclr"})):
        _, errors = run(0, "refused", "moco", expect=2, **settings)
        check(all(word in errors for word in words), f"{settings}: {errors[-500:]}")


def case_timeline():
    """Bucket reductions of a whole run start during backward, in the order in which buckets are complete."""
    path = os.path.join(WORK, "trace.json")
    ENVIRONMENT["CSML_TIMELINE"] = path
    # Wide enough for several buckets of 8 MiB.
    run(2, "timed", "moco", batch=8, train__max_steps=3, model__width=64, model__dim=64, test=None)
    del ENVIRONMENT["CSML_TIMELINE"]
    for file in (path, path + ".1"):
        with open(file, encoding="utf-8") as opened:
            trace = json.load(opened)
        tracks = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
        events = {name: sorted((e for e in trace["traceEvents"] if e["ph"] != "M" and tracks[e["tid"]] == name),
                               key=lambda e: e["ts"]) for name in tracks.values()}
        passes, ops = events["passes"], events["backward ops"]
        complete, reductions = events["gradient buckets complete"], events["reductions"]
        check(len(passes) == 3, f"{len(passes)} backward passes of 3 steps")
        for single in passes:
            inside = lambda e: single["ts"] <= e["ts"] < single["ts"] + single["dur"]
            last_op = max(e["ts"] + e["dur"] for e in filter(inside, ops))
            ready, started = list(filter(inside, complete)), list(filter(inside, reductions))
            check(len(started) == len(ready) >= 3, f"{len(started)} reductions of {len(ready)} buckets")
            check([e["name"].split(":")[0] for e in ready] == [f"bucket {i}" for i in range(len(ready))], "order of buckets")
            for a, b, after in zip(ready, started, ready[1:]):
                check(a["ts"] <= b["ts"] <= after["ts"], "a reduction does not start when its bucket is complete")
                check(b["ts"] < last_op, "a reduction starts after backward")
        about = trace["otherData"]
        print(f"rank {about['rank']}: reductions under way {1e3 * about['communication_seconds']:.1f} ms in 3 steps, "
              f"{100 * about['exposed_share']:.0f} % exposed")


def case_kit():
    """csml doctor of several processes; scripts/cluster/mpirun.sh with the real mpirun, stopped by a SIGTERM."""
    done = subprocess.run(mpirun(2) + [CSML, "doctor", "--device", "cpu", "--out", WORK, "--megabytes", "1", "--json"],
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    check(done.returncode == 0, f"doctor: exit code {done.returncode}: {done.stderr[-1500:]}")
    answer = json.loads(done.stdout)
    found = {f["check"]: f for f in answer["findings"]}
    check(answer["processes"] == 2, f"doctor: {answer}")
    check(found["all-reduce: bandwidth"]["value"] > 0 and found["all-reduce: latency"]["value"] > 0, "doctor: no figures")
    check(found["device"]["ranks"] == [0, 1] and found["out: writing"]["ranks"] == [0], f"doctor: {found}")
    print(found["all-reduce: bandwidth"]["text"], "|", found["all-reduce: latency"]["text"])
    done = subprocess.run(mpirun(2) + [CSML, "doctor", "--device", "cpu", "--data", "folder:/nowhere", "--json"],
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    check(done.returncode == 1 and json.loads(done.stdout)["fail"] == 1, f"doctor without data: {done.stdout}")

    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts", "cluster", "mpirun.sh")
    command = [script, "2"] + arguments("script", "csml", epochs=4000, **QUICK)[1:]
    job = subprocess.Popen(command, env={**ENVIRONMENT, "CSML": CSML}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True)
    log = os.path.join(WORK, "script", "metrics.jsonl")
    for _ in range(3000):
        if job.poll() is not None or (os.path.exists(log) and open(log, encoding="utf-8").read().count('"step"') > 3):
            break
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    code, errors = finish(job)
    check(code == 75, f"mpirun.sh: exit code {code}, expected 75: {errors[-1500:]}")
    check(any(line["event"] == "stopped" for line in steps("script", "event")), "mpirun.sh: not told in the log")


def case_same():
    """Processes that were started differently are told so before anything is written."""
    line = [CSML] + arguments("same", "moco", train__max_steps=1, test=None)
    out = os.path.join(WORK, "same")

    def two(second, environment=()):
        command = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-np", "1", *line, ":", "-np", "1", "env",
                   *environment, *line, *second]
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)

    for second, environment, what in ((["--set", "schedule.lr=0.5"], [], "its schedule.lr is 0.5, rank 0's 0.03"),
                                      (["--seed", "7"], [], "its train.seed is 7, rank 0's 0"),
                                      ([], ["CSML_METHOD_TEMPERATURE=0.4"], "its method.temperature is 0.4")):
        done = two(second, environment)
        check(done.returncode != 0, f"{what}: exit code 0")
        check(f"rank 1 was started differently: {what}" in done.stderr, f"{what}: {done.stderr[-800:]}")
        check(not os.path.exists(out), f"{what}: a folder was made")
    done = two(["--threads", "2"])  # may differ
    check(done.returncode == 0, f"threads: {done.stderr[-800:]}")


def main():
    if not shutil.which("mpirun"):
        print("skipped: mpirun not present")
        return 77
    probe = subprocess.run(mpirun(2) + [CSML] + arguments("probe", "moco", train__max_steps=1, test=None),
                           env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    if "the build has no MPI" in probe.stderr:
        print("skipped: csml was built without MPI")
        return 77
    try:
        globals()[f"case_{CASE}"]()
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    print(f"{CASE}: {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
