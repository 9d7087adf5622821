"""The norm of each clip's own frames: the numbers of a plain formula, in few passes over the activation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers.moved_bytes import MovedBytes
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hf_plr.models import clip_norm as module
from hf_plr.models.clip_norm import BLOCK, ClipLengths, ClipNorm, clip_norm

EPS = 1e-5
DEVICES_OF_MEAN_AND_NORM = [("cpu",), ()]  # with (), a CPU takes the way of a GPU


@pytest.fixture(params=DEVICES_OF_MEAN_AND_NORM, ids=["mean and norm", "var_mean"])
def both_ways(request, monkeypatch):
    monkeypatch.setattr(module, "NO_FAST_WELFORD", request.param)


def formula(hidden, n_frames, weight, bias, eps=EPS):
    """The norm as it is defined; its gradients are torch's."""
    padding = (torch.arange(hidden.shape[2], device=hidden.device) >= n_frames[:, None])[:, None]
    count = n_frames[:, None, None]
    centred = hidden - hidden.masked_fill(padding, 0.0).sum(dim=2, keepdim=True) / count
    variance = centred.square().masked_fill(padding, 0.0).sum(dim=2, keepdim=True) / count
    return centred * (torch.rsqrt(variance + eps) * weight[:, None]) + bias[:, None]


def arguments(n_frames, width, dtype=torch.float64, device="cpu", n_channels=3, shift=0.0):
    """Hidden states, frames, weight and bias; each channel has a mean and a deviation of its own."""
    generator = torch.Generator().manual_seed(width)
    size = (len(n_frames), n_channels, width)
    hidden = torch.randn(size, generator=generator, dtype=torch.float64)
    hidden = hidden * torch.linspace(0.5, 2.0, n_channels)[:, None] + torch.linspace(-1.0, 1.0, n_channels)[:, None]
    weight, bias = torch.randn(2, n_channels, generator=generator, dtype=torch.float64)
    parts = (hidden + shift, torch.tensor(n_frames), weight, bias)
    return [part.to(device) if part.dtype is torch.int64 else part.to(device, dtype) for part in parts]


def with_gradients(norm, parts, gradient):
    """What a norm gives, and the gradients of hidden states, weight and bias."""
    hidden, n_frames, weight, bias = parts
    leaves = [part.clone().requires_grad_() for part in (hidden, weight, bias)]
    result = norm(leaves[0], n_frames, *leaves[1:])
    result.backward(gradient.to(result.dtype))
    return [result.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("width", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 1000])
