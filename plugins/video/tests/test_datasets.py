"""Datasets of clips and sound as the core finds them: pairs, funnels, buckets and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith import NoSettings, Sound, Unreadable
from tunesmith.config.datasets import MaskTable
from tunesmith.config.tables import RunTable
from tunesmith.data.dataset import Dataset
from tunesmith.data.order import Order
from tunesmith.data.scan import Surroundings, survey_all
from tunesmith.listing.index import Index
from tunesmith_video import Audio, AudioTable, Video, VideoTable

from .films import Facts, film, lag_of, numbers, recording, swept

NEEDS_SOUND = Sound(48_000, 1, required=True)


def look(folder: Path, *tables: VideoTable | AudioTable | MaskTable, sound: Sound | None = None) -> dict[int, Dataset]:
    run = RunTable(steps=1, batch_size=1, cache_dir=folder / "cache")
    plugins: Any = {"video": Video("video", NoSettings()), "audio": Audio("audio", NoSettings())}
    for _ in range(2):  # the second time from the index
        with Index(folder / "index.sqlite") as index:
            found, wrong = survey_all(tables, Surroundings(Facts(sound), run, index, plugins))
        assert not wrong
    return found


def table(folder: Path, **settings: Any) -> VideoTable:
    return VideoTable(path=str(folder), **{"captions": "filename", "name": "clips", "num_frames": 17, **settings})


def losses(dataset: Dataset) -> dict[str, list[str]]:
    return {lost.reason: lost.examples for lost in dataset.funnel.losses}


def test_clips_are_found_retimed_and_named_where_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    film(folder / "fast.mp4", 120, 60)
    film(folder / "deeper" / "long.mkv", 160)
    film(folder / "short.mp4", 20, 30)
    (folder / "page.mp4").write_bytes(b"<html>")
    (folder / "moving.gif").write_bytes(b"GIF89a")
    [dataset] = look(tmp_path, table(folder)).values()
    assert [sample.name for sample in dataset.samples] == ["deeper/long.mkv", "fast.mp4"]
    assert {sample.bucket[2] for sample in dataset.samples} == {17}
    told = losses(dataset)
    assert told["fewer than 17 frames at 16 fps"] == ["short.mp4 (30 fps, 0.6667 s: 11 frames at 16 fps; min_frames = 9 would keep it)"]
    assert any("moving.gif" in example for examples in told.values() for example in examples)
    assert any(examples == ["page.mp4"] for examples in told.values())


def test_every_window_of_a_clip_is_a_sample(tmp_path: Path) -> None:
    film(tmp_path / "clips" / "a.mp4", 60)
    [dataset] = look(tmp_path, table(tmp_path / "clips", window="every")).values()
    assert [sample.name for sample in dataset.samples] == ["a.mp4", "a.mp4#2", "a.mp4#3"]
    order = Order([dataset], 0, cached=True)
    shown = [numbers(dataset.load(source, "pixels"))[0] for source in order.all_sources()]
    assert shown == [0, 17, 34]


def test_drawn_windows_differ_by_epoch_and_variant(tmp_path: Path) -> None:
    film(tmp_path / "clips" / "a.mp4", 160)
    [dataset] = look(tmp_path, table(tmp_path / "clips", window="random", variants=4)).values()
    kept = {source.window for source in Order([dataset], 0, cached=True).all_sources()}
    assert len(kept) == 4
    drawn = {source.window for position in range(12) for source in Order([dataset], 0, cached=False).batch(position)}
    assert len(drawn) > 6
    assert {source.window for position in range(12) for source in Order([dataset], 0, cached=True).batch(position)} <= kept


def test_sound_of_a_companion_wins_and_clips_without_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        film(tmp_path / "clips" / f"{name}.mp4", 40, sound=np.zeros(120_000, np.float32))
    recording(tmp_path / "sound" / "a.wav", swept(3))
    recording(tmp_path / "sound" / "b.flac", swept(0.5), codec="flac")
    beside = AudioTable(path=str(tmp_path / "sound"), of="clips", name="sound")
    [dataset] = look(tmp_path, table(tmp_path / "clips", window="middle"), beside, sound=NEEDS_SOUND).values()
    assert [sample.name for sample in dataset.samples] == ["a.mp4"]
    [one] = Order([dataset], 0, cached=True).all_sources()
    assert one.window is not None
    heard = dataset.load(one, "audio")
    assert heard.shape == (1, 51_000)
    assert lag_of(heard[0].numpy(), one.window.start) == 0
    assert torch.equal(dataset.load(one, "sound"), heard)
    assert dataset.files(one, "audio") == (tmp_path / "sound" / "a.wav",)
    told = losses(dataset)
    assert [examples for reason, examples in told.items() if "no sound of its name" in reason] == [["c.mp4"]]
    assert any("with sound for 0.5625 s" in example for example in told["fewer than 17 frames at 16 fps"])


def test_what_a_family_does_not_use_or_encode_is_told(tmp_path: Path) -> None:
    film(tmp_path / "clips" / "a.mp4", 40)
    told = {"buckets": "resolution_frames", "frame_interval": 16, "allow_silence": True}
    [dataset] = look(tmp_path, table(tmp_path / "clips", **told)).values()
    assert dataset.funnel.notes == [
        "facts is trained without sound: that of these clips is used only by plugins that ask for it",
        "frame_interval = 16 makes 13 frames of num_frames = 17",
    ]


def test_a_mask_that_ends_early_ends_its_clip(tmp_path: Path) -> None:
    for name, frames in (("a", 80), ("b", 20), ("c", 4)):
        film(tmp_path / "clips" / f"{name}.mp4", 80)
        film(tmp_path / "masks" / f"{name}.mp4", frames)
    masks = MaskTable(kind="mask", path=str(tmp_path / "masks"), of="clips", name="masks")
    [dataset] = look(tmp_path, table(tmp_path / "clips", window="random"), masks).values()
    assert [sample.name for sample in dataset.samples] == ["a.mp4", "b.mp4"]
    assert dataset.samples[1].piece.room == 3 / 16
    assert any("with mask for 0.25 s" in example for example in losses(dataset)["fewer than 17 frames at 16 fps"])


def test_a_companion_that_cannot_be_used_is_told_as_that(tmp_path: Path) -> None:
    film(tmp_path / "clips" / "a.mp4", 40)
    recording(tmp_path / "sound" / "a.wav", np.zeros(120_000, np.float32))
    beside = AudioTable(path=str(tmp_path / "sound"), of="clips", name="sound")
    [dataset] = look(tmp_path, table(tmp_path / "clips"), beside, sound=NEEDS_SOUND).values()
    [one] = Order([dataset], 0, cached=True).all_sources()
    with pytest.raises(Unreadable, match=r"a\.wav: its sound in dataset 'sound' cannot be used \(every sample of its sound is zero"):
        dataset.load(one, "audio")


def test_clips_keep_their_own_sound_where_they_may(tmp_path: Path) -> None:
    film(tmp_path / "clips" / "a.mp4", 40, sound=swept(2.5))
    film(tmp_path / "clips" / "b.mp4", 40)
    (tmp_path / "sound").mkdir()
    beside = AudioTable(path=str(tmp_path / "sound"), of="clips", name="sound", missing="own")
    [dataset] = look(tmp_path, table(tmp_path / "clips"), beside, sound=NEEDS_SOUND).values()
    assert [sample.name for sample in dataset.samples] == ["a.mp4"]
    assert losses(dataset) == {"it has no sound; allow_silence = true uses it as silent": ["b.mp4"]}
    [one] = Order([dataset], 0, cached=True).all_sources()
    assert float(dataset.load(one, "audio").abs().mean()) > 0.2
