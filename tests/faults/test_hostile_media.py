"""A whole run on hostile films and recordings: each is trained on or named with its reason, and nothing on disk changes."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from plugins.video.tests.hostile import CLIPS, EITHER, NAMED, SOUND, USED, film, make_clips
from tests.runs.conftest import Result
from tests.runs.watching import Watched, watched
from tests.toyvideo import ToyVideoFamily, toy_checkpoint
from tunesmith.config import load_config
from tunesmith.data import funnel
from tunesmith.data.dataset import Dataset
from tunesmith.progress import Progress
from tunesmith.session import run

__all__ = ["toy_checkpoint", "watched"]

RATE, FRAMES = 16, 9
FILMS = {name: fate for name, (fate, _) in CLIPS.items() if name != "folder.mp4"} | {"folder.mp4/inside.mp4": USED}
"""What must become of each film; a folder is no film, whatever its name, and what lies in it is."""
VOICES = {f"{number:02} {name}": (fate, make) for number, (name, (fate, make)) in enumerate(SOUND.items())}
"""The recordings, no two of one name without ending."""
SPOKEN = {f"{os.path.splitext(name)[0]}.mp4": name for name in VOICES}
"""The recording that belongs to each talk."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders: hostile films, hostile recordings, and sound films that these belong to."""
    place = tmp_path_factory.mktemp("media")
    make_clips(place / "films")
    film(place / "films" / "folder.mp4" / "inside.mp4")
    for folder in ("talks", "voices"):
        (place / folder).mkdir()
    for talk, voice in SPOKEN.items():
        film(place / "talks" / talk, sound=True)
        VOICES[voice][1](place / "voices" / voice)
    return place


@pytest.fixture
def start(tmp_path: Path, toy_checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Train one epoch with sound, every sample of it a step; the funnel names all files and not some of each reason."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(funnel, "EXAMPLES", 1000)
    monkeypatch.setattr(funnel, "LINES", 1000)
    checkpoint = ToyVideoFamily.tiny(tmp_path / "hearing", sound=True)
    clips = f'kind = "video"\ncaptions = "filename"\nresolution = 32\nfps = {RATE}\nnum_frames = {FRAMES}\nmin_frames = 5\n'

    def begin(cache: str) -> Result:
        file = tmp_path / "hostile.toml"
        file.write_text(f"""
[run]
epochs = 1
batch_size = 1
precision = "no"
device = "cpu"
cache = {cache}

[model]
family = "toyvideo"
path = {str(checkpoint)!r}
sound = true

[[datasets]]
name = "films"
path = {str(place / "films")!r}
allow_silence = true
{clips}
[[datasets]]
name = "talks"
path = {str(place / "talks")!r}
{clips}
[[datasets]]
kind = "audio"
name = "voices"
of = "talks"
path = {str(place / "voices")!r}
""")
        with Progress("quiet") as progress:
            return Result(run(load_config(file), "never", progress))

    return begin


def fingerprint(folder: Path) -> dict[str, object]:
    """Everything below a folder: kind, rights, times, content or target."""
    found: dict[str, object] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        regular = stat.S_ISREG(status.st_mode)
        what = hashlib.sha256(path.read_bytes()).hexdigest() if regular else os.readlink(path) if path.is_symlink() else None
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, what)
    return found


def reasons(dataset: Dataset) -> dict[str, str]:
    """Why files of a dataset are left out, by name."""
    told: dict[str, str] = {}
    for lost in dataset.funnel.losses:
        assert len(lost.examples) == lost.count
        for example in lost.examples:
            [name] = [name for name in (*FILMS, *SPOKEN) if example == name or example.startswith((f"{name} (", f"{name} with"))]
            assert name not in told
            told[name] = lost.reason
    return told


def unreadable(result: Result) -> dict[str, str]:
    """Why files could not be decoded in the middle of a run, by what the event calls them."""
    return {event["message"]: event["reason"] for event in result.events if event["event"] == "warning"}


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_whole_run_trains_on_the_rest_and_changes_nothing(start, place: Path, watched: list[Watched], cache: str):
    before = fingerprint(place)
    result: Result = start(cache)
    assert fingerprint(place) == before
    films, talks = (watched[0].run.datasets[name] for name in ("films", "talks"))
    used = {str(one.step.batch.sources[0].file) for one in watched}
    warned = unreadable(result)
    assert (cache == "false") == bool(warned)
    for one in watched:
        assert math.isfinite(one.total)
        frames = one.field("latents").shape[2]
        assert frames in (2, 3)  # of clips of 5 to 8 and of 9 frames
        assert one.field("sound").shape == (1, frames, 1)

    def fate(dataset: Dataset, name: str) -> str:
        path = os.path.join(dataset.table.path or "", name)
        named = name in reasons(dataset) or f"{dataset.name}:{path} cannot be read" in warned
        assert named != (path in used), name
        return NAMED if named else USED

    became = {name: fate(films, name) for name in FILMS}
    assert {name: became[name] for name, wanted in FILMS.items() if wanted != EITHER} == {
        name: wanted for name, wanted in FILMS.items() if wanted != EITHER
    }
    assert {voice: fate(talks, talk) for talk, voice in SPOKEN.items()} == {voice: wanted for voice, (wanted, _) in VOICES.items()}
    assert (films.funnel.total, talks.funnel.total) == (len(FILMS), len(SPOKEN))


def test_recordings_that_cannot_be_used_are_named_themselves(start, watched: list[Watched]):
    result: Result = start("true")
    [lines] = [event["funnel"] for event in result.events if event["event"] == "data" and event["dataset"] == "talks"]
    told = "\n".join(lines)
    for talk, voice in SPOKEN.items():
        if VOICES[voice][0] == NAMED:
            assert voice in told or talk in told
    for name in ("html.mp3", "pipe.wav", "loop.wav", "zero_bytes.ogg", "absurd_rate.wav"):
        assert name in told


def test_there_are_more_than_sixty_hostile_files():
    assert len(FILMS) + len(VOICES) >= 60
    assert {fate for fate, _ in (*CLIPS.values(), *VOICES.values())} == {USED, NAMED, EITHER}
