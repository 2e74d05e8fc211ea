#!/usr/bin/env python3
"""Run folders when things go wrong: two processes in one folder, starts that fail, steps that are not finite, results of
another run. What a run holds stays, and no number is invented.

usage: tests/runs_test.py CSML      (the binary; python3's standard library only)
"""
import json
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import cli_test
from cli_test import TEST, TINY, TRAIN, csml


def shot(folder):
    """Every file of a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def poison(file, value=float("nan")):
    """Sets the first value of the first f32 array of a safetensors file; its name."""
    data = bytearray(file.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    name = min((n for n in header if header[n]["dtype"] == "F32"), key=lambda n: header[n]["data_offsets"][0])
    at = 8 + size + header[name]["data_offsets"][0]
    data[at:at + 4] = struct.pack("<f", value)
    file.write_bytes(data)
    return name


class RunsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="csml_runs_")
        self.tmp = pathlib.Path(self.folder.name)
        self.addCleanup(self.folder.cleanup)

    def train(self, out, *flags, code=0, data=TRAIN):
        done = csml("pretrain", *TINY, "--method", "moco", "--data", data, "--epochs", 2, "--out", out, "--json", *flags)
        self.assertEqual(done.returncode, code, done.stderr)
        return json.loads(done.stdout) if done.stdout else done.stderr

    def test_one_process_at_a_time(self):
        run = self.tmp / "run"
        command = [cli_test.CSML, "pretrain", *TINY, "--data", TRAIN, "--epochs", "100000", "--out", str(run)]
        first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            start = time.monotonic()
            while not list(run.glob("checkpoints/*/manifest.json")):
                self.assertLess(time.monotonic() - start, 60)
                self.assertIsNone(first.poll())
                time.sleep(0.05)
            described = {name: (run / name).read_bytes() for name in ("config.toml", "command.txt", "environment.json")}
            for flags in (["--overwrite"], [], ["--set", "method.temperature=0.3"], ["--resume", "never"]):
                error = self.train(run, *flags, code=1)
                self.assertIn("is in use by another process", error)
                self.assertEqual({name: (run / name).read_bytes() for name in described}, described)
                self.assertTrue(list(run.glob("checkpoints/*/manifest.json")))
        finally:
            first.send_signal(signal.SIGTERM)
            first.communicate(timeout=60)
        self.assertEqual(first.returncode, 75)
        self.train(run, "--overwrite")  # the lock ended with the process

    def test_a_start_that_fails_leaves_nothing(self):
        run = self.tmp / "deep" / "run"
        few = "synthetic:shapes?size=16&limit=20"
        for data, flags, code, why in ((few, [], 2, "larger than the data set"),
                                       (TRAIN, ["--test-data", "cifar10:/absent"], 1, "/absent"),
                                       (TRAIN, ["--init-from", self.tmp / "absent.safetensors"], 1, "no such file")):
            error = self.train(run, *flags, code=code, data=data)
            self.assertIn(why, error)
            self.assertFalse(run.exists(), why)
        self.assertEqual(self.train(run)["steps"], 6)  # the corrected command

    def test_a_start_that_fails_leaves_what_was_there(self):
        run = self.tmp / "run"
        run.mkdir()
        (run / "notes.txt").write_text("mine")
        self.train(run, code=2, data="synthetic:shapes?size=16&limit=20")
        self.assertEqual(shot(run), {".lock": b"", "notes.txt": b"mine"})
        self.train(run)
        whole = shot(run)
        self.train(run, "--seed", 7, code=1)  # refused: the run has another seed
        self.assertEqual(shot(run), whole)

    def test_a_run_that_was_cut_before_its_first_checkpoint_starts_anew(self):
        run = self.tmp / "run"
        self.train(run, "--set", "method.temperature=0.3")
        for part in ("checkpoints", "latest", "metrics.jsonl"):
            path = run / part
            subprocess.run(["rm", "-rf", str(path)], check=True)
        self.assertEqual(self.train(run)["steps"], 6)

    def test_what_others_put_into_a_folder_stays(self):
        few = "synthetic:shapes?size=16&limit=20"
        for name, text in (("config.toml", "[mine]\nkey = 1\n"), ("metrics.jsonl", '{"kind":"epoch","epoch":1}\n')):
            run = self.tmp / name
            run.mkdir()
            (run / name).write_text(text)
            for data in (TRAIN, few):
                done = csml("pretrain", *TINY, "--method", "moco", "--data", data, "--epochs", 2, "--out", run)
                self.assertNotEqual(done.returncode, 0, name)
                self.assertEqual((run / name).read_text(), text)
        run = self.tmp / "weights"
        self.train(run)
        for path in [run / "metrics.jsonl", *run.glob("checkpoints/*/manifest.json")]:
            path.unlink()
        weights = {p: p.read_bytes() for p in run.glob("checkpoints/*/*.safetensors")}
        csml("pretrain", *TINY, "--method", "moco", "--data", few, "--epochs", 2, "--out", run)
        self.assertEqual({p: p.read_bytes() for p in weights}, weights)

    def test_numbers_are_not_invented(self):
        run = self.tmp / "run"
        short = self.train(run, "--set", "train.log_every_steps=1000", "--set", "train.max_steps=2")
        self.assertGreater(short["loss"], 0.1)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual([line["step"] for line in lines if line["kind"] == "step"], [2])
        done = self.train(run)
        self.assertEqual(done["steps"], 6)
        again = self.train(run)
        self.assertIsNone(again["loss"])
        text = csml("pretrain", *TINY, "--method", "moco", "--data", TRAIN, "--epochs", 2, "--out", run)
        self.assertIn("no step was left to take", text.stdout)

    def test_last_steps_without_a_finite_gradient_are_a_failure(self):
        done = csml("pretrain", *TINY, "--method", "moco", "--data", TRAIN, "--epochs", 2, "--out", self.tmp / "run",
                    "--json", "--set", "schedule.lr=1e36", "--set", "schedule.warmup_epochs=0")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, r"the last [1-6] steps? had no finite gradient and changed nothing; lower schedule.lr")
        self.assertGreater(json.loads(done.stdout)["non_finite_last_steps"], 0)

    def test_weights_that_are_not_finite_are_refused(self):
        run, file = self.tmp / "run", self.tmp / "backbone.safetensors"
        self.train(run)
        self.assertEqual(csml("export", "--checkpoint", run, "--out", file).returncode, 0)
        name = poison(file)
        evaluate = ["--train", TRAIN, "--test", TEST, "--size", 16, "--resize", 0]
        for command in (["knn", "--checkpoint", file, *evaluate],
                        ["embed", "--checkpoint", file, "--data", TEST, "--size", 16, "--resize", 0, "--out",
                         self.tmp / "features.safetensors"],
                        ["export", "--checkpoint", file, "--out", self.tmp / "again.safetensors"],
                        ["import", file, "--out", self.tmp / "imported", "--set", "eval.size=16"]):
            done = csml(*command)
            self.assertEqual(done.returncode, 1, command)
            self.assertRegex(done.stderr, rf"1 of the \d+ values of '{name}' are NaN or infinite", command)
        self.assertFalse((self.tmp / "again.safetensors").exists())
        self.assertFalse((self.tmp / "imported").exists())
        state = self.tmp / "state.safetensors"
        self.assertEqual(csml("export", "--checkpoint", run, "--what", "state", "--out", state).returncode, 0)
        name = poison(state)
        done = csml("import", state, "--out", self.tmp / "imported")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, rf"1 of the \d+ values of '{re.escape(name)}' are NaN or infinite")
        self.assertFalse((self.tmp / "imported").exists())

    def test_the_suffix_chooses_the_format(self):
        run = self.tmp / "run"
        self.train(run)
        made = {}
        for name in ("a.onnx", "a.safetensors"):
            done = csml("export", "--checkpoint", run, "--out", self.tmp / name, "--json")
            self.assertEqual(done.returncode, 0, done.stderr)
            made[name] = json.loads(done.stdout)["format"]
        self.assertEqual(made, {"a.onnx": "onnx", "a.safetensors": "torchvision"})
        self.assertIn(b"csml", (self.tmp / "a.onnx").read_bytes()[:64])
        for flags, why in ((["--out", "a.pth"], "'.pth' names no format; use .safetensors"),
                           (["--out", "a.npy"], "names no format"),
                           (["--out", "a"], "names no format"),
                           (["--out", "a.onnx", "--format", "timm"], "ends with .safetensors"),
                           (["--out", "a.safetensors", "--format", "onnx"], "ends with .onnx"),
                           (["--out", "a.onnx", "--what", "state"], "takes --format safetensors")):
            done = csml("export", "--checkpoint", run, *flags, cwd=self.tmp / "run")
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(why, done.stderr)
            self.assertFalse((run / flags[1]).exists())

    def test_a_report_shows_results_of_its_own_checkpoints(self):
        runs = self.tmp / "a", self.tmp / "b"
        for seed, run in enumerate(runs):
            self.train(run, "--seed", seed)
        done = csml("knn", "--checkpoint", runs[0], "--train", TRAIN, "--test", TEST, "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        for run in runs:
            (run / "knn.json").write_text(done.stdout)
            self.assertEqual(csml("report", run, "--no-pictures").returncode, 0)
        own, other = ((run / "report.html").read_text() for run in runs)
        self.assertIn("knn.json; ", own)
        self.assertNotIn("is left out", own)
        self.assertNotIn("knn.json; ", other)
        self.assertIn("knn.json is left out: it judges", other)

    def test_an_evaluation_is_kept_in_the_run_it_judges(self):
        run = self.tmp / "a"
        self.train(run)
        ask = "knn", "--checkpoint", run, "--train", TRAIN, "--test", TEST
        self.assertEqual(csml(*ask, "--no-keep").returncode, 0)
        self.assertFalse((run / "eval").exists())
        done = csml(*ask, "--k", 1)
        self.assertIn("kept in ", done.stdout)
        self.assertNotIn("top-5", done.stdout)  # one vote has no second
        self.assertEqual(csml(*ask, "--k", 1).returncode, 0)
        (kept,) = (run / "eval").iterdir()  # the same question again replaces its answer
        self.assertEqual(csml(*ask, "--k", 3).returncode, 0)
        self.assertEqual(len(list((run / "eval").iterdir())), 2)
        result = json.loads(kept.read_text())
        p, n = result["top1"] / 100, result["n_test"]
        self.assertAlmostEqual(result["standard_error"], 100 * (p * (1 - p) / n) ** 0.5)
        self.assertRegex(result["date"], r"^\d{4}-\d\d-\d\dT")
        self.assertEqual(csml("report", run, "--no-pictures").returncode, 0)
        self.assertIn(kept.name, (run / "report.html").read_text())
        self.train(run, "--overwrite")
        self.assertFalse((run / "eval").exists())


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    cli_test.CSML = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
