"""What every family promises, asked of each one that is installed, without its name."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tunesmith import Batch, Clip, Model, Part, PipelineModel, Ragged, SampleRequest, TrunkModule
from tunesmith_tread import Routed, bypass

from .conftest import HEIGHT, WIDTH, Case


def noisy(batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise in the place of latents, and a level for each sample."""
    shape = batch.tensor("latents").shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)), torch.linspace(0.3, 0.8, shape[0])


def predicted(model: Model, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model.predict(*noisy(batch), batch)


def alone(batch: Batch, row: int) -> Batch:
    """One sample of a batch."""
    fields = {
        key: Ragged([value.values[row]]) if isinstance(value, Ragged) else value[row : row + 1] for key, value in batch.fields.items()
    }
    return Batch(batch.sources[row : row + 1], batch.captions[row : row + 1], {}, fields)


@pytest.fixture
def batch(case: Case) -> Batch:
    return case.batch(case.frames())


def test_the_twin_is_small_and_has_the_shapes_that_the_facts_foretell(case: Case) -> None:
    foretold = {name: value.shape for name, value in case.family.on_meta().state_dict().items()}
    assert foretold == {name: value.shape for name, value in case.model.denoiser.state_dict().items()}
    assert sum(value.numel() for value in case.model.denoiser.state_dict().values()) < 2_000_000


@pytest.mark.parametrize(("width", "height"), [(WIDTH, HEIGHT), (160, 96)])
def test_latents_and_tokens_are_as_many_as_the_facts_foretell(case: Case, width: int, height: int) -> None:
    for frames in {1, case.frames()}:
        latents = case.batch(frames, width, height).tensor("latents")
        whole = frames if case.family.round_frames(frames) == frames else 1
        assert tuple(latents.shape[1:]) == case.family.latent_shape(whole, height, width)
        grid = case.family.token_grid(whole, height, width)
        assert case.model.token_grid(latents) == grid
        assert all(side > 0 for side in (grid.frames, grid.height, grid.width))


def test_every_latent_frame_stands_for_frames_of_its_clip(case: Case) -> None:
    for frames in {1, case.frames()}:
        spans = case.family.frame_spans(frames)
        shape = case.family.latent_shape(frames, HEIGHT, WIDTH)
        assert len(spans) == (shape[1] if len(shape) == 4 else 1)
        told = [frame for span in spans for frame in span]
        assert told == sorted(set(told))
        assert set(told) <= set(range(max(frames, len(told))))


def test_a_token_frame_is_shown_by_the_last_frame_that_it_stands_for(case: Case) -> None:
    for frames in {1, case.frames()}:
        last = case.family.last_frames(frames, HEIGHT, WIDTH)
        spans = case.family.frame_spans(frames)
        assert len(last) == case.family.token_grid(frames, HEIGHT, WIDTH).frames
        assert last == sorted(set(last))
        assert last[-1] == min(spans[-1].stop, frames) - 1 == frames - 1


def test_the_number_of_frames_is_rounded_down_to_one_that_can_be_encoded(case: Case) -> None:
    for frames in (1, 2, 7, 16, 17, 33, 75, 81):
        rounded = case.family.round_frames(frames)
        assert 1 <= rounded <= frames
        assert case.family.round_frames(rounded) == rounded


def test_a_prediction_has_the_shape_of_its_latents_in_fp32(case: Case, batch: Batch) -> None:
    prediction = predicted(case.model, batch)
    assert prediction.dtype == torch.float32
    assert prediction.shape == batch.tensor("latents").shape
    assert prediction.isfinite().all()
    assert prediction.std() > 1e-3


def test_a_sample_is_predicted_as_if_it_were_alone(case: Case, batch: Batch) -> None:
    latents, sigma = noisy(batch)
    together = predicted(case.model, batch)
    for row in range(len(batch)):
        with torch.no_grad():
            own = case.model.predict(latents[row : row + 1], sigma[row : row + 1], alone(batch, row))
        torch.testing.assert_close(own, together[row : row + 1], rtol=0, atol=2e-5)


def test_noise_level_and_caption_matter(case: Case, batch: Batch) -> None:
    latents, sigma = noisy(batch)
    plain = predicted(case.model, batch)
    with torch.no_grad():
        later = case.model.predict(latents, sigma.flip(0), batch)
        fields = {key: Ragged(value.values[::-1]) if isinstance(value, Ragged) else value for key, value in batch.fields.items()}
        other = case.model.predict(latents, sigma, Batch(batch.sources, batch.captions, {}, fields))
    assert not torch.allclose(plain, later)
    assert not torch.allclose(plain, other)


def test_every_weight_gets_a_gradient_and_checkpointing_changes_none(case: Case, batch: Batch) -> None:
    denoiser = case.model.denoiser

    def gradients() -> dict[str, Tensor]:
        denoiser.zero_grad(set_to_none=True)
        case.model.predict(*noisy(batch), batch).square().mean().backward()
        return {name: value.grad.clone() for name, value in denoiser.named_parameters() if value.grad is not None}

    denoiser.requires_grad_(True).train()
    try:
        plain = gradients()
        denoiser.enable_gradient_checkpointing()
        again = gradients()
    finally:
        denoiser.disable_gradient_checkpointing()
        denoiser.requires_grad_(False).eval().zero_grad(set_to_none=True)
    assert all(value.isfinite().all() for value in plain.values())
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)


