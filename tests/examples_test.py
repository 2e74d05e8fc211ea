#!/usr/bin/env python3
"""Installs a build under a prefix, moves the prefix, builds examples/ against it with find_package(csml), runs each
program for some steps and looks at what it says. Also: every installed header compiles from the prefix without a
warning, and the examples take csml's sources with add_subdirectory.

usage: examples_test.py BUILD_FOLDER [CASE...]        cases: see CASES at the end; default all
"""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

FASHION = "idx:/usr/share/datasets/fashion-mnist"  # Debian's package dataset-fashion-mnist, which setup.sh installs
ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(*line, **options):
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(word) for word in line], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, line))}\nended with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def check(condition, text):
    if not condition:
        sys.exit(f"FAILED: {text}")


def configure(source, build, *settings):
    cache = [] if shutil.which("ccache") is None else ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
    run("cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", *cache, *settings)


class Place:
    """Where the test works, inside the build folder: programs of a run before are built again only where they changed."""

    def __init__(self, build):
        self.build = pathlib.Path(build).resolve()
        self.folder = self.build / "examples"
        self.prefix = self.folder / "prefix"
        self.programs = self.folder / "programs"
        self.folder.mkdir(exist_ok=True)

    def program(self, name, *arguments):
        return run(self.programs / name, *arguments, cwd=self.folder)


def install(place):
    first = place.folder / "first"
    for folder in (first, place.prefix):
        shutil.rmtree(folder, ignore_errors=True)
    run("cmake", "--install", place.build, "--prefix", first)
    first.rename(place.prefix)  # nothing may depend on where it was installed
    version = run(place.prefix / "bin/csml", "--version")
    check(re.match(r"csml 0\.2\.\d ", version), version)
    check((place.prefix / "share/csml/configs/cifar10-small.toml").exists(), "no presets under the prefix")
    texts = [path.read_text() for path in place.prefix.rglob("cmake/csml/*.cmake")]
    check(len(texts) >= 5, "no package for CMake under the prefix")
    for text in texts:
        for folder in (ROOT, place.build):
            check(str(folder) not in text, f"the package names {folder}")


