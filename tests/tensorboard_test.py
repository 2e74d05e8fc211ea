#!/usr/bin/env python3
"""The event file of a run is metrics.jsonl in TensorBoard's form, after resuming too.

usage: tests/tensorboard_test.py CSML      (the binary; python3's standard library; tensorboard where it is installed)
"""
import json
import math
import os
import pathlib
import shutil
import struct
import sys
import tempfile
import unittest

import cli_test
from cli_test import TEST, TINY, TRAIN, csml

RUN = ["pretrain", *TINY, "--data", TRAIN, "--test-data", TEST, "--method", "csml", "--epochs", "3"]


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff


def records(path):
    data, at = path.read_bytes(), 0
    while at < len(data):
        length, check = struct.unpack_from("<QI", data, at)
        assert check == masked(data[at:at + 8]), f"{path}: length at {at}"
        at += 12
        body = data[at:at + length]
        check, = struct.unpack_from("<I", data, at + length)
        assert check == masked(body), f"{path}: data at {at}"
        yield body
        at += length + 4
    assert at == len(data)


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7f) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def fields(data):
    """(number, value) of a message: int, or the bytes of other types."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                assert wire == 2, wire
                size, at = varint(data, at)
            value, at = data[at:at + size], at + size
        yield number, value


def scalars(folder):
    """[(step, tag, value)] of the only event file, and its wall times."""
    file, = (folder / "tensorboard").iterdir()
    assert "tfevents" in file.name
    first, *rest = records(file)
    assert dict(fields(first))[3] == b"brain.Event:2"
    found, times = [], []
    for body in rest:
        event = dict(fields(body))
        times.append(struct.unpack("<d", event[1])[0])
        for number, value in fields(event[5]):
            assert number == 1
            inner = dict(fields(value))
            found.append((event[2], inner[1].decode(), struct.unpack("<f", inner[2])[0]))
    return found, times


def numbers(value, name):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}/{key}")
    elif isinstance(value, (int, float)) and math.isfinite(value):
        yield name, struct.unpack("<f", struct.pack("<f", value))[0]


def expected(folder):
    found = []
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        kind = line["event"] if line["kind"] == "event" else line["kind"]
        rest = {k: v for k, v in line.items() if k not in ("step", "epoch", "time")}
        found += [(line["step"], name, value) for name, value in numbers(rest, kind)]
    return found


class TensorboardTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="csml_tensorboard_")
        self.run_folder = pathlib.Path(self.folder.name) / "run"

    def tearDown(self):
        self.folder.cleanup()

    def train(self, *more):
        done = csml(*RUN, "--out", self.run_folder, *more)
        self.assertEqual(done.returncode, 0, done.stderr)

    def check(self):
        found, times = scalars(self.run_folder)
        self.assertEqual(sorted(found), sorted(expected(self.run_folder)))
        self.assertEqual(len(found), len({(step, tag) for step, tag, _ in found}))  # nothing is told twice
        self.assertEqual(times, sorted(times))
        return found

    def test_checksum(self):
        self.assertEqual(crc32c(b"123456789"), 0xe3069283)  # the catalogue's check value

    def test_is_metrics(self):
        self.train()
        found = self.check()
        for tag in ("step/loss", "step/loss_terms/q", "step/lr", "epoch/purity", "eval/top1", "neighbors/purity"):
            self.assertTrue(any(tag == t for _, t, _ in found), tag)
        try:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        except ImportError:
            print("skipped: reading with tensorboard: not present", file=sys.stderr)
            return
        accumulator = EventAccumulator(str(self.run_folder / "tensorboard"), {"scalars": 0}).Reload()
        read = [(e.step, tag, e.value) for tag in accumulator.Tags()["scalars"] for e in accumulator.Scalars(tag)]
        self.assertEqual(sorted(read), sorted(found))

    def test_resumed(self):
        """The newest checkpoint is lost: the lines after the one before it are told anew, once."""
        self.train("--set", "train.max_steps=5", "--set", "train.checkpoint_every_steps=2")
        self.check()
        before, = (self.run_folder / "tensorboard").iterdir()
        with open(before, "ab") as file:
            file.write(b"\x30\0\0")  # what a crash leaves
        shutil.rmtree(self.run_folder / "checkpoints" / "step_00000005")
        self.train("--set", "train.max_steps=7")
        found = self.check()
        self.assertEqual(sorted(step for step, tag, _ in found if tag == "step/loss"), list(range(1, 8)))

    def test_anew(self):
        self.train("--set", "train.max_steps=2")
        self.train("--set", "train.max_steps=1", "--overwrite")
        self.assertEqual({step for step, _, _ in self.check()}, {0, 1})


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    cli_test.CSML = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
