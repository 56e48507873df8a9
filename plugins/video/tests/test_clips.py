"""Which frames a window shows, whatever file they are in."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tunesmith import Crop, Unreadable
from tunesmith_video import VideoKind, VideoTable

from .films import H264, SIZE, Facts, drawn, film, numbers, source


def kind(**settings) -> VideoKind:
    return VideoKind(VideoTable(path="clips", **settings), Facts())


def shown(file: Path, start: float = 0.0, frames: int = 16, fps: float = 16.0, **settings) -> list[int]:
    return numbers(kind(**settings).load(source(file, start, frames, fps), "pixels"))


def nearest(start: float, frames: int, fps: float, times: list[float]) -> list[int]:
    """The same by brute force: of all frames the nearest in time, the later one where two are as near."""
    return [min(range(len(times)), key=lambda n: (round(abs(times[n] - (start + k / fps)), 9), -n)) for k in range(frames)]


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm", "avi", "ts", "h264", "mpg", "flv"])
def test_every_frame_comes_once_at_the_files_own_rate(tmp_path: Path, ending: str) -> None:
    codec = {"webm": "libvpx", "avi": "mpeg4", "mpg": "mpeg2video", "flv": "flv"}.get(ending, H264)
    if codec not in av.codecs_available:
        pytest.skip(f"no {codec} here")
    fps = 25 if ending == "mpg" else 16
    file = film(tmp_path / f"a.{ending}", 60, fps, codec=codec)
    probe = VideoKind.probe(file)
    assert (probe.width, probe.height) == SIZE
    assert probe.fps == pytest.approx(fps, rel=0.01)
    assert probe.seconds == pytest.approx(60 / fps, abs=0.025)
    assert probe.frames == 60
    assert (probe.sample_rate, probe.channels) == (0, 0)
    assert shown(file, 0.0, 16, fps) == list(range(16))
    assert shown(file, 30 / fps, 16, fps) == list(range(30, 46))


@pytest.mark.parametrize(("fps", "wanted"), [(60, 16), (30, 16), (24, 16), (25, 16), (8, 16), (Fraction(30_000, 1001), 16), (50, 24)])
@pytest.mark.parametrize("start", [0.0, 1.0625])
def test_clips_are_retimed_to_the_nearest_frame(tmp_path: Path, fps: Fraction, wanted: int, start: float) -> None:
    file = film(tmp_path / "a.mp4", round(4 * fps), fps)
    times = [n / float(fps) for n in range(round(4 * fps))]
    assert shown(file, start, 33, wanted) == nearest(start, 33, wanted, times)


def test_a_fast_clip_plays_at_its_real_speed(tmp_path: Path) -> None:
    found = shown(film(tmp_path / "a.mp4", 240, 60), 0.0, 33, 16)
    assert found[16] == 60  # after one second the sixtieth frame
    assert found[32] == 120


def test_a_variable_rate_goes_by_timestamps(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).choice([1 / 60, 1 / 30, 1 / 10], 90)
    times = [0.0, *np.cumsum(gaps)[:-1].tolist()]
    file = film(tmp_path / "a.mp4", 90, 30, times=times)
    half = times[-1] / 89 / 2
    expected = []
    for moment in (0.5 + k / 16 for k in range(33)):
        on_screen = max(n for n in range(90) if times[n] <= moment + 1e-4)
        turn = times[on_screen + 1] - min(half, (times[on_screen + 1] - times[on_screen]) / 2)
        expected.append(on_screen + (moment >= turn - 1e-4))
    assert shown(file, 0.5, 33, 16) == expected


def test_a_frame_stays_until_the_next_one(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 4, 16, times=[0.0, 0.0625, 2.0, 2.0625])
    assert shown(file, 0.0, 32, 16)[:28] == [0] + [1] * 27


def test_b_frames_and_long_groups_of_pictures_are_sought_right(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 200, 16, options={"g": "90", "bf": "4"})
    for begin in (0, 1, 44, 89, 90, 91, 92, 93, 150, 184):
        assert shown(file, begin / 16, 16) == list(range(begin, begin + 16))


@pytest.mark.parametrize("options", [{"x264-params": "open-gop=1:keyint=24:bframes=3:scenecut=0"}, {"g": "12", "bf": "3"}])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_every_beginning_is_met_with_open_groups_of_pictures(tmp_path: Path, ending: str, options: dict[str, str]) -> None:
    file = film(tmp_path / f"a.{ending}", 80, 16, codec="libx264", options=options)
    for begin in range(0, 76, 5):
        assert shown(file, begin / 16, 4) == list(range(begin, begin + 4))


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_turned_films_are_upright(tmp_path: Path, rotation: int, ending: str) -> None:
    upright = drawn(0b1010_0110_0000_1111, (64, 128) if rotation != 180 else SIZE)
    file = tmp_path / f"a.{ending}"
    with av.open(str(file), "w") as out:
        stream = out.add_stream("mpeg4", rate=16)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.set_display_rotation(rotation)  # counted against the clock, from the stored picture to the upright one
        stored = np.ascontiguousarray(np.rot90(upright, -rotation // 90))
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    probe = VideoKind.probe(file)
    assert probe.size == (upright.shape[1], upright.shape[0])
    found = kind().load(source(file, 0.0, 4, size=probe.size), "pixels")
    assert found.shape == (3, 4, *upright.shape[:2])
    assert numbers(found) == [0b1010_0110_0000_1111] * 4


@pytest.mark.parametrize("size", [(127, 63), (129, 65), (130, 66)])
def test_odd_sizes_are_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    file = film(tmp_path / "a.mkv", 20, size=size, codec="libx264")
    assert VideoKind.probe(file).size == size
    assert numbers(kind().load(source(file, 0.25, 8, size=size), "pixels")) == list(range(4, 12))


def test_frames_are_resized_and_cropped(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 20, size=(256, 128))
    crop = Crop((128, 64), (64, 32), (64, 32))  # the lower right quarter: bits 12 to 15
    found = kind().load(source(file, 0.0, 4, crop=crop), "pixels")
    assert found.shape == (3, 4, 32, 64)
    assert found.dtype == torch.float32
    whole = kind().load(source(file, 0.0, 4), "pixels")
    assert torch.equal(found, whole[:, :, 32:, 64:])


def test_square_pixels_are_made_of_others(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mkv", 4, codec="libx264", options={"x264-params": "sar=2/1"})
    assert VideoKind.probe(file).size == (256, 64)


@pytest.mark.parametrize(("matrix", "limited"), [(1, True), (5, True), (1, False), (5, False)])
def test_colours_are_those_that_the_stream_says(tmp_path: Path, matrix: int, limited: bool) -> None:
    """A red of luma and chroma by the formulas of BT.709 (1) and BT.601 (5)."""
    kr, kb = (0.2126, 0.0722) if matrix == 1 else (0.299, 0.114)
    red = np.array([0.8, 0.2, 0.3])
    luma = kr * red[0] + (1 - kr - kb) * red[1] + kb * red[2]
    cb, cr = (red[2] - luma) / (2 * (1 - kb)), (red[0] - luma) / (2 * (1 - kr))
    scale, offset, chroma = (219, 16, 224) if limited else (255, 0, 255)
    values = [round(offset + scale * luma), round(128 + chroma * cb), round(128 + chroma * cr)]
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as out:
        stream = out.add_stream("libx264", rate=16, options={"qp": "1"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 1 if limited else 2
        planes = np.stack([np.full(SIZE[::-1], value, dtype=np.uint8) for value in values])
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv444p")
            frame.pts, frame.colorspace, frame.color_range = number, matrix, 1 if limited else 2
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    found = kind().load(source(file, 0.0, 2), "pixels").add(1).div(2).mean(dim=(1, 2, 3))
    assert found.tolist() == pytest.approx(red.tolist(), abs=0.012)


def test_a_window_late_in_a_long_film_is_sought(tmp_path: Path) -> None:
    short = film(tmp_path / "short.mkv", 50, 10, size=(32, 32), codec="mpeg4", options={"g": "50"})
    file = tmp_path / "long.mp4"
    with av.open(str(short)) as read, av.open(str(file), "w") as out:  # the same five seconds for 50 minutes
        packets = [(bytes(packet), packet.is_keyframe) for packet in read.demux(video=0) if packet.size]
        stream = out.add_stream_from_template(read.streams.video[0])
        for number in range(30_000):
            content, key = packets[number % 50]
            packet = av.Packet(content)
            packet.stream, packet.is_keyframe = stream, key
            packet.pts = packet.dts = number
            packet.time_base = Fraction(1, 10)
            out.mux(packet)
    assert VideoKind.probe(file).seconds == pytest.approx(3000)
    began = time.perf_counter()
    found = numbers(kind(max_source_frames=100).load(source(file, 2953.0, 8, 10, size=(32, 32)), "pixels"))
    assert found == list(range(30, 38))
    assert time.perf_counter() - began < 2


def test_no_more_is_decoded_than_the_window_needs(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 400, 16, options={"g": "20"})
    assert shown(file, 15.0, 16, max_source_frames=60) == list(range(240, 256))
    with pytest.raises(Unreadable, match="more than max_source_frames = 10"):
        shown(file, 15.0, 16, max_source_frames=10)


def test_many_threads_decode_the_same(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 120)
    alone = kind()
    wanted = [source(file, begin / 16, 8) for begin in range(0, 100, 7)]
    expected = [alone.load(one, "pixels") for one in wanted]
    gate = threading.Barrier(4)

    def load(one):
        if one in wanted[:4]:
            gate.wait(timeout=10)
        return alone.load(one, "pixels")

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(load, wanted), expected, strict=True))


def test_frames_beyond_the_end_are_told(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mp4", 20)
    with pytest.raises(Unreadable, match=r"pictures end after 1\.250 seconds"):
        shown(file, 1.0, 16)


def test_a_film_that_was_cut_off_is_used_up_to_there(tmp_path: Path) -> None:
    whole = film(tmp_path / "a.mp4", 160, container_options={"movflags": "faststart"}, codec="mpeg4")
    cut = tmp_path / "b.mp4"
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    probe = VideoKind.probe(cut)
    assert 2 < probe.seconds < 8
    assert shown(cut, 1.0, 16) == list(range(16, 32))


def test_more_pixels_than_allowed_are_not_decoded(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="128x64 have more pixels than max_pixels = 8000"):
        shown(film(tmp_path / "a.mp4"), max_pixels=8000)
