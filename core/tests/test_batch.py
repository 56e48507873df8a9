"""Ragged values and fields of a batch."""

import pytest
import torch

from tunesmith import Batch, Ragged, take_rows


def test_padding_adds_zeros_and_says_what_is_real():
    ragged = Ragged([torch.ones(2, 3), 2 * torch.ones(4, 3)])
    padded, mask = ragged.padded()
    assert padded.shape == (2, 4, 3)
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert torch.equal(padded[0, 2:], torch.zeros(2, 3))
    assert torch.equal(padded[mask], torch.cat(ragged.values))
    assert ragged.padded(6)[0].shape == (2, 6, 3)


def test_a_field_is_asked_for_by_what_it_is():
    batch = Batch(fields={"latents": torch.zeros(1, 2), "prompt": Ragged([torch.zeros(1, 2)])}, wanted=frozenset({"latents", "audio"}))
    assert batch.wants("audio")
    assert not batch.wants("latents")
    with pytest.raises(TypeError, match="'prompt' is ragged"):
        batch.tensor("prompt")
    with pytest.raises(TypeError, match="'latents' is one tensor"):
        batch.ragged("latents")
    with pytest.raises(KeyError, match="no field 'audio'; it has latents, prompt"):
        batch.tensor("audio")


def test_tokens_are_taken_per_sample():
    value = torch.arange(24.0).reshape(2, 4, 3)
    indices = torch.tensor([[0, 2], [1, 3]])
    assert torch.equal(take_rows(value, indices), torch.stack([value[0, [0, 2]], value[1, [1, 3]]]))