def test_adapters_find_layers_in_every_block(case: Case) -> None:
    for entry in case.model.blocks:
        names = [name for name, module in entry.module.named_modules() if isinstance(module, nn.Linear)]
        for target in case.family.adapter_targets:
            assert any(name == target or name.endswith(f".{target}") for name in names), (entry.name, target)


def test_the_trunk_names_modules_of_the_denoiser_in_the_order_in_which_they_run(case: Case, batch: Batch) -> None:
    trunk, ran = case.model.trunk(), []
    grid = case.model.token_grid(batch.tensor("latents"))
    handles = []
    for entry in trunk:
        assert case.model.denoiser.get_submodule(entry.name) is entry.module
        inside = set(entry.module.modules())
        assert {*entry.attention, *entry.feed_forward, *(one.module for one in entry.convolutions)} <= inside

        def note(module: nn.Module, args: object, output: object, entry: TrunkModule = entry) -> None:
            hidden = output if entry.output is None else output[entry.output]  # type: ignore[index]
            assert isinstance(hidden, Tensor)
            assert hidden.shape[0] == len(batch)
            assert hidden.shape[1] >= grid.tokens
            assert hidden.shape[2] == case.family.token_width
            ran.append(entry.name)

        handles.append(entry.module.register_forward_hook(note))
    predicted(case.model, batch)
    for handle in handles:
        handle.remove()
    assert ran == [entry.name for entry in trunk]
    assert len(case.model.blocks) == case.family.num_blocks
    assert 0 <= case.family.defaults.aligned_block < case.family.num_blocks


def inner(case: Case) -> list[TrunkModule]:
    """The trunk without its first and its last block."""
    trunk = list(case.model.trunk())
    first, last = trunk.index(case.model.blocks[0]), trunk.index(case.model.blocks[-1])
    return trunk[first + 1 : last]


def routed(case: Case, batch: Batch, share: float) -> ExitStack:
    """Send a share of the tokens through the inner trunk, drawn for each sample; tokens of given conditions go with them."""
    grid, generator = case.model.token_grid(batch.tensor("latents")), torch.Generator().manual_seed(0)
    kept = int(share * grid.tokens)
    drawn = torch.stack([torch.randperm(grid.tokens, generator=generator)[:kept].sort().values for _ in range(len(batch))])
    chosen = Routed(grid, lambda hidden: drawn)
    return bypass(inner(case), lambda: chosen)


