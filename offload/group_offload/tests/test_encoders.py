"""Encoders and autoencoders that come and go by blocks or layers give what they give without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.matrix.stage import FAMILIES
from tunesmith import InputError, Modality, PipelineModel, PipelinePlugin
from tunesmith.discovery import load_class
from tunesmith_group_offload.encoders import offload_encoder

from .conftest import SAMPLES, Runner
from .pretended import pretend_for_encoders

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PipelineModel]:
    """The encoders of a twin of each family."""
    return {family: load(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def load(family: str, folder: Path) -> PipelineModel:
    kind = load_class(family)
    assert issubclass(kind, PipelinePlugin)
    plugin: Any = kind(family, kind.settings_type.model_validate({"path": str(kind.family_type.tiny(folder))}))
    encoders = {name: plugin.load_encoder(name, torch.float32) for name in plugin.family().encoder_types}
    made: PipelineModel = kind.model_type(plugin.family(), None, encoders, plugin.load_tools())
    return made


@torch.no_grad()
def made_by(model: PipelineModel, name: str) -> list[Tensor]:
    """What one of the networks gives: of the autoencoder latents and pixels, of the others all hidden states."""
    if name == "text_encoder":
        return list(model.encode_texts(["a shade of grey", "two"], False, CPU))
    generator = torch.Generator().manual_seed(0)
    if name != "vae":
        return list(model.encoder(name)(torch.randn(1, 6400, generator=generator), output_hidden_states=True).hidden_states)
    shape = (1, 3, 64, 64) if model.family.modality is Modality.IMAGE else (1, 3, 9, 64, 64)
    latents = model.encode_pixels(torch.rand(shape, generator=generator) * 2 - 1)["latents"]
    return [latents, model.decode(latents)]


@pytest.mark.parametrize("level", ["block", "leaf"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_network_gives_the_same_though_its_weights_are_gone_but_for_their_work(
    family: str, level: str, models: dict[str, PipelineModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(family, tmp_path)
    for name, network in model.encoders.items():
        visits = pretend_for_encoders(monkeypatch)
        offload_encoder(name, network, level, 1, CPU, None)
        expected, found = made_by(models[family], name), made_by(model, name)
        assert [torch.equal(one, other) for one, other in zip(expected, found, strict=True)] == [True] * len(expected)
        whole = sum(weight.numel() for weight in network.parameters())
        assert max(visits) < whole / 2, name
        monkeypatch.undo()


def test_a_network_without_blocks_is_refused_for_blocks() -> None:
    with pytest.raises(InputError, match=r'projector has no list of blocks .* level = "leaf"'):
        offload_encoder("projector", nn.Linear(2, 2), "block", 1, CPU, None)


def test_a_run_whose_encoders_come_and_go_is_the_run_without(train: Runner, plain: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions, latents and the samples of validation."""
    expected = plain("", SAMPLES)
    visits = pretend_for_encoders(monkeypatch)
    moved = train("[plugins.group_offload]\nencoders = ['vae', 'text_encoder']\n", SAMPLES, "run.cache='memory'")
    assert any(visits)
    assert moved.losses == expected.losses
    assert moved.pictures(3) == expected.pictures(3)
