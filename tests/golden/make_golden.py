#!/usr/bin/env python3
"""Writes the golden files beside this script: `make_golden.py [name ...]`, without a name all of them (README.md)."""
import sys

import torch

import augmentation
import features
import losses
import networks
import plans
import steps

FILES = {"pooling": networks.pooling, "splitbn": networks.splitbn, "resnet18_cifar": networks.resnet18_cifar,
         "resnet50_imagenet": networks.resnet50_imagenet, "losses": losses.losses, "knn": losses.knn,
         "optim": losses.optim, "augment": augmentation.augment_file, "moco_steps": steps.moco_steps,
         "csml_steps": steps.csml_steps, "features_jpeg": features.features_jpeg, **plans.FILES}


def main():
    unknown = [name for name in sys.argv[1:] if name not in FILES]
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(FILES)}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in sys.argv[1:] or FILES:
        FILES[name]()


if __name__ == "__main__":
    main()
