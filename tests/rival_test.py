#!/usr/bin/env python3
"""bench/pytorch on the CPU at tiny sizes: PyTorch repeats csml's work from an exchange file and finds the same, and finds
out where it is not the same.

usage: tests/rival_test.py CSML      (exits with 77 where PyTorch is not present)
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench/pytorch"))
try:
    import torch
except ImportError:
    print("rival: skipped: PyTorch not present")
    sys.exit(77)
import run  # noqa: E402
from check import BY_TENSOR, FLOOR, compare  # noqa: E402
from corners import Reference, error  # noqa: E402
from exchange import Exchange  # noqa: E402
from harness import Setting, Unavailable, measure  # noqa: E402

CSML = None
# More than one batch-norm group, or the preset's whole width, would be another network or longer.
METHOD = ["--preset", "cifar10-small", "--set", "method.bn_group_size=0", "--set", "method.queue=64", "--set",
          "model.width=4", "--batch", "8"]
COMMANDS = {"resnet18_cifar": ["--step", "resnet18_cifar", "--batch", "2"], "moco": ["--step", "moco", *METHOD],
            "csml": ["--step", "csml", *METHOD], "info_nce": ["--part", "info_nce", "--size", "8,200,16,2"],
            "top_k": ["--part", "top_k", "--size", "20,300,300,5"], "commit": ["--part", "commit", "--size", "30000"]}


class RivalTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        torch.set_num_threads(1)
        cls.folder = tempfile.TemporaryDirectory(prefix="rival_test_")
        cls.files = {}

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def exchange(self, case):
        """What csml made of a case, and of the timing beside it."""
        if case not in self.files:
            path = pathlib.Path(self.folder.name) / f"{case}.safetensors"
            done = subprocess.run([CSML, "bench", *COMMANDS[case], "--exchange", path, "--windows", "1", "--seconds", "0",
                                   "--warmup", "2", "--device", "cpu", "--json", "--quiet"], capture_output=True,
                                  text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
            self.assertEqual(done.returncode, 0, done.stderr)
            self.files[case] = path, json.loads(done.stdout)
        path, timing = self.files[case]
        return Exchange(path), timing

    def compare(self, case, exchange, precision="fp32"):
        size = [exchange.notes[name] for name in run.SIZES.get(case, {})]
        return compare(run.maker(case, None, size, exchange), exchange, Setting("cpu", precision), Setting("cpu", "fp64"))

    def check(self, case, quantities):
        exchange, timing = self.exchange(case)
        rows = self.compare(case, exchange)
        self.assertEqual({row["quantity"] for row in rows}, quantities)
        for row in rows:
            print(f"{case}: {row['quantity']}: csml {row['csml']:.2g}, PyTorch {row['pytorch']:.2g}, allowed "
                  f"{row['allowed']:.2g}; moved {row.get('moved')}")
            self.assertTrue(row["passed"], row)
        for key in ("ms", "issue_ms", "memory_bytes", "memory_before_bytes", "memory_peak_bytes", "calls"):
            self.assertGreater(timing[key], 0, key)
        self.assertEqual(timing["case"], case)
        return exchange, timing

    def refuses(self, case, exchange, wrong):
        """The comparison names just these quantities as wrong."""
        self.assertEqual({row["quantity"] for row in self.compare(case, exchange) if not row["passed"]}, wrong)

    STEP = {"loss", "gradient", BY_TENSOR, "parameters", "key parameters", "statistics", "key statistics", "keys"}

    def test_supervised(self):
        _, timing = self.check("resnet18_cifar", {"loss", "gradient", BY_TENSOR, "parameters", "statistics"})
        self.assertGreater(timing["images_per_second"], 0)

    def test_moco(self):
        exchange, timing = self.check("moco", self.STEP)
        self.assertGreater(timing["images_per_second"], 0)
        exchange.notes["key_momentum"] = 0.9  # the preset's is 0.99
        self.refuses("moco", exchange, {"key parameters"})

    def test_a_wrong_gradient(self):
        for layer in ("conv1.weight", "layer3.0.bn2.bias", "fc.2.bias"):  # 1 % too large in one tensor
            exchange, _ = self.exchange("moco")
            exchange[f"buffer/{layer}"].mul_(1.01)
            wrong = [row["quantity"] for row in self.compare("moco", exchange) if not row["passed"]]
            self.assertIn(BY_TENSOR, wrong, layer)
        exchange, _ = self.exchange("moco")
        exchange.notes["weight_decay"] = 0.0  # a term of every tensor's, the smallest there is
        self.refuses("moco", exchange, {"gradient", BY_TENSOR, "parameters"})

    def test_corners(self):
        """A unit on the other side is forgiven where rounding can bring it there, and nowhere else."""
        exchange, _ = self.exchange("moco")
        reference = Reference(run.maker("moco", None, [], exchange), Setting("cpu", "fp64"))
        floor, units = FLOOR["fp32"], len(reference.corners)
        self.assertGreater(units, 0)
        errors = []
        for unit in (reference.corners[0], (10, 0)):
            other, _ = reference.run((unit,))
            self.assertGreater(error(other[BY_TENSOR], reference.results[BY_TENSOR]), 10 * floor)
            right, moved = reference.beside(other, BY_TENSOR, floor)
            errors.append(error(other[BY_TENSOR], right[BY_TENSOR]))
        self.assertLess(errors[0], 1e-9)
        self.assertGreater(errors[1], 10 * floor)

    def test_csml(self):
        exchange, _ = self.check("csml", self.STEP)
        exchange.notes["lambda"] -= 0.1
        self.refuses("csml", exchange, {"loss", "gradient", BY_TENSOR, "parameters"})

    def test_info_nce(self):
        exchange, _ = self.check("info_nce", {"loss", "gradient"})
        exchange["dquery"][0] += 1e-3 * exchange["dquery"].norm()
        self.refuses("info_nce", exchange, {"gradient"})
        rows = self.compare("info_nce", self.exchange("info_nce")[0], "bf16")  # csml's f32 is nearer than needed
        self.assertTrue(all(row["passed"] for row in rows), rows)
        self.assertGreater(min(row["pytorch"] for row in rows), 10 * max(row["csml"] for row in rows))

    def test_top_k(self):
        exchange, _ = self.check("top_k", {"scores", "index"})
        scores = exchange["scores"]
        self.assertGreater(int((scores[:, 1:] == scores[:, :-1]).sum()), 0)  # there are ties, and their order is checked
        rows = self.compare("top_k", exchange, "bf16")  # what is right is never rounded to 16 bits
        self.assertTrue(all(row["passed"] for row in rows), rows)
        index = exchange["index"]
        index[3, 0], index[3, 1] = int(index[3, 1]), int(index[3, 0])
        self.refuses("top_k", exchange, {"index"})

    def test_commit(self):
        exchange, _ = self.check("commit", {"parameters", "key parameters"})
        exchange.notes["momentum"] = 0.5  # nothing: the first step's buffer is zero
        self.refuses("commit", exchange, set())
        exchange.notes["weight_decay"] = 0.1
        self.refuses("commit", exchange, {"parameters", "key parameters"})

    def test_refused_exchanges(self):
        for words, arguments in (("whole batch", ["--step", "moco", "--preset", "cifar10-small", "--batch", "32"]),
                                 ("SGD", ["--step", "moco", *METHOD, "--set", "optimizer.kind=lars"]),
                                 ("--step and --part", ["--op", "relu"])):
            done = subprocess.run([CSML, "bench", *arguments, "--exchange", "x", "--device", "cpu"], capture_output=True,
                                  text=True, timeout=120)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(words, done.stderr)

    def test_timing(self):
        calls = []
        times, memory = measure(Setting("cpu"), lambda: calls.append(1), 4, 3, 1e-4)
        self.assertEqual((len(times), memory), (3, None))
        self.assertGreaterEqual(len(calls), 4 + 3 + 3)
        self.assertLessEqual(min(times), max(times))

    def test_what_cannot_be_had_is_named(self):
        self.assertRaisesRegex(Unavailable, "GPU", Setting, "cpu", "fp16")
        line = run.attempt(lambda: Setting("cpu", "fp16"), {"kind": "time"})
        self.assertIn("needs a GPU", line["unavailable"])
        self.assertIn("ZeroDivisionError", run.attempt(lambda: 1 // 0, {})["error"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    CSML = os.path.abspath(sys.argv.pop(1))
    unittest.main()
