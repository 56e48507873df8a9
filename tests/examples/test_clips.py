"""examples/make_clips.py: the films are real ones, and their sound tells what their pictures show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.examples.films import Film, read_film, read_sound
from tests.house import ROOT


def make_clips(folder: Path) -> str:
    done = subprocess.run([sys.executable, ROOT / "examples/make_clips.py", folder], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "clips"
    make_clips(folder)
    return folder


@pytest.fixture(scope="module")
def films(clips: Path) -> dict[str, Film]:
    return {file.stem: read_film(file) for file in sorted(clips.glob("films/*.mp4"))}


def test_films_are_h264_with_aac_or_what_is_there(films: dict[str, Film]) -> None:
    assert {film.codecs for film in films.values()} <= {("h264", "aac"), ("mpeg4", "aac")}


def test_films_differ_in_size_shape_length_frame_rate_and_sample_rate(films: dict[str, Film]) -> None:
    assert len({film.frames.shape[1:3] for film in films.values()}) >= 2
    assert len({film.fps for film in films.values()}) == len(films)
    assert len({film.sample_rate for film in films.values()}) >= 3
    assert max(film.seconds for film in films.values()) > 2.5 * sorted(film.seconds for film in films.values())[-2]


def test_pictures_and_sound_begin_together_and_last_as_long(films: dict[str, Film]) -> None:
    for film in films.values():
        assert film.begins == film.sound_begins == 0
        assert len(film.sound) / film.sample_rate == pytest.approx(film.seconds, abs=1024 / film.sample_rate + float(1 / film.fps))


def test_a_mouth_opens_as_far_as_the_voice_is_loud_and_when_it_is(films: dict[str, Film]) -> None:
    for film in films.values():
        height = film.frames.shape[1]
        lower = film.frames[:, height // 2 : height * 9 // 10].astype(int)
        middle = lower[:, :, lower.shape[2] // 3 : lower.shape[2] * 2 // 3]
        mouth = (middle.sum(axis=3) < 150).sum(axis=(1, 2))  # nothing else is so dark there
        alike = {shift: np.corrcoef(np.sqrt(mouth), np.roll(film.loudness(), shift))[0, 1] for shift in range(-5, 6)}
        assert max(alike, key=alike.__getitem__) == 0
        assert alike[0] > 0.9


def test_every_film_and_picture_has_a_caption_of_its_own(clips: Path) -> None:
    samples = [*clips.glob("films/*.mp4"), *clips.glob("pictures/*.png")]
    captions = [sample.with_suffix(".txt").read_text() for sample in samples]
    assert len(set(captions)) == len(samples) == 6


def test_the_same_files_are_made_each_time(clips: Path, tmp_path: Path) -> None:
    make_clips(tmp_path)
    made = {file.relative_to(clips): file.read_bytes() for file in clips.rglob("*") if file.is_file()}
    assert {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == made


def test_what_is_there_already_is_kept(clips: Path, tmp_path: Path) -> None:
    for name in ("films/1-square.mp4", "given/voice.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    said = make_clips(tmp_path)
    assert (tmp_path / "films/1-square.mp4").read_text() == (tmp_path / "given/voice.wav").read_text() == "mine"
    assert said.count("is there already and was kept") == 2
    assert sorted(tmp_path.rglob("*")) == sorted(tmp_path / file.relative_to(clips) for file in clips.rglob("*"))


def test_the_voice_for_validation_can_be_heard(clips: Path) -> None:
    sound, rate, _ = read_sound(clips / "given/voice.wav")
    assert len(sound) == 2 * rate
    assert 0.3 < np.abs(sound).max() < 1
