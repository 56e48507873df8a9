"""What validation makes of prompts, of files and of samples of datasets, and that a preview that fails never ends a run."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from plugins.video.tests.films import film, recording, swept
from tests.toyvideo import ToyClipsKind, ToyVideoModel, clip, toy_checkpoint
from tunesmith import Run, RunFailed, Source, Unreadable
from tunesmith_video import writing

from .conftest import Result
from .previewing import TAKES, TWO, Start, beside, clips, grey, made, recipe, start, warnings

__all__ = ["clips", "start", "toy_checkpoint"]


def test_a_sample_is_given_its_files(start: Start, tmp_path: Path) -> None:
    picture = grey(tmp_path / "face.png", 204)
    guide = film(tmp_path / "pose.mp4", 9, 16, size=(128, 64))
    sound = recording(tmp_path / "voice.wav", np.full(48_000, 0.25, np.float32))
    extra = f"""
[plugins.video]
[[validation.samples]]
name = "sings"
prompt = "a fox sings"
reference = {str(picture)!r}
audio = {str(sound)!r}
control = {str(guide)!r}
[validation]
prompts = {{ one = "a clip" }}
"""
    told = recipe(start(TAKES, extra), "sings-32x32-seed0")
    assert told["prompt"] == "a fox sings"
    assert told["given_files"] == {"reference": str(picture), "audio": str(sound), "control": str(guide)}
    shape, mean = told["given"]["reference"]
    assert shape == [3, 40, 48]
    assert mean == pytest.approx([0.6] * 3, abs=1e-3)
    shape, mean = told["given"]["audio"]
    assert shape == [1, 16_000]
    assert mean == pytest.approx([0.25], abs=0.01)
    assert told["given"]["control"][0] == [3, 5, 32, 32]  # nine frames at 16 fps are five at 8


def test_paths_of_samples_start_at_the_config(start: Start, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    grey(tmp_path / "faces" / "a.png", 255)
    told = recipe(start(TAKES, '[[validation.samples]]\nname = "s"\nprompt = "p"\nreference = "faces/a.png"\n'), "s-32x32-seed0")
    assert told["given"]["reference"][1] == pytest.approx([1.0] * 3)


def test_prompts_come_first_then_samples_then_those_of_datasets(start: Start) -> None:
    extra = '[[validation.samples]]\nname = "mine"\nprompt = "p"\n[validation]\nprompts = { one = "a clip" }\ndataset_samples = 2\n'
    result = start("", extra)
    [event] = [event for event in result.events if event["event"] == "validation" and event["step"] == 2]
    names = ["one", "mine", "clips-0", "clips-1"]
    assert [Path(file).name for file in event["files"]] == [f"{name}-32x32-seed0.png" for name in names]
    told = [recipe(result, f"{name}-32x32-seed0") for name in names]
    assert [one["prompt"] for one in told] == ["a clip", "p", "clip 0", "clip 1"]
    assert not any("given_files" in one for one in told)


def test_samples_of_a_dataset_bring_what_is_beside_them(start: Start, clips: Path) -> None:
    faces, poses, tables = beside(clips, 64)
    result = start(TAKES, tables + '[validation]\ndataset_samples = 2\nresolutions = ["32x32", "64x32"]\n')
    assert warnings(result) == []
    for number, shade in ((0, -1.0), (1, 1.0)):
        for width in (32, 64):
            whole = recipe(result, f"clips-{number}-{width}x32-seed0")
            own = faces / "1.png" if number else clips / "0.npy"
            assert whole["given_files"] == {"reference": str(own), "control": str(poses / f"{number}.npy")}
            told = whole["given"]
            assert set(told) == {"reference", "control"}
            assert told["reference"][1] == pytest.approx([shade] * 3)
            assert told["control"][0] == [3, 9, 32, width]
            assert told["control"][1] == pytest.approx([(255 - number) / 127.5 - 1] * 3, abs=1e-5)


@pytest.mark.parametrize(("required", "given_in_training", "given"), [(False, False, False), (False, True, True), (True, False, True)])
def test_a_clip_gives_its_first_frame_where_it_does_so_in_training_or_the_family_must_have_one(
    start: Start, required: bool, given_in_training: bool, given: bool
) -> None:
    takes, is_i2v = f"takes = {{ reference = {str(required).lower()} }}", f"datasets.0.is_i2v={str(given_in_training).lower()}"
    result = start(takes, "[validation]\ndataset_samples = 1\n", is_i2v)
    assert ("reference" in recipe(result, "clips-0-32x32-seed0").get("given", {})) is given


def test_names_that_clash_are_told_apart(start: Start, clips: Path) -> None:
    (clips / "a").mkdir()
    for place in (clips / "a" / "0.npy", clips / "a-0.npy"):
        clip(place, np.zeros((9, 32, 32, 3), np.uint8), str(place.name))
    result = start("", '[validation]\nprompts = { "CLIPS-0" = "a clip" }\ndataset_samples = 6\n')
    names = [name.removesuffix("-32x32-seed0.png") for name in made(result)]
    assert len(names) == len({name.lower() for name in names}) == 7
    assert "clips-0-2" in names
    prompts = sorted(recipe(result, f"{name}-32x32-seed0")["prompt"] for name in names)
    assert prompts == sorted(["a clip", "clip 0", "clip 1", "clip 2", "clip 3", "0.npy", "a-0.npy"])


def test_the_number_of_frames_is_the_configs_or_the_families(start: Start) -> None:
    assert recipe(start("", TWO), "one-32x32-seed0")["frames"] == 5
    assert recipe(start("", TWO, "validation.num_frames=13", name="longer"), "one-32x32-seed0")["frames"] == 13


def test_clips_are_films_with_their_sound_and_a_poster(start: Start, tmp_path: Path) -> None:
    sound = recording(tmp_path / "voice.wav", swept(0.5))
    extra = f'[plugins.video]\n[[validation.samples]]\nname = "s"\nprompt = "p"\naudio = {str(sound)!r}\n[validation]\nnum_frames = 9\n'
    result = start("clips = true\ntakes = { audio = true }", extra)
    assert made(result) == ["s-32x32-seed0.mp4", "s-32x32-seed0.png"]
    with av.open(str(result.path / "validation" / "step-000002" / "s-32x32-seed0.mp4")) as container:
        assert container.streams.video[0].average_rate == 8
        assert json.loads(container.metadata["comment"]) == recipe(result, "s-32x32-seed0")
        assert sum(1 for _ in container.decode(video=0)) == 9
    assert recipe(result, "s-32x32-seed0")["step"] == 2


def fail_for(name: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sampling of one preview fail."""
    sample = ToyVideoModel.sample

    def failing(self: ToyVideoModel, pipeline: Any, request: Any) -> Any:
        if request.name.startswith(name):
            raise error
        return sample(self, pipeline, request)

    monkeypatch.setattr(ToyVideoModel, "sample", failing)


