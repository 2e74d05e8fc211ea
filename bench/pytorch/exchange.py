"""Reads the safetensors files of `csml bench --exchange` (apps/exchange.h): tensors by name, and notes."""
import json
import struct

import torch

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
         "I32": torch.int32, "U8": torch.uint8}


class Exchange:
    """`notes`: what is no array, numbers as numbers. exchange["name"]: a tensor on the CPU, as it was written."""

    def __init__(self, path):
        with open(path, "rb") as file:
            length, = struct.unpack("<Q", file.read(8))
            self.header = json.loads(file.read(length))
            self.data = bytearray(file.read())
        self.notes = {key: number(text) for key, text in self.header.pop("__metadata__", {}).items()}

    def __getitem__(self, name):
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(self.data, dtype=TYPES[entry["dtype"]], offset=begin,
                                count=(end - begin) // torch.empty(0, dtype=TYPES[entry["dtype"]]).element_size())
        return flat.reshape(entry["shape"])

    def under(self, prefix):
        """{name without the prefix: tensor}"""
        return {name[len(prefix):]: self[name] for name in self.header if name.startswith(prefix)}

    def images(self, name):
        """[N, H, W, C] as PyTorch's [N, C, H, W]; memory stays as it is, which is channels_last."""
        return self[name].permute(0, 3, 1, 2)


def number(text):
    try:
        return float(text) if any(c in text for c in ".en") else int(text)
    except ValueError:
        return text
