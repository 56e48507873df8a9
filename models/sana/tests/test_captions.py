"""How much of a caption Sana reads is counted as its pipeline reads it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from diffusers import SanaPipeline

from tunesmith import Batch, Caption, Run, encode_captions
from tunesmith.hub import Origin
from tunesmith_sana import SanaFamily
from tunesmith_sana.prompts import instruction_lines, text_encoder_of

from .conftest import plugin


@pytest.mark.parametrize("instruction", [False, True, "Paint: "])
def test_the_limit_is_where_a_longer_caption_reads_the_same(twin: Path, pipe: SanaPipeline, instruction: bool | str) -> None:
    family = plugin(twin, complex_human_instruction=instruction).family()

    def embedded(text: str) -> torch.Tensor:
        encode = text_encoder_of(pipe, instruction_lines(instruction), torch.device("cpu"))
        return encode_captions(encode, [Caption(text)]).values[0]

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


def test_the_tokenizer_is_looked_for_where_the_text_encoder_is(twin: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").symlink_to(twin / "tokenizer")
    facts = replace(plugin(twin).family().facts, text_origin=Origin(str(tmp_path / "elsewhere")))
    assert SanaFamily(facts, text_from_elsewhere=True).count_tokens(["a"]) == [2]  # <bos> and the letter
    assert SanaFamily(facts).count_tokens(["a"]) is None


def test_without_a_tokenizer_on_this_machine_nothing_is_counted(twin: Path) -> None:
    facts = replace(plugin(twin).family().facts, text_origin=Origin("nobody/nothing"))
    assert SanaFamily(facts).count_tokens(["a"]) is None


def test_a_batch_that_wants_neither_latents_nor_captions_loads_no_encoder(twin: Path) -> None:
    batch = Batch(captions=(Caption("a cat"),), inputs={"mask": torch.ones(1, 1, 8, 8)}, wanted=frozenset({"mask"}))
    assert plugin(twin).encode_batch(cast(Run, SimpleNamespace()), batch) is batch
    assert batch.fields == {}
