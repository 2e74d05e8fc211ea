#!/usr/bin/env python3
"""What the compiler says of every CUDA kernel: registers, shared memory, stack, spills, and the occupancy that follows.

usage: tests/kernel_resources.py table BUILD     the table, as Markdown (docs/appendix/resources.md holds one)
       tests/kernel_resources.py all BUILD       the same for every instance of every template
       tests/kernel_resources.py check BUILD     self-tests; then fails where a kernel has a stack frame or spills
                                                 and its comment has no line "Stack frame: why"

BUILD is a folder configured with CUDA and tests. It holds the reports of ptxas that cmake/ptxas_report.sh keeps beside
the objects, and launches.txt with the blocks that kernels_test started on the executor (tests/simt/launch_log.h).
Exits with 77 (skipped) where BUILD has no reports. Needs nm and c++filt, which come with the C++ compiler.
"""
import glob
import os
import re
import subprocess
import sys
import tempfile
import unittest
from dataclasses import dataclass, field

SOURCES = "kernels/cuda"

# What a multiprocessor has (CUDA C++ Programming Guide, "Compute Capabilities", technical specifications).
LIMITS = {
    "sm_80": {"warps": 64, "blocks": 32, "registers": 65536, "shared": 164 * 1024},
    "sm_90a": {"warps": 64, "blocks": 32, "registers": 65536, "shared": 228 * 1024},
}