def assert_goes_on(result: Result, left: list[str], reason: str, name: str = "one-32x32-seed0") -> None:
    """The run came to its end, `left` are the previews of both validations, and the one that failed was told both times."""
    assert sorted(result.losses) == [1, 2]
    assert result.events[-1]["event"] == "end"
    assert result.events[-1]["complete"]
    for step in (0, 2):
        assert made(result, step) == left
    told = warnings(result)
    assert [message for message, _ in told] == [f"{name} could not be made"] * 2
    assert all(reason in why for _, why in told)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("no"), OSError(errno.ENOENT, "gone"), MemoryError("much")])
def test_a_preview_that_cannot_be_sampled_is_told_and_the_run_goes_on(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_for("one", error, monkeypatch)
    assert_goes_on(start("", TWO), ["two-32x32-seed0.png"], f"{type(error).__name__}: {error}")


def test_previews_change_nothing_of_the_training_whether_they_fail_or_not(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start("", TWO, name="whole")
    fail_for("one", RuntimeError("no"), monkeypatch)
    assert start("", TWO, name="failing").losses == whole.losses


def test_a_file_that_cannot_be_read_is_told_and_the_run_goes_on(start: Start, tmp_path: Path) -> None:
    whole = grey(tmp_path / "whole.png", 90, (400, 300)).read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    extra = TWO + '[[validation.samples]]\nname = "torn"\nprompt = "p"\nreference = "torn.png"\n'
    left = ["one-32x32-seed0.png", "two-32x32-seed0.png"]
    assert_goes_on(start(TAKES, extra), left, "torn.png", "torn-32x32-seed0")


def test_a_preview_that_cannot_be_written_is_told_and_the_run_goes_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    write = writing._write_film

    def failing(file: Path, *rest: Any) -> None:
        write(file, *rest)
        if "one-" in file.name:
            raise RuntimeError("the encoder is ill")

    monkeypatch.setattr(writing, "_write_film", failing)
    left = ["two-32x32-seed0.mp4", "two-32x32-seed0.png"]
    assert_goes_on(start("clips = true", TWO + "[plugins.video]\n"), left, "RuntimeError: the encoder is ill")


def test_a_decoder_that_cannot_be_loaded_is_told_and_the_run_goes_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: ToyVideoModel, denoiser: Any) -> Any:
        raise RuntimeError("no pipeline")

    monkeypatch.setattr(ToyVideoModel, "pipeline", failing)
    assert_goes_on(start("", TWO), [], "RuntimeError: no pipeline", "previews")


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_cannot_be_written_to_ends_the_run(start: Start, monkeypatch: pytest.MonkeyPatch, reason: int) -> None:
    def failing(file: Path, *rest: Any) -> None:
        raise OSError(reason, "no room", str(file))

    monkeypatch.setattr(writing, "_write_film", failing)
    with pytest.raises(RunFailed, match=r"cannot write .*no room"):
        start("clips = true", TWO + "[plugins.video]\n")


def test_to_stop_while_previews_are_made_stops_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stopping(self: ToyVideoModel, pipeline: Any, request: Any) -> Any:
        asked.append(request.name)
        current[0].stop("SIGINT")

    current: list[Any] = []
    original = Run.load

    def remember(self: Run, part: Any) -> Any:
        current.append(self)
        return original(self, part)

    monkeypatch.setattr(Run, "load", remember)
    monkeypatch.setattr(ToyVideoModel, "sample", stopping)
    result = start("", TWO)
    assert asked == ["one-32x32-seed0"]
    assert result.losses == {}
    assert warnings(result) == []
    assert result.events[-1]["reason"] == "SIGINT"


@pytest.mark.parametrize("cache", ["true", "false"])
def test_a_sample_of_a_dataset_that_turns_out_to_be_damaged_is_told(start: Start, monkeypatch: pytest.MonkeyPatch, cache: str) -> None:
    load = ToyClipsKind.load

    def damaged(self: ToyClipsKind, source: Source, need: str) -> torch.Tensor:
        if source.file.stem == "0":
            raise Unreadable(source.file, "damaged")
        return load(self, source, need)

    monkeypatch.setattr(ToyClipsKind, "load", damaged)
    result = start("takes = { reference = true }", "[validation]\ndataset_samples = 1\n", f"run.cache={cache}")
    assert result.events[-1]["complete"]
    assert made(result) == []
    reasons = [reason for message, reason in warnings(result) if message == "clips-0-32x32-seed0 could not be made"]
    assert len(reasons) == 2
    assert all(reason.endswith("0.npy: damaged") for reason in reasons)
