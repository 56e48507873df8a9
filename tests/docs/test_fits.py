"""The page of what fits where has a row for every device, and its numbers are those of the forecast as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import fits
from tunesmith.savings import GIB, limit_of

ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def rows(checkpoint: fits.Checkpoint) -> list[tuple[str, ...]]:
    """The rows of a checkpoint's table, without its heads."""
    _, _, rest = fits.PAGE.read_text().partition(f"{fits.HEADING}{checkpoint.family}`, `{checkpoint.variant}`")
    return [found.groups() for found in ROW.finditer(rest.partition(fits.HEADING)[0])][2:]


@pytest.mark.parametrize("checkpoint", fits.CHECKPOINTS, ids=lambda one: one.family)
def test_there_is_a_row_for_everything_that_is_trained_on_every_device(checkpoint: fits.Checkpoint) -> None:
    wanted = [(trained, device) for trained in checkpoint.trained for device in ("any", *(f"{one} GB" for one in fits.DEVICES))]
    assert [row[:2] for row in rows(checkpoint)] == wanted, "run python docs/generate.py fits"


@pytest.mark.parametrize(("trained", "device"), [(fits.ADAPTER, 12), (fits.WHOLE, 24)])
def test_what_a_row_proposes_takes_what_it_says(tmp_path: Path, trained: str, device: int) -> None:
    checkpoint = fits.CHECKPOINTS[0]
    [row] = [row for row in rows(checkpoint) if row[:2] == (trained, f"{device} GB")]
    settings = re.findall(r"`([^`]+)`", row[2])
    assert settings
    _, phases = fits.forecast(fits.written(checkpoint, trained, tmp_path), settings)
    assert list(fits.peaks(phases)) == list(row[3:]), "run python docs/generate.py fits"
    assert max(map(float, row[3:])) <= limit_of(device * GIB) / GIB
