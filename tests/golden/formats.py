#!/usr/bin/env python3
"""Writes formats.safetensors: small WebP, TIFF and GIF files beside the pixels that Pillow sees in them, and JPEG
files with an EXIF orientation beside upright pixels.

NAME/file (U8 [bytes]), NAME/rgb (U8 [H, W, 3], convert("RGB")), NAME/gray (U8 [H, W], convert("RGB").convert("L")).
Needs Pillow alone: python3 tests/golden/formats.py"""
import io
import json
import os
import random
import struct

from PIL import Image, ImageOps

HERE = os.path.dirname(os.path.abspath(__file__))
WIDTH, HEIGHT = 37, 21


def picture(mode, seed=0):
    """Smooth colours with some noise: what codecs were made for, and every byte another."""
    draw = random.Random(seed)
    channels = len(mode.replace("P", "L").replace("1", "L"))
    pixels = bytes(
        (x * (5 + c) + y * (9 - 2 * c) + draw.randrange(12) + 40 * c) % 256
        for y in range(HEIGHT) for x in range(WIDTH) for c in range(channels))
    return Image.frombytes(mode, (WIDTH, HEIGHT), pixels)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def files():
    rgb, gray, alpha = picture("RGB"), picture("L"), picture("RGBA")
    palette = rgb.quantize(64)
    yield "webp_lossy", saved(rgb, "WEBP", quality=70)
    yield "webp_lossless", saved(rgb, "WEBP", lossless=True)
    yield "webp_alpha", saved(alpha, "WEBP", lossless=True, exact=True)
    yield "webp_lossy_alpha", saved(alpha, "WEBP", quality=80)
    yield "webp_animated", saved(rgb, "WEBP", save_all=True, append_images=[picture("RGB", 1)], lossless=True)
    yield "tiff_rgb", saved(rgb, "TIFF")
    yield "tiff_rgb_deflate", saved(rgb, "TIFF", compression="tiff_adobe_deflate")
    yield "tiff_gray_lzw", saved(gray, "TIFF", compression="tiff_lzw")
    yield "tiff_palette", saved(palette, "TIFF")
    yield "tiff_bits", saved(gray.convert("1"), "TIFF", compression="group4")
    yield "tiff_alpha", saved(alpha, "TIFF", compression="tiff_lzw")
    yield "tiff_gray_alpha", saved(picture("LA"), "TIFF")
    yield "tiff_upside_down", saved(rgb, "TIFF", tiffinfo={274: 3})
    yield "tiff_pages", saved(rgb, "TIFF", save_all=True, append_images=[gray])
    yield "gif", saved(palette, "GIF", interlace=0)
    yield "gif_interlaced", saved(palette, "GIF", interlace=1)
    yield "gif_gray", saved(gray, "GIF")
    yield "gif_transparent", saved(palette, "GIF", transparency=7)
    yield "gif_animated", saved(palette, "GIF", save_all=True, append_images=[picture("RGB", 1).quantize(32)])
    yield "gif_offset", offset_gif()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"jpeg_turned_{orientation}", saved(rgb, "JPEG", exif=exif, subsampling=0)


def offset_gif():
    """A frame that covers a part of its canvas only."""
    data = bytearray(saved(picture("RGB").quantize(16), "GIF", interlace=0, optimize=False))
    data[6:10] = struct.pack("<HH", WIDTH + 6, HEIGHT + 4)  # the canvas grows
    at = data.index(b"\x2c", 13 + 3 * (2 << (data[10] & 7)))
    data[at + 1:at + 5] = struct.pack("<HH", 2, 3)
    return bytes(data)


def main():
    arrays = {}
    for name, data in files():
        image = Image.open(io.BytesIO(data))
        if name.startswith("jpeg_turned"):
            image = ImageOps.exif_transpose(image)
        image = image.convert("RGB")
        arrays[f"{name}/file"] = ((len(data),), data)
        arrays[f"{name}/rgb"] = ((image.height, image.width, 3), image.tobytes())
        arrays[f"{name}/gray"] = ((image.height, image.width), image.convert("L").tobytes())
    header, body = {}, b""
    for name, (shape, data) in arrays.items():
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(HERE, "formats.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + body)


if __name__ == "__main__":
    main()
