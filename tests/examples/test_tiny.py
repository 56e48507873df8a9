"""examples/*/tiny.toml: what their README says is done as it says it, with a kill in between, and ends with films to play."""

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import shutil
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import SanaVideoTransformer3DModel
from numpy.typing import NDArray
from PIL import Image

from tests.docs.blocks import blocks
from tests.examples.films import read_film, read_sound
from tests.house import ROOT
from tests.processes import start
from tunesmith.cli.app import main as tune
from tunesmith_wan_s2v import WanSpeechToVideoPipeline

FAMILIES = sorted(config.parent.name for config in (ROOT / "examples").glob("*/tiny.toml"))
PREVIEWS = {
    "sana_video": ["yellow", "guest", "films-1-square", "films-i2v-1-square", "pictures-still"],
    "wan_s2v": ["guest", "films-1-square", "pictures-still"],
}
"""What is made when the run is validated."""

pytestmark = pytest.mark.slow


def commands(family: str) -> list[list[str]]:
    """What the README of an example tells to type."""
    text = "".join(block.text for block in blocks(ROOT / f"examples/{family}/README.md") if block.language == "sh")
    return [shlex.split(line, comments=True) for line in text.splitlines()]


def quotes(family: str) -> list[str]:
    """The lines that the README says are said."""
    return [line for block in blocks(ROOT / f"examples/{family}/README.md") if block.language == "text" for line in block.text.splitlines()]


def carry_out(command: list[str], folder: Path) -> str:
    """Do what a command does, in this process; what was said."""
    program, *arguments = command
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", command if program == "tune" else arguments)
        code: object = None
        try:
            tune() if program == "tune" else runpy.run_path(arguments[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
    assert not code, said.getvalue()
    return said.getvalue()


def kill(command: list[str], folder: Path, events: Path) -> str:
    """Begin in a process of its own, and kill it when a checkpoint has been reported; what was said."""
    _, *arguments = command
    done = start(folder, *arguments).signal(signal.SIGKILL, lambda: reported(events, "checkpoint"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    return done.stdout + done.stderr


def reported(events: Path, kind: str) -> bool:
    """Whether an event of a kind has been written."""
    return events.exists() and f'"event": "{kind}"' in events.read_text()


@dataclass(frozen=True)
class Example:
    """An example that was carried out in `folder`, what was said by each command, and its finished run."""

    family: str
    folder: Path
    said: list[str]

    @property
    def run(self) -> Path:
        return self.folder / f"runs/{self.family}-tiny"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "events.jsonl").read_text().splitlines()]

    @property
    def last(self) -> int:
        """The last step."""
        return int(max(event["step"] for event in self.events))

    def validation(self, step: int) -> Path:
        return self.run / f"validation/step-{step:06d}"

    def losses(self) -> dict[int, float]:
        return {event["step"]: event["loss"] for event in self.events if event["event"] == "step"}


@pytest.fixture(scope="module", params=FAMILIES)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Each example, carried out once: killed in its first run, and gone on with by its last command."""
    family: str = request.param
    folder = tmp_path_factory.mktemp(family)
    shutil.copytree(ROOT / "examples" / family, folder / "examples" / family)
    for script in (ROOT / "examples").glob("*.py"):
        shutil.copy(script, folder / "examples")
    *preparations, run, longer = commands(family)
    said = [carry_out(command, folder) for command in preparations]
    said.append(kill(run, folder, folder / f"runs/{family}-tiny/events.jsonl"))
    said.append(carry_out(longer, folder))
    return Example(family, folder, said)


def test_both_examples_are_there() -> None:
    assert FAMILIES == ["sana_video", "wan_s2v"]


def test_the_readme_quotes_what_is_said(example: Example) -> None:
    quoted, said = quotes(example.family), "".join(example.said)
    assert quoted
    assert [quote for quote in quoted if not re.search(".*".join(map(re.escape, quote.split("..."))), said)] == [], said


def test_a_killed_run_goes_on_from_its_checkpoint_and_nothing_is_encoded_again(example: Example) -> None:
    first, second = (number for number, event in enumerate(example.events) if event["event"] == "start")
    saved = [event["path"] for event in example.events[first:second] if event["event"] == "checkpoint"]
    assert example.events[first]["resumed_from"] is None
    assert example.events[second]["resumed_from"] == saved[-1]
    assert sorted(example.losses()) == list(range(5, 151, 5))
    assert "encoding samples" in example.said[-2]
    assert "encoding captions" in example.said[-2]
    assert "encoding" not in example.said[-1]


def test_the_loss_falls(example: Example) -> None:
    losses = [loss for _, loss in sorted(example.losses().items())]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:4])


@pytest.mark.parametrize("example", ["sana_video"], indirect=True)
def test_a_full_fine_tune_loads_in_diffusers(example: Example) -> None:
    before, after = (
        SanaVideoTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
        for folder in (example.folder / "examples/work/sana_video", example.run / "final")
    )
    assert before.keys() == after.keys()
    assert [name for name in before if name.endswith("to_q.weight") and before[name].equal(after[name])] == []


@pytest.mark.parametrize("example", ["wan_s2v"], indirect=True)
def test_a_lora_loads_into_the_pipeline(example: Example) -> None:
    pipeline = WanSpeechToVideoPipeline.from_pretrained(example.folder / "examples/work/wan_s2v")
    pipeline.load_lora_weights(example.run / "final")
    adapted = [name for name, weight in pipeline.transformer.named_parameters() if "lora_B" in name and weight.count_nonzero()]
    assert len(adapted) == 4 * (2 * 4 + 2)  # q, k, v and out of two attentions in each of four blocks, and of two injections


def test_nothing_went_wrong_on_the_way(example: Example) -> None:
    assert [event for event in example.events if event["event"] in ("warning", "error")] == []


def test_every_preview_is_there_as_a_film_with_a_poster(example: Example) -> None:
    for step in (0, example.last):
        made = {file.name for file in example.validation(step).iterdir()}
        assert made == {f"{name}-64x64-seed0{suffix}" for name in PREVIEWS[example.family] for suffix in (".mp4", ".png")}


def test_films_play_at_their_rate_and_hold_their_recipe(example: Example) -> None:
    for file in example.validation(example.last).glob("*.mp4"):
        film = read_film(file)
        assert film.codecs[0] in ("h264", "mpeg4")
        assert film.fps == 16
        assert film.frames.shape[1:] == (64, 64, 3)
        assert film.begins == 0
        assert json.loads(film.comment)["step"] == example.last
        poster = np.asarray(Image.open(file.with_suffix(".png")))
        assert np.abs(coarse(film.frames[0]) - coarse(poster)).max() < 12
        assert np.abs(coarse(film.frames[-1]) - coarse(poster)).max() > 12


def coarse(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean colours of 8x8 pixels of a picture [H, W, 3], which no codec changes much."""
    height, width, _ = pixels.shape
    means: NDArray[np.float64] = pixels.reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3))
    return means