def round_up(value, unit):
    return -(-value // unit) * unit


def occupancy(arch, threads, registers, shared):
    """Share of a multiprocessor's warps that blocks of `threads` can fill, from 0 to 1: the rules of the toolkit's
    cuda_occupancy.h. Registers are given to warps in units of 256 out of four equal parts of the file, shared memory
    (with 1 KiB that the system takes) to blocks in units of 128 bytes."""
    limit = LIMITS[arch]
    warps = round_up(threads, 32) // 32
    by_warps = limit["warps"] // warps
    per_warp = round_up(max(registers, 1) * 32, 256)
    by_registers = limit["registers"] // 4 // per_warp * 4 // warps
    by_shared = limit["shared"] // round_up(shared + 1024, 128)
    return min(by_warps, by_registers, by_shared, limit["blocks"]) * warps / limit["warps"]


# ---- what was compiled ----------------------------------------------------------------------------------------------

@dataclass
class Kernel:
    symbol: str
    arch: str
    registers: int = 0
    shared: int = 0  # static, bytes
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    instance: str = ""  # its name with template arguments
    name: str = ""  # without
    launches: set = field(default_factory=set)  # (threads, dynamic shared bytes)

    def occupancies(self):
        return [occupancy(self.arch, t, self.registers, self.shared + s) for t, s in sorted(self.launches)]


def parse_report(text):
    """The kernels of one report of `ptxas -v`."""
    kernels, now = [], None
    for line in text.splitlines():
        entry = re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        used = re.search(r"Used (\d+) registers", line)
        if entry:
            now = Kernel(*entry.groups())
            kernels.append(now)
        elif now and frame:
            now.stack, now.spill_stores, now.spill_loads = map(int, frame.groups())
        elif now and used:
            now.registers = int(used.group(1))
            shared = re.search(r"(\d+) bytes smem", line)
            now.shared = int(shared.group(1)) if shared else 0
            now = None
    return kernels


def demangle(symbols):
    out = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    return out.splitlines()


def instance_of(demangled):
    """'void csml::cuda::(anonymous namespace)::f<(int)4, float>(float*)' -> 'f<4, float>'."""
    text = re.sub(r"\(anonymous namespace\)::|csml::|cuda::|on_host::|\(int\)", "", demangled).replace(" >", ">")
    depth = 0
    for i, c in enumerate(text):  # up to the parameters
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            text = text[:i]
            break
    return re.sub(r"^void ", "", text)


def read_kernels(build):
    kernels = []
    for path in sorted(glob.glob(f"{build}/CMakeFiles/csml_kernels_cuda.dir/{SOURCES}/*.ptxas")):
        with open(path, encoding="utf-8") as file:
            kernels += parse_report(file.read())
    for kernel, name in zip(kernels, demangle([k.symbol for k in kernels])):
        kernel.instance = instance_of(name)
        kernel.name = kernel.instance.split("<")[0]
    return kernels


def read_launches(build):
    """{instance: {(threads, dynamic shared bytes)}} of what kernels_test started on the executor."""
    nm = subprocess.run(["nm", f"{build}/kernels_test"], capture_output=True, text=True, check=True).stdout
    symbols = [line.split() for line in nm.splitlines() if len(line.split()) == 3]
    anchor = next(int(address, 16) for address, _, symbol in symbols if symbol == "csml_simt_anchor")
    functions = {int(address, 16) - anchor: symbol for address, kind, symbol in symbols if kind in "tTwW"}
    with open(f"{build}/launches.txt", encoding="utf-8") as file:
        lines = [line.split(maxsplit=3) for line in file]
    launches = {}
    for line, name in zip(lines, demangle([functions[int(line[0])] for line in lines])):
        launches.setdefault(instance_of(name), set()).add((int(line[1]), int(line[2])))
    return launches


def give_launches(kernels, launches):
    """Every kernel's launches; an instance that no test started has those of the kernel's other instances. Returns the
    names of kernels that were never started."""
    by_name = {}
    for instance, sizes in launches.items():
        by_name.setdefault(instance.split("<")[0], set()).update(sizes)
    for kernel in kernels:
        kernel.launches = launches.get(kernel.instance) or by_name.get(kernel.name, set())
    return sorted({k.name for k in kernels if not k.launches})


# ---- what the sources say -------------------------------------------------------------------------------------------

def read_comments(texts):
    """{kernel: its comment}"""
    pattern = re.compile(r"((?:///[^\n]*\n)*)(?:template <[^\n]*>\n)?KERNEL(?:_BOUNDS\([^)]*\))?\s+void\s+(\w+)")
    return {name: comment for text in texts for comment, name in pattern.findall(text)}


def faults_of(kernels, comments):
    faults = []
    for k in kernels:
        if k.stack + k.spill_stores + k.spill_loads == 0 or re.search(r"Stack frame: \S", comments.get(k.name, "")):
            continue
        faults.append(f"{k.instance} for {k.arch}: stack frame of {k.stack} bytes, {k.spill_stores} bytes of spill "
                      f"stores, {k.spill_loads} of loads; use fewer registers or arrays with fixed indices, or say why "
                      f'in its comment ("Stack frame: ...")')
    return faults


# ---- the table ------------------------------------------------------------------------------------------------------

def table(kernels, every_instance):
    archs = sorted(LIMITS)
    rows = {}
    for k in kernels:
        rows.setdefault(k.instance if every_instance else k.name, []).append(k)
    out = ["| kernel | instances | threads | static + dynamic shared, KiB | "
           + " | ".join(f"registers, occupancy {a}" for a in archs) + " | stack, spills |",
           "| --- " * (5 + len(archs)) + "|"]
    for name in sorted(rows):
        group = rows[name]
        threads = sorted({t for k in group for t, _ in k.launches})
        cells = [f"`{name}`", str(len({k.instance for k in group})), ", ".join(map(str, threads)),
                 f"{max(k.shared for k in group) / 1024:.3g} + "
                 f"{max(s for k in group for _, s in k.launches) / 1024:.3g}"]
        for arch in archs:
            of_arch = [k for k in group if k.arch == arch]
            registers = [k.registers for k in of_arch]
            shares = [100 * o for k in of_arch for o in k.occupancies()]
            span = lambda low, high: f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
            cells.append(f"{span(min(registers), max(registers))}, {span(min(shares), max(shares))} %")
        cells.append(f"{max(k.stack for k in group)}, {max(k.spill_stores + k.spill_loads for k in group)}")
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


# ---- self-tests -----------------------------------------------------------------------------------------------------

REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1fPf' for 'sm_80'
ptxas info    : Function properties for _Z1fPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 368 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1gPf' for 'sm_90a'
ptxas info    : Function properties for _Z1gPf
    96 bytes stack frame, 92 bytes spill stores, 88 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers, 96 bytes cumulative stack size, 528 bytes cmem[0]
"""
# Keeps 64 values alive over a barrier: more than 24 registers hold.
SPILLING = """__global__ void spilling(float* x) {
  float v[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) v[i] = x[threadIdx.x + 32 * i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) x[threadIdx.x + 32 * (63 - i)] = v[i] * v[(7 * i + 1) % 64];
}
"""
NVCC = None


class SelfTest(unittest.TestCase):
    def test_reports_are_read(self):
        f, g = parse_report(REPORT)
        self.assertEqual((f.symbol, f.arch, f.registers, f.shared, f.stack), ("_Z1fPf", "sm_80", 40, 2048, 0))
        self.assertEqual((g.arch, g.registers, g.shared, g.stack, g.spill_stores, g.spill_loads),
                         ("sm_90a", 16, 0, 96, 92, 88))

    def test_a_stack_frame_is_a_fault_unless_the_comment_says_why(self):
        kernels = parse_report(REPORT)
        for k in kernels:
            k.name = k.instance = k.symbol[3]
        code = "/// Computes.\n{}template <int N, class T>\nKERNEL_BOUNDS(256, 2)\nvoid g(float* x) {{\n"
        self.assertEqual(len(faults_of(kernels, read_comments([code.format("")]))), 1)
        self.assertEqual(len(faults_of(kernels, read_comments([code.format("/// Stack frame:\n")]))), 1)
        self.assertEqual(faults_of(kernels, read_comments([code.format("/// Stack frame: rare path.\n")])), [])

    def test_names(self):
        for text in ("void csml::cuda::on_host::(anonymous namespace)::f<4, csml::cuda::(anonymous namespace)::Op<float, "
                     "csml::bf16> >(csml::cuda::Op<float>, long)",
                     "void csml::cuda::(anonymous namespace)::f<(int)4, csml::cuda::(anonymous namespace)::Op<float, "
                     "csml::bf16>>(csml::cuda::Op<float>, long)"):
            self.assertEqual(instance_of(text), "f<4, Op<float, bf16>>")

    def test_occupancy_is_that_of_cuda_occupancy_h(self):
        for arch, threads, registers, shared, warps in OCCUPANCIES:
            self.assertEqual(occupancy(arch, threads, registers, shared) * 64, warps,
                             (arch, threads, registers, shared))

    def test_a_spilling_kernel_is_found(self):
        if not NVCC:
            self.skipTest("no nvcc")
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "spilling.cu")
            with open(source, "w", encoding="utf-8") as file:
                file.write(SPILLING)
            for most, spills in (("24", True), ("255", False)):
                wrapper = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../cmake/ptxas_report.sh")
                subprocess.run([wrapper, NVCC, "-arch=sm_80", "-Xptxas", "-v", f"-maxrregcount={most}", "-c", source,
                                "-o", source + ".o"], check=True)
                with open(source + ".o.ptxas", encoding="utf-8") as file:
                    kernels = parse_report(file.read())
                self.assertEqual(len(kernels), 1)
                self.assertEqual(bool(faults_of(kernels, {})), spills, kernels)


# From the toolkit's cuda_occupancy.h (CUDA 13.0): architecture, threads, registers, shared bytes -> warps.
OCCUPANCIES = [
    ("sm_80", 256, 40, 0, 48),
    ("sm_80", 256, 128, 9216, 16),
    ("sm_80", 128, 255, 52000, 8),
    ("sm_80", 128, 168, 102400, 4),
    ("sm_80", 96, 72, 16384, 27),
    ("sm_80", 32, 24, 0, 32),
    ("sm_80", 128, 96, 70000, 8),
    ("sm_80", 192, 80, 1000, 24),
    ("sm_90a", 256, 40, 0, 48),
    ("sm_90a", 256, 128, 9216, 16),
    ("sm_90a", 128, 255, 52000, 8),
    ("sm_90a", 128, 168, 102400, 8),
    ("sm_90a", 96, 72, 16384, 27),
    ("sm_90a", 32, 24, 0, 32),
    ("sm_90a", 128, 96, 70000, 12),
    ("sm_90a", 192, 80, 1000, 24),
]


def main():
    global NVCC
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in ("table", "all", "check"):
        print(__doc__, file=sys.stderr)
        return 2
    what, build = sys.argv[1:3]
    kernels = read_kernels(build)
    if not kernels:
        print(f"skipped: {build} has no kernels compiled by nvcc")
        return 77
    idle = give_launches(kernels, read_launches(build))
    if what != "check":
        print(table(kernels, what == "all"))
        return 0
    NVCC = sys.argv[3] if len(sys.argv) == 4 else None
    if not unittest.main(argv=[sys.argv[0]], exit=False).result.wasSuccessful():
        return 1
    texts = []
    for path in glob.glob(f"{SOURCES}/*.cu*"):
        with open(path, encoding="utf-8") as file:
            texts.append(file.read())
    faults = faults_of(kernels, read_comments(texts)) + [f"{name}: no test starts it" for name in idle]
    for fault in faults:
        print("error:", fault)
    print(f"{len({k.name for k in kernels})} kernels, {len(kernels)} compiled instances, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
