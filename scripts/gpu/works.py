"""The pieces of work that csml and PyTorch do side by side: commands of both, precisions, sizes."""
from dataclasses import dataclass, field

MOCO, CSML = "moco-v2-imagenet-r50-200ep", "imagenet-r50-200ep"
WHOLE_BATCH = ["--set", "method.bn_group_size=0"]  # one group, as PyTorch on one GPU has it
TINY = ["--preset", "cifar10-small", *WHOLE_BATCH, "--set", "method.queue=256"]
SMALL_PRECISION = ["fp16", "bf16"]


@dataclass
class Work:
    """`ours`: arguments of csml bench; `theirs`: of bench/pytorch/run.py (None: takes the check's exchange file);
    `check`: arguments of csml bench in the check; `checked`: the precisions checked; `csml`: precisions timed;
    `pytorch`: (precisions, modes) timed."""
    name: str
    title: str
    case: str
    ours: list
    theirs: list
    check: list
    checked: list
    csml: list
    pytorch: list
    quick: bool = True
    images: bool = field(init=False)

    def __post_init__(self):
        self.images = "--step" in self.ours


def step(name, title, case, base, batch, checked, pytorch, quick=True):
    return Work(name, title, case, [*base, "--batch", str(batch)], ["--batch", str(batch)], [*base, "--batch", "8"],
                checked, ["fp16", "bf16", "tf32"], pytorch, quick)


def part(name, title, case, size, checked, modes=("eager", "compile"), quick=True, full="tf32"):
    """`checked`: the size in the check, where files of the whole would take the time; `full`: PyTorch's precision beside
    the 16-bit ones."""
    precisions = ["fp32", *SMALL_PRECISION]
    return Work(name, title, case, ["--part", case, "--size", size], ["--size", size], ["--part", case, "--size", checked],
                precisions, precisions, [([full, *SMALL_PRECISION], list(modes))], quick)


def works():
    both = [(SMALL_PRECISION, ["eager"]), (["fp16"], ["compile"])]
    moco = ["--step", "moco", "--preset", MOCO, *WHOLE_BATCH, "--given"]
    csml = ["--step", "csml", "--preset", CSML, *WHOLE_BATCH, "--given"]
    return [
        part("info_nce_256", "InfoNCE, batch 256, queue 65,536, dim 128", "info_nce", "256,65536,128,1",
             "256,65536,128,1"),
        part("top_k_256", "exact top-5 of 256 queries, 65,536 rows, dim 128", "top_k", "256,65536,128,5",
             "256,65536,128,5"),
        part("commit", "SGD + EMA, 28.0 M parameters", "commit", "28000000", "3000000", full="fp32"),
        step("moco_b256", "MoCo v2 step, batch 256", "moco", moco, 256, ["fp32", "tf32", *SMALL_PRECISION], both),
        step("resnet50_b256", "supervised ResNet-50 step, batch 256", "resnet50", ["--step", "resnet50"], 256,
             ["fp32", "tf32", *SMALL_PRECISION], both),
        step("moco_b32", "MoCo v2 step, batch 32", "moco", moco, 32, [],
             [(["fp16"], ["eager", "compile", "compile-graphs"])], quick=False),
        step("csml_b128", "CsMl step, batch 128", "csml", csml, 128, ["fp32", "tf32", "bf16", "fp16"], both, quick=False),
        part("info_nce_8192", "InfoNCE, batch 8,192, queue 65,536, dim 128", "info_nce", "8192,65536,128,1",
             "8192,65536,128,1", quick=False),
        part("top_k_mining", "exact top-5 of 8,192 queries, 131,072 rows, dim 2,048", "top_k", "8192,131072,2048,5",
             "1024,20000,2048,5", ["eager"], quick=False),
    ]


def tiny_works():
    """Sizes at which a CPU shows in seconds that everything fits together; fp32 on both sides."""
    def tiny(name, title, case, ours):
        return Work(name, title, case, ours, None, ours, ["fp32"], ["fp32"], [(["fp32"], ["eager"])])
    return [
        tiny("info_nce_256", "InfoNCE, tiny", "info_nce", ["--part", "info_nce", "--size", "16,512,32,2"]),
        tiny("top_k_256", "exact top-5, tiny", "top_k", ["--part", "top_k", "--size", "32,700,16,5"]),
        tiny("commit", "SGD + EMA, tiny", "commit", ["--part", "commit", "--size", "50000"]),
        tiny("moco_b256", "MoCo v2 step, tiny", "moco", ["--step", "moco", *TINY, "--given", "--batch", "8"]),
        tiny("csml_b128", "CsMl step, tiny", "csml", ["--step", "csml", *TINY, "--given", "--batch", "8"]),
        tiny("resnet50_b256", "supervised step, tiny", "resnet18_cifar", ["--step", "resnet18_cifar", "--batch", "4"]),
    ]
