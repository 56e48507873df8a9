"""Whole runs with the feed-forward in portions: the losses of the run without, with all that acts on blocks; and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.matrix.conftest import Matrix
from tests.matrix.features import FEATURES
from tests.matrix.stage import FAMILIES
from tunesmith import FamilyPlugin
from tunesmith.config import ConfigErrors, load_config
from tunesmith.discovery import load_class
from tunesmith.session import assemble
from tunesmith_chunked_feed_forward import portions

TABLE = "[plugins.chunked_feed_forward]\nchunks = 3\n"
ON_ALL_LAYERS = '[plugins.lora]\nrank = 4\ntargets = ["to_q", "net.0.proj", "net.2"]\n'
PACKED = '[plugins.quantize]\nformat = "int8-bnb"\n'
OFFLOADED = '[plugins.group_offload]\nlevel = "leaf"\n'


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("chunked"))


def refuses(name: str) -> bool:
    kind = load_class(name)
    assert issubclass(kind, FamilyPlugin)
    return "chunked_feed_forward" in vars(kind.family_type).get("refuses", {})


TAKING = [name for name in FAMILIES if not refuses(name)]
REFUSING = [name for name in FAMILIES if refuses(name)]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each portion has that is kept for backward."""
    seen: list[int] = []

    def watched(forward: Callable[..., Any], tokens: Tensor, *, use_reentrant: bool) -> Any:
        seen.append(tokens.shape[-2])
        return checkpoint(forward, tokens, use_reentrant=use_reentrant)

    monkeypatch.setattr(portions, "checkpoint", watched)
    return seen


@pytest.mark.parametrize("family", TAKING)
def test_a_run_in_portions_has_the_losses_of_one_without(matrix: Matrix, family: str, sizes: list[int]) -> None:
    """Fewer tokens than usual, hidden states that are read, an adapter within packed layers that come and go, and recomputed blocks."""
    features = frozenset({"tread", "crepa", "checkpointing"})
    tables = ON_ALL_LAYERS + PACKED
    plain, _ = matrix.train(family, features, "plain", tables)
    assert sizes == []
    chunked, seen = matrix.train(family, features, "chunked", tables + OFFLOADED + TABLE)
    assert len(plain.losses) == 3
    assert chunked.losses == pytest.approx(plain.losses, rel=1e-6)
    assert set(sizes) == {len(portion) for count in seen.tokens(0) | seen.tokens(1) for portion in torch.arange(count).chunk(3)}
    for feature in features:
        FEATURES[feature].shows(seen)


@pytest.mark.parametrize("family", TAKING)
def test_without_recomputed_blocks_all_weights_learn_as_without_portions(matrix: Matrix, family: str, sizes: list[int]) -> None:
    plain, _ = matrix.train(family, frozenset(), "all-plain")
    chunked, seen = matrix.train(family, frozenset(), "all-chunked", TABLE)
    assert chunked.losses == pytest.approx(plain.losses, rel=1e-6)
    assert len(sizes) == 3 * len(seen.run.model.blocks) * len(seen.steps)


def refusal(matrix: Matrix, family: str, table: str) -> tuple[Path, str]:
    file = matrix.stage_of(family).folder / "refused.toml"
    file.write_text(matrix.stage_of(family).config(table))
    with pytest.raises(ConfigErrors) as raised:
        assemble(load_config(file))
    [line] = str(raised.value).splitlines()
    return file, line


@pytest.mark.parametrize("family", REFUSING)
def test_a_family_whose_feed_forward_convolves_refuses_it_before_anything_is_loaded(matrix: Matrix, family: str) -> None:
    file, line = refusal(matrix, family, TABLE)
    at = file.read_text().splitlines().index("[plugins.chunked_feed_forward]") + 1
    assert line.startswith(f"{file}:{at}: [plugins.chunked_feed_forward] {family} refuses chunked_feed_forward: its feed-forward convolves")


def test_a_family_that_says_nothing_is_refused_by_what_its_blocks_are(matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = load_class(REFUSING[0])
    assert issubclass(kind, FamilyPlugin)
    monkeypatch.setattr(kind.family_type, "refuses", {})
    _, line = refusal(matrix, REFUSING[0], TABLE)
    assert re.search(r"the feed-forward of transformer_blocks\.0 is a GLUMBConv, whose convolutions", line)


@pytest.mark.parametrize("key", ["chunk_size", "feed_forward_chunk_size"])
def test_a_size_in_tokens_is_answered_with_the_setting_there_is(matrix: Matrix, key: str) -> None:
    _, line = refusal(matrix, TAKING[0], f"[plugins.chunked_feed_forward]\n{key} = 64\n")
    assert "write chunks = 2" in line
