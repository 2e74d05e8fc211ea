#!/usr/bin/env python3
"""Everything that only a GPU can show, in one call: csml doctor, every test on the card, golden steps in each precision,
compute-sanitizer, replay against eager, csml against PyTorch in each precision, then the times of both. Writes
OUT/gpu_check.json and OUT/gpu_check.md, a section ready for docs/gpu.md, and a log per stage; each stage has a time limit,
and one that fails never stops the others.

Exit codes: 0 everything ran and every first bar was met; 1 something failed; 2 wrong usage; 3 no GPU; 4 nothing failed,
but something could not run or a first bar was missed (the table says which).
"""
import argparse
import datetime
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time

import machine
from stages import FAIL, NOT_RUN, PASS, Stages, json_lines
from table import markdown, rows
from works import tiny_works, works

ROOT = pathlib.Path(__file__).resolve().parents[2]
RIVAL = ROOT / "bench/pytorch/run.py"
# Cases of kernels_test for compute-sanitizer, which slows kernels down by tens.
SANITIZED = "elementwise*,pooling,losses,commit*,top k"
SANITIZED_QUICKLY = "losses,commit*"
GOLDEN = "precision_steps_test"  # tells every comparison on a line; a stage of its own
# What a build must bring; a missing one is told.
NEEDED = ["kernels_test", "precision_test", "replay_test"]
# Whole runs and evaluations: the last thing that is done, when the times are there.
RUNS = ["golden_test", "interruption_test", "knn_svm_finetune_test", "models_test", "torchvision_features_test", "train_test"]
EXACT = {"interruption_test", "knn_svm_finetune_test", "train_test"}  # compare runs byte by byte: deterministic plans


