#!/usr/bin/env python3
"""Kills `csml pretrain` at random moments, starts the same command again until the run is done, and requires the files
of an uninterrupted run, byte for byte.

usage: resume_test.py CSML [KILLS]      (or the environment variable CSML_BIN; KILLS in total, default 20)
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

EPOCHS, STEPS_PER_EPOCH = 8, 10
SETTINGS = {
    "model.depth": 18, "model.stem": "cifar", "model.width": 4, "model.dim": 16,
    "method.queue": 72, "method.bn_group_size": 8, "method.neighbors": 3, "method.refresh_epochs": 1,
    "augment.crop_size": 16, "eval.resize": 0, "eval.size": 16, "eval.knn_every_epochs": 2, "eval.knn_k": 5,
    "train.log_every_steps": 1, "train.checkpoint_every_steps": 3, "train.keep_checkpoints": 3,
    "train.milestone_every_epochs": 0,
}


def command(csml, method, out):
    line = [csml, "pretrain", "--method", method, "--data", "synthetic:shapes?limit=160&size=16",
            "--test-data", "synthetic:shapes?limit=40&size=16&split=test", "--out", str(out), "--epochs", str(EPOCHS),
            "--batch-size", "16", "--device", "cpu", "--threads", "1", "--workers", "1", "--quiet"]
    for key, value in SETTINGS.items():
        line += ["--set", f"{key}={value}"]
    return line


def run(line):
    """To the end; returns the seconds it took."""
    start = time.monotonic()
    done = subprocess.run(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(line)}\nended with {done.returncode}: {done.stderr}")
    return time.monotonic() - start


def newest(out):
    """Step and folder of the checkpoint that `latest` names; -1 where there is none yet."""
    try:
        folder = out / (out / "latest").read_text().strip()
        return json.loads((folder / "manifest.json").read_text())["step"], folder
    except FileNotFoundError:
        return -1, None


def kill_after(line, seconds):
    """Starts the command and kills it after so many seconds. Returns whether it was still running."""
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    if process.returncode != 0:
        sys.exit(f"a resumed run failed with {process.returncode}: {errors}")
    return False


def check_metrics(out, whole):
    """Every step once, in order, with the loss of the uninterrupted run."""
    def losses(folder):
        lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines if line["kind"] == "step"]
    expected, got = losses(whole), losses(out)
    assert [step for step, _ in expected] == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1)), expected
    assert got == expected, f"metrics.jsonl differs: {[p for p in zip(got, expected) if p[0] != p[1]][:3]}"


def killed_run(line, out, kills, seconds, rng):
    """One run through at most `kills` kills to its end. Returns the step of the newest checkpoint after each."""
    steps = []
    while len(steps) < kills:
        before = newest(out)[0]
        # With starts and lost steps all together about as long as the run: the kills spread over it. The last few come
        # before its end, if this run is not much faster than the first.
        if not kill_after(line, seconds * rng.uniform(0, min(3.5 / kills, 0.7))):
            return steps
        now = newest(out)[0]
        assert now >= before, f"the newest checkpoint went back from step {before} to {now}"
        steps.append(now)
    run(line)
    return steps


def check_method(csml, method, kills, folder, rng):
    whole = folder / f"{method}_whole"
    seconds = run(command(csml, method, whole))
    last_step, last = newest(whole)
    assert last_step == EPOCHS * STEPS_PER_EPOCH, last_step
    done = 0
    for number in range(3 * kills):
        out = folder / f"{method}_{number}"
        steps = killed_run(command(csml, method, out), out, kills - done, seconds, rng)
        done += len(steps)
        step, folder_now = newest(out)
        assert step == last_step, f"ends at step {step} instead of {last_step}"
        for name in ("model.safetensors", "state.safetensors"):
            assert (folder_now / name).read_bytes() == (last / name).read_bytes(), \
                f"{method}: {name} differs after {len(steps)} kills (newest checkpoints: {steps})"
        aside = [p.name for p in (out / "checkpoints").iterdir() if not p.name.startswith("step_") or "." in p.name]
        assert not aside, f"left in checkpoints/: {aside}"
        check_metrics(out, whole)
        print(f"{method}: {len(steps)} kills, newest checkpoint after each: {steps}; ends as the uninterrupted run")
        if done >= kills:
            break
    assert done >= kills, f"only {done} of {kills} kills came before the runs' ends"


def main():
    csml = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("CSML_BIN")
    if not csml:
        sys.exit(__doc__)
    kills = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(os.environ.get("CSML_TEST_SEED", random.SystemRandom().randrange(10**6)))
    print(f"CSML_TEST_SEED={seed}")
    rng = random.Random(seed)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="csml_resume_") as folder:
        for method, n in (("moco", kills // 2), ("csml", kills - kills // 2)):
            check_method(csml, method, n, pathlib.Path(folder), rng)
    print(f"{kills} kills in {time.monotonic() - start:.0f} s: all resumed exactly")


if __name__ == "__main__":
    main()
