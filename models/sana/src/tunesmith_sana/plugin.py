"""The Sana plugin."""

from __future__ import annotations

from tunesmith import PipelinePlugin

from .family import SanaFamily, SanaSettings
from .model import SanaModel


class Sana(PipelinePlugin[SanaSettings]):
    """Fine-tune Sana and SANA-1.5: text to image."""

    family_type = SanaFamily
    model_type = SanaModel
