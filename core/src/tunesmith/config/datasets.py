"""The tables of datasets: what every kind has in common, and what a picture is cut to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator

from ..paths import DataPath, InputPath, is_url
from ..plugin import Settings
from .filters import read_filters
from .tables import MOST_STEPS, FileStem, as_stem

Edge: TypeAlias = Annotated[float, Field(gt=0)]
"""A size in the unit of `resolution_type`."""


DELETES = "Tunesmith never deletes or changes a file of yours; the pre-flight, `tune plan`, names what it leaves out and why"
"""Why there are no settings that remove files."""


class DatasetTable(Settings):
    """`[[datasets]]`: files of one kind, wherever they come from."""

    refused_keys: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("delete_problematic_images", "delete_unwanted_images", "delete_nsfw_images"), DELETES
    )

    name: FileStem | None = None
    """Name in messages and in the cache; that of the folder or file list when not given."""
    kind: str = "image"
    """What the files are: image, mask, or a kind that a plugin brings, such as video and audio."""
    path: DataPath | None = None
    """A folder with its subfolders, a file list (.txt, .csv, .jsonl, .parquet), or a URL of either; relative to the config file."""
    source: dict[str, Any] | None = None
    """Where the files come from instead of a `path`: `{ plugin = NAME, ... }` with that plugin's settings."""
    file_column: str | None = Field(None, min_length=1)
    """Column of a file list that names the files; `file`, `file_name`, `path`, `image` or `video` when not given."""

    @property
    def host(self) -> str | None:
        """Name of the dataset that this one's files are companions of; None where they are samples."""
        return None

    @property
    def may_be_missing(self) -> bool:
        """Whether samples of the host may be without a companion."""
        return False

    @model_validator(mode="after")
    def _one_origin(self) -> DatasetTable:
        if (self.path is None) == (self.source is None):
            raise ValueError("give either `path` or `source`, to say where the files are")
        if self.source is not None and not isinstance(self.source.get("plugin"), str):
            raise ValueError('`source` should say which plugin lists the files: source = { plugin = "NAME", ... }')
        if self.source is not None and self.file_column is not None:
            raise ValueError(
                f"`file_column` is for file lists; settings of `source` stand in it: source = {{ ..., file_column = {self.file_column!r} }}"
            )
        return self

    def named(self, source: str = "") -> Self:
        """The same table with its name, if it has none made of where its files come from; `source` is what their plugin calls it."""
        told = self.path or source or str((self.source or {})["plugin"])
        origin = os.path.realpath(told) if self.path and not is_url(self.path) else told
        stem = re.sub(r"\.(txt|csv|jsonl|parquet)$", "", re.split(r"[\\/]", origin.rstrip("/"))[-1])
        return self.model_copy(update={"name": self.name or as_stem(stem, "dataset")})


class CaptionShuffle(Settings):
    """`caption_shuffle`: the parts of a caption in other orders."""

    separator: str = Field(",", min_length=1, max_length=8)
    """What stands between the parts."""
    keep: int = Field(0, ge=0, le=10_000)
    """So many parts at the beginning stay where they are."""
    variants: int = Field(1, ge=1, le=1000)
    """How many orders are made of each caption."""
    original: bool = True
    """Whether the caption as it stands is one of the alternatives too."""


