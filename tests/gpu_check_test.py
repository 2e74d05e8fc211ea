#!/usr/bin/env python3
"""scripts/gpu_check.sh and scripts/gpu_pack.sh on a machine without a GPU: they drive stand-ins for the build, the driver
and PyTorch, which pass, fail, hang or are missing.

usage: tests/gpu_check_test.py      (python3's standard library only)
"""
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts/gpu"))
from idle import idle_share  # noqa: E402

# Each stand-in looks up what is to go wrong in the environment variable FAULTS, a JSON object.
HEAD = """#!/usr/bin/python3 -SE
import json, os, sys, time
faults, arguments = json.loads(os.environ.get("FAULTS", "{}")), sys.argv[1:]
def option(name, otherwise=None):
    return arguments[arguments.index(name) + 1] if name in arguments else otherwise
"""
CSML = HEAD + """
if "start" in faults:
    sys.exit(print("csml: libcublasLt.so.13 cannot be loaded", file=sys.stderr) or 1)
if arguments[0] == "doctor":
    ill = "doctor" in faults
    print(json.dumps({"task": "doctor", "findings": [
        {"check": "card", "health": "ok", "text": "found"}, {"check": "clock", "health": "warn", "text": "a minute off"},
        {"check": "open files", "health": "fail" if ill else "ok", "text": "64"}]}))
    sys.exit(ill)
elif arguments[0] == "pretrain":
    out = option("--out")
    os.makedirs(out + "/checkpoints/step_1")
    eager = os.environ.get("CSML_EAGER") == "1"
    with open(out + "/metrics.jsonl", "w") as file:
        for step in range(1, 5):
            loss = 5 - step / 8 + (1e-7 if eager and "replay" in faults else 0)
            loss += 0.1 if option("--device") == "cpu" and "seed" in faults else 0
            file.write(json.dumps({"kind": "step", "step": step, "loss": loss}) + "\\n")
    open(out + "/latest", "w").write("checkpoints/step_1\\n")
    open(out + "/checkpoints/step_1/model.safetensors", "w").write("weights")
else:
    if option("--exchange"):
        open(option("--exchange"), "w").write(option("--precision", "fp32"))
    if option("--precision") == "bf16" and "bf16" in faults:
        sys.exit(print("csml: bf16 is not in this release", file=sys.stderr) or 2)
    line = {"ms": 1.0, "ms_min": 0.9, "ms_max": 1.1, "windows": 5, "task": "bench", "case": "x", "precision": "fp32",
            "memory_bytes": 1000 + (0 if option("--part") else 9000), "memory_before_bytes": 900, "ops": []}
    if option("--step"):
        line["images_per_second"] = 256e3
    if option("--buckets"):
        exposed = faults.get("exposed", {"8": 0.2, "25": 0.05})[option("--buckets")]
        line["buckets"] = {"mib": int(option("--buckets")), "count": 13, "copies_alone_ms": 0.4, "exposed_share": exposed}
    print(json.dumps(line))
"""
KERNELS_TEST = HEAD + """
import subprocess
assert os.environ["CSML_TEST_BACKEND"].startswith("cuda:") and "CSML_CUDA_LIBRARIES" in os.environ
if "hang" in faults:
    child = subprocess.Popen(["sleep", "600"])
    open(faults["hang"], "w").write(str(child.pid))
    time.sleep(600)
if "kernels" in faults and "CSML_SYNC" not in os.environ:
    sys.exit(print("[doctest] test cases: 17 | 16 passed | 1 failed") or 1)
print("[doctest] test cases: 17 | 17 passed")
"""
GOLDEN_TEST = HEAD + """
assert os.environ["CSML_TEST_BACKEND"].startswith("cuda:")
print("[doctest] doctest version")
for precision in ("fp32", "tf32", "bf16", "fp16"):
    if faults.get("golden_ends") == precision:
        sys.exit(print("csml: out of memory", file=sys.stderr) or 1)
    error = 0.2 if faults.get("golden") == precision else 1e-3
    print(json.dumps({"kind": "golden", "method": "moco", "precision": precision, "quantity": "loss", "error": error,
                      "allowed": 1e-2, "passed": error <= 1e-2}))
sys.exit("golden" in faults)
"""
PYTHON = HEAD + """
if "import torch" in arguments[-1]:
    print("2.9.0")
elif "import site" in arguments[-1]:
    print(faults.get("site", SITE))
elif "--check" in arguments:
    first = arguments.index("--exchange") + 1
    for path in arguments[first:arguments.index("--precision")]:
        precision = open(path).read()
        passed = faults.get("check") != [option("--case"), precision]
        print(json.dumps({"kind": "check", "precision": precision, "passed": passed, "quantities": [
            {"quantity": "gradient", "csml": 1e-5 if passed else 0.2, "pytorch": 2e-5, "allowed": 1e-4,
             "passed": passed}]}))
else:
    print("a warning that is no JSON")
    modes = arguments[arguments.index("--mode") + 1:arguments.index("--windows")]
    for mode in modes:
        print(json.dumps({"kind": "time", "case": option("--case"), "precision": option("--precision"), "mode": mode,
                          "ms": 9.0 if mode == "eager" else 8.5, "ms_min": 8.0, "ms_max": 9.5, "windows": 5,
                          "memory_bytes": 100000, "memory_before_bytes": 900}))
"""
NVIDIA_SMI = HEAD + """
if "gpu" in faults:
    sys.exit(print("No devices were found") or 6)
if any(a.startswith("--query-gpu") for a in arguments):
    print("NVIDIA H100 80GB HBM3, 580.95.05, 81559 MiB, 9.0, 1980 MHz, 2619 MHz, 700.00 W")
else:
    print("| NVIDIA-SMI 580.95.05    Driver Version: 580.95.05    CUDA Version: 13.0  |")
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class GpuCheckTest(unittest.TestCase):
    def setUp(self):
        self.tmp = pathlib.Path(tempfile.mkdtemp(prefix="gpu_check_test_"))
        self.addCleanup(shutil.rmtree, self.tmp)
        self.build, self.out = self.tmp / "build", self.tmp / "out"
        write(self.build / "csml", CSML)
        write(self.build / "kernels_test", KERNELS_TEST)
        write(self.build / "replay_test", KERNELS_TEST.replace("hang", "hang_replay"))
        write(self.build / "precision_test", KERNELS_TEST.replace("hang", "hang_precision").replace("kernels", "precision"))
        for name in ("golden", "interruption", "knn_svm_finetune", "models", "torchvision_features", "train"):
            write(self.build / f"{name}_test", KERNELS_TEST.replace("hang", f"hang_{name}").replace("kernels", name))
        write(self.build / "precision_steps_test", GOLDEN_TEST)
        site = self.tmp / "site"
        for library in ("cudnn/lib/libcudnn.so.9", "cu13/lib/libcublasLt.so.13", "cu13/lib/libnvrtc.so.13"):
            write(site / "nvidia" / library, "")
        self.bin = self.tmp / "bin"
        write(self.bin / "python", PYTHON.replace("SITE", repr(str(site))))
        write(self.bin / "nvidia-smi", NVIDIA_SMI)
        write(self.bin / "compute-sanitizer", HEAD)

    def run_check(self, *arguments, script=ROOT / "scripts/gpu_check.sh", python=None, **faults):
        """Exit code, what the JSON file holds (None: absent) and standard error."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CSML_")}
        environment.update(PATH=f"{self.bin}:/usr/bin:/bin", FAULTS=json.dumps(faults), CUDA_HOME=str(self.tmp / "none"))
        done = subprocess.run([str(script), "--build", str(self.build), "--out", str(self.out), "--python",
                               python or str(self.bin / "python"), *map(str, arguments)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=environment, timeout=300)
        path = self.out / "gpu_check.json"
        return done.returncode, json.loads(path.read_text()) if path.exists() else None, done.stderr + done.stdout

    def row(self, seen, beginning):
        found = [row for row in seen["rows"] if row["row"] == beginning] or [
            row for row in seen["rows"] if row["row"].startswith(beginning)]
        self.assertEqual(len(found), 1, beginning)
        return found[0]

    def stage(self, seen, name):
        return next(stage for stage in seen["stages"] if stage["stage"] == name)

    def test_everything_passes_but_what_is_absent(self):
        code, seen, output = self.run_check()
        self.assertEqual(code, 4, output)  # nsys is absent, so a row is missing
        self.assertEqual([s for s in seen["stages"] if s["state"] == "fail"], [])
        self.assertEqual(seen["card"]["name"], "NVIDIA H100 80GB HBM3")
        self.assertEqual((seen["cuda_of_driver"], seen["torch"]), ("13.0", "2.9.0"))
        self.assertEqual(len(seen["libraries"]["folders"]), 2)
        self.assertIn("nsys", self.row(seen, "idle time")["why"])
        for beginning in ("csml doctor", "training in 16 bits", "golden steps in fp32", "golden steps in tf32",
                          "golden steps in bf16", "golden steps in fp16", "exposed share", "every kernel",
                          "compute-sanitizer", "replay = eager", "CPU = card", "InfoNCE: memory",
                          "peak memory"):
            self.assertEqual(self.row(seen, beginning)["state"], "pass", beginning)
        self.assertAlmostEqual(self.row(seen, "MoCo v2 step, batch 32")["ratio"], 9.0)  # to eager
        self.assertAlmostEqual(self.row(seen, "InfoNCE, batch 256, queue 65,536, dim 128")["ratio"], 8.5)  # to the better
        self.assertAlmostEqual(self.row(seen, "peak memory")["ratio"], 0.1)
        self.assertAlmostEqual(self.row(seen, "InfoNCE: memory")["ratio"], 100 / 99100)
        self.assertEqual({c["precision"] for c in seen["checks"] if c["work"] == "csml_b128"},
                         {"fp32", "tf32", "bf16", "fp16"})
        self.assertEqual({c["precision"] for c in seen["checks"] if c["work"] == "resnet50_b256"},
                         {"fp32", "tf32", "bf16", "fp16"})
        for work in ("resnet50_b256", "info_nce_256", "top_k_256", "commit"):
            self.assertLessEqual({"bf16", "fp16"}, {t["precision"] for t in seen["times"] if t["work"] == work and
                                                    t["side"] == "csml" and "ms" in t}, work)
        self.assertEqual([(b["mib"], b["precision"]) for b in seen["buckets"]], [(8, "fp16"), (25, "fp16")])
        self.assertIn("5.0 % of 0.4 ms, 13 buckets of 25 MiB", self.row(seen, "exposed share")["csml"])
        self.assertEqual({line["precision"] for line in seen["golden"]}, {"fp32", "tf32", "bf16", "fp16"})
        self.assertIn("at most 0.10 of what is allowed", self.row(seen, "golden steps in tf32")["csml"])
        doctor = self.row(seen, "csml doctor")
        self.assertEqual((doctor["csml"], doctor["why"]), ("2 ok, 1 to look at, 0 that will fail", "clock: a minute off"))
        self.assertEqual([s["stage"] for s in seen["stages"] if "precision" in s["stage"]], ["test_precision"])
        table = [line for line in (self.out / "gpu_check.md").read_text().splitlines() if line.startswith("|")]
        self.assertEqual(len(table), len(seen["rows"]) + 2)
        self.assertEqual({line.replace("\\|", "").count("|") for line in table}, {8})

    def test_first_bar_missed(self):
        code, seen, _ = self.run_check("--quick")
        top = self.row(seen, "exact top-5 of 256 queries, 65,536 rows, dim 128")
        self.assertEqual(top["state"], "pass")
        write(self.bin / "python", (self.bin / "python").read_text().replace("8.5", "7.9"))
        code, seen, _ = self.run_check("--quick")
        top = self.row(seen, "exact top-5 of 256 queries, 65,536 rows, dim 128")
        self.assertEqual((code, top["state"]), (4, "fail"))
        self.assertIn("**fail**", (self.out / "gpu_check.md").read_text())

    def test_golden_steps(self):
        only = ["--quick", "--stages", "start,golden"]
        code, seen, _ = self.run_check(*only, golden="bf16")
        self.assertEqual(code, 1)
        self.assertEqual({p: self.row(seen, f"golden steps in {p}")["state"] for p in ("fp32", "tf32", "bf16", "fp16")},
                         {"fp32": "pass", "tf32": "pass", "bf16": "fail", "fp16": "pass"})
        self.assertIn("moco loss 0.2, allowed 0.01", self.row(seen, "golden steps in bf16")["why"])
        code, seen, _ = self.run_check(*only, golden_ends="tf32")  # what it had not told by then is not passed
        self.assertEqual((code, self.row(seen, "golden steps in fp32")["state"]), (1, "pass"))
        for precision in ("tf32", "bf16", "fp16"):
            self.assertEqual(self.row(seen, f"golden steps in {precision}")["state"], "fail")
            self.assertIn("out of memory", self.row(seen, f"golden steps in {precision}")["why"])
        (self.build / "precision_steps_test").unlink()
        (self.build / "precision_test").unlink()
        code, seen, _ = self.run_check("--quick", "--stages", "start,golden,test_")
        self.assertEqual(code, 4)
        self.assertIn("has no precision_steps_test", self.row(seen, "golden steps in fp16")["why"])
        self.assertIn("has no precision_test", self.row(seen, "training in 16 bits")["why"])

    def test_what_the_doctor_says(self):
        code, seen, _ = self.run_check("--quick", "--stages", "start,doctor", doctor=True)
        row = self.row(seen, "csml doctor")
        self.assertEqual((code, row["state"]), (1, "fail"))
        self.assertIn("open files: 64", row["why"])
        self.assertIn("1 that will fail", row["csml"])

    def test_exposed_reductions(self):
        code, seen, _ = self.run_check("--quick", "--stages", "start,buckets")
        self.assertEqual((code, self.row(seen, "exposed share")["state"]), (4, "fail"))  # 8 MiB alone: a bar missed
        self.assertIn("20.0 %", self.row(seen, "exposed share")["csml"])

    def test_16_bits_on_the_card(self):
        code, seen, _ = self.run_check("--quick", "--stages", "start,test_", precision=True)
        self.assertEqual((code, self.row(seen, "training in 16 bits")["state"]), (1, "fail"))
        self.assertEqual(self.stage(seen, "test_kernels")["state"], "pass")

    def test_a_failing_program_stops_nothing(self):
        code, seen, _ = self.run_check("--quick", kernels=True)
        self.assertEqual(code, 1)
        self.assertIn("1 failed", self.stage(seen, "test_kernels")["why"])
        self.assertEqual(self.row(seen, "every kernel")["state"], "fail")
        self.assertEqual(self.row(seen, "MoCo v2 step, batch 256")["state"], "pass")

    def test_a_hanging_program_is_ended_with_its_children(self):
        child = self.tmp / "child"
        begin = time.monotonic()
        code, seen, _ = self.run_check("--quick", "--limit", 2, "--stages", "start,test_,replay", hang=str(child))
        self.assertEqual(code, 1)
        self.assertLess(time.monotonic() - begin, 100)
        self.assertIn("longer than 2 s", self.stage(seen, "test_kernels")["why"])
        self.assertEqual(self.stage(seen, "test_replay")["state"], "pass")
        status = pathlib.Path(f"/proc/{child.read_text()}/stat")
        self.assertTrue(not status.exists() or ") Z" in status.read_text())

    def test_no_time_left(self):
        code, seen, _ = self.run_check("--minutes", 0.01)
        self.assertEqual(code, 4)
        self.assertIn("no time left", self.stage(seen, "test_kernels")["why"])
        self.assertIn("no time left", self.row(seen, "CPU = card")["why"])

    def test_a_failed_check_is_not_timed(self):
        code, seen, _ = self.run_check("--quick", check=["moco", "fp16"])
        self.assertEqual(code, 1)
        check = self.row(seen, "MoCo v2 step, batch 256: the same")
        self.assertEqual(check["state"], "fail")
        self.assertIn("gradient 0.2, allowed 0.0001", check["why"])
        timed = {t["precision"]: t for t in seen["times"] if t["work"] == "moco_b256" and t["side"] == "csml"}
        self.assertNotIn("ms", timed["fp16"])
        self.assertIn("the check in fp16 failed", timed["fp16"]["why"])
        self.assertIn("ms", timed["tf32"])

    def test_a_precision_that_the_build_lacks(self):
        code, seen, _ = self.run_check(bf16=True)
        self.assertEqual(code, 1)
        self.assertIn("bf16 is not in this release", self.row(seen, "CsMl step, batch 128: the same")["why"])
        self.assertIsNotNone(self.row(seen, "CsMl step, batch 128")["ratio"])

    def test_replay_and_seed_differences(self):
        code, seen, _ = self.run_check("--quick", replay=True, seed=True)
        self.assertEqual(code, 1)
        self.assertIn("losses from step 1", self.row(seen, "replay = eager")["why"])
        self.assertEqual(self.row(seen, "CPU = card")["state"], "fail")

    def test_no_pytorch(self):
        code, seen, _ = self.run_check("--quick", python=str(self.tmp / "absent"))
        self.assertEqual(code, 1 if any(s["state"] == "fail" for s in seen["stages"]) else 4)
        row = self.row(seen, "MoCo v2 step, batch 256")
        self.assertEqual(row["state"], "not run")
        self.assertIn("no PyTorch", row["why"])
        self.assertIn("256,000 images/s", row["csml"])

    def test_libraries_are_missing(self):
        code, seen, _ = self.run_check("--quick", "--stages", "start", site=str(self.tmp))
        if (code, self.stage(seen, "libraries")["state"]) != (4, "pass"):  # a machine that has them in its system
            self.assertEqual(code, 1)
            self.assertIn("libcudnn.so", self.stage(seen, "libraries")["why"])

    def test_a_build_that_does_not_start(self):
        code, seen, _ = self.run_check("--quick", start=True)
        self.assertEqual(code, 1)
        self.assertIn("libcublasLt.so.13 cannot be loaded", self.stage(seen, "start")["why"])
        self.assertIn("does not start on cuda:0", self.stage(seen, "test_kernels")["why"])
        self.assertIn("does not start", self.row(seen, "MoCo v2 step, batch 256")["why"])

    def test_no_gpu_and_wrong_usage(self):
        code, seen, output = self.run_check(gpu=True)
        self.assertEqual((code, seen), (3, None))
        self.assertIn("no GPU", output)
        self.assertEqual(self.run_check("--nonsense")[0], 2)

    def test_a_packed_build(self):
        packed = self.tmp / "packed"
        pack = [str(ROOT / "scripts/gpu_pack.sh"), str(self.build), str(packed)]
        (self.build / "CMakeCache.txt").write_text("CSML_NATIVE:BOOL=ON\n")
        done = subprocess.run(pack, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("-DCSML_NATIVE=OFF", done.stderr)
        (self.build / "CMakeCache.txt").write_text("CSML_NATIVE:BOOL=OFF\n")
        done = subprocess.run(pack, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("csml golden_test interruption_test kernels_test knn_svm_finetune_test models_test "
                      "precision_steps_test precision_test replay_test torchvision_features_test train_test", done.stdout)
        self.assertEqual(subprocess.run(pack, capture_output=True).returncode, 1)  # the folder is there
        shutil.rmtree(self.build)
        self.build = packed
        code, seen, output = self.run_check("--quick", "--stages", "start,test_", script=packed / "scripts/gpu_check.sh")
        self.assertEqual(code, 4, output)
        self.assertEqual(self.stage(seen, "test_replay")["state"], "pass")
        self.assertRegex(seen["commit"], r"^([0-9a-f]{40}|unknown)(-modified)?$")

    def test_idle_share(self):
        path = self.tmp / "trace.sqlite"
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, end INTEGER)")
            database.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER, end INTEGER)")
            # 0 .. 100 is before the last 800 ns; in them 50 ns of gaps: 400 .. 430, 880 .. 900
            database.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?)",
                                 [(0, 100), (150, 400), (430, 700), (690, 880), (900, 1000)])
            database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_MEMCPY VALUES (600, 650)")
        self.assertAlmostEqual(idle_share(path, 800e-9), 50 / 800)
        with sqlite3.connect(self.tmp / "empty.sqlite"):
            pass
        self.assertRaises(ValueError, idle_share, self.tmp / "empty.sqlite", 1)


if __name__ == "__main__":
    unittest.main()
