"""What the machine has: card and driver, CUDA's libraries, a Python with PyTorch."""
import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile

TOOLKIT = os.environ.get("CUDA_HOME", "/usr/local/cuda*")
SYSTEM_FOLDERS = [f"{TOOLKIT}/lib64", f"{TOOLKIT}/targets/*/lib", "/usr/lib64", "/usr/lib/x86_64-linux-gnu",
                  "/usr/local/lib"]
PYTHONS = ["python3", "python", "/opt/conda/bin/python", "/opt/venv/bin/python", "/usr/local/bin/python3"]
CARD = ["name", "driver_version", "memory.total", "compute_cap", "clocks.max.sm", "clocks.max.memory", "power.limit"]


def answer(command, seconds=60):
    """Standard output of a short command; empty where it fails or is absent."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=seconds,
                              check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def card(device):
    """{"name", "driver_version", …} of cuda:N; None where there is none."""
    number = device.split(":")[1] if ":" in device else "0"
    line = answer(["nvidia-smi", "-i", number, f"--query-gpu={','.join(CARD)}", "--format=csv,noheader"])
    values = [value.strip() for value in line.split(",")]
    return dict(zip(CARD, values)) if len(values) == len(CARD) else None


def cuda_of_driver():
    found = re.search(r"CUDA Version: *([\d.]+)", answer(["nvidia-smi"]))
    return found.group(1) if found else ""


def python_with_torch(asked):
    """(interpreter, its PyTorch's version, why there is none)"""
    looked = []
    for python in [asked] if asked else [sys.executable, *PYTHONS]:
        path = shutil.which(python)
        if not path or path in looked:
            continue
        looked.append(path)
        version = answer([path, "-c", "import torch; print(torch.__version__)"])
        if version:
            return path, version, ""
    return None, "", f"no PyTorch in {', '.join(looked) or asked}; name one that has it with --python"


def libraries(pythons):
    """{"folders": those of CUDA's libraries, "files": {name: [paths]}}; Python environments first, whose PyTorch brought
    what fits the driver."""
    folders = []
    for python in dict.fromkeys(p for p in pythons if p):
        places = answer([python, "-c", "import site; print('\\n'.join([*site.getsitepackages(), "
                                       "site.getusersitepackages()]))"]).splitlines()
        for place in places:
            folders += sorted(glob.glob(os.path.join(place, "nvidia", "*", "lib")))
    for pattern in SYSTEM_FOLDERS:
        folders += sorted(glob.glob(pattern))
    files, used = {"libcudnn.so": [], "libcublasLt.so": [], "libnvrtc.so": []}, []
    for folder in dict.fromkeys(os.path.realpath(f) for f in folders):
        for name, paths in files.items():
            found = sorted(glob.glob(os.path.join(folder, name + ".[0-9]*")))
            found = [path for path in found if re.fullmatch(re.escape(name) + r"\.\d+", os.path.basename(path))]
            if found:
                paths += found
                used.append(folder)
    return {"folders": list(dict.fromkeys(used)), "files": files}


def program(name):
    """A tool of the CUDA toolkit, or None."""
    return shutil.which(name) or next(iter(sorted(glob.glob(f"{TOOLKIT}/bin/{name}"))), None)


def unpacked(build, into):
    """A build folder; build.tar.xz in it (scripts/gpu_pack.sh) is unpacked into `into` first."""
    archive = pathlib.Path(build) / "build.tar.xz"
    if not archive.exists():
        return pathlib.Path(build)
    with tarfile.open(archive) as tar:
        tar.extractall(into)
    return pathlib.Path(into)


def commit(root):
    """The commit of a checkout or of a packed folder; "-modified" behind it where files differ."""
    packed = pathlib.Path(root) / "COMMIT"
    if packed.exists():
        return packed.read_text().strip()
    found = answer(["git", "-C", str(root), "rev-parse", "HEAD"])
    changed = answer(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return (found + ("-modified" if changed else "")) or "unknown"
