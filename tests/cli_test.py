#!/usr/bin/env python3
"""The command line as users meet it: every answer parses, every failure is one clear line with the right exit code.

usage: tests/cli_test.py CSML      (the binary; python3's standard library only)
"""
import json
import os
import pathlib
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zlib

CSML = None
# The networks are tiny: more threads only wait for each other.
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
COMMANDS = ["pretrain", "knn", "linear", "finetune", "svm", "embed", "neighbors", "import",
            "export", "inspect", "pack", "bench", "doctor", "replay", "report"]
TRAIN, TEST = "synthetic:shapes?size=16&limit=96", "synthetic:shapes?size=16&split=test&limit=40"
# A network of the least width, on tiny images: a step takes milliseconds.
TINY = [f"--set={assignment}" for assignment in (
    "model.depth=18", "model.stem=cifar", "model.width=4", "model.dim=16", "augment.crop_size=16", "augment.blur_p=0",
    "augment.mean=0.4,0.5,0.6",
    "method.queue=64", "method.bn_group_size=8", "method.temperature=0.1", "method.momentum=0.9", "method.neighbors=3",
    "train.batch_size=32", "train.log_every_steps=1", "eval.size=16", "eval.resize=0", "eval.knn_every_epochs=1",
    "data.workers=1", "schedule.lr=0.1")]


