"""The kinds of datasets: which samples clips and recordings give, and how these are decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunesmith import (
    AUDIO,
    CONTROL,
    HISTORY,
    MASK,
    PIXELS,
    Crop,
    Family,
    Kind,
    Modality,
    Piece,
    PixelKind,
    Probe,
    Source,
    Target,
    Unfit,
    Unreadable,
    Window,
    bucket_frames,
)

from .clips import Limits, read_frames, window_frames
from .containers import AUDIO_FORMATS, VIDEO_FORMATS, audio_stream, extent_of, opened, origin_of, picture_of
from .sound import NoSound, Part, is_silent, read_sound, sound_of
from .tables import AudioTable, VideoTable

SOUND = "sound"
SAMPLE_RATE, CHANNELS = 16_000, 1
"""Of sound for families that say nothing of it."""
_MOST_TRIED = 1000
PLACE = Target((0, 0), (0, 0), 1.0)
"""What sound has for a size."""


class VideoKind(PixelKind[VideoTable]):
    """Clips: windows of films, re-timed, with the sound of exactly the window."""

    table_type = VideoTable
    suffixes = frozenset(
        [".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".flv", ".wmv", ".3gp", ".ogv"]
    ) | frozenset({".h264", ".264", ".hevc", ".265"})
    other_suffixes = frozenset({".gif", ".apng", ".rm", ".rmvb", ".vob", ".mxf", ".swf", ".dv", ".y4m", ".m3u8"})
    probing = "video-2"
    modalities = frozenset({Modality.VIDEO})

    def __init__(self, table: VideoTable, family: Family) -> None:
        super().__init__(table, family)
        self.fps = table.fps or family.defaults.fps
        self.num_frames = max(1, family.round_frames(table.num_frames or family.defaults.frames))
        by_length = (table.frame_interval or 1) if table.buckets == "resolution_frames" else self.num_frames
        self.min_frames = min(table.min_frames or by_length, self.num_frames)
        self.needs_sound = family.sound is not None and family.sound.required
        self.fewest = 2 if table.is_i2v or self.needs_sound else 1
        self.sample_rate, self.channels = _sound_of(family, table)

    @classmethod
    def probe(cls, file: Path) -> Probe:
        """Upright size, frames, duration and sound, from the header."""
        with opened(file, VIDEO_FORMATS) as container:
            picture = picture_of(container, file)
            rate, channels, sound = sound_of(container, file, picture.origin or 0.0)
        with opened(file, VIDEO_FORMATS) as container:  # looking for the end of the sound may have read it to its own
            frames, seconds = extent_of(container, file, picture)
        return Probe(*picture.size, frames, picture.fps, seconds, rate, channels, sound)

    def pieces(self, probe: Probe, name: str) -> tuple[Piece, ...]:
        """The window that the settings choose, or every one."""
        target = self.target(probe, name)
        self._check_limits(probe)
        seconds, ends = min([(probe.seconds, ""), (self._heard_for(probe, name), SOUND), *self._beside_for(name)])
        there = window_frames(seconds, probe.fps, self.fps)
        if self.table.max_frames is not None and there > self.table.max_frames:
            raise Unfit("timed", f"longer than max_frames = {self.table.max_frames}", f"({self._timing(probe, there, seconds, ends)})")
        frames = self._frames(there)
        kept = self.family.round_frames(there)
        if frames == 1 < self.fewest and there >= self.min_frames:
            reason = "is_i2v gives the only frame, and nothing is left to train on" if self.table.is_i2v else self._needs_more()
            remedy = f"; num_frames = {kept} would keep it" if kept > 1 else ""
            raise Unfit("timed", reason, f"({self._timing(probe, there, seconds, ends)}{remedy})")
        if there < self.min_frames or frames < 1:
            remedy = f"; min_frames = {kept} would keep it" if kept >= self.fewest else ""
            reason = f"fewer than {self.min_frames} frames at {self.fps:g} fps"
            raise Unfit("timed", reason, f"({self._timing(probe, there, seconds, ends)}{remedy})")
        if self.table.window == "every":
            return self._every(target, there, frames)
        room = (there - frames) / self.fps
        start = (there - frames) // 2 / self.fps if self.table.window == "middle" else 0.0
        return (Piece(target, frames, self.fps, start, room if self.table.window == "random" else 0.0),)

    @property
    def draws(self) -> bool:
        """Whether crops or windows are drawn."""
        return super().draws or self.table.window == "random"

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        """The crop and the window, which begins at a whole number of frames."""
        crop = self.crop(piece.target, generator)
        start = piece.start
        if generator is not None and piece.room > 0:
            start += int(generator.integers(round(piece.room * piece.fps) + 1)) / piece.fps
        return crop, Window(start, piece.frames, piece.fps)

    def recipe(self, need: str) -> str:
        """How pixels and sound are made of a clip."""
        if need == AUDIO:
            return f"sound-2 {self.sample_rate} {self.channels} {self.table.allow_silence}"
        if need == HISTORY and self.family.history:
            return f"video-2 {self.family.history}"
        return "video-2" if need == PIXELS else super().recipe(need)

    def files(self, source: Source, need: str) -> tuple[Path, ...]:
        """The file of sound beside a clip."""
        beside = source.companion(SOUND)
        return (beside,) if need == AUDIO and beside is not None else ()

    def load(self, source: Source, need: str) -> Tensor:
        """Pixels [3, F, H, W] of the window or before it, or the window's sound [channels, samples], in [-1, 1]."""
        if source.window is None or need not in (PIXELS, AUDIO, HISTORY):
            return super().load(source, need)
        limits = Limits(self.table.max_pixels, self.table.max_source_frames)
        if need == PIXELS:
            return read_frames(source.file, source.window, source.crop, limits)
        if need == HISTORY:
            return _before(source, source.window, self.family.history, limits)
        return window_sound(source, self.sample_rate, self.channels, self.table.allow_silence)

    def remarks(self, probes: Mapping[str, Probe]) -> list[str]:
        """What rounding and re-timing do."""
        told = []
        asked = self.table.num_frames
        if asked is not None and asked != self.num_frames:
            told.append(f"num_frames = {asked} becomes {self.num_frames}, the next lower number that {self.family.name} encodes")
        told += self._stills(probes)
        if self.fps != self.family.defaults.fps:
            told.append(
                f"fps = {self.fps:g}: {self.family.name} makes clips of {self.family.defaults.fps:g} frames a second, "
                "in which what was learnt at another rate moves faster or slower"
            )
        asks = self.table.auto_split or self.table.allow_silence or SOUND in self.beside
        if asks and self.family.sound is None:
            told.append(f"{self.family.name} is trained without sound: that of these clips is used only by plugins that ask for it")
        longest = max(1, self._frames(self.num_frames))
        if longest != self.num_frames:
            told.append(f"frame_interval = {self.table.frame_interval} makes {longest} frames of num_frames = {self.num_frames}")
        slow = [name for name, probe in probes.items() if probe.fps < self.fps * 0.99]
        if slow:
            found = f"{slow[0]}: {probes[slow[0]].fps:.4g} fps"
            told.append(f"{len(slow)} of {len(probes)} clips have fewer than {self.fps:g} frames a second; some are shown twice ({found})")
        return told

    def _stills(self, probes: Mapping[str, Probe]) -> Iterator[str]:
        """That clips become still pictures, and what keeps them clips."""
        least = self._least
        if self.fewest > 1 or least is None:
            return
        if self.num_frames == 1:
            yield f"clips become still pictures; num_frames = {least} would keep them clips"
            return
        single = [name for name, probe in probes.items() if 1 < window_frames(probe.seconds, probe.fps, self.fps) < least]
        if single:
            yield f"{len(single)} of {len(probes)} clips become still pictures ({single[0]}); min_frames = {least} would leave them out"

    @cached_property
    def _least(self) -> int | None:
        """The smallest number of frames beyond one that the family encodes, if it does."""
        return next((frames for frames in range(2, _MOST_TRIED) if self.family.round_frames(frames) == frames), None)

    def _needs_more(self) -> str:
        """Why a family that must have sound is trained on no single frame of a clip."""
        least = self._least
        remedy = "" if least is None else f"; num_frames, and the clip, must have {least} or more"
        return f"{self.family.name} hears nothing in a single frame{remedy}"

    def _heard_for(self, probe: Probe, name: str) -> float:
        """For how many seconds a clip can be used for its sound's sake; Unfit if it lacks what it must have."""
        files = self.beside.get(SOUND)
        file = None if files is None else files.get(os.path.splitext(name)[0])
        wanted = self.table.auto_split if self.table.auto_split is not None else self.needs_sound
        if self.table.allow_silence or not (wanted or files is not None):
            return math.inf
        if file is None and not probe.sample_rate:
            raise Unfit("paired", "it has no sound; allow_silence = true uses it as silent")
        ends = probe.sound if file is None else file.seconds
        return ends + 1 / self.fps if ends else math.inf

    def _beside_for(self, name: str) -> Iterator[tuple[float, str]]:
        """For how many seconds a clip can be used for the sake of the clips that go with it."""
        for role in (MASK, CONTROL):
            other = self.beside.get(role, {}).get(os.path.splitext(name)[0])
            if other is not None and other.seconds > 0:
                yield other.seconds, role

    def _check_limits(self, probe: Probe) -> None:
        if probe.seconds > self.table.max_seconds:
            raise Unfit("timed", f"longer than max_seconds = {self.table.max_seconds:g}", f"({probe.seconds:.0f} s)")
        if probe.frames > self.table.max_source_frames:
            raise Unfit("timed", f"more frames than max_source_frames = {self.table.max_source_frames}", f"({probe.frames})")

    def _frames(self, there: int) -> int:
        """How many frames a sample has of a clip with so many."""
        frames = min(there, self.num_frames)
        if self.table.buckets == "resolution_frames":
            frames = bucket_frames(frames, self.table.frame_interval)
        return self.family.round_frames(frames)

    def _every(self, target: Target, there: int, frames: int) -> tuple[Piece, ...]:
        """All windows that do not overlap, and the rest if it is long enough."""
        pieces = [Piece(target, frames, self.fps, begin / self.fps) for begin in range(0, there - frames + 1, frames)]
        rest = there - len(pieces) * frames
        shorter = self._frames(rest) if rest >= self.min_frames else 0
        if shorter >= self.fewest:
            pieces.append(Piece(target, shorter, self.fps, (there - rest) / self.fps))
        return tuple(pieces)

    def _timing(self, probe: Probe, there: int, seconds: float, ends: str) -> str:
        early = f", with {ends} for {seconds:.4g} s" if seconds < probe.seconds else ""
        return f"{probe.fps:.4g} fps, {probe.seconds:.4g} s{early}: {there} frames at {self.fps:g} fps"