class SampleTable(DatasetTable):
    """What every kind of dataset has whose files are samples: captions, and how often a sample comes."""

    captions: Literal["textfile", "filename", "instance", "column", "json"] = "textfile"
    """Caption from a .txt file beside the sample (each line an alternative), its file name, `instance_prompt`, a column of the
    file list, or a .json file beside it."""
    instance_prompt: str | None = None
    """The one caption of every sample, with `captions = "instance"`."""
    caption_column: str | None = Field(None, min_length=1)
    """Column of the file list, or key of the .json file, that holds the caption or a list of alternatives; `caption` or `text`
    when not given."""
    caption_prefix: str = ""
    """Put before every caption, with a space between."""
    caption_filter: tuple[str, ...] | InputPath = ()
    """Texts that are taken out of captions, or a file of them, a line each; `s/PATTERN/TEXT/` replaces by a regular expression."""
    caption_shuffle: CaptionShuffle | None = None
    """Make alternatives of each caption by shuffling its parts."""
    caption_dropout: float = Field(0.0, ge=0, le=1)
    """Share of samples that are trained with an empty caption."""
    repeats: int = Field(1, ge=1, le=10_000)
    """How often each sample is seen in one epoch."""
    weight: float | None = Field(None, gt=0)
    """Share of all batches that come from this dataset, beside the weights of the others; by their sizes when none has one."""
    is_regularisation: bool = False
    """With an adapter the target is the model's own prediction without it, so that what it knows is kept."""
    max_samples: int | None = Field(None, ge=1)
    """Train on so many samples, chosen once by the dataset's name."""
    start_step: int = Field(0, ge=0, le=MOST_STEPS)
    """Optimizer step at which the dataset comes in."""
    end_step: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Optimizer step at which the dataset goes out; never when not given."""
    batch_size: int | None = Field(None, ge=1, le=65_536)
    """Samples in one micro-batch of this dataset; `[run] batch_size` when not given."""
    oversubscribe: bool = False
    """Repeat samples of a bucket that is smaller than a batch until it fills one."""

    @field_validator("caption_filter")
    @classmethod
    def _filters(cls, value: tuple[str, ...] | Path) -> tuple[str, ...] | Path:
        read_filters(value)
        return value

    @property
    def num_variants(self) -> int:
        """With a cache: how many parts of a sample are drawn and kept, where the kind draws."""
        return 1

    @property
    def gives_first_frame(self) -> bool:
        """Whether the first frame of a sample is given to the model, which kinds of moving pictures may offer."""
        return False

    @model_validator(mode="after")
    def _instance(self) -> SampleTable:
        if (self.captions == "instance") != (self.instance_prompt is not None):
            raise ValueError('`captions = "instance"` and `instance_prompt` go together')
        return self

    @model_validator(mode="after")
    def _column(self) -> SampleTable:
        if self.caption_column is not None and self.captions not in ("column", "json"):
            raise ValueError('`caption_column` goes with `captions = "column"` or "json"')
        return self

    @model_validator(mode="after")
    def _steps(self) -> SampleTable:
        if self.end_step is not None and self.end_step <= self.start_step:
            raise ValueError(f"end_step = {self.end_step} should be after start_step = {self.start_step}")
        return self


class PixelTable(SampleTable):
    """What pictures and clips have in common: the size that they are trained at, and what is cut off."""

    resolution: Edge | None = None
    """Target size: pixels of an edge, or megapixels with `resolution_type = "area"`; the family's own when not given."""
    resolution_type: Literal["pixel", "area", "pixel_area"] = "pixel_area"
    """pixel: the shorter edge; area: megapixels; pixel_area: the area of a square with this edge."""
    bucket_rounding: int = Field(2, ge=0, le=4)
    """Decimals of the aspect ratio by which samples are put into one bucket."""
    crop: Literal["center", "random", "corner"] = "center"
    """What is cut out to reach the bucket's size: the middle, a part that is drawn, or the top left corner."""
    crop_aspect: Literal["preserve", "square", "closest", "random"] = "preserve"
    """preserve: buckets by aspect ratio; square: everything is cropped square; closest, random: to an aspect of `crop_aspects`,
    the nearest one or one that is drawn once for each file, by its name."""
    crop_aspects: tuple[Annotated[float, Field(gt=0.01, lt=100)], ...] = ()
    """Aspect ratios, width by height, for `crop_aspect = "closest"` and "random"."""
    variants: int = Field(1, ge=1, le=1000)
    """With a cache: how many drawn crops or windows of each sample are kept."""
    minimum_size: Edge | None = None
    """Smaller samples are left out; counted as `resolution` is, by the shorter edge, megapixels, or the edge of a square of the area."""
    maximum_size: Edge | None = None
    """Larger samples are made as large as `downsample_to`, and the crop is cut out of that; counted as `minimum_size` is."""
    downsample_to: Edge | None = None
    """How large samples are made that exceed `maximum_size`; others are as large as the bucket's size just needs, so that a crop
    shows more of them, in less detail."""
    minimum_aspect: float | None = Field(None, gt=0)
    """Samples that are narrower, width by height, are left out."""
    maximum_aspect: float | None = Field(None, gt=0)
    """Samples that are wider, width by height, are left out."""
    max_pixels: int = Field(100_000_000, ge=1)
    """Files with more pixels in a picture or frame are not decoded."""

    @property
    def num_variants(self) -> int:
        """How many crops or windows of a sample are kept."""
        return self.variants

    @model_validator(mode="after")
    def _sensible_sizes(self) -> PixelTable:
        smallest, largest, unit = (0.001, 400.0, "megapixels") if self.resolution_type == "area" else (8, 20_000, "pixels")
        for key in ("resolution", "minimum_size", "maximum_size", "downsample_to"):
            value = getattr(self, key)
            if value is not None and not smallest <= value <= largest:
                other = "" if self.resolution_type == "area" or value >= smallest else '; megapixels need resolution_type = "area"'
                raise ValueError(f"{key} = {value:g} should be {smallest:g} to {largest:g} {unit}{other}")
        return self

    @model_validator(mode="after")
    def _aspects(self) -> PixelTable:
        if (self.crop_aspect in ("closest", "random")) != bool(self.crop_aspects):
            raise ValueError('`crop_aspects` goes with `crop_aspect = "closest"` or "random", and they need it')
        if self.minimum_aspect and self.maximum_aspect and self.minimum_aspect > self.maximum_aspect:
            raise ValueError(f"minimum_aspect = {self.minimum_aspect:g} is more than maximum_aspect = {self.maximum_aspect:g}")
        return self

    @model_validator(mode="after")
    def _downsampling(self) -> PixelTable:
        if (self.maximum_size is None) != (self.downsample_to is None):
            raise ValueError("`maximum_size` and `downsample_to` go together")
        if self.maximum_size is not None and self.downsample_to is not None and self.downsample_to > self.maximum_size:
            raise ValueError(f"downsample_to = {self.downsample_to:g} is more than maximum_size = {self.maximum_size:g}")
        return self