def test_training_changes_what_is_made_of_the_same_noise(example: Example) -> None:
    first, last = (read_film(example.validation(step) / "guest-64x64-seed0.mp4") for step in (0, example.last))
    assert np.abs(first.frames[1:].astype(int) - last.frames[1:]).mean() > 1


@pytest.mark.parametrize("example", ["wan_s2v"], indirect=True)
def test_the_guest_speaks_with_the_voice_that_was_given_in_step(example: Example) -> None:
    film = read_film(example.validation(example.last) / "guest-64x64-seed0.mp4")
    voice, rate, _ = read_sound(example.folder / "examples/work/clips/given/voice.wav")
    assert len(film.frames) == 2 * 16 - 3
    assert film.sound_begins == 0
    assert len(film.sound) / film.sample_rate == pytest.approx(film.seconds, abs=0.07)
    assert rate == 3 * film.sample_rate
    heard, given = film.sound[: 16_000 + 8_000], voice[:: rate // film.sample_rate][round(3 / 16 * film.sample_rate) :][:24_000]
    alike = [float(np.corrcoef(np.roll(heard, shift), given)[0, 1]) for shift in range(-40, 41)]
    assert max(alike) > 0.9
    assert abs(int(np.argmax(alike)) - 40) <= 2  # of 16,000 samples a second


@pytest.mark.parametrize("example", ["sana_video"], indirect=True)
def test_the_guest_has_as_many_frames_as_were_asked_for(example: Example) -> None:
    film = read_film(example.validation(example.last) / "guest-64x64-seed0.mp4")
    assert film.frames.shape[0] == 17
    assert film.sample_rate == 0
    assert film.fps == Fraction(16)