class AudioKind(Kind[AudioTable]):
    """Sound: beside the clips of another dataset, or recordings of which a part is a sample."""

    table_type = AudioTable
    suffixes = frozenset({".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac"})
    other_suffixes = frozenset({".wma", ".aif", ".aiff", ".ape", ".amr", ".mka", ".ac3", ".mid", ".midi", ".m4b"})
    probing = "audio-1"
    modalities = frozenset()
    role = SOUND

    def __init__(self, table: AudioTable, family: Family) -> None:
        super().__init__(table, family)
        self.sample_rate, self.channels = _sound_of(family, table)

    @classmethod
    def probe(cls, file: Path) -> Probe:
        """Duration, sample rate and channels."""
        with opened(file, AUDIO_FORMATS) as container:
            stream = audio_stream(container)
            if stream is None:
                raise NoSound(file)
            rate, channels, seconds = sound_of(container, file, origin_of(stream))
        if not rate or seconds <= 0:
            raise Unreadable(file, "it has no sound that can be decoded")
        return Probe(seconds=seconds, sample_rate=rate, channels=channels, sound=seconds)

    def pieces(self, probe: Probe, name: str) -> tuple[Piece, ...]:
        """The part of a recording that is a multiple of the interval."""
        table = self.table
        if table.of is not None:
            raise Unfit("paired", "sound belongs to a clip of another dataset")
        if table.max_duration is not None and probe.seconds > table.max_duration:
            raise Unfit("timed", f"longer than max_duration = {table.max_duration:g}", f"({probe.seconds:.2f} s)")
        count = int(probe.seconds / table.interval + 1e-6)
        if not count:
            keeps = math.floor(probe.seconds * 100) / 100
            remedy = f"; interval = {keeps:g} would keep it" if keeps else ""
            raise Unfit("timed", f"shorter than one interval = {table.interval:g}", f"({probe.seconds:.2f} s{remedy})")
        samples = round(count * table.interval * self.sample_rate)
        room = max(0.0, probe.seconds - samples / self.sample_rate)
        start = room if table.truncation == "end" else 0.0
        return (Piece(PLACE, samples, self.sample_rate, start, room if table.truncation == "random" else 0.0),)

    @property
    def draws(self) -> bool:
        """Whether parts are drawn."""
        return self.table.of is None and self.table.truncation == "random"

    def part(self, piece: Piece, generator: np.random.Generator | None) -> tuple[Crop, Window | None]:
        """The window, counted in samples."""
        start = piece.start + (float(generator.random()) * piece.room if generator is not None else 0.0)
        return Crop((0, 0), (0, 0), (0, 0)), Window(start, piece.frames, piece.fps)

    def recipe(self, need: str) -> str:
        """How sound is made of a file."""
        made = f"sound-2 {self.sample_rate} {self.channels} {self.table.allow_silence}"
        return made if need in (AUDIO, SOUND) else super().recipe(need)

    def load(self, source: Source, need: str) -> Tensor:
        """A recording's part, [channels, samples] in [-1, 1]."""
        if need != AUDIO or source.window is None:
            return super().load(source, need)
        part = Part(source.window.start, source.window.frames, self.sample_rate, self.channels)
        return _heard(source.file, part, of_clip=False, lacks=0.1, allow_silence=self.table.allow_silence)

    def companion(self, source: Source, file: Path | None, host: Kind[Any]) -> Tensor:
        """The sound of a clip's window, [channels, samples]: of the file beside it, or its own."""
        companions = () if file is None else ((SOUND, file),)
        beside = Source(source.dataset, source.file, source.caption, source.crop, source.window, companions)
        return window_sound(beside, self.sample_rate, self.channels, self.table.allow_silence)


