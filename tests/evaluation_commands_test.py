#!/usr/bin/env python3
"""The evaluation commands as users meet them: protocols named, folders written, formats that other programs read.

usage: tests/evaluation_commands_test.py CSML      (the binary; python3's standard library only)
"""
import json
import math
import os
import pathlib
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import unittest

import cli_test
from cli_test import TEST, TINY, TRAIN, csml


class Stub:
    """Stands for what numpy's pickles call, so that a pickle is read without numpy."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state


class Reader(pickle.Unpickler):
    """Allows the three names that an array's pickle needs, and nothing else."""

    def find_class(self, module, name):
        if (module, name) not in (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            raise pickle.UnpicklingError(f"{module}.{name}")
        return Stub


def header(path):
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + length])


def array(path, name):
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    first, last = header(path)[name]["data_offsets"]
    return data[8 + length + first:8 + length + last]


def safetensors(arrays, fill=None, data=None):
    """A file of arrays {name: (dtype, shape)}, laid out in that order; all bytes are `fill` (zero) unless `data`."""
    description, at = {}, 0
    for name, (dtype, shape) in arrays.items():
        size = math.prod(shape) * int(dtype[1:]) // 8
        description[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(description).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + (data if data is not None else (fill or b"\0") * at)


def array_of_floats(values):
    return struct.pack(f"<{len(values)}f", *values)


# Its own process: a child's largest resident set begins as that of the process that started it.
PEAK = """import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(done.returncode)"""


def peak_memory(*arguments):
    """Bytes of memory that a command held at most."""
    done = subprocess.run([sys.executable, "-c", PEAK, cli_test.CSML, *map(str, arguments)], capture_output=True,
                          text=True, env={**os.environ, **cli_test.THREADS})
    if done.returncode != 0:
        raise AssertionError(f"{arguments}: {done.stderr}")
    return int(done.stdout)


class EvaluateTest(unittest.TestCase):
    fails, answers = cli_test.CliTest.fails, cli_test.CliTest.answers

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="csml_evaluate_")
        cls.tmp = pathlib.Path(cls.folder.name)
        cls.run_folder = cls.tmp / "run"
        cls.imagenet = cls.tmp / "imagenet_stem"
        for out, more in ((cls.run_folder, ()), (cls.imagenet, ("--set=model.stem=imagenet", "--method", "moco"))):
            done = csml("pretrain", *TINY, *more, "--data", TRAIN, "--epochs", 2, "--set=train.max_steps=3", "--out", out)
            if done.returncode != 0:
                raise AssertionError(done.stderr)
        cls.data = ["--train", TRAIN, "--test", TEST]
        cls.source = ["--checkpoint", cls.run_folder, *cls.data]

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_knn_settings_and_blocks(self):
        more = [self.source[0], self.source[1], "--train", TRAIN.replace("96", "210"), "--test", TEST]
        dino = self.answers("knn", *more, "--setting", "dino")
        self.assertEqual([r["k"] for r in dino["results"]], [10, 20, 100, 200])
        self.assertEqual((dino["k"], dino["temperature"]), (20, 0.07))
        instdisc = self.answers("knn", *more, "--setting", "instdisc")
        self.assertEqual((instdisc["k"], instdisc["temperature"]), (200, 0.1))
        self.assertEqual(self.answers("knn", *more, "--setting", "instdisc", "--k", 3)["k"], 3)
        blocks = self.answers("knn", *more, "--setting", "dino", "--bank-block", 50)
        self.assertEqual(blocks["results"], dino["results"])
        for encoder in "q", "k":
            for features in "backbone", "projection":
                got = self.answers("knn", *self.source, "--encoder", encoder, "--features", features)
                self.assertEqual((got["encoder"], got["features"]), (encoder, features))
                self.assertIn(features, got["protocol"])
                self.assertIn(f"encoder {encoder}", got["protocol"])
        self.fails(2, "--setting", "knn", *self.source, "--setting", "other")

    def test_feature_files(self):
        """A judgement of files that csml embed wrote is that of the encoder that wrote them."""
        files = []
        for side, spec in (("train", TRAIN), ("test", TEST)):
            files += [f"--{side}-features", self.tmp / f"{side}.safetensors"]
            self.answers("embed", "--checkpoint", self.run_folder, "--data", spec, "--out", files[-1])
        ours = {"seconds", "train", "test", "memory_bytes"}
        for command, more in (("knn", ["--k", "3,20"]), ("linear", ["--epochs", 3, "--learning-rates", "1,10"]),
                              ("svm", ["--shots", "1,4", "--runs", 2])):
            direct, filed = self.answers(command, *self.source, *more), self.answers(command, *files, *more)
            self.assertEqual({k: v for k, v in direct.items() if k not in ours},
                             {k: v for k, v in filed.items() if k not in ours})
            self.assertEqual((filed["train"], filed["n_train"]), (str(files[1]), 96))
        one = self.answers("linear", *files, "--epochs", 2, "--learning-rates", 3, "--standardise")
        self.assertIn("rate 3 given", one["protocol"])
        self.assertIn("standardised", one["protocol"])

        self.fails(2, "--train SPEC", "knn", "--test", TEST)
        self.fails(2, "belong together", "knn", *files[:2])
        self.fails(2, "take no --checkpoint", "knn", *files, "--checkpoint", self.run_folder)
        self.fails(2, "--shift moves images", "knn", *files, "--shift", 2)
        self.fails(2, "--augment runs an encoder", "linear", *files, "--augment")
        plain = self.tmp / "plain_features.safetensors"
        for arrays, message in (({"features": ("F32", [2, 3])}, "no array 'labels'"),
                                ({"features": ("F32", [2, 3]), "labels": ("I64", [3])}, r"must be i64 \[2\]"),
                                ({"features": ("F64", [2, 3]), "labels": ("I64", [2])}, r"must be f32 \[N, D\]"),
                                ({"features": ("F32", [2, 7]), "labels": ("I64", [2])}, "of dimension 32")):
            plain.write_bytes(safetensors(arrays))
            self.fails(1, message, "knn", *files[:2], "--test-features", plain)
        plain.write_bytes(safetensors({"features": ("F32", [1, 32]), "labels": ("I64", [1])}, b"\xff"))
        self.fails(1, "row 0 has no label", "knn", *files[:2], "--test-features", plain)

    def test_bounded_memory(self):
        """Of 60 MiB of features k-NN holds one block, a linear probe each row once."""
        dim, block = 256, 1024
        row = lambda label: array_of_floats([random.Random(label * 1000 + i).gauss(i == label, 1) for i in range(dim)])
        rows = b"".join(row(i % 10) for i in range(block))
        files, peak = {}, {}
        for name, blocks in (("few", 1), ("many", 60)):
            files[name] = self.tmp / f"{name}.safetensors"
            labels = struct.pack(f"<{blocks * block}q", *[i % block % 10 for i in range(blocks * block)])
            shape = [blocks * block, dim]
            files[name].write_bytes(
                safetensors({"features": ("F32", shape), "labels": ("I64", shape[:1])}, None, rows * blocks + labels))
        for command, more in (("knn", ["--bank-block", block]), ("linear", ["--epochs", 1, "--standardise"])):
            for name, train in files.items():
                peak[name] = peak_memory(command, "--train-features", train, "--test-features", files["few"], *more)
            grown, file = peak["many"] - peak["few"], files["many"].stat().st_size
            if command == "knn":
                self.assertLess(grown, file / 8)  # measured: 1 MB of 63
            else:
                self.assertLess(grown, 1.15 * file)  # measured: 65 MB of 63

    def test_augmented_probe(self):
        got = self.answers("linear", *self.source, "--augment", "--epochs", 2, "--batch-size", 16, "--blocks", 4)
        self.assertEqual([b["block"] for b in got["blocks"]], ["layer3.0", "layer3.1", "layer4.0", "layer4.1"])
        self.assertEqual((got["learning_rate"], got["n_train"], got["holdout_top1"]), (30, 96, []))
        self.assertEqual(got["top1"], got["blocks"][-1]["top1"])
        for word in "augmented", "rate 30 given", "last epoch", "frozen":
            self.assertIn(word, got["protocol"])
        grid = self.answers("linear", *self.source, "--augment", "--epochs", 2, "--batch-size", 16, "--learning-rates",
                            "0.001,3,10")
        self.assertEqual((len(grid["holdout_top1"]), grid["n_test"]), (3, 40))
        self.assertLess(grid["n_train"], 96)
        self.assertIn("held out", grid["protocol"])
        again = self.answers("linear", *self.source, "--augment", "--epochs", 2, "--batch-size", 16, "--learning-rates",
                             "0.001,3,10")
        self.assertEqual({k: v for k, v in grid.items() if k != "seconds"},
                         {k: v for k, v in again.items() if k != "seconds"})
        self.fails(2, "--standardise", "linear", *self.source, "--augment", "--standardise")
        self.fails(2, "--features backbone", "linear", *self.source, "--augment", "--features", "projection")
        self.fails(2, "8 residual blocks", "linear", *self.source, "--augment", "--blocks", 9)

    def test_finetune(self):
        out = self.tmp / "tuned"
        half = ["--labels", "50%"]
        options = ["--epochs", 3, "--batch-size", 16, "--self-train-epochs", 2]
        got = self.answers("finetune", *self.source, *half, *options, "--self-train", "--entropy-threshold", 3.0, "--out", out)
        self.assertEqual([s["stage"] for s in got["stages"]], ["fine-tune", "self-train"])
        self.assertEqual((got["n_labelled"], got["lr_trunk"], got["lr_head"]), (48, 0.01, 0.2))
        self.assertEqual(got["top1"], got["stages"][1]["top1"])
        self.assertEqual(got["pseudo"]["unlabelled"], 48)
        self.assertEqual(got["stages"][1]["images"], 48 + got["pseudo"]["kept"])
        self.assertIn("48 labels, 50% of the training images, class-balanced", got["stages"][0]["protocol"])
        self.assertIn("pseudo labels", got["stages"][1]["protocol"])
        self.assertEqual(json.loads((out / "result.json").read_text())["top1"], got["top1"])
        self.assertEqual(json.loads((out / "config.json").read_text())["decay"], 0.2)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        epochs = [line for line in lines if line["kind"] == "epoch"]
        self.assertEqual([line["epoch"] for line in epochs], [1, 2, 3, 1, 2])
        self.assertTrue(all(math.isfinite(line["loss"]) and "time" in line and "step" in line for line in epochs))
        self.assertAlmostEqual(epochs[2]["lr_head"] / epochs[0]["lr_head"], 0.2)
        weights = header(out / "classifier.safetensors")
        self.assertEqual(weights["fc.weight"]["shape"], [10, 32])
        self.assertEqual(weights["__metadata__"]["protocol"], got["stages"][1]["protocol"])  # the stage they are from
        # The labels written down, taken as a list, are the same labels.
        listed = self.answers("finetune", *self.source, *options, "--labels", out / "labels.txt", "--out",
                              self.tmp / "listed")
        self.assertEqual(listed["stages"][0]["top1"], got["stages"][0]["top1"])
        self.assertIn("48 labels listed in labels.txt", listed["protocol"])
        # Chosen on held-out labels.
        chosen = self.answers("finetune", *self.source, *half, *options, "--self-train", "--out", self.tmp / "chosen")
        self.assertGreaterEqual(chosen["pseudo"]["held_out"], 10)
        self.assertIn("chosen on held-out labels", chosen["protocol"])
        scratch = self.answers("finetune", *self.source, *half, *options, "--from-scratch", "--out", self.tmp / "scratch")
        self.assertEqual((scratch["lr_trunk"], scratch["lr_head"]), (0.1, 0.1))
        self.assertIn("from random weights", scratch["protocol"])
        few = self.answers("finetune", *self.source[:2], "--train", TRAIN.replace("96", "400"), "--test", TEST,
                           "--labels", "1%", "--epochs", 1, "--out", self.tmp / "few")
        self.assertEqual((few["n_labelled"], few["lr_trunk"], few["lr_head"]), (10, 0.02, 5))  # one of each class

        self.fails(1, "holds a result already", "finetune", *self.source, *options, "--out", out)
        self.answers("finetune", *self.source, "--epochs", 1, "--out", out, "--overwrite")
        self.fails(1, "holds a pretraining run", "finetune", *self.source, "--out", self.run_folder)
        for labels, code, message in (("0%", 2, "give a share"), ("x%", 2, "give a share"), ("200%", 2, "give a share"),
                                      (self.tmp / "absent.txt", 1, "cannot read the list")):
            self.fails(code, message, "finetune", *self.source, "--labels", labels, "--out", self.tmp / "wrong")
        self.fails(1, "there is nothing to learn from", "finetune", *self.source, "--labels", "100%", "--epochs", 1,
                   "--self-train", "--entropy-threshold", 1, "--out", self.tmp / "all")
        self.fails(2, r"channels=3", "finetune", "--checkpoint", self.run_folder, "--train", TRAIN + "&channels=1",
                   "--test", TEST + "&channels=1", "--out", self.tmp / "gray")

    def test_svm(self):
        full = self.answers("svm", *self.source)
        self.assertEqual(len(full["ap"]), 10)
        self.assertAlmostEqual(full["map"], sum(full["ap"]) / 10, places=4)
        for word in "squared hinge", "C 0.5", "weighted 2", "unit-length":
            self.assertIn(word, full["protocol"])
        low = self.answers("svm", *self.source, "--shots", "1,2,4", "--runs", 3)
        self.assertEqual([r["k"] for r in low["results"]], [1, 2, 4])
        self.assertTrue(all(len(r["map_runs"]) == 3 and r["map_std"] >= 0 for r in low["results"]))
        self.assertEqual(low["map"], low["results"][-1]["map"])
        self.assertIn("mean of 3 draws", low["protocol"])
        self.assertEqual(self.answers("svm", *self.source, "--shots", "1,2,4", "--runs", 3)["results"], low["results"])
        self.fails(1, "50 images of every class are asked", "svm", *self.source, "--shots", "1,50")

    def test_timm_and_torchvision(self):
        files = []
        for format in "torchvision", "timm":
            files.append(self.tmp / f"{format}.safetensors")
            self.answers("export", "--checkpoint", self.run_folder, "--format", format, "--out", files[-1])
        self.assertEqual(files[0].read_bytes(), files[1].read_bytes())

    def test_detectron2(self):
        plain, pkl, named = (self.tmp / name for name in ("plain.safetensors", "d2.pkl", "d2.safetensors"))
        self.answers("export", "--checkpoint", self.imagenet, "--out", plain)
        for file in pkl, named:
            self.assertTrue(self.answers("export", "--checkpoint", self.imagenet, "--format", "detectron2", "--out",
                                         file)["verified"])
        with open(pkl, "rb") as file:
            content = Reader(file).load()
        self.assertEqual((content["__author__"], content["matching_heuristics"]), ("csml", True))
        model = content["model"]
        self.assertEqual(sorted(model), sorted(k for k in header(named) if k != "__metadata__"))
        for theirs, ours in (("stem.conv1.weight", "conv1.weight"), ("res3.0.shortcut.norm.running_var",
                                                                     "layer2.0.downsample.1.running_var")):
            version, shape, dtype, fortran, data = model[theirs].state
            self.assertEqual((version, list(shape), fortran), (1, header(plain)[ours]["shape"], False))
            self.assertEqual(dtype.arguments[0] + dtype.state[1], "f4<")
            self.assertEqual(data, array(plain, ours))
            self.assertEqual(array(named, theirs), array(plain, ours))
        # Back again, with detectron2's names.
        imported = self.tmp / "from_detectron2"
        got = self.answers("import", named, "--out", imported, "--set", "eval.size=16", "--set", "eval.resize=16")
        self.assertEqual((got["names"], got["model"]["depth"], got["model"]["stem"]), ("detectron2", 18, "imagenet"))
        back = self.tmp / "back.safetensors"
        self.answers("export", "--checkpoint", imported, "--out", back)
        for name in header(plain):
            if name != "__metadata__":
                self.assertEqual(array(back, name), array(plain, name))
        self.fails(2, "7x7 stem", "export", "--checkpoint", self.run_folder, "--format", "detectron2", "--out", pkl)
        self.fails(2, "--what backbone", "export", "--checkpoint", self.imagenet, "--format", "detectron2", "--what",
                   "full", "--out", pkl)

    def test_onnx(self):
        for what in "backbone", "full":
            file = self.tmp / f"{what}.onnx"
            done = self.answers("export", "--checkpoint", self.run_folder, "--format", "onnx", "--what", what, "--out",
                                file)
            self.assertTrue(done["verified"])
            self.assertEqual(done["bytes"], file.stat().st_size)
            self.assertEqual(b"LpNormalization" in file.read_bytes(), what == "full")

    def test_heads_with_batch_norm(self):
        for norm in "none", "hidden", "all":
            run, file, model = (self.tmp / f"head_{norm}{end}" for end in ("", ".safetensors", ".onnx"))
            self.answers("pretrain", *TINY, "--data", TRAIN, "--epochs", 1, "--set", f"model.head_bn={norm}", "--out", run)
            features = []
            for checkpoint in run, file:
                if checkpoint == file:
                    self.answers("export", "--checkpoint", run, "--what", "full", "--out", file)
                self.answers("embed", "--checkpoint", checkpoint, "--data", TEST, "--size", 16, "--resize", 0, "--features",
                             "projection", "--out", self.tmp / "features.safetensors")
                features.append(array(self.tmp / "features.safetensors", "features"))
            self.assertEqual(*features)
            self.assertTrue(self.answers("export", "--checkpoint", run, "--format", "onnx", "--what", "full", "--out",
                                         model)["verified"])
            backbone = self.tmp / "backbone.safetensors"
            self.answers("export", "--checkpoint", run, "--out", backbone)
            imported = self.tmp / f"head_{norm}_imported"
            self.answers("import", backbone, "--out", imported)
            for checkpoint in backbone, imported:
                none = self.tmp / "head_of_none.safetensors"
                self.fails(2, "holds no projection head", "embed", "--checkpoint", checkpoint, "--data", TEST, "--features",
                           "projection", "--out", none)
                self.fails(2, "holds no projection head", "export", "--checkpoint", checkpoint, "--what", "full", "--out",
                           none)

    def test_whole_checkpoint(self):
        file, out = self.tmp / "state.safetensors", self.tmp / "state"
        self.answers("export", "--checkpoint", self.run_folder, "--what", "state", "--format", "safetensors", "--out",
                     file)
        got = self.answers("import", file, "--out", out)
        self.assertEqual((got["what"], got["step"]), ("state", 3))
        # Going on from it and from the original gives the same weights.
        ends = []
        for start in self.run_folder / "checkpoints" / "step_00000003", pathlib.Path(got["checkpoint"]):
            end = self.tmp / f"on_{start.parent.parent.name}"
            self.assertEqual(self.answers("pretrain", *TINY, "--data", TRAIN, "--epochs", 2, "--out", end, "--resume",
                                          start)["steps"], 6)
            ends.append([(end / "checkpoints" / "step_00000006" / f"{part}.safetensors").read_bytes()
                         for part in ("model", "state")])
        self.assertEqual(ends[0], ends[1])
        originals = self.run_folder / "checkpoints" / "step_00000003"
        copies = out / "checkpoints" / "step_00000003"
        for name in "model.safetensors", "state.safetensors":
            self.assertEqual((copies / name).read_bytes(), (originals / name).read_bytes())
        self.fails(2, "--format safetensors", "export", "--checkpoint", self.run_folder, "--what", "state", "--format", "timm",
                   "--out", file)
        self.fails(2, "takes neither", "import", file, "--out", self.tmp / "x", "--set", "eval.size=8")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    cli_test.CSML = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
