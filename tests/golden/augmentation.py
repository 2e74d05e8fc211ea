"""Golden cases of cropping, resizing and colour augmentation: PIL and torchvision results, and our formulas in f64."""
import itertools

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode

import common
from common import f32, measure

MEAN, STD = f32([0.485, 0.456, 0.406]), f32([0.229, 0.224, 0.225])
ORDERS = list(itertools.permutations(range(4)))  # lexicographic; entry j is the operation applied j-th
OPERATIONS = ("brightness", "contrast", "saturation", "hue")


def picture(rng, h, w, c=3):
    """A smooth picture with noise, some saturated and some gray pixels; u8."""
    y, x = np.mgrid[0:h, 0:w]
    wave = [np.sin(rng.uniform(0.1, 0.5) * y + rng.uniform(0.1, 0.5) * x + rng.uniform(0, 6)) for _ in range(c)]
    values = 128 + 90 * np.stack(wave, -1) + 40 * rng.normal(size=(h, w, c))
    gray = rng.random((h, w)) < 0.05
    values[gray] = values[gray][:, :1]
    return np.clip(values, 0, 255).astype(np.uint8)


# ---- the formulas; images are [H, W, C] tensors in [0, 1] ------------------------------------------------------------
def gray_of(x):
    """0.299 r + 0.587 g + 0.114 b (torchvision's tensors use 0.2989, 0.587, 0.114; PIL the former)."""
    if x.shape[2] == 1:
        return x
    return (x * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).to(x.dtype)).sum(2, keepdim=True)


def adjust_hue(x, turns):
    r, g, b = x.unbind(2)
    top, low = x.max(2).values, x.min(2).values
    spread = top - low
    flat = spread == 0
    divisor = torch.where(flat, torch.ones_like(spread), spread)
    rc, gc, bc = (top - r) / divisor, (top - g) / divisor, (top - b) / divisor
    h = torch.where(top == r, bc - gc, torch.where(top == g, 2 + rc - bc, 4 + gc - rc))
    h = (torch.where(flat, torch.zeros_like(h), h) / 6 + turns) % 1.0
    s = torch.where(flat, torch.zeros_like(spread), spread / torch.where(flat, torch.ones_like(top), top))
    i = torch.floor(6 * h)
    f = 6 * h - i
    p, q, t = top * (1 - s), top * (1 - s * f), top * (1 - s * (1 - f))
    i = (i.long() % 6).unsqueeze(-1)
    choices = [(top, t, p), (q, top, p), (p, top, t), (p, q, top), (t, p, top), (top, p, q)]
    return sum((i == j) * torch.stack(choice, -1) for j, choice in enumerate(choices)).clamp(0, 1)


def jitter(x, operation, value):
    if operation == "hue":
        return adjust_hue(x, value) if x.shape[2] == 3 else x
    if operation == "saturation" and x.shape[2] == 1:
        return x
    other = {"brightness": 0.0, "contrast": gray_of(x).mean(), "saturation": gray_of(x)}[operation]
    return ((x - other) * value + other).clamp(0, 1)


def blur(x, sigma):
    """Separable Gaussian, radius ceil(3 sigma), weights normalised to sum 1, edges reflected without repetition."""
    radius = int(np.ceil(3 * np.float32(sigma)))
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    taps = (taps / taps.sum()).to(x.dtype)
    y = x.permute(2, 0, 1).unsqueeze(1)
    y = F.pad(y, (radius, radius, radius, radius), mode="reflect")
    y = F.conv2d(F.conv2d(y, taps.reshape(1, 1, 1, -1)), taps.reshape(1, 1, -1, 1))
    return y[:, 0].permute(1, 2, 0)


def augment(image, row, mean, std, dtype):
    """Columns of row: brightness, contrast, saturation, hue, order, gray, blur_sigma, solarize, flip, 0, 0, 0."""
    x = torch.from_numpy(image).to(dtype) / 255
    row = [float(v) for v in row]
    if row[4] >= 0:
        for i in ORDERS[int(row[4])]:
            x = jitter(x, OPERATIONS[i], row[i])
    if row[5]:
        x = gray_of(x).expand_as(x)
    if row[6] > 0:
        x = blur(x, row[6])
    if row[7]:
        x = torch.where(x >= 0.5, 1 - x, x)
    if row[8]:
        x = x.flip(1)
    return (x - torch.tensor(mean, dtype=dtype)) / torch.tensor(std, dtype=dtype)


def batch_case(prefix, images, params, mean, std):
    """images [N,H,W,C] u8 with params [N,12] -> y [N,H,W,C]."""
    params = f32(params)

    def run(dtype, _):
        return {"y": torch.stack([augment(i, p, mean, std, dtype) for i, p in zip(images, params)])}

    out = {prefix + "images": images, prefix + "params": params, prefix + "mean": f32(mean), prefix + "std": f32(std)}
    result = measure(run)
    return {**out, prefix + "y": result["y"], "err/" + prefix + "y": result["err/y"]}


def params_row(**values):
    row = dict(brightness=1, contrast=1, saturation=1, hue=0, order=-1, gray=0, blur_sigma=0, solarize=0, flip=0)
    row.update(values)
    return [*row.values(), 0, 0, 0]


def torchvision_rows(images, function, values):
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    return torch.stack([function(i, v) for i, v in zip(x, values)]).permute(0, 2, 3, 1).contiguous().numpy()


