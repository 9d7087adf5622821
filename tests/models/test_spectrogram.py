"""Models of spectrograms: padding changes nothing, own frames alone are counted, and what is no backbone is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.spectrograms import MODELS, make_extractor, make_model, whisper_config
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoModel,
    UniSpeechConfig,
    UniSpeechModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertForCTC,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from hf_plr.models.sound import load_sound_backbone
from hf_plr.models.spectrogram_inputs import SpectrogramInputs, makes_spectrograms

LENGTHS = torch.tensor([8000, 5001, 700, 4000, 90])
POOLINGS = {
    "ast": {None: 32, "cls": 32, "mean": 32, "cls+mean": 64, "pooler": 32},
    "wav2vec2-bert": {None: 32, "mean": 32},
    "whisper": {None: 32, "mean": 32},
}
CASES = [(name, pooling) for name in MODELS for pooling in POOLINGS[name]]


def clips(width=9000):
    """Waveforms with rubbish behind their ends."""
    return 0.1 * torch.randn(len(LENGTHS), width, generator=torch.Generator().manual_seed(1))


def load(name, pooling=None, layer=None, **settings):
    return load_sound_backbone(make_model(name, **settings), make_extractor(name), pooling, layer)


def states():
    return torch.get_rng_state().tolist(), np.random.mtrand._rand.get_state()[1].tolist()


@pytest.mark.parametrize("layer", [None, 0, 1, 2])
@pytest.mark.parametrize(("name", "pooling"), CASES)
def test_clips_have_the_same_features_alone_and_in_any_batch(name, pooling, layer):
    if pooling == "pooler" and layer is not None:
        with pytest.raises(ValueError, match=f"a pooler is not of layer={layer}: use 'mean' or 'cls'"):
            load(name, pooling, layer)
        return
    model, _, backbone = load(name, pooling, layer)
    model.eval()
    with torch.no_grad():
        together = backbone.features(model, clips(), LENGTHS)
        for i, n in enumerate(LENGTHS.tolist()):
            alone = backbone.features(model, clips()[i : i + 1, :n], LENGTHS[i : i + 1])
            torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=1e-5)
    assert together.dtype is torch.float32
    assert together.shape == (5, POOLINGS[name][pooling])
    assert backbone.feature_size == POOLINGS[name][pooling]
    assert backbone.n_layers == 2
    assert torch.isfinite(together).all()


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize(("name", "pooling"), CASES)
def test_the_snippet_of_the_card_gives_the_same_feature(name, pooling, layer):
    layer = None if pooling == "pooler" else layer
    model, extractor, backbone = load(name, pooling, layer)
    plain = make_model(name).eval()
    plain = plain.get_encoder() if name == "whisper" else plain
    model.eval()
    for n in LENGTHS[:4].tolist():
        waveform = clips()[0, :n].numpy()
        with torch.no_grad():
            inputs = extractor(waveform, sampling_rate=8000, return_tensors="pt")
            output = plain(**inputs, output_hidden_states=True)
            expected = eval(backbone.feature_expression(), {"output": output, "torch": torch, "waveform": waveform})
            found = backbone.features(model, clips()[:1], torch.tensor([n]))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_an_extractor_that_gives_no_mask_by_itself_changes_nothing(name):
    extractor = make_extractor(name)
    extractor.return_attention_mask = False
    model, _, backbone = load_sound_backbone(make_model(name), extractor, "mean")
    expected_model, _, expected = load(name, "mean")
    features = backbone.features(model.eval(), clips(), LENGTHS)
    assert torch.equal(features, expected.features(expected_model.eval(), clips(), LENGTHS))
    plain = model.get_encoder() if name == "whisper" else model
    names = {"extractor": extractor, "waveform": clips()[3, :4000].numpy(), "torch": torch}
    call = f'extractor(waveform, sampling_rate=8000, return_tensors="pt"{backbone.extractor_arguments})'
    names["output"] = plain(**eval(call, names), output_hidden_states=True)
    torch.testing.assert_close(eval(backbone.feature_expression(), names), features[3:4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("name", MODELS)
def test_training_reaches_what_is_not_frozen_and_draws_nothing(name, layer):
    drops = {"ast": {}, "whisper": {"encoder_layerdrop": 0.5, "apply_spec_augment": True}}
    settings = drops.get(name, {"layerdrop": 0.5, "mask_time_prob": 0.5, "mask_feature_prob": 0.5})
    model = make_model(name, **settings)
    before = states()
    model, _, backbone = load_sound_backbone(model, make_extractor(name), None, layer)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    dropouts = ("attention_dropout", "activation_dropout", "dropout")
    for module in model.modules():
        for attribute in dropouts:
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    backbone.freeze_unused(model)
    model.train()
    features = backbone.features(model, clips(), LENGTHS)
    features.square().sum().backward()
    assert states() == before
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(features, backbone.features(model.eval(), clips(), LENGTHS), atol=1e-5, rtol=1e-5)
    upper = [parameter for key, parameter in model.named_parameters() if "layers.1." in key and "decoder" not in key]
    assert any(parameter.requires_grad for parameter in upper) == (layer is None)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_checkpointing_gives_the_same_gradients(name):
    model, _, backbone = load(name)
    backbone.freeze_unused(model)
    model.eval()  # no dropout; checkpoints are of training alone
    gradients = []
    for _ in range(2):
        model.zero_grad()
        backbone.features(model, clips(), LENGTHS).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.gradient_checkpointing_enable()
        for module in model.modules():
            module.training = not isinstance(module, torch.nn.Dropout) and hasattr(module, "gradient_checkpointing")
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_gives_nearly_the_same_features_of_the_same_spectrograms(name):
    model, _, backbone = load(name, "mean")
    model.eval()
    with torch.no_grad():
        exact, inputs = backbone.features(model, clips(), LENGTHS), backbone.inputs(clips(), LENGTHS.clamp(min=560))
        with torch.autocast("cpu", torch.bfloat16):
            coarse, same = backbone.features(model, clips(), LENGTHS), backbone.inputs(clips(), LENGTHS.clamp(min=560))
    assert all(torch.equal(inputs[key], same[key]) for key in inputs)
    assert coarse.dtype is torch.float32
    assert torch.nn.functional.cosine_similarity(exact, coarse).min() > 0.99


@pytest.mark.parametrize(
    ("name", "field", "hop", "width", "counts"),
    [
        ("ast", 400, 160, 60, [7, 4, 1]),
        ("wav2vec2-bert", 560, 320, None, [24, 14, 1]),
        ("whisper", 1, 80, 100, [50, 32, 5]),
    ],
)
def test_frames_are_counted_by_trials_of_the_extractor(name, field, hop, width, counts):
    model, extractor, backbone = load(name, "mean")
    inputs = SpectrogramInputs(extractor, model.main_input_name)
    assert (inputs.receptive_field, inputs.hop, inputs.width) == (field, hop, width)
    assert backbone.n_frames(LENGTHS[:3]).tolist() == counts
    assert backbone.min_samples == field
    assert backbone.max_samples == {"ast": 9999, "whisper": 8000}.get(name)


@pytest.mark.parametrize("name", ["ast", "whisper"])
def test_what_is_behind_the_longest_clip_is_not_seen(name):
    model, _, backbone = load(name, "mean")
    model.eval()
    n = backbone.max_samples
    long = 0.1 * torch.randn(2, n + 4000)
    with torch.no_grad():
        whole = backbone.features(model, long, torch.tensor([n + 4000, n]))
        cut = backbone.features(model, long[:, :n], torch.tensor([n, n]))
    torch.testing.assert_close(whole, cut)


def test_heads_are_left_out_and_an_encoder_is_put_into_its_whole_model(tmp_path, caplog):
    config = whisper_config()
    for head in (
        WhisperForConditionalGeneration(config),
        WhisperForAudioClassification(config),
        WhisperModel(config).encoder,
    ):
        encoder = (
            head if not hasattr(head, "get_encoder") or type(head).__name__ == "WhisperEncoder" else head.get_encoder()
        )
        expected = {key: value.clone() for key, value in encoder.state_dict().items()}
        with caplog.at_level("INFO"):
            model, _, _ = load_sound_backbone(head, make_extractor("whisper"))
        assert type(model) is WhisperModel
        assert all(torch.equal(value, expected[key]) for key, value in model.encoder.state_dict().items())
        assert "its encoder is trained" in caplog.text
        model.save_pretrained(tmp_path)
        again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = Wav2Vec2BertConfig(**size, feature_projection_input_dim=40, conv_depthwise_kernel_size=5, vocab_size=8)
    model, _, _ = load_sound_backbone(Wav2Vec2BertForCTC(bert).half(), make_extractor("wav2vec2-bert"))
    assert type(model).__name__ == "Wav2Vec2BertModel"
    assert model.dtype is torch.float32
    patches = {"patch_size": 8, "max_length": 60, "num_mel_bins": 20}
    model, _, _ = load_sound_backbone(ASTForAudioClassification(ASTConfig(**size, **patches)), make_extractor("ast"))
    assert type(model).__name__ == "ASTModel"


def test_a_family_of_waveforms_that_is_not_supported_is_named_as_one():
    config = UniSpeechConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    message = r"^UniSpeechModel \(model_type='unispeech'\) takes waveforms, but is not among the supported"
    with pytest.raises(ValueError, match=message):
        load_sound_backbone(UniSpeechModel(config), Wav2Vec2FeatureExtractor())


def test_what_does_not_fit_is_refused_in_one_line():
    waveforms = Wav2Vec2FeatureExtractor(sampling_rate=8000)
    assert not makes_spectrograms(waveforms, "input_values")
    refused = [
        (("ast", waveforms), {}, "ASTModel .* and Wav2Vec2FeatureExtractor makes no spectrograms for it"),
        (
            ("ast", ASTFeatureExtractor(sampling_rate=8000, num_mel_bins=20, max_length=50)),
            {},
            "ASTModel cannot take what",
        ),
        (
            ("whisper", WhisperFeatureExtractor(chunk_length=2)),
            {},
            "WhisperModel cannot take what WhisperFeatureExtractor",
        ),
        (
            ("whisper", make_extractor("whisper"), "cls"),
            {},
            "pooling='cls' but WhisperModel has no class token: use 'mean'",
        ),
        (("whisper", make_extractor("whisper"), "pooler"), {}, "WhisperModel has no pooler: use 'mean'$"),
        (("ast", make_extractor("ast"), None, 3), {}, "layer=3 but the model has 2 layers: use 0 to 2"),
        (("wav2vec2-bert", make_extractor("wav2vec2-bert")), {"add_adapter": True}, "add_adapter=False"),
        (
            ("wav2vec2-bert", make_extractor("wav2vec2-bert")),
            {"position_embeddings_type": "rotary"},
            "with 'relative_key'",
        ),
        (("whisper", WhisperFeatureExtractor(dither=0.1)), {}, r"dither=0\.1"),
    ]
    for (name, *arguments), settings, message in refused:
        with pytest.raises(ValueError, match=message) as error:
            load_sound_backbone(make_model(name, **settings), *arguments)
        assert "\n" not in str(error.value)
