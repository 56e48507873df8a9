"""The network against the reference: predictions, what lies between, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunesmith_wan_s2v import WanS2VTransformer3DModel

from .goldens import CASES, NAMES, difference, every_case, facts, group, inputs, network, prediction, tensors

GRADIENT_CASES = [(name, case) for name, case in CASES if "grad_l2" in facts(name)["cases"][case]]
MIDDLE_CASES = [("a", "motion_pose"), ("b", "motion"), ("c", "motion")]
BATCH_CASES = [(name, case) for name, case in CASES if len(tensors(name)[f"{case}.in.timestep"]) > 1]


@every_case
def test_prediction_is_that_of_the_reference(name: str, case: str) -> None:
    assert difference(prediction(network(name), inputs(name, case)), tensors(name)[f"{case}.out.sample"]) < 1e-4


def recorded(model: WanS2VTransformer3DModel) -> dict[str, Tensor]:
    """Fill the dictionary with what passes through the network, under the names of the golden data."""
    seen: dict[str, Tensor] = {}

    def output(name: str, pick: Callable[[Any], Tensor] = lambda out: out) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            seen[name] = pick(out)

        return hook

    def conditions(module: nn.Module, given: Any, out: Any) -> None:
        seen.update(temb=out[0], timestep_proj=out[1].float(), text=out[2], audio_local=out[4])
        if out[5] is not None:
            seen["audio_global"] = out[5]

    def entering(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            seen[name] = given[0]

        return hook

    model.condition_embedder.register_forward_hook(conditions)
    model.rope.register_forward_hook(output("rope_cos", lambda pair: pair[0][:, :, 0, 0::2]))
    model.rope.register_forward_hook(output("rope_sin", lambda pair: pair[1][:, :, 0, 0::2]))
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(entering(f"block{index - 1}_out_after_audio" if index else "tokens_in"))
        block.register_forward_hook(output(f"block{index}_out"))
    model.norm_out.register_forward_pre_hook(entering("head_tokens_in"))
    model.proj_out.register_forward_hook(output("head_tokens_out"))
    return seen


@pytest.mark.parametrize(("name", "case"), MIDDLE_CASES)
def test_everything_between_is_that_of_the_reference(name: str, case: str) -> None:
    model = network(name)
    seen = recorded(model)
    prediction(model, inputs(name, case))
    golden = group(name, f"{case}.mid")
    assert golden.keys() <= seen.keys()
    wrong = {key: difference(seen[key], value) for key, value in golden.items()}
    assert {key: size for key, size in wrong.items() if not size < 1e-4} == {}


def backward(model: WanS2VTransformer3DModel, name: str, case: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, gradients by parameter name, and the gradient of the noisy latents."""
    arguments = inputs(name, case)
    noisy = arguments["hidden_states"].clone().requires_grad_(True)
    (sample,) = model(**{**arguments, "hidden_states": noisy}, return_dict=False)
    loss = (sample - tensors(name)[f"{case}.target"]).square().mean()
    loss.backward()
    assert noisy.grad is not None
    return loss.detach(), {key: value.grad for key, value in model.named_parameters() if value.grad is not None}, noisy.grad


@pytest.mark.parametrize(("name", "case"), GRADIENT_CASES)
def test_gradients_are_those_of_the_reference(name: str, case: str) -> None:
    loss, gradients, of_noisy = backward(network(name), name, case)
    expected = facts(name)["cases"][case]
    assert float(loss) == pytest.approx(expected["loss_mse_vs_target"], rel=1e-5)
    assert {key: float(gradients[key].norm()) if key in gradients else 0.0 for key in expected["grad_l2"]} == {
        key: pytest.approx(size, rel=1e-3, abs=1e-6) for key, size in expected["grad_l2"].items()
    }
    golden = group(name, f"{case}.grad")
    assert {key: difference(gradients[key], value) for key, value in golden.items() if key in gradients} == {
        key: pytest.approx(0, abs=1e-5) for key in golden if key in gradients
    }
    assert difference(of_noisy, tensors(name)[f"{case}.grad_in.hidden_states"]) < 1e-5


@pytest.mark.parametrize(("name", "case"), GRADIENT_CASES)
def test_every_parameter_is_trained_but_the_packer_of_motion_that_is_dropped(name: str, case: str) -> None:
    model = network(name)
    _, gradients, _ = backward(model, name, case)
    without = {key for key, _ in model.named_parameters() if key not in gradients}
    dropped = facts(name)["cases"][case]["drop_motion_frames"]
    assert without == ({key for key, _ in model.named_parameters() if key.startswith("frame_packer.")} if dropped else set())


@pytest.mark.parametrize(("name", "case"), GRADIENT_CASES)
def test_gradient_checkpointing_changes_no_bit(name: str, case: str) -> None:
    plain, checkpointed = network(name), network(name)
    checkpointed.enable_gradient_checkpointing()
    (loss, gradients, of_noisy), (again, same, of_noisy_again) = backward(plain, name, case), backward(checkpointed, name, case)
    assert torch.equal(loss, again)
    assert torch.equal(of_noisy, of_noisy_again)
    assert gradients.keys() == same.keys()
    assert all(torch.equal(gradients[key], same[key]) for key in gradients)


def test_gradient_checkpointing_covers_every_block_and_every_injection() -> None:
    model = network("a")
    called: list[nn.Module] = []

    def counted(module: nn.Module, *arguments: Any) -> Any:
        called.append(module)
        return module(*arguments)

    model.enable_gradient_checkpointing(counted)
    backward(model, "a", "motion_pose")
    (first, second), blocks = model.audio_injector.injector, model.blocks
    assert called == [blocks[0], first, blocks[1], blocks[2], second, blocks[3]]


@pytest.mark.parametrize(("name", "case"), BATCH_CASES)
def test_a_batch_is_its_samples_one_by_one(name: str, case: str) -> None:
    model, arguments = network(name), inputs(name, case)
    together = prediction(model, arguments)
    for index, sample in enumerate(together):
        alone = {key: value[index : index + 1] if isinstance(value, Tensor) else value for key, value in arguments.items()}
        assert difference(prediction(model, alone)[0], sample) < 2e-5


def test_batches_of_the_goldens_have_one_with_motion() -> None:
    assert ("a", "motion_b2") in BATCH_CASES
    assert {name for name, _ in BATCH_CASES} == set(NAMES)