def single_operations(rng, out):
    factors = {"brightness": (0, 0.6, 1.1, 1.4), "contrast": (0, 0.6, 1.1, 1.4), "saturation": (0, 0.6, 1.1, 1.4),
               "hue": (-0.5, -0.1, 0.03, 0.1, 0.4)}
    functions = {"brightness": TF.adjust_brightness, "contrast": TF.adjust_contrast,
                 "saturation": TF.adjust_saturation, "hue": TF.adjust_hue}
    identity = ([0, 0, 0], [1, 1, 1])
    for name, values in factors.items():
        images = np.stack([picture(rng, 19, 23) for _ in values])
        out.update(batch_case(f"op/{name}/", images, [params_row(order=0, **{name: v}) for v in values], *identity))
        out[f"op/{name}/torchvision"] = torchvision_rows(images, functions[name], values)
    images = np.stack([picture(rng, 19, 23) for _ in range(6)])
    sigmas = (0.1, 0.25, 0.5, 1, 1.37, 2)
    out.update(batch_case("op/blur/", images, [params_row(blur_sigma=s) for s in sigmas], *identity))
    out["op/blur/pil"] = np.stack([np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(s)))
                                   for i, s in zip(images, sigmas)])
    images = images[:1]
    for name in ("gray", "solarize", "flip"):
        out.update(batch_case(f"op/{name}/", images, [params_row(**{name: 1})], *identity))
    out["op/gray/torchvision"] = torchvision_rows(images, lambda i, _: TF.rgb_to_grayscale(i, 3), [0])
    out.update(batch_case("op/normalise/", images, [params_row()], MEAN, STD))


def chains(rng, out):
    """Whole chains; pil_jitter and pil are the u8 results of the official PIL operations with the same parameters
    (pil: jitter, gray, blur; no solarize, flip or normalise), to bound the difference to them."""
    n = 12
    images = np.stack([picture(rng, 32, 32) for _ in range(n)])
    rows = [params_row(brightness=rng.uniform(0.6, 1.4), contrast=rng.uniform(0.6, 1.4),
                       saturation=rng.uniform(0.6, 1.4), hue=rng.uniform(-0.1, 0.1), order=[0, 23, 7, 9, 14, 18][i % 6],
                       gray=int(i % 4 == 3), blur_sigma=rng.uniform(0.1, 2) * (i % 2), solarize=int(i % 3 == 2),
                       flip=int(i % 5 > 2)) for i in range(n)]
    out.update(batch_case("chain/", images, rows, MEAN, STD))
    functions = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue]
    jittered, full = [], []
    for image, row in zip(images, f32(rows)):
        pil = Image.fromarray(image)
        for i in ORDERS[int(row[4])]:
            pil = functions[i](pil, float(row[i]))
        jittered.append(np.asarray(pil))
        if row[5]:
            pil = TF.to_grayscale(pil, 3)
        if row[6] > 0:
            pil = pil.filter(ImageFilter.GaussianBlur(float(row[6])))
        full.append(np.asarray(pil))
    out["chain/pil_jitter"], out["chain/pil"] = np.stack(jittered), np.stack(full)
    images = np.stack([picture(rng, 28, 28, 1) for _ in range(6)])
    out.update(batch_case("chain_one_channel/", images, rows[:6], MEAN[:1], STD[:1]))


def resizes(rng, out):
    """bilinear, bicubic: crop, then resize with PIL's antialiasing filters, as torchvision does; *_box: PIL's
    resize(box=...), whose filter reaches over the crop's edge. box = top, left, height, width."""
    cases = {"down": ((37, 53), (0, 0, 37, 53), (32, 32)), "crop_down": ((61, 40), (7, 3, 41, 36), (17, 23)),
             "up": ((12, 9), (0, 0, 12, 9), (32, 32)), "crop_up": ((37, 53), (5, 11, 9, 13), (32, 32)),
             "same": ((20, 20), (0, 0, 20, 20), (20, 20)), "strong": ((90, 120), (1, 2, 88, 117), (8, 8)),
             "mixed": ((61, 40), (0, 10, 61, 12), (20, 30)), "one_pixel": ((9, 9), (4, 5, 1, 1), (6, 6))}
    for name, (size, box, target) in cases.items():
        image = picture(rng, *size)
        p = f"resize/{name}/"
        out.update({p + "image": image, p + "box": np.array(box, np.int32), p + "size": np.array(target, np.int32)})
        for mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC):
            out[p + mode.value] = np.asarray(TF.resized_crop(Image.fromarray(image), *box, list(target), mode))
            pil = {InterpolationMode.BILINEAR: Image.BILINEAR, InterpolationMode.BICUBIC: Image.BICUBIC}[mode]
            edges = (box[1], box[0], box[1] + box[3], box[0] + box[2])
            out[p + mode.value + "_box"] = np.asarray(Image.fromarray(image).resize(target[::-1], pil, edges))
        gray = Image.fromarray(image[:, :, 0])
        out[p + "bilinear_one_channel"] = np.asarray(TF.resized_crop(gray, *box, list(target)))


def augment_file():
    rng = np.random.default_rng(10)
    out = {}
    resizes(rng, out)
    single_operations(rng, out)
    chains(rng, out)
    for name in out:
        if name.endswith("/torchvision"):
            difference = np.abs(out[name] - out[name.replace("torchvision", "y")]).max()
            assert difference < 5e-4, f"{name}: differs from torchvision by {difference}"
    common.write("augment.safetensors", out, {"operations": ", ".join(OPERATIONS)})
