"""What is told of Wan S2V before a run: what the cache will take, and what cannot be meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunesmith import InputError
from tunesmith.cache.upkeep import overview
from tunesmith.config import load_config
from tunesmith.plan import Plan, make_plan

from .conftest import Result
from .test_speech import config_text, films, speaker, start

__all__ = ["films", "speaker", "start"]

SAMPLE_FIELDS = {"latents", "reference_latents", "audio_embeds"}


@pytest.fixture
def measure(start: Callable[..., Result], tmp_path: Path, speaker: Path, films: Path) -> Callable[..., tuple[Plan, dict[str, int]]]:
    """A plan, and the bytes of each field of a run of the same config, without compression."""

    def measured(extra: str = "", *overrides: str) -> tuple[Plan, dict[str, int]]:
        settings = ("run.cache_compression='none'", "run.steps=1", f"run.cache_dir={str(tmp_path / 'cache')!r}", *overrides)
        start("kept", extra, *settings)
        file = tmp_path / "plan.toml"
        file.write_text(config_text(speaker, films, extra))
        plan = make_plan(load_config(file, settings))
        return plan, {name: amount.bytes for name, amount in overview(tmp_path / "cache").fields.items() if name != "prompt_embeds"}

    return measured


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ((), SAMPLE_FIELDS),
        (("model.motion=0.5",), {*SAMPLE_FIELDS, "motion_latents"}),  # which two of eleven windows have
        (("run.latents='sample'",), {*SAMPLE_FIELDS, "latents_std"}),
    ],
    ids=["first clips", "motion", "spread"],
)
def test_the_plan_counts_all_that_is_kept_of_clips_and_stills(measure: Any, pictures: Path, settings: tuple[str, ...], fields: set[str]):
    stills = f"[[datasets]]\nname = 'stills'\npath = {str(pictures)!r}\nresolution = 64\n"
    plan, found = measure(stills, *settings)
    assert set(found) == fields
    assert plan.cache_bytes == pytest.approx(sum(found.values()), rel=0.1)
    assert sum(found.values()) > 1.5 * found["latents"]
    for dataset in plan.datasets:
        assert dataset.cache_bytes == sum(bucket.cache_bytes for bucket in dataset.buckets)


def test_what_cannot_be_meant_is_refused_with_what_is_true_of_the_family(tmp_path: Path, speaker: Path, films: Path) -> None:
    file = tmp_path / "refused.toml"
    file.write_text(config_text(speaker, films, '[plugins.video]\n[validation]\ndataset_samples = 1\nresolutions = ["96x48"]\n'))
    with pytest.raises(InputError) as raised:
        make_plan(load_config(file, ["datasets.0.is_i2v=true"]))
    told = str(raised.value)
    assert "is_i2v: wan_s2v cannot be trained with the first frame given; take it out: the first frame of a clip" in told
    assert "a validation size of 96x48 cannot be sampled" in told


def test_clips_of_one_frame_are_left_out_with_what_keeps_them(tmp_path: Path, speaker: Path, films: Path) -> None:
    file = tmp_path / "short.toml"
    file.write_text(config_text(speaker, films))
    plan = make_plan(load_config(file, ["datasets.0.num_frames=4"]))
    [facts] = plan.datasets
    assert facts.batches_per_epoch == 0
    assert "wan_s2v hears nothing in a single frame; num_frames, and the clip, must have 5 or more" in str(facts.funnel)
    assert any("yields no whole batch" in problem.message for problem in plan.problems)
