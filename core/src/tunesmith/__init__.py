"""Tunesmith fine-tunes image and video diffusion models; every feature is a plugin.

What this module exports is the public interface for plugin authors. Names are imported when first used, so that
`tune --help` needs neither torch nor any plugin.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch import (
        AUDIO,
        HISTORY,
        LATENTS,
        LATENTS_STD,
        PIXELS,
        PROMPT_EMBEDS,
        Batch,
        Caption,
        Crop,
        Field,
        FieldShape,
        FieldValue,
        Ragged,
        Source,
        Window,
    )
    from .config import Config
    from .config.datasets import DatasetTable, PixelTable, SampleTable
    from .data.funnel import Funnel, Station
    from .data.geometry import Target, bucket_frames, center_crop, covering
    from .data.given import CONTROL, REFERENCE
    from .data.images import resize_and_crop, to_pixels
    from .data.pictures import MASK, PixelKind
    from .errors import InputError, PartMissing, RunFailed, TunesmithError
    from .events import Event
    from .family import Family, FamilyDefaults, FamilyPlugin, Modality, Sound, TokenGrid
    from .hooks import Wrapper, hookimpl
    from .hub import (
        Component,
        Origin,
        UnreachableError,
        fetch_files,
        fetch_tokenizer,
        fetch_weights,
        load_frozen,
        local_tokenizer,
        read_json,
    )
    from .kinds import Kind, KindPlugin, Piece, Probe, Unfit, Unreadable
    from .loss import Loss
    from .media import Clip, Media, MediaReader, MediaWriter, Report, SampleRequest, Wanted, write_image
    from .model import GridConvolution, GridLayout, Model, TrunkModule, take_rows
    from .noise import SigmaSampler, shift_sigma
    from .objective import mix, spread
    from .paths import InputPath, ModelSource, OutputPath
    from .pipelines.family import PipelineFamily
    from .pipelines.latents import LatentStatistics
    from .pipelines.model import PipelineModel
    from .pipelines.plugin import PipelinePlugin
    from .pipelines.settings import PipelineSettings
    from .pipelines.twins import gemma_twin, write_twin
    from .plugin import LAST_RESORT, Lever, NoSettings, Part, Plugin, Settings, Stage
    from .prompts import encode_captions
    from .quiet import without_progress_bars
    from .run import Run
    from .sampling import make_scheduler, plain_config
    from .schedules import ScheduledWeight
    from .sources import Entry, Listing, SourcePlugin
    from .step import Step
    from .validation import sample_all

_HOMES = {
    "batch": (
        "AUDIO",
        "HISTORY",
        "LATENTS",
        "LATENTS_STD",
        "PIXELS",
        "PROMPT_EMBEDS",
        "Batch",
        "Caption",
        "Crop",
        "Field",
        "FieldShape",
        "FieldValue",
        "Ragged",
        "Source",
        "Window",
    ),
    "config": ("Config",),
    "data.funnel": ("Funnel", "Station"),
    "data.geometry": ("Target", "bucket_frames", "center_crop", "covering"),
    "data.given": ("CONTROL", "REFERENCE"),
    "data.images": ("resize_and_crop", "to_pixels"),
    "data.pictures": ("MASK", "PixelKind"),
    "errors": ("InputError", "PartMissing", "RunFailed", "TunesmithError"),
    "events": ("Event",),
    "config.datasets": ("DatasetTable", "PixelTable", "SampleTable"),
    "family": ("Family", "FamilyDefaults", "FamilyPlugin", "Modality", "Sound", "TokenGrid"),
    "hooks": ("Wrapper", "hookimpl"),
    "hub": (
        "Component",
        "Origin",
        "UnreachableError",
        "fetch_files",
        "fetch_tokenizer",
        "fetch_weights",
        "load_frozen",
        "local_tokenizer",
        "read_json",
    ),
    "kinds": ("Kind", "KindPlugin", "Piece", "Probe", "Unfit", "Unreadable"),
    "loss": ("Loss",),
    "media": ("Clip", "Media", "MediaReader", "MediaWriter", "Report", "SampleRequest", "Wanted", "write_image"),
    "model": ("GridConvolution", "GridLayout", "Model", "TrunkModule", "take_rows"),
    "paths": ("InputPath", "ModelSource", "OutputPath"),
    "noise": ("SigmaSampler", "shift_sigma"),
    "objective": ("mix", "spread"),
    "pipelines.family": ("PipelineFamily",),
    "pipelines.latents": ("LatentStatistics",),
    "pipelines.model": ("PipelineModel",),
    "pipelines.plugin": ("PipelinePlugin",),
    "pipelines.settings": ("PipelineSettings",),
    "pipelines.twins": ("gemma_twin", "write_twin"),
    "plugin": ("LAST_RESORT", "Lever", "NoSettings", "Part", "Plugin", "Settings", "Stage"),
    "prompts": ("encode_captions",),
    "quiet": ("without_progress_bars",),
    "run": ("Run",),
    "sampling": ("make_scheduler", "plain_config"),
    "schedules": ("ScheduledWeight",),
    "sources": ("Entry", "Listing", "SourcePlugin"),
    "step": ("Step",),
    "validation": ("sample_all",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AUDIO",
    "CONTROL",
    "HISTORY",
    "LAST_RESORT",
    "LATENTS",
    "LATENTS_STD",
    "MASK",
    "PIXELS",
    "PROMPT_EMBEDS",
    "REFERENCE",
    "Batch",
    "Caption",
    "Clip",
    "Component",
    "Config",
    "Crop",
    "DatasetTable",
    "Entry",
    "Event",
    "Family",
    "FamilyDefaults",
    "FamilyPlugin",
    "Field",
    "FieldShape",
    "FieldValue",
    "Funnel",
    "GridConvolution",
    "GridLayout",
    "InputError",
    "InputPath",
    "Kind",
    "KindPlugin",
    "LatentStatistics",
    "Lever",
    "Listing",
    "Loss",
    "Media",
    "MediaReader",
    "MediaWriter",
    "Modality",
    "Model",
    "ModelSource",
    "NoSettings",
    "Origin",
    "OutputPath",
    "Part",
    "PartMissing",
    "Piece",
    "PipelineFamily",
    "PipelineModel",
    "PipelinePlugin",
    "PipelineSettings",
    "PixelKind",
    "PixelTable",
    "Plugin",
    "Probe",
    "Ragged",
    "Report",
    "Run",
    "RunFailed",
    "SampleRequest",
    "SampleTable",
    "ScheduledWeight",
    "Settings",
    "SigmaSampler",
    "Sound",
    "Source",
    "SourcePlugin",
    "Stage",
    "Station",
    "Step",
    "Target",
    "TokenGrid",
    "TrunkModule",
    "TunesmithError",
    "Unfit",
    "UnreachableError",
    "Unreadable",
    "Wanted",
    "Window",
    "Wrapper",
    "bucket_frames",
    "center_crop",
    "covering",
    "encode_captions",
    "fetch_files",
    "fetch_tokenizer",
    "fetch_weights",
    "gemma_twin",
    "hookimpl",
    "load_frozen",
    "local_tokenizer",
    "make_scheduler",
    "mix",
    "plain_config",
    "read_json",
    "resize_and_crop",
    "sample_all",
    "shift_sigma",
    "spread",
    "take_rows",
    "to_pixels",
    "without_progress_bars",
    "write_image",
    "write_twin",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
