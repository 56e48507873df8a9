"""Which layers are quantised, asked of the families by their shapes alone, and of text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, UMT5Config, UMT5EncoderModel

from tunesmith import PipelinePlugin
from tunesmith.discovery import load_class
from tunesmith_quantize.formats import make_format
from tunesmith_quantize.layers import quantized
from tunesmith_quantize.selection import layers_of_encoder, layers_of_trunk, num_bytes, quantize_layers, size_text, tally, unmatched

CPU = torch.device("cpu")
ATTENTION = {f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")}
IN_A_BLOCK = {
    "sana": ATTENTION | {"ff.conv_inverted", "ff.conv_point"},
    "sana_video": ATTENTION | {"ff.conv_inverted", "ff.conv_point"},
    "wan_s2v": ATTENTION | {"ffn.net.0.proj", "ffn.net.2"},
}
"""The layers with a weight that is a matrix: the attention and the feed-forward, of which Sana's has convolutions of one pixel."""


def outline(family: str, folder: Path) -> tuple[nn.Module, list[str]]:
    """A denoiser on the meta device, and the names of its trunk."""
    kind = load_class(family)
    assert issubclass(kind, PipelinePlugin)
    plugin = kind(family, kind.settings_type(path=str(kind.family_type.tiny(folder))))  # type: ignore[call-arg]
    model = kind.model_type(plugin.family(), plugin.family().on_meta(), {})
    return model.denoiser, [entry.name for entry in model.trunk()]


@pytest.mark.parametrize("family", IN_A_BLOCK)
def test_attention_and_feed_forward_of_the_trunk_are_quantised_and_nothing_else(family: str, tmp_path: Path) -> None:
    network, trunk = outline(family, tmp_path)
    layers = layers_of_trunk(network, trunk, None, ())
    between = {name for name in trunk if name.startswith("audio_injector.")}
    expected = {f"{name}.{layer}" for name in set(trunk) - between for layer in IN_A_BLOCK[family]}
    expected |= {f"{name}.{layer}" for name in between for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert set(layers) == expected
    assert bool(between) == (family == "wan_s2v")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_that_are_foretold_are_those_of_the_packed_network(dtype: torch.dtype, tmp_path: Path) -> None:
    network, trunk = outline("wan_s2v", tmp_path)
    format = make_format("int8-torchao")
    foretold = tally(network, layers_of_trunk(network, trunk, None, ()), format, dtype)
    network.to_empty(device="cpu").to(dtype)
    for parameter in network.parameters():
        parameter.data.normal_()
    beside = sum(buffer.numel() * buffer.element_size() for buffer in network.buffers())
    assert foretold.bytes_before == num_bytes(network) - beside
    quantize_layers(network, layers_of_trunk(network, trunk, None, ()), format, CPU)
    assert foretold.bytes_after == num_bytes(network) - beside < foretold.bytes_before
    assert foretold.packed == sum(parameter.numel() for parameter in network.parameters() if parameter.dtype == torch.int8)
    assert foretold.parameters == sum(parameter.numel() for parameter in network.parameters())


class Steered(nn.Module):
    """A block with a norm that makes its own scale, a plain layer and one that is something special."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({"linear": nn.Linear(4, 24)})
        self.inner = nn.Linear(4, 4)
        self.special = quantized(nn.Linear(4, 4), make_format("int8-bnb"), CPU)


def test_what_steers_is_left_unless_it_is_asked_for() -> None:
    network: Any = nn.ModuleDict({"blocks": nn.ModuleList([Steered(), Steered()]), "embed": nn.Linear(4, 4)})
    assert set(layers_of_trunk(network, ["blocks.0", "blocks.1"], None, ())) == {"blocks.0.inner", "blocks.1.inner"}
    assert set(layers_of_trunk(network, ["blocks.0"], None, ())) == {"blocks.0.inner"}
    assert set(layers_of_trunk(network, [], ["linear", "embed"], [])) == {"blocks.0.norm1.linear", "blocks.1.norm1.linear", "embed"}
    assert set(layers_of_trunk(network, ["blocks.0", "blocks.1"], None, [r"blocks\.1\..*"])) == {"blocks.0.inner"}


def test_a_pattern_that_matches_nothing_is_told_with_the_nearest_names() -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([Steered()])})
    told, others = unmatched(network, ["iner", "inner", "special"])
    assert told.startswith("'iner' matches no linear layer or convolution of one pixel of ModuleDict; the nearest are inner")
    assert "'special' matches no linear layer" in others
    assert list(unmatched(network, ["inner", r"blocks\.0\..*"])) == []


def test_of_a_text_encoder_embeddings_and_what_it_wants_in_fp32_are_left() -> None:
    umt5 = UMT5EncoderModel(UMT5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    endings = {path.rpartition(".")[2] for path in layers_of_encoder(umt5)}
    assert endings == {"q", "k", "v", "o", "wi_0", "wi_1"}
    gemma = Gemma2ForCausalLM(
        Gemma2Config(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8)
    )
    endings = {path.rpartition(".")[2] for path in layers_of_encoder(gemma)}
    assert endings == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(("count", "text"), [(512, "0.50 KiB"), (3 * 2**20, "3.00 MiB"), (5 * 2**30 // 2, "2.50 GiB")])
def test_sizes_are_told_in_powers_of_1024(count: int, text: str) -> None:
    assert size_text(count) == text