class Check:
    def __init__(self, options):
        self.o = options
        self.device, self.cpu = options.device, options.device == "cpu"
        self.stages = Stages(options.out, options.minutes, options.limit, options.stages and options.stages.split(","))
        self.times, self.checks, self.libraries, self.build = [], [], {"folders": [], "files": {}}, None
        self.findings, self.golden_steps, self.buckets, self.ops = [], [], [], []
        self.python, self.torch, self.no_torch = machine.python_with_torch(options.python)
        self.no_start = ""  # why the build cannot be used on the device
        self.works = tiny_works() if options.tiny else [w for w in works() if w.quick or not options.quick]
        self.window = {"windows": 3, "seconds": 0.05} if options.tiny else \
            {"windows": 5, "seconds": 0.3} if options.quick else {"windows": 5, "seconds": 1}

    # ---- what everything needs ---------------------------------------------------------------------------------------

    def environment(self, more=None):
        """Of csml and its tests: CUDA's libraries, and the shared libraries that a packed build brings."""
        folders = self.libraries["folders"]
        carried = [str(self.build / "lib")] if self.build and (self.build / "lib").is_dir() else []
        path = [*carried, *folders, os.environ.get("LD_LIBRARY_PATH", "")]
        return {"CSML_CUDA_LIBRARIES": os.environ.get("CSML_CUDA_LIBRARIES", ":".join(folders)),
                "LD_LIBRARY_PATH": ":".join(p for p in path if p), "CSML_TEST_BACKEND": self.device, **(more or {})}

    def csml(self, *arguments):
        return [self.build / "csml", *arguments]

    def prepare(self):
        """The build, and whether it starts on the device."""
        self.libraries = machine.libraries([self.python, sys.executable])
        found = {name: [os.path.basename(p) for p in paths] for name, paths in self.libraries["files"].items()}
        lacking = [name for name, files in found.items() if not files]
        if not self.cpu:
            self.stages.note("libraries", FAIL if "libcudnn.so" in lacking or "libcublasLt.so" in lacking else PASS,
                             f"not found: {', '.join(lacking)}" if lacking else "", found=found,
                             folders=self.libraries["folders"])
        self.build = pathlib.Path(self.o.build) if self.o.build else ROOT / "build/cuda"
        if self.o.build:
            self.build = machine.unpacked(self.build, self.o.out / "build")
        elif not (self.build / "csml").exists():
            self.make_build()
        if not (self.build / "csml").exists():
            self.no_start = f"{self.build} has no csml"
            self.stages.note("start", FAIL, self.no_start)
            return
        for program in [self.build / "csml", *self.build.glob("*_test")]:
            program.chmod(program.stat().st_mode | 0o111)  # copying may have lost it
        started = self.stages.run("start", self.csml("bench", "--part", "commit", "--size", "1000", "--windows", "1",
                                                     "--seconds", "0", "--device", self.device, "--json"), 60,
                                  self.environment())
        if started["state"] != PASS and started["why"] != "not asked for":
            self.no_start = f"the build does not start on {self.device}: {started['why']}"

    def make_build(self):
        nvcc = machine.program("nvcc") or next(iter((ROOT / ".deps/cuda").glob("nvidia/*/bin/nvcc")), None)
        missing = "" if nvcc and shutil.which("cmake") else \
            "no build given (--build DIR), and nvcc or cmake is absent: scripts/setup.sh --cuda, or carry a build " \
            "(scripts/gpu_pack.sh)"
        configured = self.stages.run("configure", ["cmake", "--preset", "cuda", "-S", ROOT, "-B", self.build], 120,
                                     missing=missing, always=True)
        if configured["state"] == PASS:
            self.stages.run("build", ["cmake", "--build", self.build, "-j", os.cpu_count()], 60 * self.o.minutes,
                            always=True)

    def doctor(self):
        """What csml says of the machine; only what will fail a run fails here."""
        done = self.stages.run("doctor", self.csml("doctor", "--device", self.device, "--out", self.o.out, "--json"), 60,
                               self.environment(), self.no_start)
        self.findings = (json_lines(done["output"]) or [{}])[-1].get("findings", [])

    # ---- correctness -------------------------------------------------------------------------------------------------

    def tests(self):
        """Every test program; those that take a device from the environment on the card, in three ways."""
        programs = sorted(self.build.glob("*_test")) if self.build else []
        on_device = [p.name for p in programs if b"CSML_TEST_BACKEND" in p.read_bytes() and p.name not in (GOLDEN, *RUNS)]
        missing = self.no_start or ("" if on_device else f"{self.build} holds no test program that runs on a device")
        limit = 60 if self.o.quick else 150
        for name in sorted({*on_device, *NEEDED}):
            self.stages.run(f"test_{name[:-5]}", [self.build / name], limit, self.environment(),
                            missing or ("" if name in on_device else f"{self.build} has no {name}"))
        if self.o.quick:
            return
        kernels = [self.build / "kernels_test"]
        for name, more in (("sync", {"CSML_SYNC": "1", "CSML_EAGER": "1"}), ("deterministic", {"CSML_DETERMINISTIC": "1"})):
            self.stages.run(f"test_kernels_{name}", kernels, limit, self.environment(more), missing)

    def runs(self):
        """What a run does beside its steps, and what judges it: refreshes, stops, resuming, evaluation."""
        if self.o.quick:
            return
        for name in RUNS:
            missing = self.no_start or ("" if self.build and (self.build / name).exists() else f"{self.build} has no {name}")
            more = {"CSML_DETERMINISTIC": "1"} if name in EXACT else {}
            done = self.stages.run(f"test_{name[:-5]}", [self.build / name], 150, self.environment(more), missing)
            if done["state"] == PASS and "skipped:" in done["output"]:  # its data are not here
                self.stages.note(f"test_{name[:-5]}_whole", NOT_RUN,
                                 next(line for line in done["output"].splitlines() if "skipped:" in line).strip())

    def golden(self):
        """Whole training steps against PyTorch's in f64, in f32, TF32, bf16 and f16; allowed errors are the test's."""
        missing = self.no_start or ("" if self.build and (self.build / GOLDEN).exists() else f"{self.build} has no {GOLDEN}")
        done = self.stages.run("golden_steps", [self.build / GOLDEN], 60, self.environment(), missing)
        self.golden_steps = [line for line in json_lines(done["output"]) if line.get("kind") == "golden"]

    def host_tests(self):
        """The test programs that need no device: whether this machine's processor and libraries agree with the build."""
        programs = sorted(self.build.glob("*_test")) if self.build else []
        for program in programs:
            if b"CSML_TEST_BACKEND" not in program.read_bytes() and not self.o.quick:
                self.stages.run(f"host_{program.name[:-5]}", [program], 60, self.environment())

    def sanitizer(self):
        tool = machine.program("compute-sanitizer")
        missing = self.no_start or ("" if tool else "compute-sanitizer is absent (CUDA toolkit)") or \
            ("" if (self.build / "kernels_test").exists() else f"{self.build} has no kernels_test")
        for name in ["memcheck"] if self.o.quick else ["memcheck", "racecheck", "synccheck"]:
            cases = SANITIZED_QUICKLY if self.o.quick or name == "racecheck" else SANITIZED
            self.stages.run(f"sanitizer_{name}", [tool, "--tool", name, "--error-exitcode", "9",
                                                  self.build / "kernels_test", f"--test-case={cases}"], 60,
                            self.environment(), missing)

    def pretrain(self, name, device, more, steps=12):
        """A short run from one seed; {step: loss} and its folder."""
        folder = self.o.out / f"run-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        width = ["--set", "model.width=8", "--set", "method.queue=128"] if self.o.tiny else []
        result = self.stages.run(name, self.csml(
            "pretrain", "--preset", "cifar10-small", "--data", "synthetic:shapes?limit=512", "--set", "train.seed=1",
            "--set", "train.log_every_steps=1", "--set", "train.batch_size=32", "--set", f"train.max_steps={steps}",
            "--set", "data.workers=0", *width, "--epochs", "2", "--device", device, "--out", folder, "--json"), 60,
            self.environment(more), self.no_start)
        losses = {}
        if result["state"] == PASS:
            for line in json_lines((folder / "metrics.jsonl").read_text()):
                if line.get("kind") == "step":
                    losses[line["step"]] = line["loss"]
        return losses, folder

    def replay(self):
        """Recorded and eager steps, and two recorded runs: losses and weights to the last bit."""
        fixed = {"CSML_DETERMINISTIC": "1"}
        runs = {name: self.pretrain(name, self.device, {**fixed, **more})
                for name, more in (("replay_eager", {"CSML_EAGER": "1"}), ("replay_recorded", {}), ("replay_again", {}))}
        if not all(losses for losses, _ in runs.values()):
            self.stages.note("replay_equal", NOT_RUN, "a run is missing")
            return
        (eager, first), *others = runs.values()
        different = []
        for losses, folder in others:
            if losses != eager:
                different.append(f"losses from step {min(s for s in eager if losses.get(s) != eager[s])}")
            if weights(first) != weights(folder):
                different.append(f"weights of {folder.name}")
        self.stages.note("replay_equal", FAIL if different else PASS, ", ".join(different))

    def seed(self):
        """The same run on the CPU and on the card: the first losses, before training amplifies rounding."""
        cpu, card = (self.pretrain(name, device, {}, 4)[0] for name, device in (("seed_cpu", "cpu"),
                                                                               ("seed_card", self.device)))
        first = sorted(set(cpu) & set(card))[:3]
        if not first:
            self.stages.note("seed_equal", NOT_RUN, "a run is missing")
            return
        worst = max(abs(cpu[s] - card[s]) / abs(cpu[s]) for s in first)
        self.stages.note("seed_equal", PASS if worst <= 2e-3 else FAIL, f"largest difference {worst:.2g} of the loss",
                         cpu=[cpu[s] for s in first], card=[card[s] for s in first])

    # ---- csml beside PyTorch -----------------------------------------------------------------------------------------

    @staticmethod
    def precision(work, name):
        """(arguments, environment) of csml for a precision."""
        arguments = ["--precision", name] if name in ("bf16", "fp16") else []
        return arguments, {} if name == "fp32" else {"CSML_TF32": "1"}

    def compare(self, work, scratch):
        """Both sides from one start in every precision that the work names; what csml wrote stays for tiny times."""
        files = {}
        for precision in work.checked:
            entry = {"work": work.name, "precision": precision, "state": NOT_RUN, "why": self.no_start or self.no_torch}
            self.checks.append(entry)
            if entry["why"]:
                continue
            arguments, more = self.precision(work, precision)
            file = scratch / f"{work.name}-{precision}.safetensors"
            made = self.stages.run(f"exchange_{work.name}_{precision}", self.csml(
                "bench", *work.check, *arguments, "--exchange", file, "--windows", "1", "--seconds", "0", "--warmup", "1",
                "--device", self.device, "--json"), 60, self.environment({"CSML_DETERMINISTIC": "1", **more}))
            if made["state"] == PASS:
                files[precision] = file
            else:
                entry.update(state=made["state"], why=made["why"])
        if not files:
            return files
        done = self.stages.run(f"check_{work.name}", [
            self.python, RIVAL, "--case", work.case, "--check", "--exchange", *files.values(), "--precision", *files,
            "--device", self.rival_device()], 90)
        lines = {line["precision"]: line for line in json_lines(done["output"])}
        for entry in [c for c in self.checks if c["work"] == work.name and c["precision"] in files]:
            line = lines.get(entry["precision"], {})
            wrong = [f"{q['quantity']} {q['csml']:.2g}, allowed {q['allowed']:.2g} (PyTorch {q['pytorch']:.2g})"
                     for q in line.get("quantities", []) if not q["passed"]]
            why = "; ".join(wrong) or line.get("error") or line.get("unavailable", "")
            state = PASS if line.get("passed") else FAIL if wrong or line.get("error") else NOT_RUN
            entry.update(state=state, why=why or ("" if line else done["why"]), quantities=line.get("quantities", []))
        return files

    def rival_device(self):
        return "cpu" if self.cpu else self.device

    def time_work(self, work, files):
        alike = {w.name for w in self.works if w.case == work.case}  # one size's check speaks for all
        failed = {c["precision"] for c in self.checks if c["work"] in alike and c["state"] == FAIL}
        seconds = self.window["seconds"] if work.images else min(self.window["seconds"], 0.3)  # parts take about 1 ms
        window = ["--windows", self.window["windows"], "--seconds", seconds]
        for precision in work.csml:
            base = {"work": work.name, "side": "csml", "precision": precision, "mode": "recorded"}
            if precision in failed or self.no_start:
                self.times.append({**base, "why": self.no_start or f"not timed: the check in {precision} failed"})
                continue
            arguments, more = self.precision(work, precision)
            done = self.stages.run(f"time_{work.name}_{precision}", self.csml(
                "bench", *work.ours, *arguments, *window, "--device", self.device, "--json"), 60, self.environment(more))
            line = (json_lines(done["output"]) or [{}])[-1] if done["state"] == PASS else {}
            self.times.append({**base, **without(line, ("case", "precision", "task")), "why": done["why"]})
        for number, (precisions, modes) in enumerate(work.pytorch):
            if self.o.quick:
                modes = [m for m in modes if m == "eager" or not work.images]
            if self.no_torch:
                self.times.append({"work": work.name, "side": "pytorch", "precision": "", "mode": "", "why": self.no_torch})
                continue
            sizes = work.theirs if work.theirs is not None else ["--exchange", *files.values()]
            if work.theirs is None and not files:
                continue
            limit = 60 if self.o.quick else 110
            done = self.stages.run(f"rival_{work.name}_{number}", [
                self.python, RIVAL, "--case", work.case, *sizes, "--precision", *precisions, "--mode", *modes, *window,
                "--device", self.rival_device(), "--budget", str(limit / 2)], limit)
            lines = json_lines(done["output"])
            for line in lines:
                self.times.append({"work": work.name, "side": "pytorch", **without(line, ("case", "kind")),
                                   "why": line.get("error") or line.get("unavailable", "")})
            if not lines:
                self.times.append({"work": work.name, "side": "pytorch", "precision": "", "mode": "", "why": done["why"]})

    def side_by_side(self):
        for work in self.works:
            with tempfile.TemporaryDirectory(dir=self.o.out) as scratch:
                files = self.compare(work, pathlib.Path(scratch))
                self.time_work(work, files)

    # ---- what is only read -------------------------------------------------------------------------------------------

    def idle(self):
        """Share of a recorded step in which no kernel runs, by Nsight Systems."""
        nsys = machine.program("nsys")
        missing = self.no_start or ("no card" if self.cpu else "") or ("" if nsys else "nsys (Nsight Systems) is absent")
        trace = self.o.out / "idle"
        work = next((w for w in self.works if w.name == "moco_b256"), None)
        precision = next((t["precision"] for t in self.times if t["side"] == "csml" and t["work"] == "moco_b256" and
                          "ms" in t), "fp32")
        arguments, more = self.precision(work, precision)
        done = self.stages.run("idle_trace", [nsys, "profile", "--trace=cuda", "--cuda-graph-trace=node", "--sample=none",
                                              "--force-overwrite=true", "--export=sqlite", f"--output={trace}",
                                              *self.csml("bench", *work.ours, *arguments, "--windows", "1", "--seconds",
                                                         "1", "--device", self.device, "--json")], 90,
                               self.environment(more), missing)
        if done["state"] != PASS:
            self.stages.note("idle", NOT_RUN, done["why"])
            return
        from idle import idle_share
        try:
            share = idle_share(f"{trace}.sqlite", 0.5)
            self.stages.note("idle", PASS, f"{100 * share:.2f} % of the last half second, {precision}", idle_share=share)
        except Exception as error:  # the trace's tables differ between versions of nsys
            self.stages.note("idle", FAIL, f"{type(error).__name__}: {error}")

    def exposed(self):
        """Reductions of gradient buckets, played by copies of equal bytes beside the supervised step: what of their time
        the step does not hide, by MiB of a bucket."""
        work = next(w for w in self.works if w.name == "resnet50_b256")
        arguments, more = self.precision(work, work.csml[0])
        for mib in [8] if self.o.quick or self.o.tiny else [8, 25]:
            done = self.stages.run(f"buckets_{mib}", self.csml(
                "bench", *work.ours, *arguments, "--buckets", mib, "--windows", "3", "--seconds",
                min(0.5, self.window["seconds"]), "--device", self.device, "--json"), 45, self.environment(more),
                self.no_start)
            line = (json_lines(done["output"]) or [{}])[-1] if done["state"] == PASS else {}
            if "buckets" in line:
                self.buckets.append({"precision": work.csml[0], **line["buckets"]})

    def kernels(self):
        """Time and share of the roofline of every kernel, and the plans that measuring picks; for reading."""
        if self.o.quick or self.o.tiny:
            return
        done = self.stages.run("ops", self.csml("bench", "--op", "all", "--windows", "3", "--seconds", "0.05", "--device",
                                                self.device, "--json"), 60, self.environment(), self.no_start)
        self.ops = (json_lines(done["output"]) or [{}])[-1].get("ops", [])
        self.stages.run("plans", self.csml("bench", "--step", "resnet50", "--batch", "256", "--windows", "1", "--device",
                                           self.device, "--json"), 60,
                        self.environment({"CSML_CUDA_PLANS": "1", "CSML_TF32": "1"}), self.no_start)

    def everything(self):
        for part in (self.prepare, self.doctor, self.tests, self.golden, self.replay, self.seed, self.side_by_side,
                     self.exposed, self.idle, self.sanitizer, self.kernels, self.runs, self.host_tests):
            try:
                part()
            except Exception as error:  # a mistake of this script must not cost what was seen
                self.stages.note(part.__name__, FAIL, f"{type(error).__name__}: {error}")


