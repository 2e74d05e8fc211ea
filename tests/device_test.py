#!/usr/bin/env python3
"""--device on machines with and without a card: what is chosen, and one clear line where it cannot be had.

usage: tests/device_test.py CSML      (the binary; python3's standard library only)
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

CSML = None
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
NO_CUDA = "this build has no CUDA backend"


def bench(device, env=None):
    """One short timing of one call on a device."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CSML_")}
    environment.update({**THREADS, **(env or {})})
    return subprocess.run([CSML, "bench", "--op", "l2_normalize", "--cifar", "--batch", "1", "--windows", "1",
                           "--seconds", "0", "--device", device, "--json", "--quiet"], capture_output=True, text=True,
                          env=environment, timeout=300)


def has_cuda():
    return NO_CUDA not in bench("cuda").stderr


class DeviceTest(unittest.TestCase):
    def assert_one_line(self, done, code, *words):
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_cpu(self):
        done = bench("cpu")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["device"], "cpu")

    def test_not_a_device(self):
        for device in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda0"):
            self.assert_one_line(bench(device), 2, f"'{device}'", "cuda:N")

    def test_sixteen_bits_need_a_card(self):
        """Refused before there is a run folder."""
        for precision in ("bf16", "fp16"):
            with tempfile.TemporaryDirectory() as folder:
                out = os.path.join(folder, "run")
                done = subprocess.run([CSML, "pretrain", "--data", "synthetic:shapes?limit=16", "--batch-size", "8",
                                       "--set", "method.bn_group_size=0", "--device", "cpu", "--precision", precision,
                                       "--out", out],
                                      capture_output=True, text=True, env={**os.environ, **THREADS}, timeout=300)
                self.assert_one_line(done, 2, f"precision {precision}", "--device cuda", "--precision fp32")
                self.assertFalse(os.path.exists(out))
            for work in (["--step", "resnet18_cifar"], ["--part", "commit"]):
                done = subprocess.run([CSML, "bench", *work, "--device", "cpu", "--precision", precision],
                                      capture_output=True, text=True, env={**os.environ, **THREADS}, timeout=300)
                self.assert_one_line(done, 2, f"precision {precision}", "--device cuda", "--precision fp32")

    def test_no_such_card(self):
        done = bench("cuda:4096")
        self.assert_one_line(done, 1, "'cuda:4096'")

    def test_hidden_cards(self):
        """As on a machine without a card, whether this one has a driver or not."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        self.assert_one_line(bench("cuda", hidden), 1, "device 'cuda'", "--device cpu")
        done = bench("auto", hidden)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(json.loads(done.stdout)["device"], "cpu")

    def test_no_driver(self):
        if not has_cuda() or os.path.exists("/dev/nvidiactl"):
            self.skipTest("needs the CUDA backend and a machine without a card")
        for device in ("cuda", "cuda:0"):
            self.assert_one_line(bench(device), 1, f"device '{device}'", "no NVIDIA driver", "--device cpu")

    def test_starts_without_cuda_libraries(self):
        """Nothing of CUDA is needed to start: the libraries are loaded when a card is first used."""
        if not shutil.which("readelf"):
            self.skipTest("readelf not present")
        dynamic = subprocess.run(["readelf", "-d", CSML], capture_output=True, text=True, check=True).stdout
        needed = [line for line in dynamic.splitlines() if "(NEEDED)" in line]
        self.assertTrue(needed)
        for line in needed:
            for library in ("libcuda", "libcudnn", "libcublas", "libnv"):
                self.assertNotIn(library, line)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    CSML = os.path.abspath(sys.argv.pop(1))
    unittest.main()
