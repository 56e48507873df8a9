"""`tune data split-audio`: sound out of videos, and the videos as they were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from tunesmith import InputError
from tunesmith_video import AudioKind, VideoKind, VideoTable
from tunesmith_video.commands import app
from tunesmith_video.split import PARTIAL

from .films import Facts, film, numbers, source, sweep, swept


def split(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["split-audio", *map(str, arguments)])


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def samples(file: Path) -> np.ndarray:
    with av.open(str(file)) as read:
        return np.concatenate([frame.to_ndarray()[0] for frame in read.decode(audio=0)]) / 32_768


@pytest.fixture(name="films")
def _films(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    film(folder / "a.mov", 64, sound=swept(4), sound_codec="pcm_f32le")
    film(folder / "deeper" / "b.mp4", 64, sound=swept(4))
    film(folder / "late.mkv", 64, sound=swept(2), sound_codec="pcm_f32le", sound_start=1.0)
    film(folder / "mute.mp4", 16)
    (folder / "notes.txt").write_text("no film")
    return folder


def test_every_videos_sound_is_written_to_the_same_place(films: Path, tmp_path: Path) -> None:
    before = contents(films)
    result = split(films, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(contents(tmp_path / "out")) == ["a.wav", "deeper/b.wav", "late.wav"]
    assert contents(films) == before
    assert "mute.mp4: it has no sound" in result.output
    assert f"a.mov: wrote {tmp_path / 'out' / 'a.wav'}" in result.output
    found = samples(tmp_path / "out" / "a.wav")
    assert len(found) == 4 * 48_000
    assert np.abs(found - sweep(np.arange(len(found)) / 48_000)).max() < 1e-4


def test_sound_begins_with_the_first_frame(films: Path, tmp_path: Path) -> None:
    split(films, tmp_path / "out")
    found = samples(tmp_path / "out" / "late.wav")
    assert not found[:47_900].any()
    assert np.abs(found[48_100:] - sweep(np.arange(100, len(found) - 48_000) / 48_000)).max() < 1e-3
    kind = VideoKind(VideoTable(path="clips", sample_rate=48_000), Facts())
    own = kind.load(source(films / "deeper" / "b.mp4", 1.0), "audio")
    beside = kind.load(source(films / "deeper" / "b.mp4", 1.0, beside=tmp_path / "out" / "deeper" / "b.wav"), "audio")
    assert float((own - beside).abs().max()) < 1e-4


def test_videos_without_their_sound_are_copies_of_their_frames(films: Path, tmp_path: Path) -> None:
    film(films / "turned.mp4", 16, rotation=90)
    assert split(films, tmp_path / "out", "--strip").exit_code == 0
    for name in ("a.mov", "deeper/b.mp4", "late.mkv"):
        probe = VideoKind.probe(tmp_path / "out" / name)
        assert (probe.size, probe.frames, probe.sample_rate) == ((128, 64), 64, 0)
        made = VideoKind(VideoTable(path="clips"), Facts()).load(source(tmp_path / "out" / name, 1.0), "pixels")
        assert numbers(made) == list(range(16, 32))
    assert VideoKind.probe(tmp_path / "out" / "turned.mp4").size == (64, 128)


def test_a_film_of_uneven_times_keeps_its_rate(tmp_path: Path) -> None:
    times = [number / 30 if number < 30 else 1 + (number - 30) / 10 for number in range(60)]
    film(tmp_path / "in" / "uneven.mkv", 60, 24, times=times)
    assert split(tmp_path / "in", tmp_path / "out", "--strip").exit_code == 0
    assert VideoKind.probe(tmp_path / "out" / "uneven.mkv").fps == pytest.approx(24)


def test_a_clock_is_not_taken_for_a_rate(tmp_path: Path) -> None:
    times = [number / 30 if number < 30 else 1 + (number - 30) / 10 for number in range(60)]
    with av.open(str(film(tmp_path / "told.mkv", 60, 24, times=times))) as told, av.open(str(tmp_path / "untold.mkv"), "w") as untold:
        copied = untold.add_stream_from_template(told.streams.video[0])
        for packet in told.demux(video=0):
            if packet.size:
                packet.stream = copied
                untold.mux(packet)
    probe = VideoKind.probe(tmp_path / "untold.mkv")
    assert probe.fps < 100
    assert probe.seconds == pytest.approx(4, abs=0.1)


def test_a_video_that_fails_twice_is_counted_once(films: Path, tmp_path: Path) -> None:
    (films / "broken.mp4").write_bytes(b"<html>")
    assert str(split(films, tmp_path / "out", "--strip").exception) == "1 video could not be split; the others were"


def test_a_damaged_videos_reason_is_told_once(films: Path, tmp_path: Path) -> None:
    (films / "broken.mp4").write_bytes(b"<html>")
    assert split(films, tmp_path / "out", "--strip").output.count("broken.mp4") == 1


def test_a_copy_has_the_container_of_its_video_whatever_the_ending(tmp_path: Path) -> None:
    film(tmp_path / "in" / "a.mp4", 32, sound=swept(2)).rename(tmp_path / "in" / "a.avi")
    result = split(tmp_path / "in", tmp_path / "out", "--strip")
    assert result.exit_code == 0, result.output
    with av.open(str(tmp_path / "out" / "a.avi")) as copy:
        assert "mp4" in copy.format.name
    assert VideoKind.probe(tmp_path / "out" / "a.avi").frames == 32


def test_a_codec_that_a_container_cannot_hold_is_not_called_damage(tmp_path: Path) -> None:
    film(tmp_path / "in" / "a.mkv", 16, codec="ffv1").rename(tmp_path / "in" / "a.webm")
    result = split(tmp_path / "in", tmp_path / "out", "--strip")
    assert isinstance(result.exception, InputError)
    assert f"a.webm: cannot write {tmp_path / 'out' / 'a.webm'} as webm (" in result.output
    assert not contents(tmp_path / "out")


def test_a_file_is_no_folder_for_the_sound(films: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "OUT, " in str(split(films, tmp_path / "out").exception)


def test_what_is_there_is_kept(films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.wav").write_bytes(b"mine")
    (out / f"{PARTIAL}late.wav").write_bytes(b"left by a run that was killed")
    result = split(films, out)
    assert result.exit_code == 0
    assert (out / "a.wav").read_bytes() == b"mine"
    assert "a.wav is there already and is kept" in result.output
    assert not (out / f"{PARTIAL}late.wav").exists()
    made = contents(out)
    assert split(films, out).exit_code == 0
    assert contents(out) == made


def test_a_damaged_video_is_named_and_the_others_are_split(films: Path, tmp_path: Path) -> None:
    (films / "broken.mp4").write_bytes(b"<html>")
    result = split(films, tmp_path / "out")
    assert isinstance(result.exception, InputError)
    assert result.exception.exit_code == 2
    assert str(result.exception) == "1 video could not be split; the others were"
    assert "broken.mp4: not a film or sound that is read here" in result.output
    assert sorted(contents(tmp_path / "out")) == ["a.wav", "deeper/b.wav", "late.wav"]


def test_a_link_out_of_the_folder_is_not_followed(films: Path, tmp_path: Path) -> None:
    elsewhere = film(tmp_path / "elsewhere" / "secret.mp4", 16, sound=swept(1))
    (films / "link.mp4").symlink_to(elsewhere)
    assert "link.mp4: left out: a link" in split(films, tmp_path / "out").output
    assert not (tmp_path / "out" / "link.wav").exists()


def test_two_videos_of_one_name_do_not_share_a_file(films: Path, tmp_path: Path) -> None:
    film(films / "a.mp4", 16, sound=swept(1))
    result = split(films, tmp_path / "out")
    assert "a.mp4: left out: a.mov has the same name but for its ending" in result.output
    assert isinstance(result.exception, InputError)


@pytest.mark.parametrize("where", ["in", "in/out", "out/../in"])
def test_the_sources_folder_is_refused_as_target(films: Path, tmp_path: Path, where: str) -> None:
    before = contents(films)
    (tmp_path / "out").mkdir()
    result = split(films, tmp_path / where)
    assert isinstance(result.exception, InputError)
    assert "is IN or lies in it" in str(result.exception)
    assert contents(films) == before


@pytest.mark.parametrize(("name", "told"), [("nowhere", "neither a folder nor a file"), ("empty", "has no video")])
def test_nothing_to_split_is_told(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    assert told in str(split(tmp_path / name, tmp_path / "out").exception)


def test_one_video_is_split_alone(films: Path, tmp_path: Path) -> None:
    assert split(films / "a.mov", tmp_path / "out").exit_code == 0
    assert sorted(contents(tmp_path / "out")) == ["a.wav"]
    assert AudioKind.probe(tmp_path / "out" / "a.wav").seconds == pytest.approx(4, abs=0.01)
