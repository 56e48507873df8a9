"""Pipelines and adapters as files: saved, and loaded as diffusers loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

from tunesmith_wan_s2v import WanS2VTransformer3DModel, WanSpeechToVideoPipeline, register

from . import components
from .components import sound
from .goldens import difference
from .test_pipeline import PICTURE, make

ENCODERS = ("tokenizer", "text_encoder", "audio_encoder", "audio_processor")
SAME = 1e-5
"""Weights that are read from a file lie elsewhere in memory, for which the CPU rounds otherwise."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole pipeline on disk."""
    folder = tmp_path_factory.mktemp("pipeline")
    components.pipeline().save_pretrained(folder)
    return folder


def from_words(pipe: WanSpeechToVideoPipeline) -> Tensor:
    """A clip that every component takes part in."""
    words: dict[str, Any] = {"prompt": "A man speaks", "prompt_embeds": None, "negative_prompt_embeds": None, "max_sequence_length": 12}
    frames: Tensor = make(pipe, image=PICTURE, audio=sound(0.2), audio_embeds=None, **words)
    return frames


def loaded(folder: Path, **components: object) -> WanSpeechToVideoPipeline:
    pipe = DiffusionPipeline.from_pretrained(folder, **components)
    assert isinstance(pipe, WanSpeechToVideoPipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_reloaded_pipeline_makes_the_same_clip(folder: Path) -> None:
    assert difference(from_words(loaded(folder)), from_words(components.pipeline())) < SAME


def test_an_audio_processor_with_a_tokenizer_does_the_same(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "a": 5}))
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(tmp_path / "vocab.json"))
    components.pipeline(audio_processor=processor).save_pretrained(tmp_path / "pipeline")
    pipe = loaded(tmp_path / "pipeline")
    assert isinstance(pipe.audio_processor, Wav2Vec2Processor)  # as the repository on the Hub has it
    assert difference(from_words(pipe), from_words(components.pipeline())) < SAME


def test_the_folder_is_laid_out_as_the_repository_on_the_hub(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "WanSpeechToVideoPipeline"
    assert index["transformer"] == ["diffusers", "WanS2VTransformer3DModel"]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    assert index["audio_encoder"] == ["transformers", "Wav2Vec2ForCTC"]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"transformer", "vae", "scheduler", *ENCODERS}


def test_diffusers_knows_the_classes_and_more_registration_does_no_harm() -> None:
    register()
    assert diffusers.WanSpeechToVideoPipeline is WanSpeechToVideoPipeline
    assert diffusers.WanS2VTransformer3DModel is WanS2VTransformer3DModel


def test_a_transformer_in_memory_takes_the_place_of_the_one_on_disk(folder: Path) -> None:
    other = components.transformer(seed=7)
    pipe = loaded(folder, transformer=other)
    assert pipe.transformer is other
    assert difference(make(pipe), make(components.pipeline())) > 1e-3


def test_a_replaced_transformer_is_still_saved_as_a_class_of_diffusers(tmp_path: Path) -> None:
    pipe = components.pipeline(**dict.fromkeys(ENCODERS))
    pipe.transformer = components.transformer(seed=7)
    pipe.save_pretrained(tmp_path)
    assert difference(make(loaded(tmp_path)), make(pipe)) < SAME


def test_a_pipeline_without_encoders_is_saved_and_loaded_without(tmp_path: Path) -> None:
    components.pipeline(**dict.fromkeys(ENCODERS)).save_pretrained(tmp_path)
    pipe = loaded(tmp_path)
    assert [getattr(pipe, name) for name in ENCODERS] == [None] * 4
    assert difference(make(pipe), make(components.pipeline())) < SAME


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A saved adapter of blocks and injectors, and the clip that it made in the transformer that it was made for."""
    folder = tmp_path_factory.mktemp("adapter")
    pipe = components.pipeline()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    pipe.transformer.add_adapter(config, adapter_name="spoken")
    torch.manual_seed(11)
    with torch.no_grad():
        for name, weights in pipe.transformer.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.3)
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="spoken")
    metadata = pipe.transformer.peft_config["spoken"].to_dict()
    WanSpeechToVideoPipeline.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata)
    return folder, make(pipe)


def test_a_loaded_adapter_makes_the_clip_of_the_trained_one(adapter: tuple[Path, Tensor]) -> None:
    folder, expected = adapter
    pipe = components.pipeline()
    plain = make(pipe)
    pipe.load_lora_weights(folder, adapter_name="read")
    assert difference(make(pipe), expected) < 1e-6
    assert difference(expected, plain) > 1e-2
    pipe.unload_lora_weights()
    assert torch.equal(make(pipe), plain)


def test_an_adapter_reaches_blocks_and_injectors(adapter: tuple[Path, Tensor]) -> None:
    names = WanSpeechToVideoPipeline.lora_state_dict(adapter[0])
    for part in ("attn1", "attn2"):
        assert f"transformer.blocks.1.{part}.to_out.0.lora_A.weight" in names
    assert "transformer.audio_injector.injector.1.to_q.lora_B.weight" in names


def test_an_adapter_has_a_scale_and_can_be_merged(adapter: tuple[Path, Tensor]) -> None:
    folder, expected = adapter
    pipe = components.pipeline()
    plain = make(pipe)
    pipe.load_lora_weights(folder, adapter_name="read")
    pipe.set_adapters("read", 0.0)
    assert difference(make(pipe), plain) < 1e-5
    pipe.set_adapters("read", 1.0)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert difference(make(pipe), expected) < 1e-4