def test_keeping_every_token_by_the_trunks_description_changes_nothing(case: Case, batch: Batch) -> None:
    plain = predicted(case.model, batch)
    with routed(case, batch, 1.0):
        kept = predicted(case.model, batch)
    torch.testing.assert_close(kept, plain, rtol=0, atol=2e-6)


def test_a_trunk_that_sees_half_of_the_tokens_predicts_something_else(case: Case, batch: Batch) -> None:
    plain = predicted(case.model, batch)
    with routed(case, batch, 0.5):
        half = predicted(case.model, batch)
    assert half.isfinite().all()
    assert not torch.allclose(half, plain)
    torch.testing.assert_close(predicted(case.model, batch), plain, rtol=0, atol=0)


def test_decoded_latents_are_pixels_of_their_size(case: Case, batch: Batch) -> None:
    decoder = case.run.load(Part.DECODER)
    with torch.no_grad():
        pixels = decoder.decode(batch.tensor("latents"))
    assert pixels.shape[:2] == (len(batch), 3)
    assert pixels.shape[-2:] == (HEIGHT, WIDTH)
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def request_of(case: Case, batch: Batch, seed: int) -> SampleRequest:
    """A sample of two steps, given what the family must be given."""
    captions = {field.key for field in case.plugin.fields(case.run) if not field.per_sample}
    first, second = ({key: alone(batch, row).fields[key] for key in captions} for row in (0, 1))
    generator = torch.Generator().manual_seed(0)
    given = {"reference": torch.rand((3, 80, 70), generator=generator) * 2 - 1, "audio": torch.rand((1, 8000), generator=generator) - 0.5}
    return SampleRequest(
        name="a",
        prompt="a red circle",
        negative_prompt="",
        width=WIDTH,
        height=HEIGHT,
        frames=case.frames(),
        guidance=2.0,
        steps=2,
        seed=seed,
        scheduler=None,
        conditions=first,
        negative=second,
        fps=case.family.defaults.fps,
        given={what: given[what] for what, must in case.family.takes.items() if must},
    )


def test_a_sample_is_of_the_kind_that_the_facts_foretell_and_depends_on_its_seed(case: Case, batch: Batch) -> None:
    decoder = case.run.load(Part.DECODER)
    pipeline = decoder.pipeline(case.model.denoiser)

    def sampled(seed: int) -> Tensor:
        with torch.no_grad():
            media = decoder.sample(pipeline, request_of(case, batch, seed))
        assert media.kind == case.family.makes
        assert media.name == "a"
        assert media.recipe["seed"] == seed
        if isinstance(media.content, Clip):
            assert media.content.frames.dtype == torch.uint8
            assert media.content.frames.shape[1:] == (HEIGHT, WIDTH, 3)
            assert media.content.fps == case.family.defaults.fps
            return media.content.frames
        assert media.content.size == (WIDTH, HEIGHT)
        return torch.tensor(list(media.content.tobytes()))

    assert torch.equal(sampled(1), sampled(1))
    assert not torch.equal(sampled(1), sampled(2))


def test_a_sample_has_the_pixels_that_the_pipeline_itself_gives(case: Case, batch: Batch) -> None:
    """The pipeline normalises and decodes latents by its own code, where the family does so by its facts.

    A family that calls its network without a pipeline of diffusers' form is left out: there is nothing to compare with.
    """
    decoder = case.run.load(Part.DECODER)
    if not isinstance(decoder, PipelineModel):
        pytest.skip("its samples are made without a pipeline")
    pipeline, request = decoder.pipeline(case.model.denoiser), request_of(case, batch, 3)
    with torch.no_grad():
        content = decoder.sample(pipeline, request).content
        [[*expected]] = decoder.call_pipeline(pipeline, request, "np")
    found = (content.frames if isinstance(content, Clip) else torch.from_numpy(np.array(content))).double() / 255
    wanted = torch.from_numpy(np.stack(expected)).double()
    assert found.shape == wanted.shape
    assert wanted.std() > 0.01
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.5 / 255 + 1e-4)
