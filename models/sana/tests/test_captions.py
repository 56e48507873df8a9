"""How much of a caption Sana reads is counted as its pipeline reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from diffusers import SanaPipeline

from tunesmith import Batch, Caption, Run

from .conftest import encoded, plugin


@pytest.mark.parametrize("instruction", [False, True, "Paint: "])
def test_the_limit_is_where_a_longer_caption_reads_the_same(twin: Path, make_run: Callable[..., Run], instruction: bool | str) -> None:
    family = plugin(twin, complex_human_instruction=instruction).family()

    def embedded(text: str) -> torch.Tensor:
        return encoded(twin, make_run(), Caption(text), complex_human_instruction=instruction).values[0]

    texts = ["x" * length for length in range(296, 302)]
    counts = family.count_tokens(texts)
    assert counts is not None
    full = [texts[0]]
    for text, longer in pairwise(texts):
        before, after = embedded(text), embedded(longer)
        if before.shape == after.shape and torch.equal(before, after):
            break
        full.append(longer)
    assert counts[len(full) - 1] == family.caption_tokens


def test_captions_are_counted_as_the_pipeline_cleans_them(twin: Path) -> None:
    family = plugin(twin, complex_human_instruction=False).family()
    assert family.count_tokens(["a cat", "  A CAT ", ""]) == [6, 6, 1]  # a token a letter, one for the space, and <bos>
    assert family.count_tokens([]) == []


def test_captions_are_cleaned_as_the_pipeline_does_it(twin: Path, pipe: SanaPipeline) -> None:
    family = plugin(twin).family()
    for caption in ("  A CAT\n", "Ünïcode SS", "a\u00a0b "):
        assert [family.as_read(caption)] == pipe._text_preprocessing([caption])


def test_the_tokenizer_is_looked_for_where_the_text_encoder_is(twin: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (*(twin / "tokenizer").iterdir(), twin / "text_encoder/config.json"):
        (elsewhere / file.name).symlink_to(file)
    assert plugin(twin, text_encoder=str(elsewhere), complex_human_instruction=False).family().count_tokens(["a"]) == [2]  # and <bos>


def test_without_a_tokenizer_on_this_machine_nothing_is_counted(twin: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(twin, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer"))
    assert plugin(bare).family().count_tokens(["a"]) is None


def test_a_batch_that_wants_neither_latents_nor_captions_loads_no_encoder(twin: Path) -> None:
    batch = Batch(captions=(Caption("a cat"),), inputs={"mask": torch.ones(1, 1, 8, 8)}, wanted=frozenset({"mask"}))
    assert plugin(twin).encode_batch(cast(Run, SimpleNamespace()), batch) is batch
    assert batch.fields == {}
