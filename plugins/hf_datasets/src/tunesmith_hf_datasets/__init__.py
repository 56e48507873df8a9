"""Datasets of the Hugging Face Hub, and local copies of them, for Tunesmith."""

from .plugin import HfDatasets, HubDataset

__all__ = ["HfDatasets", "HubDataset"]
