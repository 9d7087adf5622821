"""Speech transformers: padding changes nothing, nothing is drawn at random, and what is saved loads again."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from hf_plr.models.speech import (
    SpeechBackbone,
    load_feature_extractor,
    load_speech_backbone,
    small_hubert,
    small_hubert_extractor,
)

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}
POSITIONS = {"num_conv_pos_embeddings": 8}
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, **POSITIONS}
FAMILY = {
    "hubert-group": (HubertModel, HubertConfig, {"feat_extract_norm": "group", **POSITIONS}),
    "hubert-layer": (HubertModel, HubertConfig, STABLE),
    "wav2vec2-group": (Wav2Vec2Model, Wav2Vec2Config, {"feat_extract_norm": "group", **POSITIONS}),
    "wav2vec2-layer": (Wav2Vec2Model, Wav2Vec2Config, STABLE),
    "wavlm-group": (WavLMModel, WavLMConfig, {"feat_extract_norm": "group", **POSITIONS}),
    "wavlm-layer": (WavLMModel, WavLMConfig, STABLE),
    "data2vec": (Data2VecAudioModel, Data2VecAudioConfig, {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}),
}
LENGTHS = torch.tensor([700, 1000, 333, 40, 7])


def make(name, **settings):
    model_class, config_class, extra = FAMILY[name]
    torch.manual_seed(0)
    return model_class(config_class(**{**TINY, **extra, **settings}))


def clips(width=1100):
    """Waveforms with rubbish behind their ends."""
    return torch.randn(len(LENGTHS), width, generator=torch.Generator().manual_seed(1))


def global_state():
    """State of numpy's global generator, which SpecAugment draws from."""
    return np.random.mtrand._rand.get_state()[1].tolist()


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("layer", [None, 0, 1])
@pytest.mark.parametrize("training", [False, True])
def test_padding_does_not_change_features(name, layer, training):
    model = load_speech_backbone(make(name)).train(training)
    backbone = SpeechBackbone(model, layer)
    values = clips()
    masked = torch.zeros(len(LENGTHS), int(backbone.n_frames(torch.tensor(1100))), dtype=torch.bool)
    masked[:, 2] = True
    with torch.no_grad():
        together = backbone.features(Wrapper(model), values, LENGTHS)
        together_masked = backbone.features(model, values, LENGTHS, masked)
        for i, length in enumerate(LENGTHS.tolist()):
            clip, n = values[i : i + 1, :length], LENGTHS[i : i + 1]
            torch.testing.assert_close(together[i : i + 1], backbone.features(model, clip, n), atol=1e-5, rtol=1e-5)
            own = masked[i : i + 1, : int(backbone.n_frames(n))]
            alone = backbone.features(model, clip, n, own)
            torch.testing.assert_close(together_masked[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    assert together.dtype is torch.float32
    assert together.std(dim=0).min() > 0  # clips differ
    assert (together[:3] - together_masked[:3]).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILY)
def test_features_are_those_of_the_untouched_model(name):
    plain = make(name).eval()
    weights = plain.state_dict()
    model = load_speech_backbone(copy.deepcopy(plain))
    waveform = clips()[:1]
    for layer in (None, 0, 1, 2):
        backbone = SpeechBackbone(model, layer)
        with torch.no_grad():
            output = plain(input_values=waveform, output_hidden_states=True)
            expected = eval(backbone.feature_expression(), {"output": output})
            found = backbone.features(model, waveform, torch.tensor([1100]))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model(waveform).last_hidden_state, plain(waveform).last_hidden_state)
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    assert len(model._forward_pre_hooks) == 1  # four backbones of one model


@pytest.mark.parametrize("name", FAMILY)
def test_training_reaches_every_parameter_and_draws_nothing(name):
    model = load_speech_backbone(make(name, mask_time_prob=0.5, mask_feature_prob=0.5, layerdrop=0.5)).train()
    backbone = SpeechBackbone(model)
    numpy_state, torch_state = global_state(), torch.get_rng_state()
    features = backbone.features(model, clips(), LENGTHS)
    features.square().sum().backward()
    assert global_state() == numpy_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert (model.masked_spec_embed.grad == 0).all()
    torch.testing.assert_close(features, backbone.features(model.eval(), clips(), LENGTHS), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_stop_at_the_layer_and_what_is_above_it_waits_for_none(name):
    model = load_speech_backbone(make(name)).train()
    backbone = SpeechBackbone(model, layer=1)
    backbone.freeze_unused(model)
    backbone.features(model, clips(), LENGTHS).square().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.encoder.layers[1].parameters())
    assert all(parameter.requires_grad for parameter in model.encoder.layers[0].parameters())


