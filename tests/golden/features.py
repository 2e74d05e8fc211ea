"""Golden features of real JPEG files: preprocessing and a full-width ResNet-50 whose tensors come from a hash."""
import hashlib
import io
import os
import tarfile

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

import common
from common import hashed_tensor, measure
from network import Network, shapes

DATA = os.environ.get("CSML_DATA") or os.path.join(common.HERE, "../../../shared/data")


def image_files():
    """{name: bytes}: the first eight ImageNet files by path, and three odd ones: gray, EXIF orientation, narrow."""
    with tarfile.open(os.path.join(DATA, "natural/imagenet_originals.tar")) as tar:
        names = sorted(m.name for m in tar.getmembers() if m.isfile() and m.name.lower().endswith((".jpeg", ".jpg")))
        files = {n: tar.extractfile(n).read() for n in names}
    chosen = {n: files[n] for n in names[:8]}
    gray = [n for n in names if Image.open(io.BytesIO(files[n])).mode == "L"]
    chosen[gray[0]] = files[gray[0]]
    with tarfile.open(os.path.join(DATA, "robustness/robustness.tar.xz")) as tar:
        for name in ("robust/derived/exif_orientation_6.jpg", "robust/derived/size_7x224.jpg"):
            chosen[name] = tar.extractfile(name).read()
    return chosen


def features_jpeg():
    """PIL convert("RGB") -> Resize(256, bicubic, short side) -> CenterCrop(224) -> ToTensor -> Normalize. EXIF
    orientation is not applied (torchvision's ImageFolder does not), ICC profiles are ignored."""
    pixels = Compose([Resize(256, InterpolationMode.BICUBIC), CenterCrop(224)])
    normalise = Compose([ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    files = image_files()
    crops = [pixels(Image.open(io.BytesIO(data)).convert("RGB")) for data in files.values()]
    x = torch.stack([normalise(crop) for crop in crops])
    u8 = np.stack([np.asarray(crop) for crop in crops])

    tensors = {n: hashed_tensor(n, s) for n, s in shapes("resnet50", "imagenet", 64).items()}

    def run(dtype, memory_format):
        t = {n: torch.from_numpy(v).to(dtype) for n, v in tensors.items()}
        with torch.no_grad():
            out = Network("resnet50", "imagenet", t, train=False).forward(
                x.to(dtype).contiguous(memory_format=memory_format))
        return {"features": out["features"], **{n: out[n].mean((2, 3)) for n in ("stem", "layer1", "layer2", "layer3")}}

    out = measure(run)
    check_against_torchvision(tensors, x, out["features"])
    centred = out["features"].astype(np.float64)
    cosine = cosines(centred)
    centred -= centred.mean(0)
    print(f"cosine between different images: {cosine.min():.4f} .. {cosine.max():.4f}, after centring "
          f"{cosines(centred).min():.4f} .. {cosines(centred).max():.4f}")
    flat = u8.reshape(len(u8), -1, 3)
    out.update(pixels_every_37=np.ascontiguousarray(flat[:, ::37]), pixel_mean=flat.mean((1, 2)).astype(np.float32),
               input_every_37=common.f32(x.permute(0, 2, 3, 1).reshape(len(u8), -1, 3)[:, ::37].numpy()))
    names = {f"file{i:02d}": n for i, n in enumerate(files)}
    names.update({f"sha256_{i:02d}": hashlib.sha256(data).hexdigest() for i, data in enumerate(files.values())})
    common.write("features_jpeg.safetensors", out, {"images": len(files), **names})


def cosines(features):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]


def check_against_torchvision(tensors, x, features):
    model = torchvision.models.resnet50(weights=None)
    model.fc = torch.nn.Identity()
    model.load_state_dict({n: torch.from_numpy(v) for n, v in tensors.items()}, strict=False)
    with torch.no_grad():
        theirs = model.double().eval()(x.double()).numpy()
    error = common.relative_error(theirs, features.astype(np.float64))
    assert error < 2e-7, f"torchvision's ResNet-50 differs by {error}"
