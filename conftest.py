"""What holds for every test of the repository: one thread, no network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so set before anything can import it

import torch

torch.set_num_threads(1)
