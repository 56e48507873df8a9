"""Scheduled sampling for Tunesmith: train on latents that the model itself has drifted to."""

from .plugin import ScheduledSampling
from .settings import ProbabilityRamp, ReflexFlowSettings, ScheduledSamplingSettings

__all__ = ["ProbabilityRamp", "ReflexFlowSettings", "ScheduledSampling", "ScheduledSamplingSettings"]
