"""What a dataset of clips or of sound can be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tunesmith import PixelTable, SampleTable

BESIDE = frozenset({"name", "kind", "path", "source", "file_column", "of", "missing", "allow_silence"})
"""Settings of sound that belongs to another dataset: the others are about samples of its own."""


class VideoTable(PixelTable):
    """`[[datasets]]` with `kind = "video"`: clips with captions, and their sound where the family is trained with it."""

    kind: Literal["video"] = "video"
    """Clips: films of which one window is a sample, or every one."""
    num_frames: int | None = Field(None, ge=1, le=100_000)
    """Frames of a sample after re-timing, rounded down to what the family encodes; the family's own when not given."""
    min_frames: int | None = Field(None, ge=1, le=100_000)
    """Clips with so many frames after re-timing are used too, in buckets of their own; `num_frames` when not given, or
    `frame_interval` with `buckets = "resolution_frames"`."""
    max_frames: int | None = Field(None, ge=1)
    """Clips with more frames after re-timing are left out."""
    fps: float | None = Field(None, gt=0, le=1000)
    """Frames a second of a sample, to which clips are re-timed so that they play at their real speed; the family's own when
    not given."""
    window: Literal["start", "middle", "random", "every"] = "start"
    """Which part of a longer clip: its start, its middle, one that is drawn, or all that do not overlap, each a sample."""
    buckets: Literal["aspect", "resolution_frames"] = "aspect"
    """aspect: by aspect ratio, all with `num_frames` but for shorter clips; resolution_frames: by size and length, as WxH@F."""
    frame_interval: int | None = Field(None, ge=1, le=100_000)
    """With `buckets = "resolution_frames"`: lengths are rounded down to multiples of this, then to what the family encodes."""
    is_i2v: bool = False
    """The first frame is given: it has no noise, and no loss is taken on it."""
    max_seconds: float = Field(21_600.0, gt=0)
    """Longer files are not decoded."""
    max_source_frames: int = Field(2_000_000, ge=1)
    """Files with more frames are not decoded."""
    auto_split: bool | None = None
    """Take the sound out of the clips themselves; so it is when not given where the family cannot be trained without sound."""
    allow_silence: bool = False
    """A clip without sound, or with zeros alone, is silent, and sound that ends too early goes on silent; else they are left out."""
    sample_rate: int | None = Field(None, ge=1_000, le=192_000)
    """Samples a second of the sound; the family's own when not given."""
    channels: Literal[1, 2] | None = None
    """1 or 2 channels of sound; the family's own when not given."""

    @property
    def gives_first_frame(self) -> bool:
        """Whether the first frame is given."""
        return self.is_i2v

    @model_validator(mode="after")
    def _lengths(self) -> VideoTable:
        if self.min_frames and self.num_frames and self.min_frames > self.num_frames:
            raise ValueError(f"min_frames = {self.min_frames} is more than num_frames = {self.num_frames}")
        if self.max_frames and (self.min_frames or 0) > self.max_frames:
            raise ValueError(f"min_frames = {self.min_frames} is more than max_frames = {self.max_frames}")
        return self

    @model_validator(mode="after")
    def _interval(self) -> VideoTable:
        if self.frame_interval is not None and self.buckets != "resolution_frames":
            raise ValueError('`frame_interval` goes with `buckets = "resolution_frames"`')
        return self


class AudioTable(SampleTable):
    """`[[datasets]]` with `kind = "audio"`: the sound of another dataset's clips, or recordings with captions."""

    kind: Literal["audio"] = "audio"
    """Sound: wav, mp3, flac, ogg, opus, m4a and aac files."""
    of: str | None = Field(None, min_length=1)
    """Name of the dataset whose clips the sound belongs to; files are paired by their names without ending."""
    missing: Literal["skip", "own"] = "skip"
    """With `of`: a clip without a file here is skipped and named, or keeps its own sound."""
    interval: float = Field(3.0, gt=0, le=3600)
    """Seconds by which recordings are put into buckets: each is cut to a multiple of it, and shorter ones are left out."""
    truncation: Literal["start", "end", "random"] = "start"
    """Which part of a recording is kept where it is cut: its start, its end, or one that is drawn."""
    max_duration: float | None = Field(None, gt=0)
    """Recordings of more seconds are left out."""
    variants: int = Field(1, ge=1, le=1000)
    """With a cache: how many drawn parts of each recording are kept."""
    allow_silence: bool = False
    """Whether files in which every sample is zero are used."""
    sample_rate: int | None = Field(None, ge=1_000, le=192_000)
    """Samples a second; the family's own when not given."""
    channels: Literal[1, 2] | None = None
    """1 or 2 channels; the family's own when not given."""

    @property
    def host(self) -> str | None:
        """The dataset whose clips the sound belongs to."""
        return self.of

    @property
    def may_be_missing(self) -> bool:
        """Whether a clip may be without a file here."""
        return self.missing != "skip"

    @property
    def num_variants(self) -> int:
        """How many parts of a recording are kept."""
        return self.variants

    @model_validator(mode="after")
    def _belongs(self) -> AudioTable:
        strange = sorted(self.model_fields_set - BESIDE) if self.of is not None else ["missing"] if self.missing != "skip" else []
        if strange and self.of is not None:
            raise ValueError(f"{', '.join(strange)}: the sound belongs to the clips of {self.of!r}, whose own table says such things")
        if strange:
            raise ValueError("`missing` goes with `of`, which names the dataset whose clips the sound belongs to")
        return self

    @model_validator(mode="after")
    def _durations(self) -> AudioTable:
        if self.max_duration is not None and self.max_duration < self.interval:
            raise ValueError(f"max_duration = {self.max_duration:g} is less than interval = {self.interval:g}: nothing could be used")
        return self
