"""Pictures as the world has them: damaged, unusual and malicious files, each with what must become of it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Colours = tuple[tuple[int, int, int], ...]
EDGE = 64
QUADRANTS: Colours = ((220, 40, 40), (40, 180, 60), (40, 70, 220), (240, 240, 240))
"""Top left, top right, bottom left, bottom right of the picture that all files are made from."""
CAPTION = "a square of four colours\n"


@dataclass(frozen=True)
class Hostile:
    """A file, how it is made, and what it must become: the colours of its upright quadrants, or a station and a reason."""

    name: str
    make: Callable[[Path], None]
    colours: Colours | None = None
    station: str = ""
    reason: str = ""
    caption: Callable[[Path], None] | None = None
    """Makes the .txt file; where it is None an ordinary one is written."""


def pixels(edge: int = EDGE, colours: Colours = QUADRANTS) -> NDArray[np.uint8]:
    """The picture, [H, W, 3]."""
    half = edge // 2
    made = np.empty((edge, edge, 3), np.uint8)
    made[:half, :half], made[:half, half:], made[half:, :half], made[half:, half:] = colours
    return made


def encoded(format: str, mode: str = "RGB", image: Image.Image | None = None, **options: Any) -> bytes:
    """The picture as a file's content."""
    out = BytesIO()
    best = {"quality": 95, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    (image or Image.fromarray(pixels()).convert(mode)).save(out, format, **{**best, **options})
    return out.getvalue()


def content(data: bytes) -> Callable[[Path], None]:
    """Makes a file with this content."""
    return lambda path: (path.write_bytes(data), None)[1]


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *, interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A PNG made by hand; `kind` is 0 grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def sixteen(values: NDArray[np.uint16]) -> bytes:
    """Rows of 16 bit samples [H, W, C] as a PNG has them: no filter, high byte first."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


def interlaced_rows() -> bytes:
    """The picture in the seven passes of Adam7 (PNG specification, 8.2)."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    return b"".join(b"\0" + row.tobytes() for top, left, down, across in passes for row in pixels()[top::down, left::across])


def grey(colours: Colours = QUADRANTS) -> Colours:
    """The colours by ITU-R 601 luma, as every converter makes grey."""
    luma = [round((299 * red + 587 * green + 114 * blue) / 1000) for red, green, blue in colours]
    return tuple((value, value, value) for value in luma)


def on_white(colours: Colours, *transparent: int) -> Colours:
    """The colours with some quadrants white."""
    return tuple((255, 255, 255) if number in transparent else colour for number, colour in enumerate(colours))


def rotated(orientation: int) -> bytes:
    """The picture as a camera held that way stores it, with its EXIF orientation (EXIF 2.3, tag 0x0112)."""
    upright = pixels()
    across = upright.transpose(1, 0, 2)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: across,
        6: across[::-1],
        7: across[::-1, ::-1],
        8: across[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", image=Image.fromarray(np.ascontiguousarray(stored)), exif=exif)


def frames(format: str) -> bytes:
    """An animation whose first frame is the picture."""
    later = [Image.new("RGB", (EDGE, EDGE), (number, number, number)) for number in (0, 90)]
    return encoded(format, save_all=True, append_images=later, duration=40)


def alpha(mode: str) -> bytes:
    """The picture with its top right quadrant transparent."""
    image = Image.fromarray(pixels()).convert(mode)
    image.paste(0 if mode == "LA" else (0, 0, 0, 0), (EDGE // 2, 0, EDGE, EDGE // 2))
    return encoded("PNG", image=image)


def palette() -> bytes:
    """Four colours in a palette, the second half transparent, the third transparent."""
    numbers = np.repeat(np.repeat(np.array([[0, 1], [2, 3]], np.uint8), EDGE // 2, 0), EDGE // 2, 1)
    image = Image.fromarray(numbers).convert("P")
    image.putpalette([value for colour in QUADRANTS for value in colour])
    return encoded("PNG", image=image, transparency=bytes([255, 255, 0, 255]))


def one_bit() -> bytes:
    """Black, white over white, black."""
    return encoded("PNG", image=Image.fromarray(pixels(colours=((0,) * 3, (255,) * 3, (255,) * 3, (0,) * 3))).convert("1"))


def link(target: str) -> Callable[[Path], None]:
    """Makes a link, relative to the folder."""
    return lambda path: path.symlink_to(target)


def folder(path: Path) -> None:
    """A folder where a file is expected."""
    path.mkdir()


def exif_of(data: bytes) -> bytes:
    """A JPEG whose EXIF block has this content."""
    plain = encoded("JPEG")
    block = b"Exif\0\0" + data
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]


JPEG, PNG, WEBP = encoded("JPEG"), encoded("PNG"), encoded("WEBP")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (EDGE, EDGE, 3), dtype=np.uint8))
CUT = {format: encoded(format, image=NOISE) for format in ("JPEG", "PNG", "WEBP")}
SUFFIX = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
CMYK: Colours = ((0, 255, 255, 0), (255, 0, 255, 0), (255, 255, 0, 0), (0, 0, 0, 0))  # type: ignore[assignment]
WIDE = pixels().astype(np.uint16) * 257
GREY_16 = np.array([[13_107, 26_214], [39_321, 65_535]], np.uint16).repeat(EDGE // 2, 0).repeat(EDGE // 2, 1)[:, :, None]
FROM_16 = tuple((value,) * 3 for value in (51, 102, 153, 255))
ALPHA_16 = np.concatenate([WIDE, np.full((EDGE, EDGE, 1), 65_535, np.uint16)], 2)


def cmyk() -> bytes:
    """Red, green, blue and white in inks."""
    inks = np.empty((EDGE, EDGE, 4), np.uint8)
    half = EDGE // 2
    inks[:half, :half], inks[:half, half:], inks[half:, :half], inks[half:, half:] = CMYK
    return encoded("JPEG", image=Image.fromarray(inks, "CMYK"))


def good(name: str, data: bytes, colours: Colours = QUADRANTS) -> Hostile:
    """A file that must be used."""
    return Hostile(name, content(data), colours)


def bad(name: str, make: Callable[[Path], None] | bytes, reason: str, station: str = "readable") -> Hostile:
    """A file that must be named with its reason."""
    return Hostile(name, content(make) if isinstance(make, bytes) else make, station=station, reason=reason)


def captioned(name: str, caption: Callable[[Path], None] | bytes, reason: str | None) -> Hostile:
    """A good picture with a hostile caption; it must be used if there is no reason."""
    make = content(caption) if isinstance(caption, bytes) else caption
    return Hostile(name, content(PNG), QUADRANTS if reason is None else None, "captioned", reason or "", make)


USED = [
    *(good(f"exif-{number}.jpg", rotated(number)) for number in range(1, 9)),
    good("cmyk.jpg", cmyk(), ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))),
    good("grey.jpg", encoded("JPEG", "L"), grey()),
    good("progressive.jpg", encoded("JPEG", progressive=True)),
    good("sixteen-grey.png", png(EDGE, EDGE, 16, 0, sixteen(GREY_16)), FROM_16),
    good("sixteen-rgb.png", png(EDGE, EDGE, 16, 2, sixteen(WIDE))),
    good("sixteen-rgba.png", png(EDGE, EDGE, 16, 6, sixteen(ALPHA_16))),
    good("interlaced.png", png(EDGE, EDGE, 8, 2, interlaced_rows(), interlaced=True)),
    good("palette-alpha.png", palette(), on_white(QUADRANTS, 2)),
    good("rgba.png", alpha("RGBA"), on_white(QUADRANTS, 1)),
    good("grey-alpha.png", alpha("LA"), on_white(grey(), 1)),
    good("one-bit.png", one_bit(), ((0, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 0))),
    good("animated.webp", frames("WEBP")),
    good("animated.png", frames("PNG")),
    good("icc-broken.jpg", encoded("JPEG", icc_profile=b"no profile at all")),
    good(
        "icc-broken.png", png(EDGE, EDGE, 8, 2, b"".join(b"\0" + row.tobytes() for row in pixels()), extra=chunk(b"iCCP", b"x\0\0garbage"))
    ),
    good("exif-garbage.jpg", exif_of(b"garbage" * 9)),
    good("exif-garbage.png", PNG[:33] + chunk(b"eXIf", b"garbage" * 5) + PNG[33:]),
    good("exif-cut.png", PNG[:33] + chunk(b"eXIf", b"II*\0") + PNG[33:]),
    good("exif-garbage.webp", encoded("WEBP", exif=b"Exif\0\0" + b"garbage" * 5)),
    good("exif-cut.jpg", exif_of(b"II*\0\x08\0\0\0\xff\xff\x12\x01")),
    good("exif-orientation-99.jpg", exif_of(b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0")),
    good("really-a-jpeg.png", JPEG),
    good("really-a-webp.jpeg", WEBP),
    good("UPPER.PNG", PNG),
    good("Mixed.JpEg", JPEG),
    good("with\nnewline.png", PNG),
    good("with \U0001f469\u200d\U0001f680 and \u202eodd\u202c letters.png", PNG),
    good("trailing-garbage.jpg", JPEG + b"<script>" * 100),
    good("no-end.png", PNG[:-12]),
    good(f"{'long' * 60}.png", PNG),
    Hostile("link-inside.png", link("UPPER.PNG"), QUADRANTS),
    captioned("caption-bom.png", "\ufeffa caption\n".encode(), None),
    captioned("caption-long.png", b"word " * 20_000, None),
    captioned("caption-odd.png", "\n\n \t\n\u0007e\u0301 \U0001f600\r\n\n".encode(), None),
]
LOST = [
    *(
        bad(f"cut-{percent}.{SUFFIX[format]}", data[: len(data) * percent // 100], "cannot be decoded|not a JPEG, PNG or WebP")
        for format, data in CUT.items()
        for percent in (1, 30, 70, 98)
    ),
    bad("page.png", b"<!DOCTYPE html><html>404</html>", "not a JPEG, PNG or WebP picture.*<!DOCTYPE"),
    bad("zero.jpg", b"", "the file is empty"),
    bad("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG, PNG or WebP picture"),
    bad("animated.gif", frames("GIF"), r"\.gif is not read"),
    bad("gif-named.png", frames("GIF"), "not a JPEG, PNG or WebP picture.*GIF89a"),
    bad("scan.TIFF", b"II*\0", r"\.tiff is not read"),
    bad("bomb.png", png(60_000, 60_000, 8, 2, b""), "more pixels than max_pixels"),
    bad("no-pixels.png", png(0, 0, 8, 2, b""), "cannot be decoded|not a JPEG"),
    bad("text-bomb.png", png(8, 8, 8, 2, b"", extra=chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**24)))), "cannot be decoded"),
    bad(
        "not-zlib.png",
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"?"),
        "cannot be",
    ),
    bad("tall.png", lambda path: Image.new("L", (1, 40_000)).save(path), "too elongated", "sized"),
    bad("wide.png", lambda path: Image.new("L", (40_000, 1)).save(path), "too elongated", "sized"),
    bad("pipe.png", lambda path: os.mkfifo(path), "not a file with content"),
    bad("link-out.png", link("../outside.png"), "a link that leaves the dataset's folder"),
    bad("link-loop.png", link("link-loop.png"), "Too many levels of symbolic links"),
    bad("link-dangling.png", link("gone.png"), "No such file"),
    bad("link-device.png", link("/dev/zero"), "a link that leaves the dataset's folder"),
    captioned("caption-empty.png", b" \n\n", "the .txt file is empty"),
    captioned("caption-latin.png", "ein Qu\u00e4drat".encode("latin-1"), "not UTF-8"),
    captioned("caption-utf16.png", "a square".encode("utf-16"), "not UTF-8"),
    captioned("caption-utf16-without-mark.png", "a square".encode("utf-16-le"), "not UTF-8"),
    captioned("caption-huge.png", b"x" * (2 * 2**20), "larger than 1 MiB"),
    captioned("caption-folder.png", folder, "a folder, pipe or device"),
    captioned("caption-pipe.png", lambda path: os.mkfifo(path), "a folder, pipe or device"),
    captioned("caption-loop.png", link("caption-loop.txt"), "Too many levels"),
    captioned("caption-link-out.png", link("../outside.txt"), "leaves the dataset's folder"),
    captioned("caption-none.png", lambda path: None, "no .txt file beside"),
]


def write(place: Path) -> Path:
    """All of them in a folder below `place`, and what the links point at beside it."""
    (place / "outside.png").write_bytes(PNG)
    (place / "outside.txt").write_text(CAPTION)
    home = place / "hostile"
    home.mkdir()
    for hostile in (*USED, *LOST):
        path = home / hostile.name
        hostile.make(path)
        (hostile.caption or content(CAPTION.encode()))(path.with_suffix(".txt"))
    (home / "folder.png").mkdir()
    (home / "folder.png" / "inside.png").write_bytes(PNG)
    (home / "folder.png" / "inside.txt").write_text(CAPTION)
    (home / "linked-folder").symlink_to(home / "folder.png")
    return home
