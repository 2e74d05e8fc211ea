#!/usr/bin/env python3
"""The official MoCo v2 two-crop loader (PIL, torchvision) in one process over a folder of images: pairs per second and
core. Per image: decode, then twice RandomResizedCrop(size, (0.2, 1)), ColorJitter(0.4, 0.4, 0.4, 0.1) with p 0.8, gray
with p 0.2, PIL GaussianBlur of radius U(0.1, 2) with p 0.5, flip, ToTensor, Normalize. Prints one JSON object.

    python3 bench/pil_loader.py FOLDER --seconds 10
    python3 bench/pil_loader.py FOLDER --decode-only
"""
import argparse
import json
import pathlib
import random
import statistics
import time

import PIL
import torch
import torchvision
from PIL import Image, ImageFilter
from torchvision import transforms


class GaussianBlur:
    def __call__(self, image):
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def two_crop(size):
    view = transforms.Compose([
        transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.RandomApply([GaussianBlur()], p=0.5),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])
    return lambda image: (view(image), view(image))


def decode(path):
    with open(path, "rb") as file:
        return Image.open(file).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="searched for .jpg, .jpeg, .png at any depth")
    parser.add_argument("--size", type=int, default=224, help="pixels of a crop's side")
    parser.add_argument("--seconds", type=float, default=5, help="least length of a window")
    parser.add_argument("--windows", type=int, default=3, help="timed windows; the median is reported")
    parser.add_argument("--decode-only", action="store_true", help="decode to RGB, no augmentation")
    args = parser.parse_args()
    files = sorted(p for p in pathlib.Path(args.folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        parser.error(f"no images under {args.folder}")
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random.shuffle(files)
    transform = (lambda image: image) if args.decode_only else two_crop(args.size)
    transform(decode(files[0]))

    rates, position = [], 0
    for _ in range(args.windows):
        start, count = time.process_time(), 0
        while time.process_time() - start < args.seconds:
            transform(decode(files[position % len(files)]))
            position += 1
            count += 1
        rates.append(count / (time.process_time() - start))
    rate = statistics.median(rates)
    print(json.dumps({"case": "decode" if args.decode_only else "moco_two_crop", "size": args.size,
                      "pairs_per_core_second": round(rate, 3), "ms": round(1e3 / rate, 3), "min": round(min(rates), 3),
                      "max": round(max(rates), 3), "images": len(files), "processes": 1, "clock": "cpu time",
                      "torchvision": torchvision.__version__, "pillow": PIL.__version__}))


if __name__ == "__main__":
    main()