def without(line, keys):
    return {key: value for key, value in line.items() if key not in keys}


def weights(folder):
    """The bytes of a run's last checkpoint."""
    latest = folder / (folder / "latest").read_text().strip()
    return (latest / "model.safetensors").read_bytes()


def exit_code(seen):
    if any(entry["state"] == FAIL for entry in [*seen["stages"], *seen["checks"]]):
        return 1
    return 0 if all(row["state"] == PASS for row in seen["rows"]
                    if row["first_bar"] and not row.get("by_hand")) else 4


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     prog="scripts/gpu_check.sh")
    parser.add_argument("--build", help="a build made before, or a folder of scripts/gpu_pack.sh's; default: build/cuda, "
                                        "configured and built where absent")
    parser.add_argument("--device", default="cuda:0", help="cuda:N; cpu is for trying this script out, with --tiny")
    parser.add_argument("--out", help="folder of the results [runs/gpu_check-DATE]")
    parser.add_argument("--python", help="an interpreter that has PyTorch; default: the first that does")
    parser.add_argument("--quick", action="store_true", help="the most important part, in under three minutes")
    parser.add_argument("--minutes", type=float, help="of the whole call [9.5; 2.8 with --quick]; what has not begun by "
                                                      "then is not run, by name")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds of any one stage, below its own limit")
    parser.add_argument("--stages", help="only stages whose names begin with one of these, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: whether everything fits together")
    options = parser.parse_args()
    options.minutes = options.minutes or (2.8 if options.quick else 9.5)
    arguments = sys.argv[1:]
    card = machine.card(options.device) if options.device != "cpu" else {}
    if card is None:
        print(f"gpu_check: no GPU: nvidia-smi is absent or does not list {options.device}", file=sys.stderr)
        return 3
    now = datetime.datetime.now(datetime.timezone.utc)
    options.out = pathlib.Path(options.out or ROOT / f"runs/gpu_check-{now:%Y%m%d-%H%M%S}").resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)  # test programs look for tests/golden here
    start = time.monotonic()
    check = Check(options)
    check.everything()
    seen = {"schema": 1, "date": now.isoformat(timespec="seconds"), "commit": machine.commit(ROOT), "card": card,
            "cuda_of_driver": machine.cuda_of_driver(), "torch": check.torch, "build": str(check.build),
            "arguments": arguments, "seconds": time.monotonic() - start, "libraries": check.libraries,
            "stages": check.stages.results, "checks": check.checks, "times": check.times, "ops": check.ops,
            "findings": check.findings, "golden": check.golden_steps, "buckets": check.buckets}
    seen["rows"] = rows(seen, check.works)
    (options.out / "gpu_check.json").write_text(json.dumps(seen, indent=1, default=str) + "\n")
    (options.out / "gpu_check.md").write_text(markdown(seen))
    print(markdown(seen))
    code = exit_code(seen)
    print(f"gpu_check: exit code {code}; {options.out}/gpu_check.json, gpu_check.md and logs")
    return code


if __name__ == "__main__":
    sys.exit(main())