def test_results_and_gradients_are_those_of_the_formula(width):
    parts = arguments([width, max(1, width - 1), max(1, width // 2), min(width, BLOCK), 1], width)
    gradient = torch.randn(parts[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, found = (with_gradients(norm, parts, gradient) for norm in (formula, clip_norm))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9 * max(1.0, float(one.abs().max())))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 30), st.integers(1, 12))
def test_blocks_do_not_matter(counts, padding, block):
    parts = arguments(counts, max(counts) + padding)
    expected = formula(*parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        for devices in DEVICES_OF_MEAN_AND_NORM:
            patch.setattr(module, "NO_FAST_WELFORD", devices)
            torch.testing.assert_close(clip_norm(*parts), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("both_ways")
def test_gradients_are_those_of_small_differences(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    hidden, n_frames, weight, bias = arguments([11, 8, 5, 1], 11)
    leaves = [part.requires_grad_() for part in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda hidden, *rest: clip_norm(hidden, n_frames, *rest, eps=1e-2), leaves)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("width", [100, 1500])
def test_a_clip_has_the_same_results_alone_and_in_any_batch(width):
    counts = [width, width // 2 + 1, width // 3, 1]
    parts = arguments(counts, width + 70, torch.float32)
    gradient = torch.randn(parts[0].shape, generator=torch.Generator().manual_seed(0))
    for i, count in enumerate(counts):
        gradient[i, :, count:] = 0.0  # as it is in a model, where nothing depends on frames behind the end
    together, hidden_gradient, *_ = with_gradients(clip_norm, parts, gradient)
    for i, count in enumerate(counts):
        own = (slice(i, i + 1), slice(None), slice(count))
        alone = with_gradients(clip_norm, [parts[0][own], torch.tensor([count]), *parts[2:]], gradient[own])
        torch.testing.assert_close(together[own], alone[0], rtol=1e-6, atol=2e-6)
        torch.testing.assert_close(hidden_gradient[own], alone[1], rtol=1e-6, atol=2e-6 * float(alone[1].abs().max()))
        if count > 1:  # torch refuses to normalise one value
            torch.testing.assert_close(alone[0], F.group_norm(parts[0][own], 3, *parts[2:]), rtol=1e-5, atol=1e-5)
    assert (hidden_gradient[1, :, counts[1] :] == 0).all()


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("mean", [1e3, -1e5])
def test_a_mean_far_above_the_deviation_does_no_harm(mean):
    """Float32 rounds such hidden states to mean * 6e-8; the square of the mean, where variances drown, is far off."""
    parts = arguments([2000, 1500, 257], 2000, torch.float32, shift=mean)
    gradient = torch.randn(parts[0].shape, generator=torch.Generator().manual_seed(0))
    exact = with_gradients(formula, [part.double() if part.is_floating_point() else part for part in parts], gradient)
    for found, expected in zip(with_gradients(clip_norm, parts, gradient), exact, strict=True):
        tolerance = 5e-7 * abs(mean) * float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("both_ways")
def test_silence_has_the_bias():
    hidden, n_frames, weight, bias = arguments([700, 300], 700, torch.float32)
    found = with_gradients(clip_norm, [torch.full_like(hidden, 0.3), n_frames, weight, bias], torch.ones_like(hidden))
    torch.testing.assert_close(found[0], bias[:, None].expand_as(hidden), atol=1e-3, rtol=0)
    assert all(torch.isfinite(part).all() for part in found)
    assert torch.isfinite(clip_norm(hidden, torch.tensor([0, -3]), weight, bias)).all()


# ---- passes over the activation ----------------------------------------------------------------------------------


def count_passes(norm, dtype=torch.float32):
    """Bytes that forward and backward move, in those of a float32 activation."""
    hidden, n_frames, weight, bias = arguments([6400, 6000, 3000, 100], 6400, torch.float32)
    hidden = hidden.to(dtype).requires_grad_()
    weight.requires_grad_()
    bias.requires_grad_()
    activation = 4 * hidden.numel()
    with MovedBytes(activation // 2) as forward:
        result = norm(hidden, n_frames, weight, bias)
    gradient = torch.ones_like(result)
    with MovedBytes(activation // 2) as backward:
        result.backward(gradient)
    return forward.total / activation, backward.total / activation


@pytest.mark.parametrize(("devices", "forward"), zip(DEVICES_OF_MEAN_AND_NORM, (7, 4), strict=True))
def test_few_bytes_are_moved(devices, forward, monkeypatch):
    """One pass less in truth: of what is gathered from, which counts, nearly nothing is read."""
    monkeypatch.setattr(module, "NO_FAST_WELFORD", devices)
    assert count_passes(formula) == (14, 27)
    assert count_passes(clip_norm) == (forward, 9)
    half = count_passes(clip_norm, torch.bfloat16)  # made float32 once in either direction, and back
    assert half == (forward + 1.5, 9 + 3)


def test_one_activation_is_kept_for_the_backward_pass():
    def kept(norm, dtype):
        total = 0

        def keep(tensor):
            nonlocal total
            total += tensor.nbytes if tensor.numel() >= hidden.numel() else 0
            return tensor

        hidden, n_frames, weight, bias = arguments([3000, 3000], 3000, torch.float32)
        hidden = hidden.to(dtype).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            norm(hidden, n_frames, weight.requires_grad_(), bias)
        return total / hidden.nbytes

    assert kept(clip_norm, torch.float32) == kept(clip_norm, torch.bfloat16) == 1
    assert kept(formula, torch.float32) == 2


# ---- as a module -------------------------------------------------------------------------------------------------


def make_module(lengths=(300, 200, 31)):
    norm = nn.GroupNorm(3, 3)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    clips = ClipLengths(receptive_field=25, hop=20)
    clips.lengths = torch.tensor(lengths)
    return ClipNorm(norm, clips, kernel=10, stride=5)


def test_frames_are_those_of_the_first_convolution_and_without_lengths_it_is_a_group_norm():
    norm = make_module()
    hidden = arguments([59, 39, 5], 59, torch.float32)[0]
    expected = formula(hidden, torch.tensor([59, 39, 5]), norm.weight, norm.bias)
    torch.testing.assert_close(norm(hidden), expected, atol=1e-5, rtol=1e-5)
    norm.clips.lengths = None
    assert torch.equal(norm(hidden), F.group_norm(hidden, 3, norm.weight, norm.bias))


def test_it_is_computed_in_float32_and_has_the_dtype_of_its_weights():
    norm = make_module()
    hidden = arguments([59, 39, 5], 59, torch.float32)[0].bfloat16().requires_grad_()
    expected = norm(hidden.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = norm(hidden)
    found.sum().backward()
    assert torch.equal(found, expected)
    assert (hidden.grad.dtype, norm.weight.grad.dtype) == (torch.bfloat16, torch.float32)
    coarse = norm.bfloat16()(hidden)
    assert coarse.dtype is torch.bfloat16
    torch.testing.assert_close(coarse.float(), expected, atol=0.05, rtol=0.05)


def test_checkpoints_copies_and_pickles_have_the_same_gradients():
    norm = make_module()
    hidden = arguments([59, 39, 5], 59, torch.float32)[0].requires_grad_()

    def gradients(norm, run):
        run(norm).square().sum().backward()
        found = [hidden.grad, norm.weight.grad, norm.bias.grad]
        hidden.grad = norm.weight.grad = norm.bias.grad = None
        return found

    expected = gradients(norm, lambda norm: norm(hidden))
    unpickled = pickle.loads(pickle.dumps(norm))  # noqa: S301
    for other in (norm, copy.deepcopy(norm), unpickled):
        again = gradients(other, lambda norm: checkpoint(norm, hidden, use_reentrant=False))
        assert all(torch.equal(one, two) for one, two in zip(expected, again, strict=True))


@pytest.mark.slow
def test_it_compiles_to_one_graph():
    compiled = torch.compile(clip_norm, backend="aot_eager", fullgraph=True)
    for width in (700, 300):  # the second has a graph for every width
        parts = arguments([width, width // 2, 7], width, torch.float32)
        gradient = torch.randn(parts[0].shape)
        expected, found = (with_gradients(norm, parts, gradient) for norm in (clip_norm, compiled))
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one)
