"""Parts, precisions, suffixes, parts from elsewhere, and what the cache is told of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import GemmaTokenizer

from tunesmith import Batch, Caption, InputError, Part, PartMissing, Run
from tunesmith_sana import Sana, SanaSettings
from tunesmith_sana.model import SanaModel

from .conftest import encoded, load, plugin, uniform

LATENTS, PROMPTS = 0, 1


@pytest.fixture
def checkpoint(twin: Path, tmp_path: Path) -> Path:
    """A copy of the twin to change."""
    return shutil.copytree(twin, tmp_path / "checkpoint")


def fingerprints(checkpoint: Path, run: Run, **settings: object) -> tuple[str, str]:
    latents, prompts = plugin(checkpoint, **settings).fields(run)
    return latents.fingerprint, prompts.fingerprint


def nudge(weights: Path) -> None:
    """Change one number of a weight file."""
    tensors = load_file(weights)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, weights, metadata={"format": "pt"})


def test_each_part_has_its_own_networks_all_frozen(twin: Path, make_run: Callable[..., Run]) -> None:
    sana, run = plugin(twin), make_run()
    parts = {part: load(sana, run, part) for part in Part}
    assert {part: sorted(model.encoders) for part, model in parts.items()} == {
        Part.ENCODERS: ["text_encoder", "vae"],
        Part.DENOISER: [],
        Part.DECODER: ["vae"],
    }
    with pytest.raises(PartMissing, match="denoiser of sana is not loaded"):
        parts[Part.DECODER].denoiser  # noqa: B018
    networks = [*parts[Part.ENCODERS].encoders.values(), parts[Part.DENOISER].denoiser]
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())


@pytest.mark.parametrize(("weights", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_denoiser_is_kept_in_the_runs_precision(twin: Path, make_run: Callable[..., Run], weights: str, dtype: torch.dtype) -> None:
    model = load(plugin(twin), make_run(weights), Part.DENOISER)
    assert {parameter.dtype for parameter in model.denoiser.parameters()} == {dtype}


def test_the_encoders_precisions_can_be_set(twin: Path, make_run: Callable[..., Run]) -> None:
    model = load(plugin(twin, vae_dtype="bf16", text_encoder_dtype="bf16"), make_run(), Part.ENCODERS)
    assert {model.encoder(name).dtype for name in ("vae", "text_encoder")} == {torch.bfloat16}
    default = load(plugin(twin), make_run(), Part.ENCODERS)
    assert {default.encoder(name).dtype for name in ("vae", "text_encoder")} == {torch.float32}


def test_on_a_gpu_the_text_encoder_runs_in_bf16_by_default(twin: Path) -> None:
    assert plugin(twin).settings.dtypes(torch.device("cuda"))["text_encoder"] is torch.bfloat16


def test_only_wanted_fields_are_filled(twin: Path, make_run: Callable[..., Run]) -> None:
    sana, run = plugin(twin), make_run()
    load(sana, run, Part.ENCODERS)
    assert set(sana.encode_batch(run, Batch(captions=(Caption("a"),), wanted=frozenset({"prompt_embeds"}))).fields) == {"prompt_embeds"}
    given = torch.zeros(1)
    batch = Batch(
        captions=(Caption("a"),), inputs={"pixels": uniform(1, 3, 64, 64)}, fields={"latents": given}, wanted=frozenset({"latents"})
    )
    assert sana.encode_batch(run, batch).fields == {"latents": given}


def test_embeddings_do_not_depend_on_the_batch_they_are_made_in(twin: Path, make_run: Callable[..., Run]) -> None:
    run, captions = make_run(), (Caption("a b"), Caption("x", negative=True), Caption("a longer prompt than the others"))
    together = encoded(twin, run, *captions)
    for caption, row in zip(captions, together.values, strict=True):
        torch.testing.assert_close(encoded(twin, run, caption).values[0], row, rtol=0, atol=1e-6)


def test_encoding_with_released_encoders_is_told(twin: Path, make_run: Callable[..., Run]) -> None:
    sana, run = plugin(twin), make_run()
    batch = Batch(captions=(Caption("a"),), wanted=frozenset({"prompt_embeds"}))
    load(sana, run, Part.ENCODERS).release()
    with pytest.raises(PartMissing, match="text_encoder of sana is not loaded"):
        sana.encode_batch(run, batch)


def test_a_tokenizer_that_makes_nothing_of_an_empty_prompt_is_told(checkpoint: Path, make_run: Callable[..., Run]) -> None:
    tokenizer = GemmaTokenizer.from_pretrained(checkpoint / "tokenizer")
    GemmaTokenizer(vocab=tokenizer.get_vocab(), merges=[]).save_pretrained(checkpoint / "tokenizer")  # without add_bos_token
    with pytest.raises(InputError, match=r"no token of ''.*add_bos_token"):
        encoded(checkpoint, make_run(), Caption("", negative=True))


def test_fingerprints_follow_what_each_field_depends_on(checkpoint: Path, make_run: Callable[..., Run]) -> None:
    run = make_run()
    before = fingerprints(checkpoint, run)
    assert fingerprints(checkpoint, run) == before
    nudge(checkpoint / "transformer/diffusion_pytorch_model.safetensors")
    assert fingerprints(checkpoint, run) == before
    for settings in ({"complex_human_instruction": False}, {"text_encoder_dtype": "bf16"}):
        changed = fingerprints(checkpoint, run, **settings)
        assert (changed[LATENTS] == before[LATENTS], changed[PROMPTS] == before[PROMPTS]) == (True, False)
    assert fingerprints(checkpoint, run, vae_dtype="bf16")[LATENTS] != before[LATENTS]
    nudge(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    nudged = fingerprints(checkpoint, run)
    assert (nudged[LATENTS] == before[LATENTS], nudged[PROMPTS] == before[PROMPTS]) == (False, True)
    nudge(checkpoint / "text_encoder/model.safetensors")
    assert fingerprints(checkpoint, run)[PROMPTS] != before[PROMPTS]


def test_weight_files_of_a_suffix_are_taken_where_a_part_has_them(checkpoint: Path, make_run: Callable[..., Run]) -> None:
    plain = checkpoint / "vae/diffusion_pytorch_model.safetensors"
    shutil.copy(plain, plain.with_suffix(".fp16.safetensors"))
    nudge(plain.with_suffix(".fp16.safetensors"))
    run = make_run()

    def first_number(**settings: str) -> float:
        vae = load(plugin(checkpoint, **settings), run, Part.DECODER).encoder("vae")
        return float(vae.state_dict()[next(iter(load_file(plain)))].view(-1)[0])

    assert first_number(weights_variant="fp16") == pytest.approx(first_number() + 1)
    assert fingerprints(checkpoint, run, weights_variant="fp16")[LATENTS] != fingerprints(checkpoint, run)[LATENTS]
    load(plugin(checkpoint, weights_variant="fp16"), run, Part.DENOISER)  # has no such file


@pytest.mark.parametrize("part", ["pipeline", "alone"])
def test_vae_and_text_encoder_come_from_elsewhere(
    twin: Path, checkpoint: Path, tmp_path: Path, make_run: Callable[..., Run], part: str
) -> None:
    nudge(checkpoint / "vae/diffusion_pytorch_model.safetensors")
    nudge(checkpoint / "text_encoder/model.safetensors")
    vae, text_encoder = checkpoint, checkpoint
    if part == "alone":
        vae = checkpoint / "vae"
        text_encoder = shutil.copytree(checkpoint / "text_encoder", tmp_path / "gemma")
        shutil.copytree(checkpoint / "tokenizer", text_encoder, dirs_exist_ok=True)
    run = make_run()
    changed = fingerprints(twin, run, vae=str(vae), text_encoder=str(text_encoder))
    assert changed == fingerprints(checkpoint, run)
    model = load(plugin(twin, vae=str(vae), text_encoder=str(text_encoder)), run, Part.ENCODERS)
    own = load(plugin(checkpoint), run, Part.ENCODERS)
    for name in ("vae", "text_encoder"):
        assert all(torch.equal(a, b) for a, b in zip(model.encoder(name).parameters(), own.encoder(name).parameters(), strict=True))


def test_a_text_encoder_of_another_width_is_refused(twin: Path, checkpoint: Path) -> None:
    config = checkpoint / "text_encoder/config.json"
    config.write_text(config.read_text().replace('"hidden_size": 32', '"hidden_size": 48'))
    with pytest.raises(InputError, match=r"makes 48 channels.*takes 32"):
        plugin(twin, text_encoder=str(checkpoint)).family()


def test_missing_weights_are_named(checkpoint: Path, make_run: Callable[..., Run]) -> None:
    (checkpoint / "transformer/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="no safetensors weights in transformer/"):
        load(plugin(checkpoint), make_run(), Part.DENOISER)


def test_a_lost_file_of_several_is_named(checkpoint: Path, make_run: Callable[..., Run]) -> None:
    folder = checkpoint / "transformer"
    first, second = (f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2))
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / first)
    places = {name: (first, second)[number % 2] for number, name in enumerate(tensors)}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(InputError, match=f"transformer lacks {second}, which diffusion_pytorch_model.safetensors.index.json names"):
        load(plugin(checkpoint), make_run(), Part.DENOISER)


@pytest.fixture
def hub_id(twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The twin as a Hub repository in the local cache, at revision `main`."""
    repository, commit = tmp_path / "hub/models--someone--twin", "0" * 40
    shutil.copytree(twin, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return "someone/twin"


def test_a_cached_hub_checkpoint_works_offline_like_a_folder(twin: Path, hub_id: str, make_run: Callable[..., Run]) -> None:
    sana, run = Sana("sana", SanaSettings(path=hub_id)), make_run()
    assert not sana.family().known_by_heart
    assert [field.fingerprint for field in sana.fields(run)] == list(fingerprints(twin, run))
    assert all(isinstance(load(sana, run, part), SanaModel) for part in Part)


def test_validation_sizes_and_schedulers_that_cannot_be_sampled_with_are_problems_of_the_config(
    twin: Path, make_run: Callable[..., Run]
) -> None:
    def problems(**validation: Any) -> dict[tuple[str | int, ...], str]:
        sana = plugin(twin)
        return dict(sana.check(make_run(**validation).config, sana.family()))

    assert problems(resolutions=("64x64", "96x32"), scheduler="UniPCMultistepScheduler") == {}
    found = problems(resolutions=("64x64", "72x64"), scheduler="UniPCMultiStepScheduler")
    assert found.keys() == {("validation", "resolutions", 1), ("validation", "scheduler")}
    assert "72x64 cannot be sampled" in found["validation", "resolutions", 1]
    assert "use 64x64" in found["validation", "resolutions", 1]
    assert "did you mean UniPCMultistepScheduler?" in found["validation", "scheduler"]


def test_a_fine_tuned_transformer_goes_back_into_a_pipeline(twin: Path, tmp_path: Path, make_run: Callable[..., Run]) -> None:
    denoiser = load(plugin(twin), make_run(), Part.DENOISER).denoiser
    denoiser.save_pretrained(tmp_path / "transformer")
    pipeline = SanaPipeline.from_pretrained(twin, transformer=type(denoiser).from_pretrained(tmp_path / "transformer"))
    assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), pipeline.transformer.parameters(), strict=True))