class ImageTable(PixelTable):
    """`[[datasets]]` with `kind = "image"`: pictures with captions."""

    kind: Literal["image"] = "image"
    """Pictures: JPEG, PNG and WebP files."""


class CompanionTable(DatasetTable):
    """`[[datasets]]` whose files stand beside the samples of another dataset; each kind tells of `of` in its own words."""

    of: FileStem
    """Name of the dataset whose samples the files belong to; files are paired by their names without ending."""

    @property
    def host(self) -> str | None:
        """The dataset whose samples the files belong to."""
        return self.of


class MaskTable(CompanionTable):
    """`[[datasets]]` with `kind = "mask"`: for each sample of another dataset, how much each place counts."""

    kind: Literal["mask"]
    """Masks: pictures, white where the sample counts; a clip's may be a clip."""
    of: FileStem
    """Name of the dataset whose samples the masks belong to; files are paired by their names without ending."""
    missing: Literal["skip", "full"] = "skip"
    """A sample without a mask is skipped and named, or counts in full."""

    @property
    def may_be_missing(self) -> bool:
        """Whether a sample may be without a mask."""
        return self.missing != "skip"


class ReferenceTable(CompanionTable):
    """`[[datasets]]` with `kind = "reference"`: for each sample of another dataset, a picture that is given beside its caption."""

    kind: Literal["reference"]
    """Pictures that are given to the model beside the caption."""
    of: FileStem
    """Name of the dataset whose samples the pictures belong to; files are paired by their names without ending."""
    missing: Literal["skip", "own"] = "skip"
    """A sample without a picture is skipped and named, or its own first frame is given."""

    @property
    def may_be_missing(self) -> bool:
        """Whether a sample may be without a picture of its own."""
        return self.missing != "skip"


class ControlTable(CompanionTable):
    """`[[datasets]]` with `kind = "control"`: for each clip of another dataset, a clip that guides it, such as one of poses."""

    kind: Literal["control"]
    """Clips that are given to the model beside the caption, such as of poses."""
    of: FileStem
    """Name of the dataset whose clips are guided; files are paired by their names without ending, and begin together."""


CORE_TABLES: dict[str, type[DatasetTable]] = {"image": ImageTable, "mask": MaskTable, "reference": ReferenceTable, "control": ControlTable}
"""The tables of the kinds that need no plugin."""
