"""Masked prediction of units, and the spans that are masked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hf_plr.models.speech import load_speech_backbone, small_hubert
from hf_plr.units.masked_prediction import UnitPredictor, count_spans, mask_spans
from hf_plr.utils.rng import uniform

LENGTHS = torch.tensor([2000, 1200, 900])


def predictor(n_units=7, **settings):
    torch.manual_seed(0)
    model = load_speech_backbone(small_hubert(8_000, hidden_size=32, num_hidden_layers=2))
    return UnitPredictor(model, n_units, projection_size=16, **settings)


def batch(model, n_units=5):
    """Waveforms, lengths, masks and targets; every third frame is masked, targets are below n_units."""
    values = torch.randn(len(LENGTHS), 2000)
    n_frames = model.speech.n_frames(LENGTHS)
    frame = torch.arange(int(n_frames.max()))
    masked = (frame % 3 == 0).expand(len(LENGTHS), -1)
    targets = torch.randint(n_units, masked.shape).masked_fill(frame >= n_frames[:, None], -1)
    return values, LENGTHS, masked, targets


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.5])
def test_loss_is_cross_entropy_over_the_units_in_use(unmasked_weight):
    model = predictor(unmasked_weight=unmasked_weight).eval()
    values, lengths, masked, targets = batch(model, n_units=3)
    targets[0, :3] = -1
    present = torch.tensor([True, True, True, False, False, False, True])
    used = torch.tensor([0, 1, 2, 6])
    loss = model(values, lengths, masked, targets, present)
    hidden, _ = model.speech.frames(model.backbone, values, lengths, masked)
    projected = F.normalize(model.projection(hidden), dim=2)
    logits = projected @ F.normalize(model.units, dim=1)[used].T / 0.1
    expected = F.cross_entropy(logits[masked & (targets >= 0)], targets[masked & (targets >= 0)])
    visible = ~masked & (targets >= 0)
    expected = expected + unmasked_weight * F.cross_entropy(logits[visible], targets[visible])
    torch.testing.assert_close(loss, expected)


def test_one_step_changes_every_parameter():
    model = predictor().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.0)
    loss = model(*batch(model, n_units=7), torch.ones(7, dtype=torch.bool))
    loss.backward()
    optimizer.step()
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []
    assert any(name.endswith("masked_spec_embed") for name in before)


def test_training_lowers_the_loss():
    model = predictor().train()
    arguments = (*batch(model), torch.ones(7, dtype=torch.bool))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss = model(*arguments)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.5])
def test_without_targets_the_loss_is_zero_with_gradients(unmasked_weight):
    model = predictor(unmasked_weight=unmasked_weight).train()
    values, lengths, masked, targets = batch(model)
    loss = model(values, lengths, masked, torch.full_like(targets, -1), torch.zeros(7, dtype=torch.bool))
    assert loss.item() == 0.0
    loss.backward()
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_padding_and_other_clips_do_not_change_the_loss():
    model = predictor().eval()
    values, lengths, masked, targets = batch(model)
    present = torch.ones(7, dtype=torch.bool)
    with torch.no_grad():
        together = model(values, lengths, masked, targets, present)
        total, count = 0.0, 0
        for i, length in enumerate(LENGTHS.tolist()):
            n = int(model.speech.n_frames(LENGTHS[i]))
            chosen = int(masked[i, :n].sum())
            total += chosen * model(
                values[i : i + 1, :length], lengths[i : i + 1], masked[i : i + 1, :n], targets[i : i + 1, :n], present
            )
            count += chosen
    torch.testing.assert_close(together, total / count, atol=1e-5, rtol=1e-5)


def test_cosines_are_exact_under_autocast():
    model = predictor().eval()
    arguments = (*batch(model), torch.ones(7, dtype=torch.bool))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        coarse = model(*arguments)
    assert coarse.dtype is torch.float32
    torch.testing.assert_close(coarse, model(*arguments), atol=0.1, rtol=0.1)


def test_shapes_that_do_not_fit_are_refused():
    model = predictor()
    values, lengths, masked, targets = batch(model)
    with pytest.raises(ValueError, match=r"present has shape \(6,\) but n_units=7"):
        model(values, lengths, masked, targets, torch.ones(6, dtype=torch.bool))
    with pytest.raises(ValueError, match="targets have shape"):
        model(values, lengths, masked, targets[:, 1:], torch.ones(7, dtype=torch.bool))


@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=8), st.floats(0.01, 1.0), st.integers(1, 12), st.integers(0, 9)
)
def test_spans_belong_to_the_clip_and_never_cover_it(counts, probability, length, seed):
    n_frames = torch.tensor(counts)
    numbers = uniform(torch.arange(len(counts)), seed, 0, n=count_spans(100, probability, length))
    masked = mask_spans(numbers, n_frames, probability, length, width=100)
    assert masked.shape == (len(counts), 100)
    for i, n in enumerate(counts):
        row = masked[i]
        assert not row[n:].any()
        own = mask_spans(numbers[i : i + 1], n_frames[i : i + 1], probability, length)
        assert torch.equal(row[:n], own[0])
        if n < 2:
            assert not row.any()
        else:
            assert 1 <= row.sum() < n
            assert row.sum() <= count_spans(n, probability, length) * length


def test_spans_have_their_number_and_length():
    numbers = torch.tensor([[0.0, 0.5, 0.999999, 0.3]])
    masked = mask_spans(numbers, torch.tensor([20]), probability=0.5, length=4)  # round(2.5) = 2 spans
    assert masked[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    masked = mask_spans(numbers[:, 2:], torch.tensor([20]), probability=0.2, length=4)  # the last place
    assert masked[0].nonzero().flatten().tolist() == [16, 17, 18, 19]


def test_starts_are_uniform():
    numbers = uniform(torch.arange(40_000), 0, 0, n=2)
    masked = mask_spans(numbers, torch.full((40_000,), 12), probability=0.1, length=3)
    first = masked.long().argmax(dim=1)
    assert (torch.bincount(first, minlength=10) / 40_000 - 0.1).abs().max() < 0.01


def test_a_clip_that_its_spans_cover_keeps_one_frame():
    masked = mask_spans(torch.tensor([[0.0, 0.9, 0.55]]), torch.tensor([10]), probability=1.0, length=5)
    assert (~masked[0]).nonzero().flatten().tolist() == [5]


def test_spans_need_enough_numbers_and_arguments_in_range():
    numbers, n_frames = torch.rand(2, 16), torch.tensor([300, 20])
    with pytest.raises(ValueError, match=r"numbers has 16 columns but 300 frames take 24 spans.*n=24"):
        mask_spans(numbers, n_frames, 0.8, 10)
    with pytest.raises(ValueError, match="probability=0"):
        mask_spans(numbers, n_frames, 0.0, 10)
    with pytest.raises(ValueError, match="length=0"):
        mask_spans(numbers, n_frames, 0.5, 0)
