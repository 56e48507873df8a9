"""Pixels from well-made and hostile files."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tunesmith import Caption, Crop, Source
from tunesmith.data.images import load_mask, load_pixels, probe, resize_and_crop, to_pixels
from tunesmith.kinds import Unreadable

GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6
"""Colour types of PNG."""
RED, WHITE = (1.0, -1.0, -1.0), (1.0, 1.0, 1.0)


def source(file: Path, size=(8, 4), resize=None, offset=(0, 0)) -> Source:
    return Source("set", file, Caption(""), Crop(resize or size, size, offset))


def colours(pixels: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(round(value, 2) for value in pixel) for pixel in pixels.flatten(1).T.tolist()}


def halves(left, right, mode="RGB") -> Image.Image:
    """8 x 4: the left half of one colour, the right half of another."""
    image = Image.new(mode, (8, 4), left)
    image.paste(right, (4, 0, 8, 4))
    return image


def png(size, depth, colour, data, transparent=()) -> bytes:
    """A PNG with one value that counts as transparent, or none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))]
    if transparent:
        chunks.append(chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")])


def broken_png() -> bytes:
    """A PNG whose header is right and whose pixels are not."""
    return png((8, 4), 8, RGB, b"not zlib")


def test_pixels_are_channels_rows_columns_between_minus_one_and_one(tmp_path):
    halves((255, 0, 0), (0, 0, 255)).save(tmp_path / "a.png")
    pixels = load_pixels(source(tmp_path / "a.png"))
    assert (pixels.shape, pixels.dtype) == ((3, 4, 8), torch.float32)
    assert colours(pixels[:, :, :4]) == {RED}
    assert colours(pixels[:, :, 4:]) == {(-1.0, -1.0, 1.0)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_their_exif_says(tmp_path, orientation):
    upright = np.arange(32, dtype=np.uint8).reshape(4, 8) * 8
    stored = {  # how a camera held that way stores the upright picture; EXIF 2.3, tag 0x0112
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.png", "a.webp", "a.jpg"):
        Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(tmp_path / name, exif=exif, lossless=True, quality=100)
        assert probe(tmp_path / name) == (8, 4)
    pixels = load_pixels(source(tmp_path / "a.png"))
    np.testing.assert_allclose((pixels[0].numpy() + 1) * 127.5, upright, atol=1e-4)


def test_transparent_parts_are_laid_on_white(tmp_path):
    halves((255, 0, 0, 255), (0, 0, 255, 0), "RGBA").save(tmp_path / "rgba.png")
    palette = halves(0, 1, "P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=1)
    halves((255, 255), (0, 0), "LA").save(tmp_path / "la.png")
    halves((255, 0, 0), (0, 255, 0)).save(tmp_path / "colour-key.png", transparency=(0, 255, 0))
    assert colours(load_pixels(source(tmp_path / "rgba.png"))) == {RED, WHITE}
    assert colours(load_pixels(source(tmp_path / "palette.png"))) == {RED, WHITE}
    assert colours(load_pixels(source(tmp_path / "colour-key.png"))) == {RED, WHITE}
    assert colours(load_pixels(source(tmp_path / "la.png"))) == {WHITE}


def test_half_transparency_mixes_with_white(tmp_path):
    Image.new("RGBA", (8, 4), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert colours(load_pixels(source(tmp_path / "a.png"))) == {(0.6, 0.6, 0.6)}  # 0.2 black on white is 0.8 of [0, 1]


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path):
    Image.fromarray(np.repeat(np.array([[0, 257 * 51, 65535, 257 * 204]], np.uint16), 4, 0)).save(tmp_path / "a.png")
    pixels = load_pixels(source(tmp_path / "a.png", (4, 4)))
    torch.testing.assert_close(pixels[1, 2], torch.tensor([-1.0, -0.6, 1.0, 0.6]))


@pytest.mark.parametrize(
    ("depth", "colour", "values", "transparent", "expected"),
    [
        (16, RGB, [(65535, 0, 51 * 257), (204 * 257, 65535, 0)], (), [(255, 0, 51), (204, 255, 0)]),
        (16, RGB, [(65535, 0, 51 * 257), (204 * 257, 65535, 0)], (65535, 0, 51 * 257), [(255, 255, 255), (204, 255, 0)]),
        (16, RGBA, [(65535, 0, 0, 65535), (0, 0, 0, 0)], (), [(255, 0, 0), (255, 255, 255)]),
        (16, GREY_ALPHA, [(100 * 257, 65535), (9, 0)], (), [(100, 100, 100), (255, 255, 255)]),
        (16, GREY, [(100 * 257,), (0,)], (0,), [(100, 100, 100), (255, 255, 255)]),
        (16, GREY, [(100 * 257,), (128,)], (65535,), [(100, 100, 100), (0, 0, 0)]),
        (8, GREY, [(100,), (0,)], (0,), [(100, 100, 100), (255, 255, 255)]),
        (4, GREY, [(0x3A,)], (10,), [(51, 51, 51), (255, 255, 255)]),
        (2, GREY, [(0b01_10_0000,)], (2,), [(85, 85, 85), (255, 255, 255)]),
        (1, GREY, [(0b01_000000,)], (0,), [(255, 255, 255), (255, 255, 255)]),
        (1, GREY, [(0b10_000000,)], (), [(255, 255, 255), (0, 0, 0)]),
    ],
)
def test_pngs_of_every_depth_keep_their_colours_and_lose_what_is_transparent(tmp_path, depth, colour, values, transparent, expected):
    row = b"".join(struct.pack(f">{len(value)}{'H' if depth == 16 else 'B'}", *value) for value in values)
    (tmp_path / "a.png").write_bytes(png((2, 1), depth, colour, zlib.compress(b"\0" + row), transparent))
    pixels = load_pixels(source(tmp_path / "a.png", (2, 1)))
    assert ((pixels + 1) * 127.5).round().int()[:, 0].T.tolist() == [list(one) for one in expected]


def test_cmyk_grey_and_one_bit_pictures_become_rgb(tmp_path):
    Image.new("CMYK", (8, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    Image.new("L", (8, 4), 255).save(tmp_path / "grey.jpg")
    Image.new("1", (8, 4), 0).save(tmp_path / "bit.png")
    torch.testing.assert_close(load_pixels(source(tmp_path / "cmyk.jpg"))[:, 0, 0], torch.tensor(RED), atol=0.05, rtol=0)
    assert colours(load_pixels(source(tmp_path / "grey.jpg"))) == {WHITE}
    assert colours(load_pixels(source(tmp_path / "bit.png"))) == {(-1.0, -1.0, -1.0)}


def test_the_crop_is_cut_out_of_the_resized_picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    whole = load_pixels(source(tmp_path / "a.png", (15, 10)))
    part = load_pixels(source(tmp_path / "a.png", (6, 4), (15, 10), (7, 3)))
    assert torch.equal(part, whole[:, 3:7, 7:13])


def test_shrinking_is_antialiased(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "a.png")
    pixels = load_pixels(source(tmp_path / "a.png", (8, 8)))
    assert pixels.abs().max() < 0.1  # taking every eighth column would give -1 or 1


def test_frames_are_resized_and_cropped_as_pictures_are(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    crop = Crop((15, 10), (6, 4), (7, 3))
    made = to_pixels(resize_and_crop(frames, crop))
    assert made.shape == (3, 3, 4, 6)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "a.png")
        assert torch.equal(made[:, number], load_pixels(source(tmp_path / "a.png", (6, 4), (15, 10), (7, 3))))
    assert np.array_equal(resize_and_crop(Image.fromarray(frames[1]), crop), resize_and_crop(frames, crop)[1])


def encoded(format: str) -> bytes:
    out = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, format)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("page.png", b"<html><body>404</body></html>", "not a JPEG, PNG or WebP picture"),
        ("nothing.jpg", b"", "the file is empty"),
        ("animation.webp", b"GIF89a" + bytes(40), "not a JPEG, PNG or WebP picture"),
        ("cut.jpg", encoded("JPEG")[:1500], "truncated"),
        ("cut.png", encoded("PNG")[:1500], "truncated"),
        ("cut.webp", encoded("WEBP")[:1500], "cannot be decoded"),
        ("pixels.png", broken_png(), "cannot be decoded"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Unreadable, match=reason) as raised:
        load_pixels(source(tmp_path / name))
    assert raised.value.path == tmp_path / name
    assert str(raised.value).startswith(str(tmp_path / name))


def test_pictures_with_too_many_pixels_are_refused_undecoded_by_the_name_of_the_limit(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png((64, 50), 8, RGB, b"not zlib"))
    assert probe(tmp_path / "bomb.png") == (64, 50)
    with pytest.raises(Unreadable, match="64x50 are more pixels than max_pixels = 3199"):
        load_pixels(source(tmp_path / "bomb.png"), max_pixels=3199)
    with pytest.raises(Unreadable, match="more pixels than max_pixels = 3199"):
        load_mask(tmp_path / "bomb.png", source(tmp_path / "bomb.png").crop, max_pixels=3199)
    with pytest.raises(Unreadable, match="cannot be decoded"):
        load_pixels(source(tmp_path / "bomb.png"), max_pixels=3200)


@pytest.mark.filterwarnings("error")
def test_the_limit_is_the_datasets_own_and_pillows_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in ("a.png", "a.jpg", "a.webp"):
        halves((255, 0, 0), (255, 0, 0)).save(tmp_path / name)
    for name in ("a.png", "a.jpg"):
        assert load_pixels(source(tmp_path / name), max_pixels=32).shape == (3, 4, 8)
    with pytest.raises(Unreadable, match="WebP picture with too many pixels"):
        probe(tmp_path / "a.webp")
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path):
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(Unreadable, match=r"cannot be read|not a file"):
            probe(path)


def test_probing_decodes_no_pixels(tmp_path):
    (tmp_path / "pixels.png").write_bytes(broken_png())
    assert probe(tmp_path / "pixels.png") == (8, 4)
