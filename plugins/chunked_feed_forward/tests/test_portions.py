"""One feed-forward in portions against the same one as it is: numbers, and what is kept for backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.sana_transformer import GLUMBConv
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from tunesmith import GridConvolution, GridLayout, InputError, TrunkModule
from tunesmith.live import LiveTensors, num_bytes
from tunesmith_chunked_feed_forward.portions import compute_in_portions, feed_forwards

WIDTH = 16


@pytest.fixture
def plain() -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = FeedForward(WIDTH, mult=4, activation_fn="gelu-approximate")
    return module


def chunked(module: nn.Module, chunks: int) -> nn.Module:
    """The same weights, computed in portions."""
    other = copy.deepcopy(module)
    compute_in_portions(other, chunks)
    return other


class Block(nn.Module):
    """A feed-forward as it stands in a block, computed again in backward."""

    def __init__(self, feed_forward: nn.Module) -> None:
        super().__init__()
        self.norm, self.ff = nn.LayerNorm(WIDTH), feed_forward

    def inner(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.ff(self.norm(hidden))
        return out

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.inner, hidden, use_reentrant=False)
        return out


def tokens(count: int) -> Tensor:
    return torch.randn(2, count, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def gradients(module: nn.Module, given: Tensor) -> tuple[Tensor, list[Tensor]]:
    out = module(given)
    return out.detach(), list(torch.autograd.grad(out.square().sum(), [given, *module.parameters()]))


@pytest.mark.parametrize(("count", "chunks"), [(12, 2), (12, 4), (7, 3), (3, 8), (1, 2)])
def test_outputs_and_gradients_are_those_of_all_tokens_at_once(plain: nn.Module, count: int, chunks: int) -> None:
    given = tokens(count)
    out, expected = gradients(plain, given)
    other, found = gradients(chunked(plain, chunks), given)
    torch.testing.assert_close(other, out, rtol=0, atol=1e-6)
    for one, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(one, reference, rtol=1e-6, atol=1e-6 * float(reference.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(chunked(plain, chunks)(given), out, rtol=0, atol=1e-6)


def test_as_many_portions_as_asked_for_go_through_one_after_the_other(plain: nn.Module) -> None:
    seen: list[tuple[int, ...]] = []
    module = chunked(plain, 3)
    module.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    module.get_submodule("net.2").register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    with torch.no_grad():
        module(tokens(7))
    assert seen == [(2, 3, 4 * WIDTH), (2, 3, 4 * WIDTH), (2, 1, 4 * WIDTH), (2, 7, WIDTH)]


def test_dropout_within_is_drawn_alike_when_a_portion_is_computed_again() -> None:
    torch.manual_seed(0)
    module = chunked(FeedForward(WIDTH, dropout=0.5), 2)
    given = tokens(8)
    out = module(given)
    (found,) = torch.autograd.grad(out.sum(), given)
    torch.manual_seed(0)
    again = FeedForward(WIDTH, dropout=0.5)
    again.load_state_dict(module.state_dict())
    (expected,) = torch.autograd.grad(torch.cat([again(portion) for portion in given.chunk(2, 1)], dim=1).sum(), given)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_nothing_within_is_kept_for_backward(plain: nn.Module) -> None:
    given = tokens(64)

    def saved(module: nn.Module) -> int:
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = module(given)
        assert out.requires_grad
        there = [given, *module.parameters()]
        return num_bytes([*kept, *there]) - num_bytes(there)

    hidden = 2 * 64 * 4 * WIDTH * 4  # bytes of one tensor [2, 64, 4 * WIDTH]
    assert saved(plain) >= 2 * hidden
    assert saved(chunked(plain, 2)) == 0


def test_a_block_that_is_computed_again_takes_less_at_its_peak(plain: nn.Module) -> None:
    given = tokens(64)

    def peaks(feed_forward: nn.Module) -> tuple[int, int]:
        block = Block(feed_forward)
        with LiveTensors() as counted:
            out = block(given).sum()
            forward = counted.peak
            counted.since_now()
            out.backward()
        return forward, counted.peak

    found = [peaks(module) for module in (plain, chunked(plain, 2), chunked(plain, 4), chunked(plain, 8))]
    hidden = 2 * 64 * 4 * WIDTH * 4
    for several, (fewer, more) in enumerate(zip(found[1:], found[:-1], strict=True)):
        assert all(less <= much - hidden / 2 ** (several + 2) for less, much in zip(fewer, more, strict=True))


def test_weights_keep_their_names_and_a_copy_has_its_own(plain: nn.Module) -> None:
    module = chunked(plain, 2)
    assert list(module.state_dict()) == list(plain.state_dict())
    other = copy.deepcopy(module)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert not other(tokens(4)).any()
    assert module(tokens(4)).any()


def test_what_another_has_made_of_the_forward_goes_on_within(plain: nn.Module) -> None:
    forward, given = plain.forward, tokens(5)
    plain.forward = lambda part: 2 * forward(part)
    expected = plain(given)
    compute_in_portions(plain, 2)
    torch.testing.assert_close(plain(given), expected, rtol=0, atol=1e-6)


def test_compiled_modules_share_their_graph(plain: nn.Module) -> None:
    graphs: list[Any] = []

    def keep(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(Block.inner, backend=keep, dynamic=False)
    given = tokens(8)
    for several in range(3):
        block = Block(chunked(plain, 2))
        with torch.no_grad():
            block.norm.weight.fill_(several)
        torch.testing.assert_close(compiled(block, given), block.inner(given), rtol=0, atol=1e-6)
    assert len(graphs) == 1


def entry(name: str, feed_forward: nn.Module, *convolutions: nn.Module) -> TrunkModule:
    layouts = tuple(GridConvolution(one, GridLayout.IMAGES) for one in convolutions)
    return TrunkModule(name, feed_forward, is_block=True, feed_forward=(feed_forward,), convolutions=layouts)


class OwnConvolution(nn.Module):
    """Mixes neighbours without any layer of torch."""

    def forward(self, grid: Tensor) -> Tensor:
        return grid + grid.roll(1, -1)


def test_a_feed_forward_that_convolves_is_refused_with_its_block(plain: nn.Module) -> None:
    declared = nn.Sequential(nn.Linear(WIDTH, WIDTH), OwnConvolution())
    for convolving, name in ((entry("layers.1", GLUMBConv(8, 8)), "GLUMBConv"), (entry("layers.1", declared, declared[1]), "Sequential")):
        with pytest.raises(InputError, match=rf"the feed-forward of layers\.1 is a {name}, whose convolutions .* take \[plugins\."):
            feed_forwards([entry("layers.0", plain), convolving])


def test_a_convolution_beside_the_feed_forward_does_not_matter_and_shared_ones_count_once(plain: nn.Module) -> None:
    first = TrunkModule("0", plain, True, feed_forward=(plain,), convolutions=(GridConvolution(OwnConvolution(), GridLayout.IMAGES),))
    assert feed_forwards([first, TrunkModule("between", nn.Identity(), False), entry("1", plain)]) == [plain]


def test_a_model_without_feed_forwards_is_refused() -> None:
    with pytest.raises(InputError, match="names no feed-forward"):
        feed_forwards([TrunkModule("0", nn.Identity(), True)])


def test_activations_may_come_back_without_the_gaps_between_their_rows(plain: nn.Module) -> None:
    """As those do that lie in pinned memory until backward."""
    given, module = tokens(10), chunked(plain, 2)
    _, expected = gradients(plain, given)
    with saved_tensors_hooks(lambda tensor: tensor.clone(memory_format=torch.contiguous_format), lambda kept: kept):
        out = module(given)
    found = torch.autograd.grad(out.square().sum(), [given, *module.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