def _before(source: Source, window: Window, wanted: int, limits: Limits) -> Tensor:
    """So many frames before a window, [3, wanted, H, W]; 0, which is grey, before the clip's beginning."""
    width, height = source.crop.size
    frames = torch.zeros((3, wanted, height, width))
    there = min(wanted, round(window.start * window.fps))
    if there:
        before = Window(window.start - there / window.fps, there, window.fps)
        frames[:, wanted - there :] = read_frames(source.file, before, source.crop, limits)
    return frames


def window_sound(source: Source, rate: int, channels: int, allow_silence: bool) -> Tensor:
    """The sound of a clip's window, [channels, samples]: of the file beside it if there is one, otherwise the clip's own.

    Up to one frame may be missing at the end. With `allow_silence` all may be, and missing sound is silence; without it
    a file whose every sample is zero is Unreadable, whether it is the clip or lies beside it.
    """
    if source.window is None:
        raise ValueError(f"{source} has no window")
    part = Part(source.window.start, round(source.window.frames / source.window.fps * rate), rate, channels)
    beside = source.companion(SOUND)
    lacks = math.inf if allow_silence else 1 / source.window.fps + 1e-6
    try:
        return _heard(beside or source.file, part, of_clip=beside is None, lacks=lacks, allow_silence=allow_silence)
    except NoSound:
        if not allow_silence:
            raise
        return torch.zeros((channels, part.samples))


def _heard(file: Path, part: Part, *, of_clip: bool, lacks: float, allow_silence: bool) -> Tensor:
    """A part of a file's sound, unless all of the file's is silent and that is not allowed."""
    sound = read_sound(file, part, of_clip=of_clip, lacks=lacks)
    if not allow_silence and not bool(sound.any()) and is_silent(file, of_clip=of_clip):
        raise Unreadable(file, "every sample of its sound is zero; allow_silence = true uses it as silent")
    return sound


def _sound_of(family: Family, table: VideoTable | AudioTable) -> tuple[int, int]:
    sound = family.sound
    rate = table.sample_rate or (SAMPLE_RATE if sound is None else sound.sample_rate)
    return rate, table.channels or (CHANNELS if sound is None else sound.channels)