@pytest.mark.parametrize("name", ["hubert-group", "data2vec"])
def test_copies_keep_padding_out_for_themselves(name):
    model = load_speech_backbone(make(name)).eval()
    backbone = SpeechBackbone(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = backbone.features(model, clips(), LENGTHS)
        assert torch.equal(backbone.features(twin, clips(), LENGTHS), expected)
    assert twin._forward_pre_hooks.keys() == model._forward_pre_hooks.keys()


def test_a_model_is_pickled_where_torch_can():
    """Not HuBERT: torch pickles no module with weight norm."""
    model = load_speech_backbone(make("data2vec")).eval()
    backbone = SpeechBackbone(model)
    unpickled = pickle.loads(pickle.dumps(model))  # noqa: S301
    assert type(unpickled.encoder.pos_conv_embed) is type(model.encoder.pos_conv_embed)
    with torch.no_grad():
        assert torch.equal(backbone.features(unpickled, clips(), LENGTHS), backbone.features(model, clips(), LENGTHS))


def test_batches_are_as_wide_as_their_longest_clip_has_frames():
    backbone = SpeechBackbone(make("hubert-group"))
    for n_samples in range(1, 200):
        assert backbone.width(n_samples) == int(backbone.n_frames(torch.tensor(n_samples)))


def test_gradient_checkpointing_gives_the_same_gradients():
    model = load_speech_backbone(make("hubert-group")).train()
    backbone = SpeechBackbone(model)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        backbone.features(model, clips(), LENGTHS).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.gradient_checkpointing_enable()
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_features_under_autocast_are_near():
    # One group: oneDNN's grouped convolutions in bf16 are wrong on some processors.
    model = load_speech_backbone(make("hubert-group", num_conv_pos_embedding_groups=1)).eval()
    backbone = SpeechBackbone(model)
    with torch.no_grad():
        exact = backbone.features(model, clips(), LENGTHS)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = backbone.features(model, clips(), LENGTHS)
    assert coarse.dtype is torch.float32
    torch.testing.assert_close(coarse, exact, atol=0.1, rtol=0.1)


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(1, 6)), min_size=1, max_size=5), st.integers(0, 5000))
def test_frame_counts_are_the_models(layers, extra):
    kernels, strides = zip(*layers, strict=True)
    config = HubertConfig(**{**TINY, "conv_dim": (4,) * len(layers), "conv_kernel": kernels, "conv_stride": strides})
    with torch.device("meta"):
        model = HubertModel(config)
    backbone = SpeechBackbone(model)
    length = torch.tensor([backbone.receptive_field + extra])
    assert torch.equal(backbone.n_frames(length), model._get_feat_extract_output_lengths(length))
    assert backbone.n_frames(torch.tensor([backbone.receptive_field - 1, 0])).tolist() == [1, 1]
    if backbone.receptive_field > 1:
        assert model._get_feat_extract_output_lengths(torch.tensor(backbone.receptive_field - 1)) < 1