def csml(*arguments, cwd=None, env=None, limit=None):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CSML_")}
    environment.update({**THREADS, **(env or {})})
    return subprocess.run([CSML, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, env=environment,
                          timeout=300, preexec_fn=limit)


def png(path, size=16, value=128):
    rows = b"".join(b"\0" + bytes([value, (value + y) % 256, 7] * size) for y in range(size))
    chunk = lambda kind, data: (struct.pack(">I", len(data)) + kind + data +
                                struct.pack(">I", zlib.crc32(kind + data)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class CliTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="csml_cli_")
        cls.tmp = pathlib.Path(cls.folder.name)
        cls.run_folder = cls.tmp / "run"
        done = csml("pretrain", *TINY, "--data", TRAIN, "--test-data", TEST, "--epochs", 2, "--out", cls.run_folder,
                    "--json")
        if done.returncode != 0:
            raise AssertionError(f"the run that every test uses failed: {done.stderr}")
        cls.result = json.loads(done.stdout)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def fails(self, code, pattern, *arguments, **options):
        """Exit code, and one line 'csml: …' that matches; nothing on standard output."""
        done = csml(*arguments, **options)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stderr}")
        lines = [line for line in done.stderr.splitlines() if line.startswith("csml: ")]
        self.assertEqual(len(lines), 1, done.stderr)
        self.assertRegex(lines[0], pattern)
        self.assertEqual(done.stdout, "")
        self.assertEqual(done.stderr.splitlines()[-1], lines[0])
        return done

    def answers(self, *arguments, code=0, **options):
        """The JSON object of a command with --json: all of its standard output."""
        done = csml(*arguments, "--json", **options)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stderr}")
        value = json.loads(done.stdout)
        self.assertIsInstance(value, dict)
        self.assertEqual(done.stdout.count("\n"), 1)
        return value

    # ---- help, version, usage ----------------------------------------------------------------------------------------

    def test_help_of_every_command(self):
        for command in COMMANDS:
            done = csml(command, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn("Example", done.stdout, command)
            for flag in ("--json", "--quiet", "--threads"):
                self.assertIn(flag, done.stdout, command)
            self.assertEqual(done.stderr, "")
        listing = csml("--help").stdout
        for command in COMMANDS:
            self.assertIn(command, listing)
        self.assertRegex(csml("--version").stdout, r"^csml \d+\.\d+\.\d+ \(.*, kernels for \S+\)$")

    def test_wrong_usage(self):
        self.fails(2, "unknown command pretrian; did you mean pretrain\\?", "pretrian")
        self.fails(2, "subcommand is required")
        self.fails(2, "unknown flag --epoch; did you mean --epochs\\?", "pretrain", "--epoch", "3")
        self.fails(2, "unknown flag --checkpiont; did you mean --checkpoint\\?", "knn", "--checkpiont=x")
        self.fails(2, r"unknown flag --zzzzzzzz \(csml knn --help", "knn", "--zzzzzzzz")
        self.fails(2, "--data SPEC is needed", "pretrain", "--out", self.tmp / "x")
        self.fails(2, "--out DIR is needed", "pretrain", *TINY, "--data", TRAIN)
        self.fails(2, "--train", "knn", "--test", TEST)
        self.fails(2, "--checkpoint PATH is needed", "knn", "--train", TRAIN, "--test", TEST)
        self.fails(2, "--k 500 is more than the 96", "knn", "--checkpoint", self.run_folder, "--train", TRAIN, "--test",
                   TEST, "--k", "20,500")
        self.fails(2, "must end in .json or .safetensors", "neighbors", "--checkpoint", self.run_folder, "--data",
                   TRAIN, "--out", "x.txt")
        self.fails(2, "one of --op", "bench")
        self.fails(2, "no such op; did you mean conv2d", "bench", "--op", "conv2", "--seconds", 0)

    def test_help_version_and_completion_without_dashes(self):
        self.assertEqual(csml("help", "knn").stdout, csml("knn", "--help").stdout)
        self.assertIn("pretrain", csml("help").stdout)
        self.assertEqual(csml("-v").stdout, csml("--version").stdout)
        self.fails(2, "help knm: no such command; did you mean knn\\?", "help", "knm")
        self.fails(2, "completion fish: bash or zsh", "completion", "fish")
        script = csml("completion", "bash").stdout
        ask = "COMP_WORDS=(csml pretrain --ho); COMP_CWORD=2; _csml; echo \"${COMPREPLY[@]}\""
        done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True)
        self.assertEqual((done.stdout, done.stderr), ("--hours\n", ""))

    def test_a_recipe_is_chosen_where_none_is_given(self):
        out = self.tmp / "chosen"
        data = TRAIN + "&labels=none"
        plan = self.answers("pretrain", "--data", data, "--hours", "0.01", "--dry-run")
        self.assertEqual(plan["origin"]["model.width"], "chosen")
        self.assertEqual(plan["origin"]["train.epochs"], "chosen")
        self.assertEqual(plan["config"]["model"]["stem"], "cifar")
        few = ("--data", data, "--epochs", "1", "--preset", "auto", "--out", out)
        done = csml("pretrain", *few, "--probe", TEST)
        self.assertEqual(done.returncode, 0, done.stderr)
        for part in ("chosen for these images", "--set model.depth=", "--batch-size"):
            self.assertIn(part, done.stderr)
        for part in ("next: csml report --run", "csml export --checkpoint", "best: online k-NN"):
            self.assertIn(part, done.stdout)
        best = json.loads((out / "best" / "best.json").read_text())
        self.assertIn("top1", best)
        self.assertEqual(csml("inspect", out / "best").returncode, 0)
        again = csml("pretrain", *few)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn("going on with the choice", again.stderr)
        self.fails(2, "--hours is what --preset auto", "pretrain", *TINY, "--data", TRAIN, "--hours", 1, "--out", out)

    def test_too_much_is_refused_before_a_folder_is_made(self):
        out = self.tmp / "too-much"
        self.fails(2, "train.threads must be .*4096", "pretrain", *TINY, "--data", TRAIN, "--out", out, "--threads",
                   100000000)
        self.fails(2, "MiB are available: lower method.queue", "pretrain", *TINY, "--data", TRAIN, "--out", out, "--set",
                   "method.queue=100000000000")
        self.assertFalse(out.exists())

    def test_presets(self):
        done = csml("pretrain", "--preset", "help")
        self.assertEqual(done.returncode, 0)
        for name in ("fashion-mnist-cpu", "cifar10-small", "cifar10-r18", "imagenet-r50-200ep"):
            self.assertIn(name, done.stdout)
        self.fails(2, "did you mean cifar10-small", "pretrain", "--preset", "cifar10-smal", "--data", TRAIN)

    # ---- configuration -----------------------------------------------------------------------------------------------

    def test_dry_run_and_precedence(self):
        file = self.tmp / "run.toml"
        file.write_text("[train]\nepochs = 7\nseed = 1\n[method]\nqueue = 100\n")
        plan = self.answers("pretrain", *TINY, "--config", file, "--data", TRAIN, "--dry-run",
                            env={"CSML_TRAIN_SEED": "2", "CSML_METHOD_QUEUE": "200", "CSML_EAGER": "1"})
        self.assertEqual(plan["config"]["train"]["epochs"], 7)
        self.assertEqual(plan["config"]["train"]["seed"], 2)
        self.assertEqual(plan["config"]["method"]["queue"], 64)  # --set of TINY
        self.assertEqual(plan["origin"]["train.seed"], "environment CSML_TRAIN_SEED")
        self.assertEqual(plan["origin"]["train.epochs"], f"{file}:2")
        self.assertIn("parameters", plan["plan"])

    def test_wrong_configuration(self):
        file = self.tmp / "wrong.toml"
        for text, pattern in (("[train]\nepoch = 3\n", r"wrong.toml:2:1: unknown key train.epoch; did you mean"),
                              ("[train]\nepochs = \"many\"\n", r"wrong.toml:2:10: train.epochs must be a whole number"),
                              ("[train\n", r"wrong.toml:1:"),
                              ("[method]\nlevels = [\"res6\"]\n", "method.levels must be")):
            file.write_text(text)
            self.fails(2, pattern, "pretrain", "--config", file, "--data", TRAIN, "--out", self.tmp / "x")
        self.fails(1, "absent.toml", "pretrain", "--config", self.tmp / "absent.toml", "--data", TRAIN)
        self.fails(2, "CSML_TRAIN_EPOCH; did you mean CSML_TRAIN_EPOCHS", "pretrain", "--data", TRAIN,
                   env={"CSML_TRAIN_EPOCH": "3"})
        self.fails(2, "method.temprature; did you mean", "pretrain", "--data", TRAIN, "--set", "method.temprature=1")
        self.fails(2, "csml or moco", "pretrain", "--data", TRAIN, "--method", "swav", "--out", self.tmp / "x")
        self.assertFalse((self.tmp / "x").exists())

    # ---- a run -------------------------------------------------------------------------------------------------------

    def test_run_folder(self):
        self.assertEqual(self.result["steps"], 6)
        for name in ("config.toml", "command.txt", "environment.json", "metrics.jsonl", "latest"):
            self.assertTrue((self.run_folder / name).exists(), name)
        environment = json.loads((self.run_folder / "environment.json").read_text())
        for key in ("version", "commit", "device", "cpu", "data_fingerprint"):
            self.assertIn(key, environment)
        self.assertIn("pretrain", (self.run_folder / "command.txt").read_text())
        lines = [json.loads(line) for line in (self.run_folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            self.assertIn(line["kind"], ("step", "epoch", "eval", "event"))
            for key in ("step", "epoch", "time"):
                self.assertIn(key, line)
        self.assertEqual([line["step"] for line in lines if line["kind"] == "step"], list(range(1, 7)))

    def test_existing_run_is_resumed_refused_or_overwritten(self):
        base = ["pretrain", *TINY, "--data", TRAIN, "--test-data", TEST]
        again = self.answers(*base, "--epochs", 2, "--out", self.run_folder)
        self.assertEqual(again["steps"], 6)  # finished: nothing is done twice
        self.answers(*base, "--epochs", 2, "--out", self.run_folder, "--workers", 0)
        self.fails(1, r"method.temperature = 0.1, asked is 0.3", *base, "--epochs", 2, "--out", self.run_folder,
                   "--set", "method.temperature=0.3")
        self.fails(1, "train.epochs = 2, asked is 3", *base, "--epochs", 3, "--out", self.run_folder)
        self.fails(1, "holds a run already", *base, "--epochs", 2, "--out", self.run_folder, "--resume", "never")
        self.fails(1, "other data", "pretrain", *TINY, "--data", "synthetic:shapes?size=16&limit=97", "--epochs", 2,
                   "--out", self.run_folder)
        self.fails(1, "no such folder", *base, "--epochs", 2, "--out", self.tmp / "y", "--resume", self.tmp / "absent")
        other = self.tmp / "overwritten"
        self.answers(*base, "--epochs", 1, "--out", other)
        (other / "mine.txt").write_text("kept")
        anew = self.answers(*base, "--epochs", 1, "--out", other, "--overwrite", "--set", "method.temperature=0.3")
        self.assertEqual(anew["steps"], 3)
        self.assertTrue((other / "mine.txt").exists())

    def test_stop_by_signal_and_resume(self):
        whole, parts = self.tmp / "whole", self.tmp / "parts"
        base = ["pretrain", *TINY, "--data", TRAIN, "--epochs", "16", "--set", "eval.knn_every_epochs=0", "--json"]
        environment = {**os.environ, **THREADS}
        process = subprocess.Popen([CSML, *base, "--out", parts], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   env=environment, text=True)
        deadline = time.time() + 120
        while time.time() < deadline and process.poll() is None:
            log = parts / "metrics.jsonl"
            if log.exists() and log.read_text().count('"kind":"step"') >= 4:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 75, output)
        stopped = json.loads(output)
        self.assertTrue(stopped["stopped"])
        self.assertLess(stopped["steps"], 48)
        self.assertTrue(pathlib.Path(stopped["checkpoint"]).is_dir())
        resumed = csml(*base, "--out", parts)
        self.assertEqual(resumed.returncode, 0, resumed.stderr)
        self.assertEqual(json.loads(resumed.stdout)["steps"], 48)
        self.assertEqual(len((parts / "command.txt").read_text().splitlines()), 2)
        # The interruption changed nothing.
        self.assertEqual(csml(*base, "--out", whole).returncode, 0)
        weights = [next((folder / "checkpoints").glob("step_00000048")) / "model.safetensors"
                   for folder in (whole, parts)]
        self.assertEqual(weights[0].read_bytes(), weights[1].read_bytes())

    def test_stop_by_the_clock(self):
        base = ["pretrain", *TINY, "--data", TRAIN, "--epochs", 2, "--out", self.tmp / "hours"]
        stopped = self.answers(*base, "--max-hours", "0.0000001", code=75)
        self.assertTrue(stopped["stopped"])
        self.assertEqual(stopped["steps"], 0)
        self.assertEqual(self.answers(*base)["steps"], 6)
        self.fails(2, "train.max_hours must be 0", *base, "--max-hours", "-1")

    def test_replay(self):
        lines = [json.loads(line) for line in (self.run_folder / "metrics.jsonl").read_text().splitlines()]
        losses = {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}
        again = self.answers("replay", "--run", self.run_folder, "--step", 5)
        self.assertEqual(again["measured"]["loss"], losses[5])
        self.assertEqual([again["epoch"], again["batch"], again["repeated"]], [1, 1, 1])  # from the checkpoint of step 3
        self.assertTrue(again["finite"])
        self.assertIn("the gradient is finite", csml("replay", "--run", self.run_folder, "--step", 5).stdout)
        picture = self.tmp / "views.png"
        shown = self.answers("replay", "--run", self.run_folder, "--epoch", 1, "--sample", 3, "--out", picture)
        self.assertEqual(picture.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual([view["of"] for view in shown["views"]], ["sample", "sample", "neighbor", "neighbor"])
        self.assertNotEqual(shown["neighbor"], 3)
        self.fails(1, "step 2 was not captured and no good checkpoint of fewer steps", "replay", "--run",
                   self.run_folder, "--step", 2)
        self.fails(1, "after the run's end, which is at step 6", "replay", "--run", self.run_folder, "--step", 7)
        self.fails(2, "give --step S, or --epoch E and --sample N", "replay", "--run", self.run_folder)
        self.fails(2, "holds 96 images", "replay", "--run", self.run_folder, "--epoch", 0, "--sample", 96)
        self.fails(1, "no such folder", "replay", "--run", self.tmp / "absent", "--step", 1)

    def test_unwritable_and_full(self):
        file = self.tmp / "file"
        file.write_text("")
        base = ["pretrain", *TINY, "--data", TRAIN, "--epochs", 1]
        self.fails(1, "is a file", *base, "--out", file)
        self.fails(1, "cannot create the folder", *base, "--out", file / "below")
        if os.geteuid() == 0:
            self.fails(1, "/proc/", *base, "--out", "/proc/csml_run")  # no permissions stop root; /proc does
        else:
            closed = self.tmp / "closed"
            closed.mkdir(mode=0o500)
            self.fails(1, "cannot create the folder", *base, "--out", closed / "run")
        # No file beyond 64 KiB: what a full disk does to the first checkpoint.
        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        full = self.tmp / "full"
        self.fails(1, "(?i)cannot write|too large", *base, "--out", full, limit=limit)
        self.assertFalse(full.exists())  # a start that fails leaves nothing

    # ---- data --------------------------------------------------------------------------------------------------------

    def test_bad_data(self):
        base = ["pretrain", *TINY, "--out", self.tmp / "never", "--data"]
        self.fails(1, "absent", *base, self.tmp / "absent")
        empty = self.tmp / "empty"
        empty.mkdir()
        self.fails(1, "empty|no image", *base, empty)
        self.fails(2, "did you mean folder", *base, f"foldr:{empty}")
        self.fails(2, "limit", *base, "synthetic:shapes?limt=3")
        self.fails(2, "batch", *base, "synthetic:shapes?size=16&limit=10")
        self.assertFalse((self.tmp / "never" / "checkpoints" / "latest").exists())

    def test_bad_images(self):
        folder = self.tmp / "images"
        for label in ("a", "b"):
            (folder / label).mkdir(parents=True)
            for i in range(40):
                png(folder / label / f"{i:02}.png", value=(i * 5 + (60 if label == "b" else 0)) % 256)
        self.assertEqual(self.answers("inspect", f"folder:{folder}", "--verify")["bad_images"], 0)
        (folder / "a" / "text.jpg").write_text("this is no image")
        # The header of a JPEG file and nothing after it.
        start = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffdb0043")
        (folder / "b" / "cut.jpg").write_bytes(start + b"\1" * 20)
        found = self.answers("inspect", f"folder:{folder}", "--verify", code=1)
        self.assertEqual(found["bad_images"], 2)
        self.assertIn("text.jpg", " ".join(found["damaged"]))
        self.assertIn("cut.jpg", " ".join(found["damaged"]))
        out = self.tmp / "with_bad"
        result = self.answers("pretrain", *TINY, "--data", f"folder:{folder}", "--epochs", 2, "--out", out)
        self.assertEqual(result["bad_images"], 2)
        bad = [json.loads(line) for line in (out / "bad_images.jsonl").read_text().splitlines()]
        self.assertEqual({pathlib.Path(line["path"]).name for line in bad}, {"text.jpg", "cut.jpg"})
        self.fails(1, "unreadable|bad", "pretrain", *TINY, "--data", f"folder:{folder}", "--epochs", 2, "--out",
                   self.tmp / "strict", "--set", "data.max_bad_share=0.001")

    # ---- everything that reads a checkpoint --------------------------------------------------------------------------

    def test_evaluations(self):
        knn = self.answers("knn", "--checkpoint", self.run_folder, "--train", TRAIN, "--test", TEST, "--k", "5,20")
        for key in ("task", "top1", "top5", "k", "temperature", "features", "encoder", "n_train", "n_test",
                    "checkpoint", "protocol", "seconds"):
            self.assertIn(key, knn)
        self.assertEqual((knn["k"], knn["n_train"], knn["n_test"], knn["encoder"]), (20, 96, 40, "q"))
        self.assertEqual([r["k"] for r in knn["results"]], [5, 20])
        pixels = self.answers("knn", "--features", "pixels", "--train", TRAIN, "--test", TEST)
        self.assertIsNone(pixels["checkpoint"])
        momentum = self.answers("knn", "--checkpoint", self.run_folder / "checkpoints" / "step_00000006", "--encoder",
                                "k", "--features", "projection", "--train", TRAIN, "--test", TEST)
        self.assertEqual(momentum["features"], "projection")
        linear = self.answers("linear", "--checkpoint", self.run_folder, "--train", TRAIN, "--test", TEST, "--epochs",
                              5, "--learning-rates", "1,10")
        self.assertIn(linear["learning_rate"], (1, 10))
        self.assertEqual(len(linear["holdout_top1"]), 2)
        table = self.tmp / "table.json"
        near = self.answers("neighbors", "--checkpoint", self.run_folder, "--data", TRAIN, "--k", 3, "--out", table)
        self.assertTrue(0 <= near["purity"] <= 1)
        images = json.loads(table.read_text())["images"]
        self.assertEqual(len(images), 96)
        self.assertTrue(all(i not in [n["index"] for n in image["neighbors"]] for i, image in enumerate(images)))
        file = self.tmp / "features.safetensors"
        embedded = self.answers("embed", "--checkpoint", self.run_folder, "--data", TEST, "--out", file)
        self.assertEqual((embedded["n"], embedded["dim"]), (40, 32))
        arrays = {a["name"]: a for a in self.answers("inspect", file)["arrays"]}
        self.assertEqual(arrays["features"]["shape"], [40, 32])
        self.assertEqual((arrays["labels"]["dtype"], arrays["labels"]["shape"]), ("i64", [40]))

    def test_evaluation_failures(self):
        evaluate = ["knn", "--train", TRAIN, "--test", TEST, "--checkpoint"]
        self.fails(1, "does not exist", *evaluate, self.tmp / "absent")
        self.fails(1, "no good checkpoint", *evaluate, self.tmp)
        self.fails(2, r"add \?channels=3", "knn", "--checkpoint", self.run_folder, "--train", TRAIN + "&channels=1",
                   "--test", TEST + "&channels=1")
        self.fails(1, "needs labels", "knn", "--checkpoint", self.run_folder, "--train", TRAIN + "&labels=none",
                   "--test", TEST)
        broken = self.tmp / "broken.safetensors"
        broken.write_bytes(b"\x10\0\0\0\0\0\0\0{\"a\":")
        self.fails(1, "broken.safetensors", *evaluate, broken)

    def test_export_and_import(self):
        for what, count in (("backbone", 120), ("full", 124)):
            file = self.tmp / f"{what}.safetensors"
            exported = self.answers("export", "--checkpoint", self.run_folder, "--what", what, "--out", file)
            self.assertTrue(exported["verified"])
            names = [a["name"] for a in self.answers("inspect", file)["arrays"]]
            self.assertEqual(len(names), count)
            self.assertIn("layer4.1.bn2.num_batches_tracked", names)
            self.assertEqual(any(name.startswith("fc.") for name in names), what == "full")
        imported = self.tmp / "imported"
        got = self.answers("import", self.tmp / "full.safetensors", "--out", imported, "--set", "eval.size=16")
        self.assertEqual((got["model"]["depth"], got["model"]["width"], got["has_head"]), (18, 4, True))
        evaluate = ["--train", TRAIN, "--test", TEST, "--features", "projection"]
        self.assertEqual(self.answers("knn", "--checkpoint", imported, *evaluate)["top1"],
                         self.answers("knn", "--checkpoint", self.run_folder, *evaluate)["top1"])
        # The file itself as a checkpoint: its metadata gives the normalisation, so the features are the same.
        features = []
        for source in (self.run_folder, self.tmp / "full.safetensors"):
            out = self.tmp / "features_of.safetensors"
            self.answers("embed", "--checkpoint", source, "--size", 16, "--resize", 0, "--data", TEST, "--out", out)
            features.append(out.read_bytes()[-40 * 32 * 4:])  # the last array of the file
        self.assertEqual(features[0], features[1])
        self.fails(1, "holds a run already", "import", self.tmp / "full.safetensors", "--out", imported)
        # Weights of another architecture.
        self.fails(1, "another architecture", "pretrain", *TINY, "--data", TRAIN, "--out", self.tmp / "z", "--set",
                   "model.width=8", "--init-from", self.tmp / "backbone.safetensors")
        started = self.answers("pretrain", *TINY, "--data", TRAIN, "--epochs", 1, "--out", self.tmp / "started",
                               "--init-from", self.tmp / "backbone.safetensors")
        self.assertEqual(started["steps"], 3)

    def test_inspect(self):
        run = self.answers("inspect", self.run_folder, "--verify")
        self.assertEqual(run["what"], "run")
        self.assertTrue(run["verified"])
        self.assertTrue(all(checkpoint["good"] for checkpoint in run["checkpoints"]))
        folder = self.run_folder / "checkpoints" / "step_00000006"
        self.assertEqual(self.answers("inspect", folder)["step"], 6)
        data = self.answers("inspect", TRAIN)
        self.assertEqual((data["images"], len(data["classes"])), (96, 10))
        # One byte of a copy changes: found, named, and the copy alone is bad.
        damaged = self.tmp / "damaged"
        damaged.mkdir()
        for file in folder.iterdir():
            (damaged / file.name).write_bytes(file.read_bytes())
        content = bytearray((damaged / "model.safetensors").read_bytes())
        content[-5] ^= 1
        (damaged / "model.safetensors").write_bytes(content)
        self.fails(1, "model.safetensors", "inspect", damaged)

    def test_pack(self):
        folder = self.tmp / "to_pack"
        for i in range(6):
            (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            png(folder / "ab"[i % 2] / f"{i}.png", value=40 * i)
        packed = self.answers("pack", f"folder:{folder}", "--out", self.tmp / "files.pack")
        self.assertEqual((packed["images"], packed["pixels"], packed["unreadable"]), (6, False, []))
        seen = self.answers("inspect", self.tmp / "files.pack", "--verify")
        self.assertEqual((seen["images"], seen["classes"], seen["verified"]), (6, ["a", "b"], True))
        pixels = self.answers("pack", TRAIN, "--out", self.tmp / "pixels.pack")
        self.assertTrue(pixels["pixels"])
        evaluated = [self.answers("knn", "--checkpoint", self.run_folder, "--train", spec, "--test", TEST, "--k", 5)["top1"]
                     for spec in (TRAIN, f"pack:{self.tmp / 'pixels.pack'}")]
        self.assertEqual(*evaluated)
        self.fails(1, "holds a pack already", "pack", TRAIN, "--out", self.tmp / "pixels.pack")
        (folder / "a" / "0.png").write_bytes(b"broken")
        png(folder / "a" / "7.png", size=20)
        self.fails(2, "raw pixels need one extent", "pack", f"folder:{folder}", "--raw", "--out", self.tmp / "x.pack")
        raw = self.answers("pack", f"folder:{folder}?size=8", "--out", self.tmp / "raw.pack")
        self.assertEqual((raw["images"], raw["pixels"], len(raw["unreadable"])), (6, True, 1))
        shard = self.tmp / "raw.pack" / "shard-00000.safetensors"
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        found = self.answers("inspect", f"pack:{self.tmp / 'raw.pack'}", "--verify", code=1)
        self.assertEqual(found["bad_images"], 1)
        self.assertIn("does not match its checksum", found["damaged"][0])

    def test_report(self):
        svm = {"task": "svm", "top1": 12.5, "map": 34.5678, "n_train": 96, "n_test": 40, "protocol": "low-shot"}
        (self.run_folder / "svm.json").write_text(json.dumps({**svm, "results": [{"k": 4, "top1": 12.5, "map": 34.5678}]}))
        (self.run_folder / "tuned.json").write_text(json.dumps(
            {"task": "finetune", "top1": 45, "protocol": "second", "stages": [
                {"stage": "fine-tune", "top1": 23.45, "top5": 60, "protocol": "the first"},
                {"stage": "self-train", "top1": 45, "top5": 70, "protocol": "the second"}]}))
        done = self.answers("report", self.run_folder, "--samples", 3)
        html = (self.run_folder / "report.html").read_text()
        self.assertEqual(done["bytes"], len(html.encode()))
        self.assertIn(done["verdict"], ("learns", "too early", "at chance", "below untrained"))
        for part in ("<p class=\"verdict", "How this is judged", done["reason"], "<svg", "Augmented views", "Nearest neighbours", "data:image/png;base64,", "chance, log(K + 1) = ",
                     "prefers-color-scheme", "method.name".split(".")[1], "svm, k = 4, mAP 34.57 %",
                     "finetune, fine-tune", "23.45", "the first", "finetune, self-train"):
            self.assertIn(part, html)
        self.assertIsNone(re.search(r"""(src|href)\s*=\s*["']?https?:|@import|url\(""", html))  # self-contained
        self.assertNotIn("Not available", html)
        self.assertNotRegex(html, r"\bnan\b")
        elsewhere = self.tmp / "gone.html"
        self.answers("report", self.run_folder, "--data", f"folder:{self.tmp / 'gone'}", "--out", elsewhere)
        self.assertIn("Not available", elsewhere.read_text())
        self.answers("report", "--run", self.run_folder, "--no-pictures")
        self.fails(1, "no such run folder", "report", self.tmp / "absent")

    def test_bench(self):
        short = ["--windows", 1, "--seconds", 0, "--warmup", 1]
        loader = self.answers("bench", "--loader", TRAIN, "--batch", 16, *short, "--set", "augment.crop_size=16")
        self.assertGreater(loader["pairs_per_second"], 0)
        for method in ("moco", "csml"):
            step = self.answers("bench", "--step", method, "--data", TRAIN, *TINY, *short)
            self.assertEqual((step["case"], step["batch"]), (method, 32))
            self.assertGreater(step["images_per_second"], 0)
        step = self.answers("bench", "--step", "resnet18_cifar", "--batch", 2, *short, "--buckets", 8)
        self.assertEqual(step["buckets"]["count"], 5)  # 43 MB of gradients, in whole leaves
        self.assertGreater(step["buckets"]["copies_alone_ms"], 0)
        self.fails(2, "--buckets goes with --step resnet50", "bench", "--step", "moco", "--buckets", 8)
        self.assertEqual((step["case"], step["batch"]), ("resnet18_cifar", 2))
        given = self.answers("bench", "--step", "moco", "--given", *TINY, *short)
        self.assertEqual((given["data"], given["precision"]), ("given", "fp32"))
        part = self.answers("bench", "--part", "top_k", "--size", "8,50,8,3", *short)
        self.assertEqual((part["case"], part["rows"], part["nearest"]), ("top_k", 50, 3))
        self.fails(2, "takes 4 numbers: queries, rows, dimensions, nearest", "bench", "--part", "top_k", "--size", "8,50")
        self.fails(2, "the 9 nearest of 5", "bench", "--part", "top_k", "--size", "2,5,4,9")

    def test_floors(self):
        floors = self.answers("bench", "--op", "l2_normalize", "--floors", "--dtype", "f32")["floors"]
        self.assertEqual([(f["bytes"], f["flops"] > 0) for f in floors], [(256 * (2 * 128 + 1) * 4, True)])
        us = floors[0]["cards"]["H100"]
        self.assertEqual(us["bound"], "bytes")
        self.assertAlmostEqual(us["us"], floors[0]["bytes"] / 3.35e6, places=6)
        self.fails(2, "--floors belongs to --op", "bench", "--step", "resnet18", "--floors")
        page = pathlib.Path(__file__).parent.parent / "docs" / "appendix" / "floors.md"
        table = csml("bench", "--op", "all", "--floors").stdout
        self.assertIn(table, page.read_text(), f"{page}: paste what csml bench --op all --floors prints")

    def test_full_standard_output(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        with open("/dev/full", "w") as full:
            done = subprocess.run([CSML, "inspect", TRAIN], stdout=full, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertIn("standard output", done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    CSML = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
