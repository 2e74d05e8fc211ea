"""Stages with time limits: what runs, how it ended, in how many seconds. One that fails never stops the others."""
import json
import os
import pathlib
import signal
import subprocess
import time

PASS, FAIL, NOT_RUN = "pass", "fail", "not run"
LAST_SECONDS = 10  # kept for writing what was seen


class Stages:
    """Runs commands under `minutes` in all and `most` seconds each; `log`: folder of their output."""

    def __init__(self, log, minutes, most=float("inf"), only=None, tell=print):
        self.log, self.most, self.only, self.tell = pathlib.Path(log), most, only, tell
        self.begin, self.results = time.monotonic(), []
        self.end = self.begin + 60 * minutes

    def left(self):
        """Seconds that a stage may still take."""
        return self.end - LAST_SECONDS - time.monotonic()

    def note(self, name, state, why="", **more):
        """A result that took no command. Returns it."""
        result = {"stage": name, "state": state, "why": why, **more}
        self.results.append(result)
        self.tell(f"gpu_check: {name}: {state}{': ' + why if why else ''}")
        return result

    def run(self, name, command, limit, environment=None, missing="", always=False):
        """Runs a command for at most `limit` seconds, its output in NAME.out and NAME.log (standard error); the process
        and all it started end with the limit. `missing`: why it cannot run at all; `always`: also where other stages are
        asked for. Returns the result; result["output"] is the standard output."""
        if self.only and not always and not any(name.startswith(prefix) for prefix in self.only):
            return {"stage": name, "state": NOT_RUN, "why": "not asked for", "output": ""}
        if missing:
            return {**self.note(name, NOT_RUN, missing), "output": ""}
        if self.left() < 5:
            return {**self.note(name, NOT_RUN, "no time left"), "output": ""}
        limit, command = min(limit, self.most, self.left()), [str(part) for part in command]
        self.tell(f"gpu_check: {name}: {' '.join(command)}")
        start, why = time.monotonic(), ""
        path = self.log / f"{name}.log"
        with open(path, "wb") as errors, open(self.log / f"{name}.out", "w+b") as output:
            try:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                                           start_new_session=True, env={**os.environ, **(environment or {})})
            except OSError as error:
                return {**self.note(name, FAIL, str(error), command=command), "output": ""}
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code, why = None, f"longer than {limit:.0f} s"
                end_group(process)
            output.seek(0)
            text = output.read().decode(errors="replace")
        if not why and code != 0:
            why = f"exit code {code}: {last_line(path) or last_text(text)}"
        result = {"stage": name, "state": FAIL if why else PASS, "why": why, "command": command, "exit": code,
                  "seconds": round(time.monotonic() - start, 1)}
        self.results.append(result)
        if why:
            self.tell(f"gpu_check: {name}: fail: {why}")
        return {**result, "output": text}


def end_group(process):
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            continue
        if kind == signal.SIGTERM:  # what the process left behind
            time.sleep(0.2)
    process.wait()


def last_text(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def last_line(path):
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        return last_text(file.read().decode(errors="replace"))


def json_lines(text):
    """The JSON objects that stand on a line of their own."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                pass
    return found
