#!/usr/bin/env python3
"""csml doctor as users meet it: one line a check, exit code 1 only where something fails, and each failure forced once.

usage: tests/doctor_cli_test.py CSML      (the binary; python3's standard library only)
"""
import json
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile
import unittest

CSML = None
ROOT = pathlib.Path(__file__).resolve().parent.parent
LINE = re.compile(r"(ok|warn|fail) +(.+?)  +(.+)")


def doctor(*arguments, env=None, limit=None):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CSML_")}
    environment.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **(env or {})})
    return subprocess.run([CSML, "doctor", *map(str, arguments)], capture_output=True, text=True, env=environment,
                          timeout=300, preexec_fn=limit)


class DoctorTest(unittest.TestCase):
    def findings(self, *arguments, code=0, **options):
        done = doctor(*arguments, "--json", **options)
        self.assertEqual(done.returncode, code, done.stderr + done.stdout)
        return {f["check"]: f for f in json.loads(done.stdout)["findings"]}

    def assert_fails(self, check, words, *arguments, **options):
        finding = self.findings(*arguments, code=1, **options)[check]
        self.assertEqual(finding["health"], "fail", finding)
        self.assertIn(words, finding["text"] + finding["advice"])
        self.assertTrue(finding["advice"])

    def test_lines(self):
        with tempfile.TemporaryDirectory() as folder:
            done = doctor("--device", "cpu", "--out", folder, "--megabytes", 1, "--data", "synthetic:shapes?limit=20&size=16",
                          "--seconds", 0.1)
            self.assertEqual(os.listdir(folder), [])
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        *lines, last = done.stdout.splitlines()
        checks = {}
        for line in lines:
            health, check, text = LINE.fullmatch(line).groups()
            checks[check] = health
            self.assertEqual(health == "ok", "; " not in text or check == "card", line)
        for check in ("card", "MPI", "NCCL", "cores", "threads", "memory", "/dev/shm", "open files", "clock", "device",
                      "out: writing", "out: room", "data", "data: decoding"):
            self.assertIn(check, checks)
        self.assertRegex(last, r"^\d+ ok, \d+ to look at, 0 that will fail$")

    def test_waits_are_short_unless_the_environment_says_how_to_wait(self):
        def waits(**env):
            environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
            done = subprocess.run([CSML, "doctor", "--device", "cpu", "--json"], capture_output=True, text=True,
                                  env={**environment, **env}, timeout=300)
            self.assertEqual(done.stderr, "")
            (line,) = (f["text"] for f in json.loads(done.stdout)["findings"] if f["check"] == "threads")
            return line.partition(", which wait by ")[2]

        self.assertEqual(waits(), "GOMP_SPINCOUNT=1000")
        self.assertEqual(waits(GOMP_SPINCOUNT="7"), "GOMP_SPINCOUNT=7")
        self.assertEqual(waits(OMP_WAIT_POLICY="active"), "OMP_WAIT_POLICY=active")

    def test_json(self):
        done = doctor("--device", "cpu", "--json")
        answer = json.loads(done.stdout)
        self.assertEqual(answer["task"], "doctor")
        for finding in answer["findings"]:
            self.assertEqual(sorted(finding), ["advice", "check", "health", "ranks", "text", "value"])
            self.assertEqual(finding["ranks"], [0])
        for health in ("ok", "warn", "fail"):
            self.assertEqual(answer[health], sum(f["health"] == health for f in answer["findings"]))

    def test_forced_failures(self):
        few_files = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        self.assert_fails("open files", "ulimit -n", "--device", "cpu", limit=few_files)
        with tempfile.NamedTemporaryFile() as file:
            self.assert_fails("out: writing", "cannot make", "--device", "cpu", "--out", file.name + "/below")
        self.assert_fails("out: writing", "/proc/runs", "--device", "cpu", "--out", "/proc/runs")
        self.assert_fails("data", "/nowhere", "--device", "cpu", "--data", "folder:/nowhere")
        small_files = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        self.assert_fails("file size", "ulimit -f", "--device", "cpu", limit=small_files)
        self.assert_fails("device", "cuda:4096", "--device", "cuda:4096")
        done = doctor("--device", "gpu")
        self.assertEqual(done.returncode, 2, done.stderr)

    def test_warnings(self):
        """A warning is no failure."""
        warned = self.findings("--device", "cpu", env={"OMP_NUM_THREADS": "3000", "CSML_SYNC": "1", "CSML_NAN": "0"})
        self.assertEqual(warned["threads"]["health"], "warn")
        self.assertIn("OMP_NUM_THREADS", warned["threads"]["advice"])
        self.assertEqual(warned["switches"]["text"], "CSML_SYNC=1 in the environment")
        self.assertNotIn("switches", self.findings("--device", "cpu"))

    def test_sizing(self):
        """The table of docs/cluster.md is what the program computes."""
        done = doctor("--sizing")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
        self.assertIn(done.stdout, page, "docs/cluster.md: replace its table by the output of csml doctor --sizing")
        rows = json.loads(doctor("--sizing", "--json").stdout)["rows"]
        slower = json.loads(doctor("--sizing", "--pairs-per-second", 2800, "--json").stdout)["rows"]
        self.assertEqual([row["cards"] for row in rows], [1, 8, 64, 512] * 2)
        for row, slow in zip(rows, slower):
            self.assertAlmostEqual(slow["step_seconds"], 2 * row["step_seconds"])
            self.assertLessEqual(row["exposed_seconds"], row["communication_seconds"])
            self.assertLessEqual(row["efficiency"], slow["efficiency"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    CSML = os.path.abspath(sys.argv.pop(1))
    unittest.main()
