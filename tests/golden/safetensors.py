"""Reading and writing safetensors files: 8-byte little-endian header length, JSON header, tensors packed by name."""
import json
import struct

import numpy as np

CODES = {"float32": "F32", "float64": "F64", "int32": "I32", "int64": "I64", "uint8": "U8"}
TYPES = {code: np.dtype(name).newbyteorder("<") for name, code in CODES.items()}


def save(path, tensors, metadata=None):
    """Writes {name: array}; metadata is {string: string}. The header is padded with spaces to a multiple of 8 bytes."""
    header, blobs, offset = {}, [], 0
    if metadata:
        header["__metadata__"] = {key: str(value) for key, value in sorted(metadata.items())}
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        blob = np.ascontiguousarray(array, TYPES[CODES[array.dtype.name]]).tobytes()
        header[name] = {"dtype": CODES[array.dtype.name], "shape": list(array.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def load(path):
    """Returns ({name: array}, metadata)."""
    with open(path, "rb") as file:
        data = file.read()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    body = memoryview(data)[8 + length:]
    return {name: np.frombuffer(body[slice(*t["data_offsets"])], TYPES[t["dtype"]]).reshape(t["shape"])
            for name, t in header.items()}, metadata
