#!/usr/bin/env python3
"""Interrupts runs of csml in every way a machine can, and requires that the same command then ends with the weights of an
uninterrupted run, byte for byte, or says in one line why it cannot.

usage: faults.py CSML [--tries N] [--only NAME,…] [--library FILE] [--seed N] [--table FILE]

N tries of each fault (default 2). Runs until it is done; the seed it prints makes the same tries again. --library is the
preloaded library of failing writes (target failing_writes). What each fault does: docs/reliability.md."""
import argparse
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import resume_test  # the tiny run, what it wrote

EPOCHS = 4
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith("CSML_")},
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
    "OMPI_MCA_hwloc_base_binding_policy": "none", "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
}
SETTINGS = {"method.refresh_epochs": 2, "eval.knn_every_epochs": 1, "train.checkpoint_retry_seconds": 0.05,
            "comm.timeout_seconds": 8}


class Wrong(Exception):
    """What must not happen."""


class Skipped(Exception):
    """A fault that this machine or this build cannot make."""


def mpirun(processes):
    return ["mpirun", "-np", str(processes), "--oversubscribe", "--allow-run-as-root"]


class Faults:
    def __init__(self, options, folder):
        self.csml, self.library, self.folder = options.csml, options.library, folder
        self.random = random.Random(options.seed)
        self.number = 0
        self.whole_runs = {}

    # ---- runs ---------------------------------------------------------------------------------------------------------

    def command(self, out, processes=1, data=None, **settings):
        line = resume_test.command(self.csml, "csml", out)
        line[line.index("--epochs") + 1] = str(EPOCHS)
        if data:
            line[line.index("--data") + 1] = f"folder:{data}?size=16"
            settings["eval.knn_every_epochs"] = 0
        for key, value in {**SETTINGS, **settings}.items():
            line += ["--set", f"{key}={value}"]
        return (mpirun(processes) if processes > 1 else []) + line

    def start(self, line, **environment):
        return subprocess.Popen(line, env={**ENVIRONMENT, **environment}, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def finish(self, process, seconds=120):
        """Exit code and standard error; a process that does not end is what must not happen."""
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            raise Wrong(f"still running after {seconds} s: {errors[-800:]}")
        return process.returncode, errors

    def run(self, line, **environment):
        return self.finish(self.start(line, **environment))

    def fresh(self):
        self.number += 1
        return self.folder / f"run{self.number}"

    def whole(self, processes=1, data=None):
        """The uninterrupted run of so many processes, and the seconds it took."""
        key = (processes, data)
        if key not in self.whole_runs:
            out, start = self.fresh(), time.monotonic()
            code, errors = self.run(self.command(out, processes, data))
            if code != 0:
                if "no MPI" in errors:
                    raise Skipped("csml was built without MPI")
                raise Wrong(f"the uninterrupted run ended with {code}: {errors[-2000:]}")
            self.whole_runs[key] = out, time.monotonic() - start
        return self.whole_runs[key]

    def last_files(self, out):
        step, folder = resume_test.newest(out)
        return step, [(folder / name).read_bytes() for name in ("model.safetensors", "state.safetensors")]

    def must_equal(self, out, processes=1, data=None):
        if self.last_files(out) != self.last_files(self.whole(processes, data)[0]):
            raise Wrong(f"{out} does not end as the uninterrupted run")
        shutil.rmtree(out)

    def must_resume(self, out, processes=1, data=None, code=0, errors=""):
        """The same command, now left alone, ends as if nothing had been. Returns the outcome's name."""
        if code != 0:
            self.must_say(code, errors)
            until = time.monotonic() + 30  # a launcher may leave a frozen process for a moment
            while processes > 1 and self.processes(out) and time.monotonic() < until:
                time.sleep(0.02)
            after, said = self.run(self.command(out, processes, data))
            if after != 0:
                raise Wrong(f"after exit code {code} the same command ends with {after}: {said[-2000:]}")
        self.must_equal(out, processes, data)
        return "resumed" if code else "went on"

    def must_say(self, code, errors):
        """A process that ended by itself said why in one line; signals need no line."""
        lines = [line for line in errors.splitlines() if line.startswith("csml: ")]
        if code in (1, 2, 70) and not lines:
            raise Wrong(f"exit code {code} without a word: {errors[-800:]}")
        if "terminate called" in errors or "Segmentation" in errors:
            raise Wrong(f"not a clean end: {errors[-800:]}")

    def metrics(self, out):
        try:
            return (out / "metrics.jsonl").read_text()
        except FileNotFoundError:
            return ""

    def wait_for(self, process, condition, seconds=60):
        """Whether the condition came true while the process was running."""
        until = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < until:
            if condition():
                return True
            time.sleep(0.001)
        return False

    def processes(self, out):
        """Ids of the csml processes of a run."""
        found = []
        for entry in os.listdir("/proc"):
            try:
                words = pathlib.Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0] == self.csml.encode() and str(out).encode() in words:
                found.append(int(entry))
        return found

    def ranks(self, out, count):
        """Process ids by rank of a job under mpirun; None where not all are there."""
        found = {}
        for process in self.processes(out):
            try:
                variables = pathlib.Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            for variable in variables:
                if variable.startswith(b"OMPI_COMM_WORLD_RANK="):
                    found[int(variable.split(b"=")[1])] = process
        return found if len(found) == count else None

    # ---- faults: each does one try and returns the name of its outcome ---------------------------------------------------

    def fault_kill(self):
        """kill -9 at a random moment, until the run is done."""
        out, seconds = self.fresh(), self.whole()[1]
        process = self.start(self.command(out))
        time.sleep(self.random.uniform(0, seconds))
        process.kill()
        code, _ = self.finish(process)
        return self.must_resume(out, code=code)

    def rank_fault(self, number, all_of_them):
        out, seconds = self.fresh(), self.whole(2)[1]
        process = self.start(self.command(out, 2))
        time.sleep(self.random.uniform(0, seconds))
        ranks = self.ranks(out, 2)
        for rank in (ranks or {}) if all_of_them else self.random.sample(sorted(ranks or {}), 1 if ranks else 0):
            try:
                os.kill(ranks[rank], number)
            except ProcessLookupError:
                pass
        code, errors = self.finish(process)
        return self.must_resume(out, 2, code=code, errors="" if number == signal.SIGKILL else errors)

    def fault_kill_one_rank(self):
        """kill -9 of one of two ranks."""
        return self.rank_fault(signal.SIGKILL, False)

    def fault_kill_all_ranks(self):
        """kill -9 of both ranks."""
        return self.rank_fault(signal.SIGKILL, True)

    def fault_freeze_rank(self):
        """SIGSTOP of one of two ranks while they train: the other one ends the job."""
        self.whole(2)
        out = self.fresh()
        process = self.start(self.command(out, 2))
        if not self.wait_for(process, lambda: self.metrics(out).count('"kind":"step"') >= self.random.randint(1, 20)):
            raise Wrong("no step was seen")
        ranks = self.ranks(out, 2)
        frozen = self.random.choice([0, 1])
        if ranks:
            os.kill(ranks[frozen], signal.SIGSTOP)
        code, errors = self.finish(process)
        if ranks and code != 0 and f"[rank {1 - frozen}]" not in errors:
            raise Wrong(f"rank {1 - frozen} says nothing: {errors[-800:]}")
        return self.must_resume(out, 2, code=code, errors=errors)

    def stop_at(self, condition, delay=0.0, data=None):
        out = self.fresh()
        self.whole(1, data)
        process = self.start(self.command(out, 1, data))
        self.wait_for(process, lambda: condition(out))
        time.sleep(self.random.uniform(0, delay))
        process.send_signal(self.random.choice([signal.SIGTERM, signal.SIGUSR1]))
        code, errors = self.finish(process)
        if code not in (0, 75, -signal.SIGTERM, -signal.SIGUSR1):
            raise Wrong(f"exit code {code} after SIGTERM: {errors[-800:]}")
        if code < 0 and (out / "metrics.jsonl").exists():
            raise Wrong("killed by the signal though the run had begun")
        return self.must_resume(out, 1, data, code, errors)

    def fault_stop_in_decoding(self):
        """SIGTERM while images are read from files."""
        return self.stop_at(lambda out: '"kind":"step"' in self.metrics(out), 0.3, self.image_folder())

    def fault_stop_in_step(self):
        """SIGTERM in training steps."""
        step = self.random.randint(1, 30)
        return self.stop_at(lambda out: f'"step":{step},' in self.metrics(out), 0.02)

    def fault_stop_in_evaluation(self):
        """SIGTERM after the end of an epoch, when the k-NN is measured."""
        epoch = self.random.randint(0, EPOCHS - 1)
        return self.stop_at(lambda out: self.metrics(out).count('"kind":"epoch"') > epoch, 0.05)

    def fault_stop_in_refresh(self):
        """SIGTERM after the k-NN, when the neighbours are searched."""
        evaluations = self.random.choice([1, 3])
        return self.stop_at(lambda out: self.metrics(out).count('"kind":"eval"') >= evaluations, 0.05)

    def fault_stop_in_save(self):
        """SIGTERM while a checkpoint is being written aside."""
        return self.stop_at(lambda out: (out / "checkpoints").is_dir() and
                            any(".tmp-" in entry for entry in os.listdir(out / "checkpoints")), 0.01)

    def fault_stop_twice(self):
        """A second SIGTERM while the first one is not obeyed yet: the end at once."""
        out = self.fresh()
        process = self.start(self.command(out))
        self.wait_for(process, lambda: '"kind":"step"' in self.metrics(out))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGSTOP)  # both are delivered after the pause
        time.sleep(1.2)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        code, errors = self.finish(process)
        return self.must_resume(out, code=code, errors=errors)

    def fault_stop_hangs(self):
        """SIGUSR1 to one of two ranks while the other is frozen: train.stop_seconds ends the job."""
        self.whole(2)
        out = self.fresh()
        process = self.start(self.command(out, 2, **{"train.stop_seconds": 1, "comm.timeout_seconds": 60}))
        if not self.wait_for(process, lambda: '"kind":"step"' in self.metrics(out)):
            raise Wrong("no step was seen")
        ranks = self.ranks(out, 2)
        if ranks:
            os.kill(ranks[1], signal.SIGSTOP)
            os.kill(ranks[0], signal.SIGUSR1)
        code, errors = self.finish(process, 50)
        if ranks and "asked to stop 1 s ago" not in errors:
            raise Wrong(f"exit code {code}: {errors[-800:]}")
        return self.must_resume(out, 2, code=code, errors=errors)

    def failing_write(self, kind):
        if not self.library:
            raise Skipped("no --library")
        self.whole()
        if not hasattr(self, "calls"):
            out, count = self.fresh(), self.folder / "count"
            code, errors = self.run(self.command(out), LD_PRELOAD=self.library, CSML_FAULT_UNDER=str(out),
                                    CSML_FAULT_COUNT=str(count))
            self.calls = int(count.read_text())
            if code != 0 or self.calls < 100:
                raise Wrong(f"{self.calls} calls were counted, exit code {code}: {errors[-800:]}")
            self.must_equal(out)
            self.at = {}
        # Every call in turn, from a random one on.
        call = self.at[kind] = self.at.get(kind, self.random.randrange(self.calls)) % self.calls + 1
        out = self.fresh()
        code, errors = self.run(self.command(out), LD_PRELOAD=self.library, CSML_FAULT_UNDER=str(out),
                                CSML_FAULT_KIND=kind, CSML_FAULT_CALL=str(call),
                                CSML_FAULT_CALLS=str(self.random.choice([1, 1, 5])))
        if code not in (0, 1) or (kind == "short" and code != 0):
            raise Wrong(f"{kind} at call {call} of {self.calls}: exit code {code}: {errors[-800:]}")
        try:
            return self.must_resume(out, code=code, errors=errors)
        except Wrong as e:
            raise Wrong(f"{kind} at call {call} of {self.calls}: {e}") from e

    def fault_no_space(self):
        """A call that writes fails with ENOSPC, each in turn."""
        return self.failing_write("enospc")

    def fault_disk_error(self):
        """A call that writes fails with EIO, each in turn."""
        return self.failing_write("eio")

    def fault_short_write(self):
        """A write takes half of what it is given, each in turn."""
        return self.failing_write("short")

    def fault_full_disk(self):
        """A file system of 64 MB that fills up and, after some failed checkpoints, has room again."""
        self.whole()
        place = self.folder / "disk"
        place.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(place)],
                          stderr=subprocess.DEVNULL).returncode != 0:
            raise Skipped("a tmpfs cannot be mounted here")
        out, filler = place / "run", place / "filler"
        process = self.start(self.command(out))
        try:
            self.wait_for(process, lambda: '"kind":"step"' in self.metrics(out))
            try:
                with open(filler, "wb", buffering=0) as file:
                    while file.write(bytes(1 << 12)):
                        pass
            except OSError:  # it is full
                pass
            time.sleep(self.random.uniform(0, 0.5))
            filler.unlink(missing_ok=True)
            code, errors = self.finish(process)
            if code not in (0, 1):
                raise Wrong(f"exit code {code}: {errors[-800:]}")
            return self.must_resume(out, code=code, errors=errors) + ("" if "No space left" in errors else " (in time)")
        finally:
            process.kill()
            process.wait()
            subprocess.run(["umount", str(place)], check=False)

    def damage(self, apply):
        whole = self.whole()[0]
        out = self.fresh()
        shutil.copytree(whole, out)
        steps = sorted((out / "checkpoints").iterdir())
        for _ in range(self.random.choice([1, 1, 2])):  # the newest, sometimes the one before too
            folder = steps.pop()
            target = folder / self.random.choice(["model.safetensors", "state.safetensors", "manifest.json"])
            target.write_bytes(apply(target.read_bytes()))
        code, errors = self.run(self.command(out))
        if code != 0 or folder.name not in errors:
            raise Wrong(f"exit code {code} after damage to {target}: {errors[-800:]}")
        self.must_equal(out)
        return "refused by name, resumed"

    def fault_cut_checkpoint(self):
        """The newest checkpoint, sometimes two, cut off at a random length."""
        return self.damage(lambda data: data[:self.random.randrange(len(data))])

    def fault_bit_flip(self):
        """One bit changed anywhere in the newest checkpoint, sometimes in two."""
        def flip(data):
            data = bytearray(data)
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            return bytes(data)
        return self.damage(flip)

    def fault_damaged_names(self):
        """`latest` and metrics.jsonl cut off or overwritten."""
        out = self.fresh()
        process = self.start(self.command(out))
        self.wait_for(process, lambda: self.metrics(out).count('"kind":"step"') >= 15)
        process.kill()
        self.finish(process)
        for name in ("latest", "metrics.jsonl", "bad_images.jsonl"):
            data = (out / name).read_bytes() if (out / name).exists() else b""
            (out / name).write_bytes(self.random.choice([data[:self.random.randrange(len(data) + 1)],
                                                         self.random.randbytes(40), b""]))
        code, errors = self.run(self.command(out))
        if code != 0:
            raise Wrong(f"exit code {code}: {errors[-800:]}")
        self.must_equal(out)
        return "resumed"

    def image_folder(self):
        """Images in files, large enough that reading them takes as long as training on them."""
        folder = self.folder / "images"
        if not folder.exists():
            rng, side = random.Random(1), 200
            for i in range(64):
                (folder / f"class{i % 4}").mkdir(parents=True, exist_ok=True)
                (folder / f"class{i % 4}" / f"{i:02}.ppm").write_bytes(
                    b"P6\n%d %d\n255\n" % (side, side) + rng.randbytes(side * side * 3))
        return folder


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csml")
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--library", default="")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--table", default="")
    options = parser.parse_args()
    options.csml = os.path.abspath(options.csml)
    names = [name[len("fault_"):] for name in vars(Faults) if name.startswith("fault_")]
    chosen = [name for name in options.only.split(",") if name] or names
    unknown = set(chosen) - set(names)
    if unknown:
        sys.exit(f"unknown faults {sorted(unknown)}; known are {', '.join(names)}")
    print(f"--seed {options.seed}", flush=True)
    failures, rows = 0, []
    with tempfile.TemporaryDirectory(prefix="csml_faults_") as folder:
        faults = Faults(options, pathlib.Path(folder))
        for name in chosen:
            outcomes, start, wrong = {}, time.monotonic(), 0
            needs_mpi = "rank" in name or name == "stop_hangs"
            for attempt in range(options.tries):
                if needs_mpi and not shutil.which("mpirun"):
                    outcomes["skipped: mpirun not present"] = 1
                    break
                try:
                    outcome = getattr(faults, f"fault_{name}")()
                except Skipped as e:
                    outcomes[f"skipped: {e}"] = 1
                    break
                except Wrong as e:
                    outcome = "WRONG"
                    wrong += 1
                    print(f"{name}, try {attempt}: {e}", flush=True)
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            failures += wrong
            text = ", ".join(f"{count} {outcome}" if not outcome.startswith("skipped") else outcome
                             for outcome, count in sorted(outcomes.items()))
            rows.append(f"| {name.replace('_', ' ')} | {getattr(Faults, 'fault_' + name).__doc__} | {text} |")
            print(f"{name}: {text} ({time.monotonic() - start:.0f} s)", flush=True)
    if options.table:
        pathlib.Path(options.table).write_text(
            "\n".join(["| fault | what is done | outcomes |", "| --- | --- | --- |", *rows]) + "\n")
    print(f"{failures} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