def test_frames_of_another_layer_and_arguments_that_do_not_fit():
    model = load_speech_backbone(make("hubert-group")).eval()
    backbone = SpeechBackbone(model)
    hidden, n_frames = backbone.frames(model, clips(), LENGTHS, layer=0)
    assert torch.equal(hidden, SpeechBackbone(model, 0).frames(model, clips(), LENGTHS)[0])
    assert hidden.shape == (5, int(backbone.n_frames(torch.tensor(1100))), 32)
    assert torch.equal(n_frames, backbone.n_frames(LENGTHS))
    with pytest.raises(ValueError, match=r"layer=3 but the model has 2 layers: use 0 to 2"):
        SpeechBackbone(model, 3)
    with pytest.raises(ValueError, match=r"layer=-1"):
        backbone.frames(model, clips(), LENGTHS, layer=-1)
    with pytest.raises(ValueError, match=r"mask has shape \(5, 4\) but the batch has frames of shape \(5, 5\d\)"):
        backbone.frames(model, clips(), LENGTHS, torch.zeros(5, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no mask embedding: load it by load_speech_backbone"):
        SpeechBackbone(make("hubert-group", mask_time_prob=0.0))


@pytest.mark.parametrize("name", FAMILY)
def test_what_is_saved_loads_bit_for_bit(name, tmp_path):
    model = load_speech_backbone(make(name, mask_time_prob=0.0, mask_feature_prob=0.0)).train()
    backbone = SpeechBackbone(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    backbone.features(model, clips(), LENGTHS).square().sum().backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    weights = model.state_dict()
    assert list(again.state_dict()) == list(weights)
    assert all(torch.equal(weight, weights[key]) for key, weight in again.state_dict().items())
    loaded = load_speech_backbone(str(tmp_path)).eval()
    with torch.no_grad():
        expected = backbone.features(model.eval(), clips(), LENGTHS)
        assert torch.equal(SpeechBackbone(loaded).features(loaded, clips(), LENGTHS), expected)


def test_loading_switches_randomness_off_and_says_so(caplog):
    config = {"layerdrop": 0.1, "mask_time_prob": 0.0, "mask_feature_prob": 0.2, "apply_spec_augment": False}
    with caplog.at_level("INFO"):
        model = load_speech_backbone(make("hubert-group", **config))
    assert model.config.layerdrop == model.config.mask_feature_prob == 0.0
    assert model.config.mask_time_prob == 0.05
    assert model.config.apply_spec_augment
    for setting in ("layerdrop=0.1", "mask_feature_prob=0.2", "mask_time_prob=0", "apply_spec_augment=False"):
        assert f"{setting} is set to" in caplog.text


def test_a_head_gives_its_backbone_and_half_precision_becomes_full():
    classifier = HubertForCTC(HubertConfig(vocab_size=8, **TINY)).half()
    model = load_speech_backbone(classifier)
    assert type(model) is HubertModel
    assert model.dtype is torch.float32
    assert model.config.dtype is torch.float32


def test_what_is_no_speech_transformer_is_refused(tmp_path):
    bert = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(
        ValueError, match=r"BertModel \(model_type='bert'\) takes input_ids, .* that takes input_values"
    ):
        load_speech_backbone(bert)
    with pytest.raises(ValueError, match="add_adapter=False"):
        load_speech_backbone(make("wav2vec2-group", add_adapter=True))
    with pytest.raises(ValueError, match="conv_pos_batch_norm=True"):
        load_speech_backbone(make("hubert-group", conv_pos_batch_norm=True))
    with pytest.raises(ValueError, match=r"the model '.*nothing' is neither a folder here nor"):
        load_speech_backbone(tmp_path / "nothing")


@pytest.mark.parametrize(("rate", "hop", "field"), [(8_000, 160, 205), (16_000, 320, 410)])
def test_small_hubert_has_twenty_millisecond_frames_and_its_extractor(rate, hop, field, tmp_path):
    model = load_speech_backbone(small_hubert(rate, hidden_size=32, num_hidden_layers=2)).eval()
    backbone = SpeechBackbone(model)
    assert (backbone.hop, backbone.receptive_field) == (hop, field)
    with torch.no_grad():
        hidden, n_frames = backbone.frames(model, torch.randn(2, rate), torch.tensor([rate, rate // 2]))
    assert hidden.shape == (2, 49, 32)
    assert n_frames.tolist() == [49, 24]
    with pytest.raises(ValueError, match="no feature extractor is saved with 'HubertModel'"):
        load_feature_extractor(model)
    model.save_pretrained(tmp_path)
    small_hubert_extractor(rate).save_pretrained(tmp_path)
    extractor = load_feature_extractor(load_speech_backbone(tmp_path))
    assert (extractor.sampling_rate, extractor.do_normalize, extractor.return_attention_mask) == (rate, True, True)


def test_small_hubert_refuses_other_rates():
    with pytest.raises(ValueError, match="sampling_rate=44100"):
        small_hubert(44_100)


def test_bfloat16_gives_nearly_the_same_features():
    torch.manual_seed(0)
    model = load_speech_backbone(small_hubert(8_000)).eval()
    backbone = SpeechBackbone(model)
    values, lengths = torch.randn(4, 4000), torch.tensor([4000, 3000, 2500, 800])
    with torch.no_grad():
        exact = backbone.features(model, values, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            fast = backbone.features(model, values, lengths)
            copied = backbone.features(copy.deepcopy(model), values, lengths)
    assert torch.nn.functional.cosine_similarity(exact, fast).min() > 0.999
    assert torch.equal(copied, fast)


@pytest.mark.parametrize(("kernel", "dtype"), [(4, torch.float32), (3, torch.bfloat16)])
def test_wide_convolutions_are_not_computed_in_bfloat16(kernel, dtype):
    """Their gradient in bfloat16 is NaN at times, of memory that nobody has written."""
    model = load_speech_backbone(make("hubert-layer", conv_kernel=(10, kernel, 2)))
    SpeechBackbone(model)
    second = model.feature_extractor.conv_layers[1]
    calls = []
    second.conv.register_forward_hook(lambda module, args, output: calls.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        model(torch.randn(1, 1000))
    assert calls == [dtype]
