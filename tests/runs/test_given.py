"""What is given beside a caption: refused before anything is loaded where it cannot be used, and brought to the encoder where it can."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.video.tests.films import film, numbers, recording, swept
from tests.toyvideo import ToyVideo, toy_checkpoint

from .previewing import TAKES, TWO, Start, beside, clips, grey, made, refused, start
from .watching import Watched, watched

__all__ = ["clips", "refused", "start", "toy_checkpoint", "watched"]


def test_a_family_of_clips_needs_a_plugin_that_writes_them(refused: Callable[..., str]) -> None:
    told = refused("clips = true", TWO)
    assert "toyvideo makes media of kind 'clip', which no active plugin writes; switch one on that does, by its table" in told
    assert "makes media of kind 'clip'" in refused("clips = true", "[validation]\ndataset_samples = 1\n")


def test_without_anything_to_make_no_writer_is_needed(start: Start) -> None:
    assert made(start("clips = true", "")) == []


def test_what_a_family_must_be_given_is_asked_for(refused: Callable[..., str], tmp_path: Path) -> None:
    model = "takes = { reference = true, audio = true, control = false }"
    told = refused(model, TWO + "[plugins.video]\n")
    assert "toyvideo makes a sample of a picture and sound beside the prompt: write [[validation.samples]] instead of prompts" in told
    grey(tmp_path / "a.png", 1)
    told = refused(model, '[plugins.video]\n[[validation.samples]]\nname = "s"\nprompt = "p"\nreference = "a.png"\n')
    assert "toyvideo makes a sample of sound beside the prompt: add audio = FILE" in told


def test_what_a_family_does_not_take_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 1)
    sample = '[plugins.video]\n[[validation.samples]]\nname = "s"\nprompt = "p"\n'
    told = refused("", sample + 'reference = "a.png"\n')
    assert "toyvideo takes no reference beside a prompt; it takes nothing; take this out" in told
    told = refused("takes = { audio = false }", sample + 'reference = "a.png"\naudio = "a.png"\n')
    assert "toyvideo takes no reference beside a prompt; it takes audio; take this out" in told
    assert "takes no audio" not in told


def test_files_need_a_plugin_that_reads_them(refused: Callable[..., str], tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 1)
    told = refused(TAKES, '[[validation.samples]]\nname = "s"\nprompt = "p"\nreference = "a.png"\naudio = "a.png"\ncontrol = "a.png"\n')
    assert "no active plugin reads sound from a file; switch one on that does, by its table" in told
    assert "no active plugin reads a clip that guides from a file" in told
    assert "reads a picture" not in told


def test_a_number_of_frames_that_cannot_be_made_is_refused(refused: Callable[..., str]) -> None:
    assert "num_frames = 12: toyvideo makes no such number of frames; use 9" in refused("", TWO + "num_frames = 12\n")


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ('[validation]\nprompts = { Fox = "a" }\n[[validation.samples]]\nname = "fox"\nprompt = "p"\n', "name 'fox' is there twice"),
        ('[[validation.samples]]\nname = "s"\nprompt = "p"\n[[validation.samples]]\nname = "S"\nprompt = "q"\n', "name 'S' is there twice"),
        ('[[validation.samples]]\nname = "a/b"\nprompt = "p"\n', "it becomes a file name"),
        ('[[validation.samples]]\nname = "s"\n', "prompt"),
    ],
)
def test_samples_that_cannot_be_meant_are_refused(refused: Callable[..., str], extra: str, told: str) -> None:
    assert told in refused("", extra)


def test_files_that_are_not_there_are_named_before_anything_is_loaded(refused: Callable[..., str], tmp_path: Path) -> None:
    told = refused(TAKES, '[plugins.video]\n[[validation.samples]]\nname = "s"\nprompt = "p"\naudio = "nowhere.wav"\nreference = "."\n')
    assert f"there is no file '{tmp_path / 'nowhere.wav'}'; paths start at the config file" in told
    assert f"there is no file '{tmp_path}'" in told


@pytest.mark.parametrize(
    ("what", "name", "told"),
    [
        ("reference", "page", "cannot be used as a picture: not a JPEG, PNG or WebP picture"),
        ("reference", "heard", "cannot be used as a picture: not a JPEG, PNG or WebP picture"),
        ("audio", "page", "cannot be used as sound: not a film or sound that is read here"),
        ("audio", "mute", "cannot be used as sound: it has no sound"),
        ("audio", "torn", "cannot be used as sound: its index is missing: it was probably cut off"),
        ("control", "heard", "cannot be used as a clip that guides: it has no moving pictures"),
        ("control", "torn", "cannot be used as a clip that guides: its index is missing"),
    ],
)
def test_files_that_are_not_what_is_asked_for_are_refused_by_their_headers(
    refused: Callable[..., str], tmp_path: Path, what: str, name: str, told: str
) -> None:
    (tmp_path / "page").write_text("<html>" * 100)
    recording(tmp_path / "heard.wav", swept(0.2)).rename(tmp_path / "heard")
    whole = film(tmp_path / "mute.mp4", 5, 16, size=(64, 32)).rename(tmp_path / "mute").read_bytes()
    (tmp_path / "torn").write_bytes(whole[: len(whole) // 2])
    good, bad = (f'[[validation.samples]]\nname = "{one}"\nprompt = "p"\n' for one in ("good", "bad"))
    problem = refused(TAKES, f'[plugins.video]\n{good}{bad}{what} = "{name}"\n')
    assert f"[[validation.samples]] number 2, 'bad': {what} = '{tmp_path / name}' {told}" in problem
    assert problem.endswith("; give another file")
    assert "\n" not in problem


@pytest.mark.parametrize("kind", ["reference", "control"])
def test_datasets_that_a_family_does_not_take_are_refused(refused: Callable[..., str], clips: Path, kind: str) -> None:
    table = f'[[datasets]]\nkind = "{kind}"\nname = "given"\nof = "clips"\npath = {str(clips)!r}\n'
    other = "control" if kind == "reference" else "reference"
    assert f'kind = "{kind}": toyvideo takes no {kind} beside a caption; take this dataset out' in refused("", table)
    assert f"toyvideo takes no {kind}" in refused(f"takes = {{ {other} = false }}", table)
    assert "[plugins" not in refused("", table)


@pytest.mark.parametrize("cache", ["true", "false"])
def test_reference_and_control_reach_the_encoder(start: Start, clips: Path, watched: list[Watched], cache: str) -> None:
    _, _, tables = beside(clips, 32)
    start(TAKES, tables, "run.steps=4", f"run.cache={cache}")
    seen = {}
    for one in watched:
        for row, source in enumerate(one.step.batch.sources):
            seen[source.file.stem] = (one.field("given_reference")[row].tolist(), one.field("given_control")[row].tolist())
    assert set(seen) == {"0", "1", "2", "3"}
    for stem, (reference, control) in seen.items():
        own = 40 * int(stem) / 127.5 - 1
        assert reference == pytest.approx([1.0 if stem == "1" else own] * 3, abs=1e-5)
        assert control == pytest.approx([(255 - int(stem)) / 127.5 - 1] * 3, abs=1e-5)


def test_what_a_dataset_does_not_give_is_absent(start: Start, watched: list[Watched]) -> None:
    start(TAKES, "")
    for one in watched:
        assert bool((one.field("given_reference") == 0).all())
        assert bool((one.field("given_control") == 0).all())


def test_samples_without_a_reference_are_left_out_by_name_unless_their_own_will_do(
    start: Start, clips: Path, watched: list[Watched]
) -> None:
    faces = clips.with_name("faces")
    faces.mkdir()
    for number in (1, 2):
        grey(faces / f"{number}.png", 255)
    result = start(TAKES, f'[[datasets]]\nkind = "reference"\nof = "clips"\npath = {str(faces)!r}\n')
    assert {source.file.stem for one in watched for source in one.step.batch.sources} == {"1", "2"}
    [funnel] = [event["funnel"] for event in result.events if event["event"] == "data"]
    assert any("reference" in line and "0.npy" in line for line in funnel)


@pytest.mark.parametrize("cache", ["true", "false"])
def test_history_and_guiding_films_reach_the_encoder(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    films, poses = tmp_path / "films", tmp_path / "poses"
    for number in range(2):
        film(films / f"{number}.mp4", 24, 8, size=(128, 64))
        film(poses / f"{number}.mp4", 24, 8, size=(128, 64))
        (films / f"{number}.txt").write_text("a film")
    tables = f"""
[[datasets]]
kind = "video"
name = "films"
path = {str(films)!r}
num_frames = 9
window = "middle"
resolution = 32
[[datasets]]
kind = "control"
of = "films"
path = {str(poses)!r}
"""
    seen: list[dict[str, torch.Tensor]] = []
    encode = ToyVideo.encode_batch

    @functools.wraps(encode)
    def looking(self: ToyVideo, run: Any, batch: Any) -> Any:
        if "history" in batch.inputs:
            seen.append(batch.inputs)
        return encode(self, run, batch)

    monkeypatch.setattr(ToyVideo, "encode_batch", looking)
    start("takes = { control = false }\nhistory = 3", tables, "run.steps=4", f"run.cache={cache}")
    assert seen
    for inputs in seen:
        assert {tuple(numbers(one)) for one in inputs["history"]} == {(4, 5, 6)}
        assert {tuple(numbers(one)) for one in inputs["control"]} == {tuple(range(7, 16))}