def headers(place):
    """One source that includes every installed header; and twice, for a header without #pragma once."""
    include = place.prefix / "include/csml-0.2"
    names = sorted(str(path.relative_to(include)) for path in include.rglob("*.h"))
    check(len(names) > 70 and "engine/ops.h" in names, f"{len(names)} headers under {include}")
    check(not any(re.match(r"kernels/(cpu|cuda)/", name) for name in names), "headers of backends are installed")
    source = place.folder / "headers"
    source.mkdir(exist_ok=True)
    (source / "all.cpp").write_text("".join(f'#include "{name}"\n' for name in names * 2))
    (source / "CMakeLists.txt").write_text("""cmake_minimum_required(VERSION 3.25)
project(headers LANGUAGES CXX)
find_package(csml 0.2.0 REQUIRED)
add_library(every OBJECT all.cpp)
target_compile_options(every PRIVATE -Wall -Wextra -Wshadow -Werror)
target_link_libraries(every PRIVATE csml::csml)
""")
    configure(source, source / "build", f"-DCMAKE_PREFIX_PATH={place.prefix}")
    run("cmake", "--build", source / "build")
    line = ["cmake", "-S", source, "-B", source / "other", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={place.prefix}"]
    text = (source / "CMakeLists.txt").read_text()
    (source / "CMakeLists.txt").write_text(text.replace("0.2.0", "0.1"))
    done = subprocess.run(list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    check(done.returncode != 0 and "0.1" in done.stdout, "a program that asks for csml 0.1 is given 0.2")


def build(place):
    configure(ROOT / "examples", place.programs, f"-DCMAKE_PREFIX_PATH={place.prefix}", "-DCMAKE_CXX_FLAGS=-Werror")
    run("cmake", "--build", place.programs)


def lines(output):
    """[{name: number}] of lines such as "epoch 2: loss 1.234, test accuracy 56.7 %"."""
    return [{name.strip(): float(number) for name, number in re.findall(r"([a-zA-Z|-][a-zA-Z |-]*) (-?[\d.]+)", line)}
            for line in output.splitlines() if line.startswith("epoch")]


def supervised(place):
    told = lines(place.program("supervised", f"{FASHION}?channels=1&limit=960",
                               f"{FASHION}?channels=1&split=test&limit=300", 4))
    check(len(told) == 4 and told[-1]["loss"] < 0.7 * told[0]["loss"], f"the loss does not fall: {told}")
    check(told[-1]["test accuracy"] > 40, f"accuracy: {told}")


def pretrain(place):
    out = place.folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    line = ("pretrain", f"{FASHION}?size=32&channels=1&limit=1280", f"{FASHION}?size=32&channels=1&split=test&limit=300",
            out, 2)
    said = place.program(*line)
    check("done after 20 steps" in said, said)
    steps = [entry for entry in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
             if entry["kind"] == "step"]
    check(steps[-1]["loss"] < steps[0]["loss"] - 0.3, f"the loss does not fall: {steps}")
    check(float(re.search(r"k-NN ([\d.]+)", said).group(1)) > 40, said)
    again = place.program(*line)  # goes on, with nothing left to do
    check("done after 20 steps" in again, again)
    manifest = json.loads(next(out.glob("checkpoints/*/manifest.json")).read_text())
    check(manifest["user"]["config"]["model"]["trunk"] == "smallnet", "the checkpoint does not name its network")
    csml = subprocess.run([place.prefix / "bin/csml", "knn", "--checkpoint", out, "--train", line[1], "--test", line[2]],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    check(csml.returncode == 2 and "model.trunk = 'smallnet'" in csml.stderr, f"{csml.returncode} {csml.stderr}")


def simsiam(place):
    said = place.program("simsiam", f"{FASHION}?channels=1&limit=640", f"{FASHION}?channels=1&split=test&limit=200", 3)
    told = lines(said)
    check(len(told) == 3 and told[-1]["loss"] < told[0]["loss"] - 0.1, f"the loss does not fall: {said}")
    check(told[-1]["|mean z|"] < 0.9, f"collapsed: {said}")
    check(told[-1]["k-NN"] > 40, f"accuracy: {said}")


def messages(place):
    """What a program says without arguments, and of a data set that is not there."""
    for name in ("supervised", "pretrain", "simsiam"):
        for arguments, code, words in (([], 2, "usage:"), (["cifar10:/nowhere", "cifar10:/nowhere", "3"], 1, "/nowhere")):
            done = subprocess.run([place.programs / name, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  text=True, cwd=place.folder)
            check(done.returncode == code and words in done.stderr, f"{name} {arguments}: {done}")


def subproject(place):
    """The same programs with csml's sources inside their project: the graph is made, an example is compiled with what
    the targets say, and neither tests nor warnings nor the binary come along."""
    folder = place.folder / "subproject"
    configure(ROOT / "examples", folder, f"-DCSML_SOURCE={ROOT}", "-DWITH_CUDA=OFF", "-DWITH_NCCL=OFF")
    objects = [f"CMakeFiles/{name}.dir/{name}.cpp.o" for name in ("supervised", "pretrain", "simsiam")]
    run("ninja", "-C", folder, *objects)
    targets = run("ninja", "-C", folder, "-t", "targets", "all")
    check("libcsml_training.a:" in targets, "the libraries are not part of the project")
    check("libcsml_apps.a:" not in targets and "var_test:" not in targets, "the binary or the tests came along")
    commands = run("ninja", "-C", folder, "-t", "commands", objects[0])
    check("-Wshadow" not in commands.splitlines()[-1], "csml's warnings reach the sources of others")


CASES = (install, headers, build, supervised, pretrain, simsiam, messages, subproject)


def main():
    if not pathlib.Path(FASHION.removeprefix("idx:")).is_dir():
        print(f"skipped: {FASHION} not present")
        sys.exit(77)
    place = Place(sys.argv[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for case in CASES:
        if len(sys.argv) == 2 or case.__name__ in sys.argv[2:]:
            case(place)
            print(f"{case.__name__}: ok", flush=True)


if __name__ == "__main__":
    main()
