"""Which samples clips and recordings give, and what is said of those that give none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tunesmith import NoSettings, Piece, Probe, Sound, Unfit, Window
from tunesmith_video import Audio, AudioKind, AudioTable, Video, VideoKind, VideoTable
from tunesmith_video.clips import window_frames

from .films import SIZE, Facts

NEEDS_SOUND = Sound(16_000, 1, required=True)


def clip(seconds: float = 10.0, fps: float = 24.0, sound: float | None = None) -> Probe:
    rate, channels = (0, 0) if sound is None else (48_000, 2)
    return Probe(*SIZE, round(seconds * fps), fps, seconds, rate, channels, sound or 0.0)


def kind(sound: Sound | None = None, **settings: Any) -> VideoKind:
    return VideoKind(VideoTable(path="clips", **settings), Facts(sound))


def lengths(made: tuple[Piece, ...]) -> list[tuple[float, int]]:
    return [(piece.start, piece.frames) for piece in made]


def unfit(made: VideoKind | AudioKind, probe: Probe, name: str = "a.mp4") -> Unfit:
    with pytest.raises(Unfit) as caught:
        made.pieces(probe, name)
    return caught.value


@pytest.mark.parametrize("fps", [8, 15, 16, 23.976, 24, 25, 29.97, 30, 50, 60, 120])
@pytest.mark.parametrize("frames", [1, 2, 17, 33, 100])
def test_a_clip_has_as_many_frames_as_have_a_source_frame_within_half_a_frame(fps: float, frames: int) -> None:
    last = (frames - 1) / fps
    expected = max(k for k in range(10_000) if k / 16 <= last + 0.5 / fps + 1e-6) + 1
    assert window_frames(frames / fps, fps, 16) == expected


def test_a_clip_at_the_families_own_rate_keeps_its_frames() -> None:
    for frames in (1, 17, 33, 81):
        assert window_frames(frames / 16, 16, 16) == frames


def test_the_window_is_where_the_settings_say() -> None:
    probe = clip(2.0, 24)  # 32 frames at 16 fps
    assert lengths(kind(num_frames=17).pieces(probe, "a")) == [(0.0, 17)]
    assert lengths(kind(num_frames=17, window="middle").pieces(probe, "a")) == [(7 / 16, 17)]
    [drawn] = kind(num_frames=17, window="random").pieces(probe, "a")
    assert (drawn.start, drawn.room * 16) == (0.0, 15)


def test_every_window_comes_once_and_the_rest_if_it_is_long_enough() -> None:
    probe = clip(5.0, 16)  # 80 frames
    assert lengths(kind(num_frames=17, window="every").pieces(probe, "a")) == [(k * 17 / 16, 17) for k in range(4)]
    with_rest = kind(num_frames=17, min_frames=9, window="every").pieces(probe, "a")
    assert lengths(with_rest) == [*((k * 17 / 16, 17) for k in range(4)), (68 / 16, 9)]


def test_a_clip_whose_only_frame_would_be_given_is_no_sample() -> None:
    asked = kind(num_frames=1, is_i2v=True)
    error = unfit(asked, clip(2.0, 24))
    assert str(error).startswith("is_i2v gives the only frame, and nothing is left to train on")
    assert error.detail == "(24 fps, 2 s: 32 frames at 16 fps; num_frames = 29 would keep it)"
    short = unfit(kind(num_frames=17, min_frames=1, is_i2v=True), clip(0.125, 16))
    assert short.detail == "(16 fps, 0.125 s: 2 frames at 16 fps)"
    assert "min_frames" not in unfit(kind(num_frames=17, is_i2v=True), clip(0.125, 16)).detail
    every = kind(num_frames=17, min_frames=1, window="every", is_i2v=True)
    assert lengths(every.pieces(clip(1.125, 16), "a")) == [(0.0, 17)]


@pytest.mark.parametrize("settings", [{"num_frames": 4}, {"num_frames": 1}, {"num_frames": 17, "min_frames": 2}])
def test_a_single_frame_is_no_sample_where_sound_is_needed(settings: dict[str, Any]) -> None:
    made = kind(NEEDS_SOUND, **settings)
    error = unfit(made, clip(4 / 16, 16, sound=1.0))
    assert error.station == "timed"
    assert error.reason == "facts hears nothing in a single frame; num_frames, and the clip, must have 5 or more"
    assert error.detail == "(16 fps, 0.25 s: 4 frames at 16 fps)"
    if made.num_frames == 1:
        assert unfit(made, clip(2.0, 24, sound=2.0)).detail == "(24 fps, 2 s: 32 frames at 16 fps; num_frames = 29 would keep it)"
    every = kind(NEEDS_SOUND, num_frames=17, min_frames=1, window="every")
    assert lengths(every.pieces(clip(20 / 16, 16, sound=2.0), "a")) == [(0.0, 17)]


def test_clips_that_become_still_pictures_are_told_where_they_may() -> None:
    probes = {"a": clip(1.0), "b": clip(4 / 16, 16), "c": clip(1 / 16, 16)}
    for asked in (1, 4):
        told = kind(num_frames=asked).remarks(probes)
        assert told[-1] == "clips become still pictures; num_frames = 5 would keep them clips"
    [some] = kind(num_frames=17, min_frames=1).remarks(probes)
    assert some == "1 of 3 clips become still pictures (b); min_frames = 5 would leave them out"
    assert kind(num_frames=17, min_frames=5).remarks({"a": clip(1.0)}) == []


def test_another_rate_than_the_familys_is_told() -> None:
    [told] = kind(fps=24).remarks({"a": clip()})
    assert told == "fps = 24: facts makes clips of 16 frames a second, in which what was learnt at another rate moves faster or slower"
    assert kind(fps=16).remarks({"a": clip()}) == []


def test_drawn_windows_lie_within_the_clip_and_depend_on_the_generator_alone() -> None:
    made = kind(num_frames=17, window="random")
    assert made.draws
    [piece] = made.pieces(clip(2.0, 24), "a")
    starts = [made.part(piece, np.random.default_rng(seed))[1] for seed in range(200)]
    assert {window.start * 16 for window in starts if window} == set(range(16))
    assert made.part(piece, np.random.default_rng(3)) == made.part(piece, np.random.default_rng(3))
    fixed = kind(num_frames=17)
    assert not fixed.draws
    assert fixed.part(piece, None)[1] == Window(0.0, 17, 16.0)


def test_drawn_crops_leave_the_window_alone() -> None:
    made = kind(num_frames=17, crop="random", window="middle")
    [piece] = made.pieces(Probe(300, 64, 48, 24, 2.0), "a")
    parts = [made.part(piece, np.random.default_rng(seed)) for seed in range(20)]
    assert len({crop.offset for crop, _ in parts}) > 1
    assert {window for _, window in parts} == {Window(7 / 16, 17, 16.0)}


def test_shorter_clips_come_down_to_the_least_in_buckets_of_their_own() -> None:
    made = kind(num_frames=33, min_frames=10)
    found = {there: made.pieces(clip(there / 16, 16), "a")[0].frames for there in (10, 12, 13, 20, 32, 33, 50)}
    assert found == {10: 9, 12: 9, 13: 13, 20: 17, 32: 29, 33: 33, 50: 33}


def test_a_clip_that_is_too_short_is_told_with_what_would_keep_it() -> None:
    error = unfit(kind(num_frames=33), clip(1.5, 30))
    assert error.station == "timed"
    assert error.reason == "fewer than 33 frames at 16 fps"
    assert error.detail == "(30 fps, 1.5 s: 24 frames at 16 fps; min_frames = 21 would keep it)"
    assert kind(num_frames=33, min_frames=21).pieces(clip(1.5, 30), "a")[0].frames == 21


def test_a_number_of_frames_that_the_family_has_not_is_rounded_down_and_told() -> None:
    made = kind(num_frames=20)
    assert made.pieces(clip(), "a")[0].frames == 17
    assert made.pieces(clip(17 / 16, 16), "a")[0].frames == 17
    assert made.remarks({"a": clip()}) == ["num_frames = 20 becomes 17, the next lower number that facts encodes"]
    assert kind(num_frames=17).remarks({"a": clip()}) == []


def test_clips_slower_than_the_family_are_told() -> None:
    [told] = kind().remarks({"a": clip(fps=24), "b": clip(fps=8)})
    assert told == "1 of 2 clips have fewer than 16 frames a second; some are shown twice (b: 8 fps)"


def test_longer_clips_than_allowed_are_left_out_by_name() -> None:
    assert unfit(kind(max_frames=100), clip()).reason == "longer than max_frames = 100"
    assert "160 frames at 16 fps" in unfit(kind(max_frames=100), clip()).detail
    assert unfit(kind(max_seconds=5), clip()).reason == "longer than max_seconds = 5"
    assert unfit(kind(max_source_frames=100), clip()).reason == "more frames than max_source_frames = 100"
    assert unfit(kind(max_pixels=100), clip()).reason == "more pixels than max_pixels = 100"


def test_buckets_by_length_are_multiples_of_the_interval_as_the_family_rounds_them() -> None:
    made = kind(num_frames=65, buckets="resolution_frames", frame_interval=8)
    found = {there: made.pieces(clip(there / 16, 16), "a")[0].frames for there in (8, 9, 16, 23, 24, 40, 64, 200)}
    assert found == {8: 5, 9: 5, 16: 13, 23: 13, 24: 21, 40: 37, 64: 61, 200: 61}
    assert unfit(made, clip(7 / 16, 16)).reason == "fewer than 8 frames at 16 fps"


def test_the_rate_is_the_tables_or_the_families() -> None:
    assert kind(num_frames=5).pieces(clip(), "a")[0].fps == 16
    assert kind(num_frames=5, fps=8).pieces(clip(0.625, 8), "a")[0].fps == 8


def test_a_clip_without_sound_is_left_out_where_sound_is_needed() -> None:
    assert kind(NEEDS_SOUND).pieces(clip(sound=10.0), "a")
    error = unfit(kind(NEEDS_SOUND), clip())
    assert (error.station, error.reason) == ("paired", "it has no sound; allow_silence = true uses it as silent")
    assert kind(NEEDS_SOUND, allow_silence=True).pieces(clip(), "a")
    assert kind(NEEDS_SOUND, auto_split=False).pieces(clip(), "a")
    assert kind().pieces(clip(), "a")
    assert unfit(kind(auto_split=True), clip()).station == "paired"


def test_a_clip_is_as_long_as_its_sound_and_one_frame() -> None:
    made = kind(NEEDS_SOUND, num_frames=33, min_frames=5)
    assert made.pieces(clip(10, 16, sound=2.0), "a")[0].frames == 33
    assert made.pieces(clip(10, 16, sound=1.9), "a")[0].frames == 29
    assert "with sound for 1.062 s: 17 frames" in unfit(kind(NEEDS_SOUND, num_frames=33), clip(10, 16, sound=1.0)).detail


def test_sound_beside_a_clip_stands_in_for_its_own() -> None:
    made = kind(NEEDS_SOUND, num_frames=33, min_frames=5)
    made.beside = {"sound": {"folder/a": Probe(seconds=1.0, sample_rate=16_000, channels=1)}}
    assert made.pieces(clip(), "folder/a.mp4")[0].frames == 17
    assert unfit(made, clip(), "b.mp4").station == "paired"
    assert made.pieces(clip(sound=10.0), "b.mp4")[0].frames == 33


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_frames": 17, "min_frames": 33}, "min_frames = 33 is more than num_frames = 17"),
        ({"min_frames": 33, "max_frames": 17}, "min_frames = 33 is more than max_frames = 17"),
        ({"frame_interval": 8}, "`frame_interval` goes with"),
        ({"window": "end"}, "'start', 'middle', 'random' or 'every'"),
        ({"fps": 0}, "greater than 0"),
        ({"channels": 6}, "1 or 2"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        VideoTable(path="clips", **settings)


def sounds(probe_seconds: float, **settings: Any) -> tuple[Piece, ...]:
    return AudioKind(AudioTable(path="sound", **settings), Facts()).pieces(
        Probe(seconds=probe_seconds, sample_rate=44_100, channels=1), "a"
    )


def test_recordings_are_cut_to_whole_intervals() -> None:
    assert [sounds(seconds, interval=2)[0].frames / 16_000 for seconds in (2.0, 3.9, 4.0, 7.5)] == [2, 2, 4, 6]
    assert sounds(7.5, interval=2)[0].start == 0
    assert sounds(7.5, interval=2, truncation="end")[0].start == pytest.approx(1.5)
    drawn = sounds(7.5, interval=2, truncation="random")[0]
    assert drawn.start == 0.0
    assert drawn.room == pytest.approx(1.5)


def test_recordings_that_are_too_short_or_too_long_are_told() -> None:
    with pytest.raises(Unfit, match=r"shorter than one interval = 3 \(1\.50 s; interval = 1\.5 would keep it\)"):
        sounds(1.5)
    with pytest.raises(Unfit, match=r"longer than max_duration = 5 \(6\.00 s\)"):
        sounds(6, max_duration=5)


def test_sound_beside_clips_takes_no_settings_of_samples() -> None:
    AudioTable(path="sound", of="clips", missing="own", allow_silence=True)
    with pytest.raises(ValidationError, match="interval, repeats: the sound belongs to the clips of 'clips'"):
        AudioTable(path="sound", of="clips", repeats=3, interval=2)
    with pytest.raises(ValidationError, match="`missing` goes with `of`"):
        AudioTable(path="sound", missing="own")


def complaints(plugin: Video | Audio, family: Facts, *tables: Any) -> dict[tuple[str | int, ...], str]:
    return dict(plugin.check(SimpleNamespace(datasets=tables), family))  # type: ignore[arg-type]


def test_recordings_alone_are_refused_by_the_families_name() -> None:
    plugin = Audio("audio", NoSettings())
    found = complaints(plugin, Facts(), AudioTable(path="sound"), AudioTable(path="sound", of="clips"))
    assert list(found) == [("datasets", 0, "kind")]
    assert "facts generates videos" in found["datasets", 0, "kind"]


def test_sound_beside_pictures_is_refused() -> None:
    plugin = Audio("audio", NoSettings())
    pictures = SimpleNamespace(name="pics", kind="image")
    found = complaints(plugin, Facts(), pictures, AudioTable(path="s", name="s", of="pics"))
    assert list(found) == [("datasets", 1, "of")]
    assert found["datasets", 1, "of"].startswith("""of = 'pics': that is a dataset of kind = "image", and sound belongs to clips""")
    assert not complaints(plugin, Facts(), VideoTable(path="c", name="clips"), AudioTable(path="s", name="s", of="clips"))


def test_sound_that_is_not_the_families_is_refused() -> None:
    plugin = Video("video", NoSettings())
    family = Facts(NEEDS_SOUND)
    found = complaints(
        plugin, family, VideoTable(path="a", sample_rate=44_100, channels=1), VideoTable(path="b", name="b", auto_split=False)
    )
    assert found["datasets", 0, "sample_rate"] == "sample_rate = 44100: facts is trained with sample_rate = 16000; take it out"
    assert "no audio dataset has of = 'b'" in found["datasets", 1, "auto_split"]
    assert len(found) == 2
    beside = complaints(plugin, family, VideoTable(path="b", name="b", auto_split=False), AudioTable(path="s", of="b"))
    assert not beside
    assert not complaints(plugin, Facts(), VideoTable(path="a", sample_rate=44_100))


def test_clips_are_for_families_of_clips() -> None:
    assert {modality.value for modality in VideoKind.modalities} == {"video"}
    assert AudioKind.role == "sound"
