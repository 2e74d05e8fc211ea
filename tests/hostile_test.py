#!/usr/bin/env python3
"""What a shell, a service or other people's files do to the program: nothing is lost, and every end is one clear line.

usage: tests/hostile_test.py CSML      (the binary; python3's standard library only)
"""
import json
import os
import pathlib
import resource
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import cli_test

TRAIN, TINY, THREADS = cli_test.TRAIN, cli_test.TINY, cli_test.THREADS
CSML = None


def start(*arguments, **options):
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CSML_")}
    return subprocess.Popen([CSML, *map(str, arguments)], env={**environment, **THREADS}, **options)


def safetensors(path, arrays):
    """`arrays`: name -> (dtype, shape, bytes)."""
    header, data = {}, b""
    for name, (dtype, shape, values) in arrays.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def read_safetensors(path):
    raw = path.read_bytes()
    length, = struct.unpack("<Q", raw[:8])
    header, data = json.loads(raw[8:8 + length]), raw[8 + length:]
    header.pop("__metadata__", None)
    return {name: (a["dtype"], a["shape"], data[slice(*a["data_offsets"])]) for name, a in header.items()}


class HostileTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="csml_hostile_")
        cls.tmp = pathlib.Path(cls.folder.name)
        cls.run_folder = cls.tmp / "run"
        done = cls.csml(*cls.training(cls.run_folder))
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        cls.weights = cls.tmp / "weights.safetensors"
        done = cls.csml("export", "--checkpoint", cls.run_folder, "--out", cls.weights)
        if done.returncode != 0:
            raise AssertionError(done.stderr)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    @staticmethod
    def training(out, epochs=1, *more):
        return ["pretrain", *TINY, "--set", "eval.knn_every_epochs=0", "--set", "method.queue=64", "--data", TRAIN,
                "--epochs", epochs, "--out", out, *more]

    @staticmethod
    def csml(*arguments, **options):
        process = start(*arguments, **options)
        out, errors = process.communicate(timeout=120)
        process.stderr_text = (errors or b"").decode(errors="replace")
        return subprocess.CompletedProcess(arguments, process.returncode, out, process.stderr_text)

    def line_of(self, done, code):
        """The one line of a command that failed."""
        self.assertEqual(done.returncode, code, done.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("csml: ")]
        self.assertEqual(len(lines), 1, done.stderr)
        self.assertLess(len(lines[0]), 4200)
        self.assertNotRegex(lines[0], r"\w+\.(cpp|h):\d+")
        self.assertNotRegex(lines[0], "[\x00-\x1f\x7f]")
        return lines[0]

    def must_be_whole(self, out, steps=3):
        lines = (out / "metrics.jsonl").read_text().splitlines()
        kinds = [json.loads(line)["kind"] for line in lines]  # nothing else is among them
        self.assertEqual(kinds.count("step"), steps)

    # ---- the environment ---------------------------------------------------------------------------------------------

    def test_closed_standard_streams(self):
        for number, closed in enumerate(([2], [0, 1, 2], [0])):
            out = self.tmp / f"closed{number}"
            command = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
            done = subprocess.run(["sh", "-c", f'"$@" {command}', "sh", CSML, *map(str, self.training(out))],
                                  env={**os.environ, **THREADS}, stdin=subprocess.DEVNULL, capture_output=True,
                                  timeout=120)
            self.assertEqual(done.returncode, 1 if 1 in closed else 0, done.stderr)  # a lost answer is told
            self.must_be_whole(out)

    def test_standard_error_gone_or_full(self):
        read, write = os.pipe()
        os.close(read)
        out = self.tmp / "gone"
        self.assertEqual(self.csml(*self.training(out), stderr=write).returncode, 0)
        os.close(write)
        self.must_be_whole(out)
        with open("/dev/full", "w") as full:
            self.assertEqual(self.csml(*self.training(self.tmp / "full"), stderr=full).returncode, 0)
            self.assertEqual(self.csml("inspect", self.tmp / "absent", stderr=full).returncode, 1)
        self.must_be_whole(self.tmp / "full")

    def test_standard_output_gone(self):
        read, write = os.pipe()
        os.close(read)
        done = self.csml("inspect", TRAIN, stdout=write)
        os.close(write)
        self.assertIn("cannot write to standard output", self.line_of(done, 1))

    def test_file_size_limit(self):
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        done = self.csml("export", "--checkpoint", self.run_folder, "--out", self.tmp / "limited.safetensors",
                         preexec_fn=limit)
        self.assertIn("the file size limit is too small", self.line_of(done, 1))
        self.assertEqual(list(self.tmp.glob("limited*")), [])

    def stopped(self, out, *signals, pause=0.1, ignored=()):
        ignore = lambda: [signal.signal(number, signal.SIG_IGN) for number in ignored]
        process = start(*self.training(out, 4000 if signal.SIGHUP not in ignored else 3), preexec_fn=ignore)
        until = time.monotonic() + 60
        while '"kind":"step"' not in ((out / "metrics.jsonl").read_text() if (out / "metrics.jsonl").exists() else ""):
            self.assertLess(time.monotonic(), until)
            time.sleep(0.01)
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        _, errors = process.communicate(timeout=120)
        return process.returncode, errors.decode()

    def test_hangup_is_a_stop(self):
        code, errors = self.stopped(self.tmp / "hup", signal.SIGHUP)
        self.assertEqual(code, 75, errors)
        self.assertTrue((self.tmp / "hup" / "latest").exists())

    def test_hangup_under_nohup_is_nothing(self):
        code, errors = self.stopped(self.tmp / "nohup", signal.SIGHUP, ignored=[signal.SIGHUP])
        self.assertEqual(code, 0, errors)

    def test_signals_while_it_exits(self):
        for attempt in range(3):
            code, errors = self.stopped(self.tmp / f"twice{attempt}", *[signal.SIGUSR1] * 90, pause=0.01)
            self.assertEqual(code, 75, errors)

    # ---- threads -----------------------------------------------------------------------------------------------------

    def test_threads_that_cannot_be_made(self):
        if os.geteuid() != 0:
            self.skipTest("needs root, to be a user without processes")
        os.chmod(self.tmp, 0o777)

        for most in (2, 3, 10):  # 10: workers fail after some were made

            def limit():
                os.setgid(54321)
                os.setuid(54321)
                resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
            process = start(*self.training(self.tmp / f"threads{most}", 1, "--set", "data.workers=16"),
                            preexec_fn=limit)
            try:
                _, errors = process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                self.fail(f"it hangs with {most} threads allowed")
            line = self.line_of(subprocess.CompletedProcess([], process.returncode, "", errors.decode()), 1)
            self.assertRegex(line, "thread.*ulimit -u")

    # ---- lines and numbers from elsewhere ----------------------------------------------------------------------------

    def test_odd_lines_in_metrics(self):
        out = self.tmp / "odd"
        self.assertEqual(self.csml(*self.training(out)).returncode, 0)
        with open(out / "metrics.jsonl", "a") as file:
            file.write('{"step":1,"a":' + "[" * 200_000 + "\n" + '{"kind":5,"step":1}\n{"kind":"event","event":[],"step":1}\n'
                       + '{"step":1e300}\n{"step":18446744073709551615}\n{"step":2,"kind":null}\n\x00\xff\n' + "x" * 3_000_000)
        done = self.csml(*self.training(out, 2))
        # another number of epochs is another run; the same command goes on
        done = self.csml(*self.training(out)) if done.returncode else done
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_tensorboard_folder_that_cannot_be_made(self):
        out = self.tmp / "board"
        out.mkdir()
        (out / "tensorboard").write_text("in the way")
        done = self.csml(*self.training(out))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stderr, "warning: .*tensorboard.*training goes on")
        self.must_be_whole(out)

    def test_deep_keys(self):
        file = self.tmp / "deep.toml"
        for text in ("a." * 50_000 + "a = 1\n", "[" + "a." * 50_000 + "a]\n", "x = " + "[" * 50_000,
                     "x = " + "{a=" * 50_000):
            file.write_text(text)
            self.assertIn("nested deeper than 16", self.line_of(self.csml("pretrain", "--config", file, "--dry-run"), 2))
        self.line_of(self.csml("pretrain", "--set", "train.epochs=" + "1." * 50_000, "--dry-run"), 2)

    def test_states_of_odd_numbers(self):
        state = self.tmp / "state.safetensors"
        done = self.csml("export", "--checkpoint", self.run_folder, "--what", "state", "--format", "safetensors", "--out", state)
        self.assertEqual(done.returncode, 0, done.stderr)
        raw = state.read_bytes()
        length, = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8:8 + length])
        key = {name.rsplit(".", 1)[-1]: name for name in header["__metadata__"]}
        user = next(name for name, value in header["__metadata__"].items() if value.startswith("{"))
        step = next(name for name in header["__metadata__"] if "step" in name)
        for name, value in ((user, "[" * 200_000), (user, '{"a":' + "[" * 200_000), (step, str(2**63 - 1)), (step, "-1"),
                            (step, "1.5"), (step, "7 apples"), (user, "3")):
            changed = json.loads(json.dumps(header))
            changed["__metadata__"][name] = value
            text = json.dumps(changed).encode()
            state.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length:])
            self.line_of(self.csml("import", state, "--out", self.tmp / "from_state"), 1)

    # ---- writing -----------------------------------------------------------------------------------------------------

    def export(self, out):
        done = self.csml("export", "--checkpoint", self.run_folder, "--out", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done

    def test_devices_are_not_replaced(self):
        if os.geteuid() == 0:  # a node of our own, in case it is
            node = self.tmp / "null"
            os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            try:
                node.open("w").close()
            except OSError:
                node.unlink()
                self.skipTest("device nodes do not work here")
            self.export(node)
            self.assertTrue(stat.S_ISCHR(node.stat().st_mode))
        pipe = self.tmp / "pipe"
        os.mkfifo(pipe)
        reader = subprocess.Popen(["wc", "-c", str(pipe)], stdout=subprocess.PIPE)
        self.export(pipe)
        count = int(reader.communicate(timeout=60)[0].split()[0])
        self.assertEqual(count, self.weights.stat().st_size)
        self.assertTrue(stat.S_ISFIFO(pipe.stat().st_mode))

    def test_links_and_modes_are_kept(self):
        real, link = self.tmp / "real.safetensors", self.tmp / "link.safetensors"
        real.write_text("before")
        real.chmod(0o640)
        link.symlink_to("real.safetensors")
        self.export(link)
        self.assertTrue(link.is_symlink())
        self.assertEqual(real.read_bytes(), self.weights.read_bytes())
        self.assertEqual(stat.S_IMODE(real.stat().st_mode), 0o640)
        folder = self.tmp / "folder.safetensors"
        folder.mkdir()
        line = self.line_of(self.csml("export", "--checkpoint", self.run_folder, "--out", folder), 1)
        self.assertIn("directory", line)

    # ---- terminals ---------------------------------------------------------------------------------------------------

    def test_control_characters_and_long_values(self):
        evil = "\x1b]0;owned\x07\x1b[2J"
        for arguments, code in ((["inspect", self.tmp / f"no{evil}such"], 1), ([f"pre{evil}"], 2),
                                (["pretrain", "--set", f"a{evil}=1", "--dry-run"], 2),
                                (["pretrain", "--set", "train.epochs=" + "9" * 100_000, "--dry-run"], 2),
                                (["pretrain", "--data", f"folder:{evil}", "--dry-run"], None)):
            done = self.csml(*arguments)
            self.line_of(done, code or done.returncode)
        file = self.tmp / "names.safetensors"
        safetensors(file, {f"a{evil}": ("F32", [1], b"\0\0\0\0")})
        done = self.csml("inspect", file)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn(b"\x1b", done.stdout)
        self.line_of(self.csml("import", file, "--out", self.tmp / "names"), 1)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    CSML = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
