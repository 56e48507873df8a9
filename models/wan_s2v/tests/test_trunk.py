"""Blocks and injections with some of the video's tokens only, and as features see them."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunesmith import TokenGrid, TrunkModule, take_rows
from tunesmith_tread import Routed, bypass
from tunesmith_wan_s2v import AudioInjection, VideoTokens, WanS2VTransformer3DModel, take_rotary

from .goldens import difference, facts, inputs, network, prediction, tensors

TREAD = facts("tread")
CASE = inputs("a", "motion_pose")
PLAIN = tensors("a")["motion_pose.out.sample"]


def trunk(model: WanS2VTransformer3DModel) -> list[TrunkModule]:
    """The modules of the trunk in order, described as a family would."""
    entries = []
    blocks: Any = model.blocks
    for index, block in enumerate(blocks):
        entries.append(
            TrunkModule(
                f"blocks.{index}",
                block,
                is_block=True,
                per_token={"rotary_emb": take_rotary},
                attention=(block.attn1, block.attn2),
                feed_forward=(block.ffn,),
            )
        )
        if index in model.config.audio_inject_layers:
            number = model.config.audio_inject_layers.index(index)
            injection = model.audio_injector.injector[number]
            name = f"audio_injector.injector.{number}"
            takes = {"video_tokens": VideoTokens.take}
            entries.append(TrunkModule(name, injection, is_block=False, per_token=takes, attention=(injection,)))
    return entries


def stretch_between(model: WanS2VTransformer3DModel, start: int, end: int) -> list[TrunkModule]:
    """Blocks `start` to `end` and what lies between them; what comes after the last block does not belong to it."""
    entries = trunk(model)
    modules = [entry.module for entry in entries]
    return entries[modules.index(model.blocks[start]) : modules.index(model.blocks[end]) + 1]


def test_the_trunk_names_modules_and_arguments_that_exist() -> None:
    model = network("a")
    for entry in trunk(model):
        assert model.get_submodule(entry.name) is entry.module
        assert {entry.hidden, *entry.per_token} <= set(inspect.signature(entry.module.forward).parameters)
        assert {*entry.attention, *entry.feed_forward} <= set(entry.module.modules())


def test_the_trunk_runs_in_its_order_and_each_module_once() -> None:
    model = network("a")
    called: list[nn.Module] = []
    entries = trunk(model)
    for entry in entries:
        entry.module.register_forward_hook(lambda module, given, out: called.append(module))
    prediction(model, CASE)
    assert called == [entry.module for entry in entries]
    assert [type(module).__name__ for module in called[:3]] == ["WanS2VTransformerBlock", "AudioInjection", "WanS2VTransformerBlock"]


def routed(model: WanS2VTransformer3DModel, start: int, end: int, grid: TokenGrid, kept: Tensor) -> ExitStack:
    """Let blocks `start` to `end` see these tokens [B, K] of the grid, and all of the reference and of the motion."""
    chosen = Routed(grid, lambda hidden: kept)
    return bypass(stretch_between(model, start, end), lambda: chosen)


@pytest.mark.parametrize("case", TREAD["cases"])
def test_routing_by_the_trunks_description_is_that_of_the_reference(case: str) -> None:
    model, settings = network("a"), TREAD["cases"][case]
    kept = tensors("tread")[f"{case}.in.kept_indices"][None]
    video = kept[:, : settings["kept_video_tokens"]]
    assert kept.shape[1] - video.shape[1] == TREAD["num_tokens"] - TREAD["num_video_tokens"]
    with routed(model, settings["start_layer_idx"], settings["end_layer_idx"], TokenGrid(3, 4, 4), video):
        found = prediction(model, CASE)
    assert difference(found, tensors("tread")[f"{case}.out.sample"]) < 1e-4
    assert difference(found, PLAIN) == pytest.approx(settings["diff_from_unrouted"], abs=1e-4)


def test_samples_of_a_batch_may_keep_other_tokens() -> None:
    arguments, generator = inputs("a", "first_clip_b2"), torch.Generator().manual_seed(0)
    kept = torch.stack([torch.randperm(32, generator=generator)[:11].sort().values for _ in range(2)])
    model = network("a")
    with routed(model, 0, 2, TokenGrid(2, 4, 4), kept):
        both = prediction(model, arguments)
    for index in range(2):
        single = {key: value[index : index + 1] if isinstance(value, Tensor) else value for key, value in arguments.items()}
        with routed(model, 0, 2, TokenGrid(2, 4, 4), kept[index : index + 1]):
            assert difference(prediction(model, single)[0], both[index]) < 2e-5


def injected(video_tokens: VideoTokens, hidden_states: Tensor) -> Tensor:
    """What the injection of a fixed random network makes of the tokens, with a sound of its own for every frame."""
    torch.manual_seed(0)
    injection = AudioInjection(12, 2, 1e-6, adaptive=True).eval()
    audio, modulation = torch.randn(1, video_tokens.num_frames, 5, 12), torch.randn(1, video_tokens.num_frames, 2, 12)
    with torch.no_grad():
        out: Tensor = injection(hidden_states, audio, modulation, video_tokens)
    return out


def test_kept_tokens_hear_their_own_frame_however_uneven() -> None:
    full = VideoTokens(num_frames=3, per_frame=4, num_conditions=2)
    hidden_states = torch.randn(1, 14, 12, generator=torch.Generator().manual_seed(1))
    everything = injected(full, hidden_states)
    indices = torch.tensor([[0, 1, 2, 3, 9, 12, 13]])  # all of frame 0, nothing of frame 1, one token of frame 2
    kept = injected(full.take(indices), take_rows(hidden_states, indices))
    assert difference(kept, take_rows(everything, indices)) < 1e-6
    assert difference(everything[:, :12], hidden_states[:, :12]) > 0.1
    assert torch.equal(everything[:, 12:], hidden_states[:, 12:])


@pytest.mark.parametrize(("adaptive", "eps"), [(True, 1e-5), (False, 1e-6)])
def test_injection_follows_the_formula_where_tokens_hardly_differ(adaptive: bool, eps: float) -> None:
    torch.manual_seed(0)
    injection = AudioInjection(8, 1, 1e-6, adaptive).double()
    injection.norm.float()
    tokens, audio, modulation = 1e-3 * torch.randn(1, 2, 8), torch.randn(1, 2, 5, 8).double(), torch.randn(1, 2, 2, 8)
    with torch.no_grad():
        out = injection(tokens.double(), audio, modulation if adaptive else None, VideoTokens(2, 1, 0))
        exact = tokens.double()
        normed = (exact - exact.mean(-1, keepdim=True)) / (exact.var(-1, keepdim=True, correction=0) + eps).sqrt()
        if adaptive:
            normed = normed * (1 + modulation[:, :, 1]) + modulation[:, :, 0]
        query, key = injection.norm_q(injection.to_q(normed)), injection.norm_k(injection.to_k(audio))
        shares = (key @ query[..., None] / 8**0.5).softmax(dim=2)  # [1, 2, 5, 1]
        heard = injection.to_out[0]((shares * injection.to_v(audio)).sum(dim=2))
    assert difference(out, exact + heard) < 1e-5


def test_a_subset_of_a_subset_knows_where_its_tokens_stand() -> None:
    full = VideoTokens(num_frames=3, per_frame=4, num_conditions=1)
    twice = full.take(torch.tensor([[1, 4, 6, 11, 12]])).take(torch.tensor([[0, 3, 4]]))
    assert twice.kept is not None
    assert twice.kept.tolist() == [[1, 11]]


def test_attention_goes_through_the_dispatcher_everywhere() -> None:
    model = network("a")
    processors = [module.processor for module in model.modules() if hasattr(module, "processor")]
    assert len(processors) == 2 * 4 + 2
    model.set_attention_backend("_native_math")
    try:
        assert {processor._attention_backend.value for processor in processors} == {"_native_math"}
        assert difference(prediction(model, CASE), PLAIN) < 1e-4
    finally:
        model.set_attention_backend("native")  # the choice is also one of the whole process
