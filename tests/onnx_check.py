#!/usr/bin/env python3
"""Runs an exported ONNX model in an independent runtime and compares its outputs with csml's own features.

usage: tests/onnx_check.py CSML      (onnxruntime and NumPy from PyPI, also in .deps/onnxruntime, where scripts/setup.sh
--with-onnxruntime puts them; exits with 77, skipped, without them)
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / ".deps" / "onnxruntime"))
try:
    import numpy as np
    import onnxruntime
except ImportError as error:
    print(f"skipped: {error.name} not present")
    sys.exit(77)

TRAIN = "synthetic:shapes?size=32&limit=64"
TOLERANCE = 1e-4  # of the largest output
# Depth, stem, width, batch norm in the head.
NETWORKS = [("18", "cifar", "8", "none"), ("18", "imagenet", "8", "hidden"), ("50", "imagenet", "8", "all"),
            ("34", "cifar", "4", "none")]


def csml(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run([sys.argv[1], *map(str, arguments), "--json"], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{arguments}: {done.stderr}")
    return json.loads(done.stdout)


def arrays(path):
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    types = {"F32": "<f4", "I64": "<i8"}
    return {name: np.frombuffer(data, types[a["dtype"]], offset=8 + length + a["data_offsets"][0],
                                count=int(np.prod(a["shape"]))).reshape(a["shape"])
            for name, a in header.items() if name != "__metadata__"}


def main():
    for depth, stem, width, norm in NETWORKS:
        with tempfile.TemporaryDirectory(prefix="csml_onnx_") as folder:
            folder = pathlib.Path(folder)
            # Two training steps, so that running statistics and batch-norm weights are not where they start.
            csml("pretrain", "--method", "moco", "--data", TRAIN, "--out", folder / "run", "--epochs", 1,
                 *(f"--set={s}" for s in (
                     f"model.depth={depth}", f"model.stem={stem}", f"model.width={width}", "model.dim=16",
                     f"model.head_bn={norm}",
                     "augment.crop_size=32", "augment.blur_p=0", "augment.mean=0.5,0.5,0.5", "augment.std=0.5,0.5,0.5",
                     "method.queue=64", "method.bn_group_size=8", "train.batch_size=32", "eval.size=32", "eval.resize=0",
                     "data.workers=0", "schedule.lr=0.5")))
            csml("export", "--checkpoint", folder / "run", "--format", "onnx", "--what", "full", "--out",
                 folder / "model.onnx")
            csml("export", "--checkpoint", folder / "run", "--out", folder / "weights.safetensors")
            session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
            properties = session.get_modelmeta().custom_metadata_map
            assert properties["mean"] == "0.5,0.5,0.5", properties

            # Images written as PNM, so that both sides see the same pixels.
            random = np.random.default_rng(0)
            pixels = random.integers(0, 256, (5, 32, 32, 3), np.uint8)
            (folder / "images" / "all").mkdir(parents=True)
            for i, image in enumerate(pixels):
                (folder / "images" / "all" / f"{i}.ppm").write_bytes(b"P6 32 32 255\n" + image.tobytes())
            inputs = (pixels.astype(np.float32).transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5
            outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": inputs})))
            for name, features in (("features", "backbone"), ("projection", "projection")):
                csml("embed", "--checkpoint", folder / "run", "--data", f"folder:{folder / 'images'}", "--features",
                     features, "--out", folder / "ours.safetensors")
                ours = arrays(folder / "ours.safetensors")["features"]
                theirs = outputs[name]
                error = np.abs(ours - theirs).max() / np.abs(theirs).max()
                spread = np.abs(theirs - theirs.mean(0)).max() / np.abs(theirs).max()  # images are told apart
                print(f"ResNet-{depth}, {stem} stem, batch norm in the head {norm}: {name} {theirs.shape}, worst difference {error:.1e}")
                assert ours.shape == theirs.shape and error < TOLERANCE and spread > 0.005, (ours, theirs)
    print("onnx: every output agrees")


if __name__ == "__main__":
    main()
