"""Whatever a file is, it is used rightly or named with its reason, and stays as it was."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith import Caption, Source, Unfit, Unreadable
from tunesmith_video import AudioKind, AudioTable, VideoKind, VideoTable

from .films import Facts
from .hostile import CLIPS, EITHER, NAMED, SOUND, USED, film, make_clips, make_sound, recording


def clips() -> VideoKind:
    return VideoKind(VideoTable(path="clips", num_frames=9, min_frames=5), Facts())


def recordings() -> AudioKind:
    return AudioKind(AudioTable(path="sound", interval=1), Facts())


def fate(kind: VideoKind | AudioKind, file: Path, need: str) -> tuple[str, str]:
    """What becomes of a file, with the reason."""
    try:
        piece = kind.pieces(kind.probe(file), file.name)[0]
        made = kind.load(Source("set", file, Caption(""), *kind.part(piece, None)), need)
    except Unreadable as error:
        return NAMED, error.reason if error.path == file else f"of another file: {error}"
    except Unfit as error:
        return NAMED, str(error)
    assert torch.isfinite(made).all()
    assert made.abs().max() <= 1
    return USED, str(tuple(made.shape))


def prints(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file with its mode, time and content."""
    found = {}
    for file in folder.iterdir():
        status = file.lstat()
        content = hashlib.sha256(file.read_bytes()).hexdigest() if stat.S_ISREG(status.st_mode) else ""
        found[file.name] = (status.st_mode, status.st_mtime_ns, content)
    return found


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hostile")
    make_clips(folder / "clips")
    make_sound(folder / "sound")
    before = prints(folder / "clips"), prints(folder / "sound")
    yield folder
    assert (prints(folder / "clips"), prints(folder / "sound")) == before


@pytest.mark.parametrize("name", CLIPS)
def test_a_hostile_clip_is_used_or_named(folder: Path, name: str) -> None:
    began = time.perf_counter()
    found, reason = fate(clips(), folder / "clips" / name, "pixels")
    assert CLIPS[name][0] in (found, EITHER), reason
    assert reason
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("name", SOUND)
def test_a_hostile_recording_is_used_or_named(folder: Path, name: str) -> None:
    began = time.perf_counter()
    found, reason = fate(recordings(), folder / "sound" / name, "audio")
    assert SOUND[name][0] in (found, EITHER), reason
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("zero_bytes.mp4", "the file is empty"),
        ("html.mp4", "not a film or sound that is read here, or its header is damaged (it begins with b'<!DOCTYPE ht')"),
        ("pipe.mp4", "not a file with content but a folder, pipe or device"),
        ("nowhere.mp4", "cannot be read (No such file or directory)"),
        ("sound_alone.mp4", "it has no moving pictures"),
        ("one_frame.mp4", "fewer than 5 frames at 16 fps (16 fps, 0.0625 s: 1 frames at 16 fps; min_frames = 1 would keep it)"),
        ("ten_hours.mkv", "longer than max_seconds = 21600 (36000 s)"),
    ],
)
def test_reasons_say_what_is_wrong(folder: Path, name: str, reason: str) -> None:
    assert fate(clips(), folder / "clips" / name, "pixels") == (NAMED, reason)


def test_a_film_that_was_cut_off_before_its_index_is_told_as_that(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4").read_bytes()
    index = whole.index(b"moov") - 4
    for length in (index // 2, index, index + 40):
        (tmp_path / "cut.mp4").write_bytes(whole[:length])
        assert "probably cut off" in fate(clips(), tmp_path / "cut.mp4", "pixels")[1]
    (tmp_path / "cut.mp4").write_bytes(whole[: index + 4] + b"move" + whole[index + 8 :])
    assert fate(clips(), tmp_path / "cut.mp4", "pixels")[0] == NAMED


def test_a_film_that_others_name_is_not_read_through_them(tmp_path: Path) -> None:
    film(tmp_path / "plain.mp4")
    for content in (b"ffconcat version 1.0\nfile plain.mp4\n", b"#EXTM3U\n#EXTINF:2,\nplain.mp4\n#EXT-X-ENDLIST\n"):
        for ending in VideoKind.suffixes:
            (tmp_path / f"other{ending}").write_bytes(content)
            assert fate(clips(), tmp_path / f"other{ending}", "pixels")[0] == NAMED


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi"])
def test_no_damage_to_a_film_is_more_than_a_reason(tmp_path: Path, ending: str) -> None:
    whole = film(tmp_path / f"whole.{ending}", codec="mpeg4", sound=ending in ("mp4", "mkv")).read_bytes()
    generator = np.random.default_rng(5)
    fates = set()
    for number in range(25):
        content = bytearray(whole[: int(generator.integers(len(whole)))] if number % 2 else whole)
        for place in generator.integers(0, max(1, len(content)), 0 if number % 3 == 0 else 12):
            content[place : place + 1] = generator.bytes(1)
        file = tmp_path / f"{number}.{ending}"
        file.write_bytes(content)
        for need in ("pixels", "audio"):
            fates.add(fate(clips(), file, need)[0])
    assert fates == {USED, NAMED}


@pytest.mark.parametrize(
    ("ending", "codec"), [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("flac", "flac"), ("m4a", "aac"), ("ogg", "libopus")]
)
def test_no_damage_to_a_recording_is_more_than_a_reason(tmp_path: Path, ending: str, codec: str) -> None:
    whole = bytearray(recording(tmp_path / f"whole.{ending}", codec=codec).read_bytes())
    generator = np.random.default_rng(6)
    fates = set()
    for number in range(25):
        content = bytearray(whole[: int(generator.integers(len(whole)))] if number % 2 else whole)
        for place in generator.integers(0, max(1, len(content)), 12):
            content[place : place + 1] = generator.bytes(1)
        file = tmp_path / f"{number}.{ending}"
        file.write_bytes(content)
        fates.add(fate(recordings(), file, "audio")[0])
    assert NAMED in fates
