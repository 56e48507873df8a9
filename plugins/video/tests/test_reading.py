"""Files that are given to a sample, and the frames before a window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith import Clip, Media, MediaReader, NoSettings, Source, Unreadable, Wanted
from tunesmith_video import Video, VideoKind, VideoTable, reading
from tunesmith_video.reading import probe_audio, probe_control, read_audio, read_control
from tunesmith_video.writing import write_clip

from .films import SIZE, Facts, film, lag_of, numbers, recording, source, swept

FILES = {"wav": "pcm_s16le", "flac": "flac", "mp3": "libmp3lame", "m4a": "aac", "ogg": "libopus"}


def wanted(size: tuple[int, int] = SIZE, fps: float = 16, rate: int = 48_000, channels: int = 1) -> Wanted:
    return Wanted(*size, fps, rate, channels)


def test_the_plugin_reads_sound_and_films_and_writes_clips() -> None:
    plugin = Video("video", NoSettings())
    readers = {"audio": MediaReader(read_audio, probe_audio), "control": MediaReader(read_control, probe_control)}
    assert plugin.media_readers() == readers
    assert plugin.media_writers() == {"clip": write_clip}


@pytest.mark.parametrize("ending", FILES)
def test_sound_of_many_formats_comes_whole(tmp_path: Path, ending: str) -> None:
    if FILES[ending] not in reading_codecs():
        pytest.skip(f"this build cannot write {FILES[ending]}")
    file = recording(tmp_path / f"a.{ending}", swept(1.5), codec=FILES[ending])
    heard = read_audio(file, wanted())
    assert heard.shape[0] == 1
    assert heard.dtype == torch.float32
    assert abs(heard.shape[1] / 48_000 - 1.5) < 0.05
    assert lag_of(heard[0, 4_800:67_200].numpy(), 0.1) == 0


def reading_codecs() -> set[str]:
    import av

    found = set()
    for name in FILES.values():
        try:
            av.Codec(name, "w")
        except ValueError:
            continue
        found.add(name)
    return found


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 2)])
def test_sound_has_the_rate_and_channels_that_are_wanted(tmp_path: Path, rate: int, channels: int) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.float32)
    heard = read_audio(recording(tmp_path / "a.wav", tone), wanted(rate=rate, channels=channels))
    assert heard.shape == (channels, rate)
    loud = 0.5 if channels == 1 else 0.5**1.5  # two speakers are together as loud as the one
    expected = loud * torch.sin(2 * torch.pi * 440 * torch.arange(rate, dtype=torch.float64) / rate)
    assert (heard.double() - expected)[:, rate // 20 : -rate // 20].abs().max() < 0.01


def test_the_sound_of_a_film_begins_with_its_first_frame(tmp_path: Path) -> None:
    file = film(tmp_path / "a.mkv", 32, sound=swept(1.5), sound_codec="pcm_s16le", sound_start=0.25)
    heard = read_audio(file, wanted())[0].numpy()
    assert abs(len(heard) / 48_000 - 1.75) < 0.03
    assert np.abs(heard[:11_900]).max() < 1e-3
    assert lag_of(heard[12_000 + 4_800 : 12_000 + 60_000], 0.1) == 0


def test_the_sound_of_a_written_clip_is_what_was_written(tmp_path: Path) -> None:
    sound = torch.from_numpy(swept(2.0))[None]
    [file, _] = write_clip(Media("clip", "a", Clip(torch.zeros(32, 32, 32, 3, dtype=torch.uint8), 16, sound, 48_000)), tmp_path)
    heard = read_audio(file, wanted())
    assert abs(heard.shape[1] - 96_000) <= 1024
    assert lag_of(heard[0, 4_800:90_000].numpy(), 0.1) == 0


def test_files_without_sound_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "page.mp3").write_text("<html> this is no sound at all </html>" * 20)
    (tmp_path / "empty.wav").write_bytes(b"")
    silent = film(tmp_path / "mute.mp4", 16)
    for file, told in (
        (silent, "mute.mp4: it has no sound"),
        (tmp_path / "page.mp3", "page.mp3: not a film or sound that is read here|page.mp3: "),
        (tmp_path / "empty.wav", "empty.wav: the file is empty"),
        (tmp_path / "nowhere.wav", "nowhere.wav: cannot be read"),
        (tmp_path, "not a file with content"),
    ):
        with pytest.raises(Unreadable, match=told):
            read_audio(file, wanted())
        with pytest.raises(Unreadable, match=told):
            probe_audio(file)


@pytest.mark.parametrize("source_fps", [8, 16, 24, 25, 48])
@pytest.mark.parametrize("fps", [16, 7.5])
def test_a_film_that_guides_is_retimed_and_comes_whole(tmp_path: Path, source_fps: int, fps: float) -> None:
    pixels = read_control(film(tmp_path / "a.mp4", 32, source_fps), wanted(fps=fps))
    assert pixels.shape[2:] == (SIZE[1], SIZE[0])
    assert float(pixels.abs().max()) <= 1
    times = [k / fps for k in range(1000) if k / fps <= 31.5 / source_fps + 1e-6]
    assert numbers(pixels) == [min(31, int(time * source_fps + 0.5 + 1e-6)) for time in times]


@pytest.mark.parametrize(
    ("size", "columns", "rows"),
    [((32, 32), (32, 96), (0, 64)), ((64, 32), (0, 128), (0, 64)), ((128, 32), (0, 128), (16, 48)), ((128, 128), (32, 96), (0, 64))],
)
def test_a_film_that_guides_just_covers_the_size_and_is_cut_from_the_middle(
    tmp_path: Path, size: tuple[int, int], columns: tuple[int, int], rows: tuple[int, int]
) -> None:
    """Grey tells where a pixel of the 128x64 source was: red rises with the column, green with the row."""
    across, down = torch.arange(128).expand(64, 128), torch.arange(64)[:, None].expand(64, 128)
    frame = torch.stack([2 * across, 2 * across, 4 * down], dim=-1).to(torch.uint8)
    [file, _] = write_clip(Media("clip", "a", Clip(frame.expand(3, -1, -1, -1), 16)), tmp_path)
    pixels = ((read_control(file, wanted(size)) + 1) * 127.5)[:, 1]
    assert pixels.shape == (3, size[1], size[0])
    middle = pixels[:, size[1] // 2, size[0] // 2]
    width, height = columns[1] - columns[0], rows[1] - rows[0]
    left = columns[0] + (0.5 * width / size[0]) - 0.5
    assert float(pixels[0, size[1] // 2, 0]) == pytest.approx(2 * left, abs=8)
    assert float(middle[1]) == pytest.approx(columns[0] + columns[1], abs=8)
    assert float(pixels[2, 1, size[0] // 2]) == pytest.approx(4 * (rows[0] + 1.5 * height / size[1] - 0.5), abs=12)


def test_films_that_cannot_guide_are_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = recording(tmp_path / "a.wav", swept(0.5))
    for look in (probe_control, lambda file: read_control(file, wanted())):
        with pytest.raises(Unreadable, match=r"a\.wav: it has no moving pictures"):
            look(heard)
    file = film(tmp_path / "long.mp4", 32)
    monkeypatch.setattr(reading, "MOST_VALUES", 31 * 3 * SIZE[0] * SIZE[1])
    with pytest.raises(Unreadable, match=r"long\.mp4: it has 32 frames at 16 fps; 31 of 128x64 are read at most: shorten it"):
        read_control(file, wanted())
    assert read_control(film(tmp_path / "short.mp4", 31), wanted()).shape[1] == 31


class WithHistory(Facts):
    """A family that is given the five frames before a window."""

    history = 5


def before(file: Path, frames: int = 9, start: float = 0.0, fps: float = 16.0) -> tuple[torch.Tensor, Source]:
    made = VideoKind(VideoTable(path="clips", num_frames=frames, fps=fps), WithHistory())
    one = source(file, start, frames, fps)
    return made.load(one, "history"), one


@pytest.mark.parametrize(
    ("source_fps", "start", "shown"),
    [
        (16, 1.0, [11, 12, 13, 14, 15]),
        (16, 5 / 16, [0, 1, 2, 3, 4]),
        (48, 1.0, [33, 36, 39, 42, 45]),
        (24, 1.0, [17, 18, 20, 21, 23]),
        (8, 1.0, [6, 6, 7, 7, 8]),
    ],
)
def test_history_is_what_is_shown_before_the_window(tmp_path: Path, source_fps: int, start: float, shown: list[int]) -> None:
    history, _ = before(film(tmp_path / "a.mp4", 96, source_fps), start=start)
    assert history.shape == (3, 5, SIZE[1], SIZE[0])
    assert numbers(history) == shown


@pytest.mark.parametrize("there", [0, 1, 2, 4])
def test_before_the_clips_beginning_history_is_zero(tmp_path: Path, there: int) -> None:
    history, _ = before(film(tmp_path / "a.mp4", 48), start=there / 16)
    assert bool((history[:, : 5 - there] == 0).all())
    assert numbers(history[:, 5 - there :]) == list(range(there))
    assert bool((history[:, 5 - there :].abs().amax(dim=(0, 2, 3)) > 0.5).all())


@pytest.mark.parametrize("source_fps", [16, 23.976, 30])
def test_history_and_window_are_one_longer_window(tmp_path: Path, source_fps: float) -> None:
    file = film(tmp_path / "a.mp4", 60, source_fps)
    history, one = before(file, start=0.75)
    made = VideoKind(VideoTable(path="clips", num_frames=9), WithHistory())
    whole = made.load(source(file, 0.75 - 5 / 16, 14), "pixels")
    assert torch.equal(torch.cat([history, made.load(one, "pixels")], dim=1), whole)


def test_only_families_with_a_history_have_one() -> None:
    table = VideoTable(path="clips", num_frames=9)
    assert VideoKind(table, WithHistory()).recipe("history") == "video-2 5"
    with pytest.raises(KeyError, match="history"):
        VideoKind(table, Facts()).recipe("history")
