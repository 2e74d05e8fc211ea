#!/usr/bin/env python3
"""Rules of the source tree (docs/architecture.md) that no compiler checks.

usage: tests/check_tree.py tree|format [ROOT]

tree    include rules, places of vendor headers and of #if WITH_, sources named in CMakeLists.txt, folders that CMake
        must not name; warns about size
format  clang-format agrees with every source; exits with 77 (skipped) where the right version is absent
"""
import os
import re
import shutil
import subprocess
import sys

# Folder -> folders whose headers it may include, besides its own and the three base headers.
MAY_INCLUDE = {
    "kernels": set(),
    "engine": {"kernels"},
    "models": {"engine"},
    "data": {"engine"},
    "csml": {"models", "engine", "data"},
    "apps": {"csml", "models", "engine", "data"},
}
# Folders inside csml/, from the bottom up: each may include those before it.
INSIDE_CSML = ["config", "method", "evaluation", "training"]
BASE_HEADERS = {"kernels/types.h", "kernels/check.h", "kernels/random.h", "kernels/color.h"}
# Includes across the rule, by the one file that may have each: csml bench times the tests' table of cases.
EXCEPTIONS = {"apps/bench_kernels.cpp": {"tests/op_cases.h"}}
# Beginning of a vendor's include -> places that may have it.
VENDOR = {
    r"(oneapi/)?dnnl": ["kernels/cpu/"],
    r"cuda|cudnn|cublas|nv": ["kernels/cuda/", "tests/vendor/"],
    r"nccl": ["engine/comm_nccl.cpp", "tests/vendor/"],
    r"mpi\.h": ["engine/comm_mpi.cpp"],
    r"jpeglib|turbojpeg|jerror": ["data/jpeg.cpp", "tests/decode_test.cpp", "tests/roi_decode_test.cpp", "tests/fuzz/"],
    r"linear\.h": ["csml/evaluation/svm.cpp"],
    r"webp/": ["data/webp.cpp"],
    r"tiff": ["data/tiff.cpp"],
    r"gif_lib": ["data/gif.cpp"],
    r"stb/": ["data/stb_images.cpp", "apps/picture.cpp"],
}
WITH_ALLOWED = {"engine/device.cpp", "engine/comm.cpp", "data/decode.cpp"}
LINES = {".h": 250, ".cuh": 250, ".cpp": 500, ".cu": 500}
SOURCE_FOLDERS = sorted(MAY_INCLUDE)
CLANG_FORMAT_VERSION = 14

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CONDITION = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b.*\bWITH_")


def source_files(root, folders):
    for folder in folders:
        for place, folders_inside, files in os.walk(os.path.join(root, folder)):
            folders_inside.sort()
            for name in sorted(files):
                if os.path.splitext(name)[1] in LINES:
                    yield os.path.relpath(os.path.join(place, name), root)


def check_include(path, quote, target):
    """The rule that an include breaks, or None."""
    folder = path.split("/")[0]
    for vendor, places in VENDOR.items():
        if re.match(vendor, target) and quote == "<":
            if not any(path.startswith(place) for place in places):
                return f"<{target}> belongs in {' or '.join(places)}"
    if quote == "<" or folder not in MAY_INCLUDE:
        return None
    parts = target.split("/")
    if len(parts) == 1:
        return None if target == "version.h" else f'"{target}" must be included from the root ("{folder}/{target}")'
    if folder == "csml" and parts[0] == "csml":
        from_place, to_place = (INSIDE_CSML.index(p.split("/")[1]) for p in (path, target))
        return None if to_place <= from_place else f'"{target}": csml/ goes {" <- ".join(INSIDE_CSML)}'
    if target in BASE_HEADERS or parts[0] == folder:
        return None
    if target == "kernels/backend.h":
        return None if folder == "engine" else '"kernels/backend.h" may be included by engine/ only'
    if target in EXCEPTIONS.get(path, ()):
        return None
    if parts[0] == "kernels" and parts[1] in ("cpu", "cuda"):
        return None if path == "engine/device.cpp" else f'"{target}" may be included by engine/device.cpp only'
    if parts[0] not in MAY_INCLUDE[folder]:
        return f'"{target}": {folder}/ may include {", ".join(sorted(MAY_INCLUDE[folder])) or "nothing"}'
    return None


