"""Features of recordings by a model of spectrograms: AST, wav2vec2-BERT, Whisper's encoder and what is like them."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from hf_plr.models.auto_classes import find_auto_class
from hf_plr.models.frozen import freeze
from hf_plr.models.loading import convert_to_float32
from hf_plr.models.reached import find_reached
from hf_plr.models.spectrogram_inputs import SpectrogramInputs
from hf_plr.models.trial import describe_output, trial_of
from hf_plr.utils.rng import isolate_rng

logger = logging.getLogger(__name__)

CLASS_TOKENS = ("cls_token", "distillation_token")  # parameters; each is one token before the patches
KEPT_POSITIONS = ("rotary", "relative")  # torch refuses tensors of inference mode in a backward pass
NO_FRAMES = "takes spectrograms: units of frames need a HuBERT, wav2vec 2.0, WavLM or data2vec-audio model"


class TokenLayout(NamedTuple):
    """How the tokens of a model lie on the frames of a spectrogram.

    Attributes:
        n_prefix: tokens before those of frames, such as a class token.
        n_bands: tokens of one time, from low to high frequency; band by band in the order of the model.
        n_times: times of a clip that fills the spectrogram, None if spectrograms have no fixed width.
        field: frames that a token sees.
        hop: frames from one token to the next.
    """

    n_prefix: int
    n_bands: int
    n_times: int | None
    field: int
    hop: int


class SpectrogramBackbone:
    """Features of waveforms by a model of spectrograms, which its own feature extractor makes.

    The extractor is code of transformers for CPUs and gives no gradient to the waveform. What the model returns for a
    trial tells the size of its features, its layers, and which parameters a feature depends on.

    Padding changes nothing: up to rounding, a clip has the same features alone and in any batch. Models that mask
    padding (wav2vec2-BERT) do not see it. Models of a fixed length (AST, Whisper) pad every clip to that length and
    attend to this padding, as they did when they were pretrained; it is the same in any batch. Only tokens that lie in
    the clip itself enter a mean, at least one.

    Args:
        model: the output of `prepare_spectrogram_model`.
        extractor: its feature extractor.
        pooling: "mean" over the clip's own tokens, "cls" (class token), "cls+mean" (both, side by side), "pooler" (the
            model's own); None takes "cls" where there is a class token, otherwise "mean".
        layer: hidden states that are the features: None = the model's last, 0 = the input of the first transformer
            layer, n = the output of the n-th.

    Attributes:
        feature_size: size D of a feature.
        n_layers: transformer layers.
        min_samples: samples of the shortest clip that the extractor takes.
        max_samples: samples of the longest clip that the model sees as a whole; None if any length will do.
        receptive_field: samples that a token sees.
        hop: samples from one token to the next.

    Raises:
        ValueError: if model and extractor do not fit together, the model returns no tokens of frames, or it has no such
            layer or pooling.
    """

    takes_waveforms = False

    def __init__(self, model: PreTrainedModel, extractor: Any, pooling: str | None = None, layer: int | None = None):
        self.inputs = SpectrogramInputs(extractor, model.main_input_name)
        self.layer = layer
        self._name = type(model).__name__
        self._is_encoder = bool(getattr(model.config, "is_encoder_decoder", False))
        token_names = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
        self._has_class_token = "cls_token" in token_names
        self.pooling = pooling or ("cls" if self._has_class_token else "mean")
        inputs = self.inputs
        self.min_samples, self.max_samples = inputs.receptive_field, inputs.longest
        clip = torch.randn(1, inputs.receptive_field + 40 * inputs.hop, generator=torch.Generator().manual_seed(0))
        clip, lengths = 0.1 * clip.to(model.device), torch.tensor([clip.shape[1]])
        with trial_of(model):
            try:
                made = inputs(clip, lengths)
                output = self._call(model, made, with_layers=True)
            except Exception as error:  # of the model: any
                raise ValueError(
                    f"{self._name} cannot take what {type(extractor).__name__} makes ({_first_line(error)}): use the "
                    "feature extractor that is saved with the model"
                ) from error
            tokens, hidden_states = self._check_output(output, layer)
            n_prefix = sum(name in token_names for name in CLASS_TOKENS)
            self._check_pooling(self.pooling, output)
            self.layout = self._find_layout(model.config, made, tokens, n_prefix)
            self.receptive_field = inputs.receptive_field + (self.layout.field - 1) * inputs.hop
            self.hop = self.layout.hop * inputs.hop
            feature = self._pool(output, lengths)
        self.n_layers = len(hidden_states) - 1
        self.feature_size = feature.shape[1]
        reached = find_reached(feature)
        self._unreached = [name for name, parameter in model.named_parameters() if parameter not in reached]

    def n_frames(self, lengths: torch.Tensor) -> torch.Tensor:
        """Count the times at which tokens lie in clips, by their samples, at least 1 each: int64 of the same shape."""
        n = (lengths.to(torch.int64) - self.receptive_field).clamp(min=0) // self.hop + 1
        return n if self.layout.n_times is None else n.clamp(max=self.layout.n_times)

    def features(self, model: nn.Module, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Compute the features of a batch: float32 of shape (B, D).

        Args:
            model: the model or its wrapper (DistributedDataParallel, a compiled module).
            values: waveforms, float32 of shape (B, T); values behind a clip's end or `max_samples` are ignored.
            lengths: samples of each clip, shape (B,), at most T.
        """
        if self.max_samples is not None:
            values, lengths = values[:, : self.max_samples], lengths.clamp(max=self.max_samples)
        if values.shape[1] < self.min_samples:
            values = nn.functional.pad(values, (0, self.min_samples - values.shape[1]))
        is_padding = torch.arange(values.shape[1], device=values.device) >= lengths[:, None]
        inputs = self.inputs(values.masked_fill(is_padding, 0.0), lengths.clamp(min=self.min_samples))
        return self._pool(self._call(model, inputs, with_layers=self.layer is not None), lengths)

    def freeze_unused(self, model: PreTrainedModel) -> None:
        """Freeze the parameters that no feature depends on: several processes would wait for their gradients."""
        for name in self._unreached:
            freeze(model.get_parameter(name))

    @property
    def extractor_arguments(self) -> str:
        """Further arguments of the extractor in Python code, each after a comma."""
        return ", return_attention_mask=True" if self.inputs.needs_mask else ""

    def load_expression(self, name: str) -> str:
        """Write Python code that loads the model from `name`, a Python literal."""
        return f"AutoModel.from_pretrained({name}){'.get_encoder()' if self._is_encoder else ''}.eval()"

    def feature_expression(self) -> str:
        """Write Python code that computes the same feature of one clip, `waveform`, from `output`, the model's."""
        hidden = f"output.{'last_hidden_state' if self.layer is None else f'hidden_states[{self.layer}]'}"
        if self.pooling == "pooler":
            return "output.pooler_output"
        cls = f"{hidden}[:, 0]"
        if self.pooling == "cls":
            return cls
        n_prefix, n_bands, n_times, field, _ = self.layout
        bounded = "len(waveform)" if field == 1 else f"max(len(waveform), {self.receptive_field})"
        own = f"({bounded} - {self.receptive_field}) // {self.hop} + 1"
        if n_bands == 1 and n_prefix == 0:
            mean = f"{hidden}[:, : {own}].mean(dim=1)"
        else:
            mean = f"{hidden}[:, {n_prefix}:].unflatten(1, ({n_bands}, {n_times}))[:, :, : {own}].mean(dim=(1, 2))"
        return mean if self.pooling == "mean" else f"torch.cat([{cls}, {mean}], dim=1)"

    def usage_notes(self) -> str:
        """Describe what a reader of the snippet must know: batches, and what of the model was trained."""
        notes = [
            "The extractor makes the spectrogram that the model takes, and what belongs to a clip is counted from its "
            "samples: for a batch, count for each recording by itself."
        ]
        if self._is_encoder:
            notes.append(
                f"The encoder of the {self._name} was trained. Its decoder is saved with it, so that `AutoModel` loads "
                "the model, and is as it was at the start."
            )
        return " ".join(notes)

    def _call(self, model: nn.Module, inputs: dict[str, torch.Tensor], with_layers: bool) -> Any:
        output = model(**inputs, output_hidden_states=with_layers)
        if not self._is_encoder:
            return output
        return _EncoderOutput(output.encoder_last_hidden_state, output.encoder_hidden_states)

    def _pool(self, output: Any, lengths: torch.Tensor) -> torch.Tensor:
        if self.pooling == "pooler":
            return output.pooler_output.float()
        hidden = (output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]).float()
        if self.pooling == "cls":
            return hidden[:, 0]
        tokens = hidden[:, self.layout.n_prefix :].unflatten(1, (self.layout.n_bands, -1))
        own = self.n_frames(lengths.to(hidden.device)).clamp(max=tokens.shape[2])
        is_other = torch.arange(tokens.shape[2], device=hidden.device) >= own[:, None]
        total = tokens.masked_fill(is_other[:, None, :, None], 0.0).sum(dim=(1, 2))
        mean = total / (own * self.layout.n_bands)[:, None]
        return mean if self.pooling == "mean" else torch.cat([hidden[:, 0], mean], dim=1)

    def _check_output(self, output: Any, layer: int | None) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Return the tokens (1, T, D) of the trial, and what all layers returned."""
        last = getattr(output, "last_hidden_state", None)
        hidden_states = getattr(output, "hidden_states", None)
        if not isinstance(last, torch.Tensor) or last.ndim != 3 or not hidden_states:
            raise ValueError(
                f"{self._name} is not a backbone of tokens: for a spectrogram it returned {describe_output(output)}; "
                "use a model that returns last_hidden_state of shape (clips, tokens, size) and hidden_states"
            )
        if layer is not None and not 0 <= layer < len(hidden_states):
            n_layers = len(hidden_states) - 1
            raise ValueError(f"layer={layer} but the model has {n_layers} layers: use 0 to {n_layers}")
        return (last if layer is None else hidden_states[layer]), tuple(hidden_states)

    def _check_pooling(self, pooling: str, output: Any) -> None:
        if "cls" in pooling and not self._has_class_token:
            raise ValueError(f"pooling={pooling!r} but {self._name} has no class token: use 'mean'")
        if pooling == "pooler" and (self.layer is not None or getattr(output, "pooler_output", None) is None):
            why = f"{self._name} has no pooler" if self.layer is None else f"a pooler is not of layer={self.layer}"
            others = "'mean' or 'cls'" if self._has_class_token else "'mean'"
            raise ValueError(f"pooling='pooler' but {why}: use {others}")

    def _find_layout(
        self, config: Any, inputs: dict[str, torch.Tensor], tokens: torch.Tensor, n_prefix: int
    ) -> TokenLayout:
        """Find how tokens (1, T, D) lie on the frames of the trial's spectrogram."""
        values = inputs[self.inputs.input_name]
        n_tokens = tokens.shape[1] - n_prefix
        if hasattr(config, "time_stride") and hasattr(config, "frequency_stride"):  # patches, of some frequencies each
            n_bands = (values.shape[2] - config.patch_size) // config.frequency_stride + 1
            n_times = (values.shape[1] - config.patch_size) // config.time_stride + 1
            layout = TokenLayout(n_prefix, n_bands, n_times, config.patch_size, config.time_stride)
            is_consistent = n_tokens == n_bands * n_times
        else:
            n_frames = self.inputs.width or int(inputs["attention_mask"].shape[1])
            hop = max(1, n_frames // max(n_tokens, 1))
            layout = TokenLayout(n_prefix, 1, None if self.inputs.width is None else n_tokens, 1, hop)
            # Without a fixed width a model that leaves out frames would need a mask of its own for the rest.
            is_consistent = n_tokens == -(-n_frames // hop) and (hop == 1 or self.inputs.width is not None)
        if not is_consistent:
            raise ValueError(
                f"{self._name} returned {tokens.shape[1]} tokens for a spectrogram of shape {tuple(values.shape)}, "
                "which do not lie evenly on its frames: load it with add_adapter=False, or choose a layer"
            )
        return layout


class _EncoderOutput(NamedTuple):
    """What the encoder of a model with a decoder returns."""

    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None


def prepare_spectrogram_model(model: PreTrainedModel) -> PreTrainedModel:
    """Prepare a model of spectrograms for training in float32: what draws at random, and any decoder, is left out.

    What `AutoModel` makes of the configuration stays as it is. Of a model with a decoder (Whisper) the encoder is
    trained, inside the whole: no class of the encoder alone is one that `AutoModel` loads. The decoder is not run.

    Raises:
        ValueError: if the model has no place in the class that `AutoModel` loads, or keeps positions between passes.
    """
    positions = getattr(model.config, "position_embeddings_type", None)
    if positions in KEPT_POSITIONS:
        raise ValueError(
            f"{type(model).__name__} keeps positions of a pass without gradients for one with them "
            f"(position_embeddings_type={positions!r}), and cannot be trained: use a checkpoint with 'relative_key'"
        )
    model = convert_to_float32(_put_into_whole(model))
    _switch_randomness_off(model)
    if getattr(model.config, "is_encoder_decoder", False):
        decoder: Any = model.get_decoder()
        decoder.forward = _skip_decoder
        logger.info(
            "%s: its encoder is trained; its decoder is neither run nor changed, and saved with the encoder, so that "
            "AutoModel loads the whole (AutoModel.from_pretrained(...).get_encoder() is what was trained)",
            type(model).__name__,
        )
    return model


def _put_into_whole(model: PreTrainedModel) -> PreTrainedModel:
    """Put an encoder, alone or with a head, into the model with a decoder that `AutoModel` makes of it."""
    whole_class: Any = find_auto_class(model) or type(model)
    if type(model) is whole_class or not getattr(model.config, "is_encoder_decoder", False):
        return model
    encoder: Any = getattr(model, "encoder", model)
    with isolate_rng(0):
        whole = whole_class(model.config)
    try:
        whole.get_encoder().load_state_dict(encoder.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} has no encoder of a {whole_class.__name__} ({_first_line(error)}): "
            "load it by AutoModel"
        ) from error
    logger.info("%s becomes a %s with a decoder of random weights", type(model).__name__, whole_class.__name__)
    return whole.to(model.device)


def _switch_randomness_off(model: PreTrainedModel) -> None:
    config: Any = model.config
    for name in ("layerdrop", "encoder_layerdrop"):
        if getattr(config, name, 0.0):
            logger.info(
                "%s=%s is set to 0: with layers left out at random, features change in depth from batch to batch, "
                "and several processes wait for gradients that never come",
                name,
                getattr(config, name),
            )
            setattr(config, name, 0.0)
    for module in model.modules():
        if getattr(module, "layerdrop", 0.0):
            setattr(module, "layerdrop", 0.0)  # noqa: B010
    masks = getattr(config, "mask_time_prob", 0.0) or getattr(config, "mask_feature_prob", 0.0)
    if masks and getattr(config, "apply_spec_augment", hasattr(model, "masked_spec_embed")):
        logger.info(
            "apply_spec_augment is set to False: its masks are drawn from numpy's global generator, and a resumed run "
            "would not see them again"
        )
        config.apply_spec_augment = False


def _skip_decoder(*_: Any, **__: Any) -> BaseModelOutputWithPastAndCrossAttentions:
    """Stand for the `forward` of a decoder that no feature depends on."""
    return BaseModelOutputWithPastAndCrossAttentions()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