def check_tree(root):
    errors, warnings = [], []
    for path in source_files(root, SOURCE_FOLDERS + ["tests"]):
        with open(os.path.join(root, path), encoding="utf-8") as file:
            lines = file.read().splitlines()
        for number, line in enumerate(lines, 1):
            include = INCLUDE.match(line)
            if include:
                error = check_include(path, *include.groups())
                if error:
                    errors.append(f"{path}:{number}: {error}")
            if CONDITION.match(line) and path not in WITH_ALLOWED:
                errors.append(f"{path}:{number}: #if WITH_… belongs in {' or '.join(sorted(WITH_ALLOWED))}")
        most = LINES[os.path.splitext(path)[1]]
        if len(lines) > most:
            warnings.append(f"{path}: {len(lines)} lines, more than about {most}: is it one purpose?")

    with open(os.path.join(root, "CMakeLists.txt"), encoding="utf-8") as file:
        cmake = re.sub(r"#.*|set_source_files_properties\([^)]*\)", "", file.read())
    named = re.findall(r"[\w./-]+\.(?:cpp|cu)\b", cmake)
    for path in source_files(root, SOURCE_FOLDERS):
        if os.path.splitext(path)[1] in (".cpp", ".cu") and path not in named:
            errors.append(f"{path}: not named in CMakeLists.txt")
    tests = re.search(r"set\(TESTS\s([^)]*)\)", cmake)
    areas = tests.group(1).split() if tests else []
    for path in source_files(root, ["tests"]):
        area = re.fullmatch(r"tests/(\w+)_test\.cpp", path)
        if area and area.group(1) not in areas and path not in named:
            errors.append(f"{path}: '{area.group(1)}' is not in TESTS of CMakeLists.txt")
    sources = set(SOURCE_FOLDERS) - {"engine"}  # a test may take a source of the engine, or of a stand-in, again
    for name in sorted({name for name in named if named.count(name) > 1 and name.split("/")[0] in sources}):
        errors.append(f"CMakeLists.txt: {name} is named twice")

    folder = os.path.join(root, "cmake")
    for path in ["CMakeLists.txt", *(os.path.join("cmake", name) for name in sorted(os.listdir(folder)))]:
        if path.endswith((".txt", ".cmake")):
            with open(os.path.join(root, path), encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    for name in re.findall(r"CMAKE_(?:SOURCE|BINARY)_DIR", line):
                        errors.append(f"{path}:{number}: {name} is another project's where csml is a part of it; "
                                      f"use PROJECT_{name[6:]}")

    for line in warnings:
        print("warning:", line)
    for line in errors:
        print("error:", line)
    print(f"tree: {len(errors)} errors, {len(warnings)} warnings")
    return 1 if errors else 0


def check_format(root):
    for program in (f"clang-format-{CLANG_FORMAT_VERSION}", "clang-format"):
        if not shutil.which(program):
            continue
        version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        if re.search(rf"version {CLANG_FORMAT_VERSION}\.", version):
            break
    else:
        print(f"format: skipped: clang-format {CLANG_FORMAT_VERSION} not present")
        return 77
    files = list(source_files(root, SOURCE_FOLDERS + ["tests", "bench", "examples"]))
    return subprocess.run([program, "--dry-run", "-Werror", *files], cwd=root).returncode


def main():
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in ("tree", "format"):
        print(__doc__, file=sys.stderr)
        return 2
    root = sys.argv[2] if len(sys.argv) == 3 else os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return check_tree(root) if sys.argv[1] == "tree" else check_format(root)


if __name__ == "__main__":
    sys.exit(main())
