"""Load, check and describe a speech transformer, and keep padding out of its hidden states."""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    Wav2Vec2FeatureExtractor,
)

from hf_plr.models.adapter_files import find_base_model, load_adapter_of
from hf_plr.models.clip_norm import ClipLengths, ClipNorm
from hf_plr.models.loading import convert_to_float32, describe_load_error, extract_backbone, load_processor
from hf_plr.models.reached import freeze_unreached
from hf_plr.models.trial import trial_of

logger = logging.getLogger(__name__)

SOUND_INPUTS = ("input_values", "input_features")  # waveforms, or spectrograms
MODEL_TYPES = ("hubert", "wav2vec2", "wavlm", "data2vec-audio")
MASK_TIME_PROB = 0.05  # the default of all four configurations
# Kernels and strides by sampling rate. Three layers where HuBERT has seven: a CPU spends most on the many frames of the
# first ones.
SMALL_CONVOLUTIONS = {8_000: ((10, 8, 5), (5, 8, 4)), 16_000: ((20, 8, 5), (10, 8, 4))}


class SpeechBackbone:
    """Features of waveforms by a speech transformer.

    Padding changes nothing: up to rounding, a clip has the same features alone and in any batch. The model gets hooks
    for this; its weights and their names stay the same. Clips shorter than `receptive_field` count as followed by
    silence, so that each has at least one frame.

    Example:
        >>> backbone = SpeechBackbone(small_hubert(8000))
        >>> backbone.n_frames(torch.tensor([8000, 1]))
        tensor([49,  1])

    Args:
        model: a bare backbone, the output of `load_speech_backbone`.
        layer: hidden states that are the features: None = the model's last, 0 = the input of the first transformer
            layer, n = the output of the n-th.

    Attributes:
        feature_size: size D of a feature.
        receptive_field: samples that one frame sees.
        hop: samples from one frame to the next.
        min_samples: samples of the shortest clip that the model takes, those of one frame.
        max_samples: None: clips may have any length.

    Raises:
        ValueError: if the model takes no waveforms, the layer does not exist, or the model has no mask embedding.
    """

    takes_waveforms = True
    extractor_arguments = ""  # further ones in the Python code of a model card: a single clip has no padding
    max_samples: int | None = None

    def __init__(self, model: PreTrainedModel, layer: int | None = None):
        config: Any = model.config
        if config.model_type not in MODEL_TYPES:
            raise ValueError(_describe_other(model))
        self.n_layers: int = config.num_hidden_layers
        self.feature_size: int = config.hidden_size
        self._check_layer(layer)
        if not hasattr(model, "masked_spec_embed"):
            raise ValueError(f"{type(model).__name__} has no mask embedding: load it by load_speech_backbone")
        self.layer = layer
        self.receptive_field, self.hop = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            self.receptive_field += (kernel - 1) * self.hop
            self.hop *= stride
        self.min_samples = self.receptive_field
        _keep_padding_out(model, self)

    def n_frames(self, lengths: torch.Tensor) -> torch.Tensor:
        """Count the frames of clips by their samples, at least 1 each: int64 of the same shape."""
        return (lengths.to(torch.int64) - self.receptive_field).clamp(min=0) // self.hop + 1

    def width(self, n_samples: int) -> int:
        """Count the frames of a batch of waveforms (B, n_samples), at least 1: those of its longest clip or more."""
        return max(0, n_samples - self.receptive_field) // self.hop + 1

    def features(
        self, model: nn.Module, values: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Average the hidden states over each clip's own frames: float32 of shape (B, D). Arguments as in `frames`."""
        hidden, n_frames = self.frames(model, values, lengths, mask)
        padding = torch.arange(hidden.shape[1], device=hidden.device) >= n_frames[:, None]
        return hidden.masked_fill(padding[:, :, None], 0.0).sum(dim=1) / n_frames[:, None]

    def frames(
        self,
        model: nn.Module,
        values: torch.Tensor,
        lengths: torch.Tensor,
        mask: torch.Tensor | None = None,
        layer: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the hidden states of every frame.

        Only dropout is random: `mask` replaces SpecAugment's own masks.

        Args:
            model: the backbone or its wrapper (DistributedDataParallel, a compiled module).
            values: normalised waveforms, float32 of shape (B, T); values behind a clip's end are ignored.
            lengths: samples of each clip, shape (B,), at most T.
            mask: frames whose input is replaced by the mask embedding, bool of shape (B, frames of T samples), or None.
            layer: another layer than the backbone's own.

        Returns:
            Hidden states, float32 of shape (B, frames, D), without meaning behind a clip's own frames; and the number
            of each clip's own frames, int64 of shape (B,).

        Raises:
            ValueError: if the layer does not exist, or `mask` has another shape.
        """
        self._check_layer(layer)
        layer = self.layer if layer is None else layer
        is_sample = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
        values = values.masked_fill(~is_sample, 0.0)
        values = F.pad(values, (0, max(0, self.receptive_field - values.shape[1])))
        lengths = lengths.clamp(min=self.receptive_field)
        shape = (len(values), self.width(values.shape[1]))
        if mask is None:  # None would let the model draw a mask, and keep the mask embedding out of the graph
            mask = torch.zeros(shape, dtype=torch.bool, device=values.device)
        elif mask.shape != shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)} but the batch has frames of shape {shape}")
        output = model(
            input_values=values,
            attention_mask=(torch.arange(values.shape[1], device=values.device) < lengths[:, None]).long(),
            mask_time_indices=mask,
            output_hidden_states=layer is not None,
        )
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
        return hidden.float(), self.n_frames(lengths)

    def freeze_unused(self, model: PreTrainedModel) -> None:
        """Freeze the parameters above `layer`: several processes would wait for gradients that never come."""
        if self.layer is None:
            return
        clip = torch.zeros(1, self.receptive_field, device=model.device)
        with trial_of(model):
            freeze_unreached(model, self.features(model, clip, torch.tensor([clip.shape[1]], device=model.device)))

    def load_expression(self, name: str) -> str:
        """Write Python code that loads the model from `name`, a Python literal."""
        return f"AutoModel.from_pretrained({name}).eval()"

    def feature_expression(self) -> str:
        """Write Python code that computes the same feature of one clip from `output`, the model's output."""
        hidden = "last_hidden_state" if self.layer is None else f"hidden_states[{self.layer}]"
        return f"output.{hidden}.mean(dim=1)"

    def usage_notes(self) -> str:
        """Describe what a reader of the snippet must know: batches, and what of the model was trained."""
        return (
            "For a batch of recordings of different lengths pass the extractor's `attention_mask` (`padding=True, "
            "return_attention_mask=True`) and average over each recording's own frames only. The backbone was trained "
            "with `layerdrop` 0: layers that are left out at random give features of changing depth."
        )

    def _check_layer(self, layer: int | None) -> None:
        if layer is not None and not 0 <= layer <= self.n_layers:
            raise ValueError(f"layer={layer} but the model has {self.n_layers} layers: use 0 to {self.n_layers}")


def load_speech_backbone(model: PreTrainedModel | str | os.PathLike[str]) -> PreTrainedModel:
    """Load a speech backbone in float32, from a name, a path, or a model in memory.

    A model with a head is reduced to its backbone. Weights in half precision are trained in float32 (use `bf16=True`
    for fast arithmetic). Settings that would draw layers or masks at random are switched off, and a model without a
    mask embedding gets one.

    Raises:
        ValueError: if the model is missing or damaged, or is not a HuBERT, wav2vec 2.0, WavLM or data2vec.
    """
    backbone = load_sound_model(model)
    _check_speech(backbone)
    backbone = convert_to_float32(backbone)
    _switch_randomness_off(backbone.config)
    _ensure_mask_embedding(backbone)
    return backbone


def load_sound_model(model: PreTrainedModel | str | os.PathLike[str]) -> PreTrainedModel:
    """Load a model of any kind from a name, a path, or memory, without its head.

    Raises:
        ValueError: if it is missing or damaged.
    """
    loaded: Any = model
    if isinstance(model, (str, os.PathLike)):
        name = find_base_model(os.fspath(model))
        try:
            loaded = AutoModel.from_pretrained(name, dtype=torch.float32)
        except Exception as error:  # as in load_backbone
            raise ValueError(describe_load_error(name, error)) from error
    backbone = extract_backbone(loaded, *SOUND_INPUTS)
    load_adapter_of(model, backbone)
    return backbone


def load_feature_extractor(model: PreTrainedModel) -> Any:
    """Load the feature extractor saved with the backbone's checkpoint.

    Raises:
        ValueError: if it is missing, naming the argument that takes one.
    """
    return load_processor(AutoFeatureExtractor, "feature extractor", model)


def small_hubert(sampling_rate: int, hidden_size: int = 128, num_hidden_layers: int = 3) -> PreTrainedModel:
    """Make a small HuBERT with random weights: a frame every 20 ms that sees 25.6 ms.

    Raises:
        ValueError: if `sampling_rate` is neither 8,000 nor 16,000.
    """
    if sampling_rate not in SMALL_CONVOLUTIONS:
        raise ValueError(f"sampling_rate={sampling_rate} but a small HuBERT takes 8,000 or 16,000 Hz: use one of them")
    kernels, strides = SMALL_CONVOLUTIONS[sampling_rate]
    config = HubertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=hidden_size // 32,
        intermediate_size=4 * hidden_size,
        conv_dim=(hidden_size // 2, hidden_size, hidden_size),  # the first layer has the most frames
        conv_kernel=kernels,
        conv_stride=strides,
        feat_extract_norm="layer",
        num_conv_pos_embeddings=16,
        initializer_range=hidden_size**-0.5,  # the usual 0.02 passes on too little of the sound to cluster by
        # A model this small has nothing to spare, and training should see the features that are clustered.
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )
    return HubertModel(config)


def small_hubert_extractor(sampling_rate: int) -> Wav2Vec2FeatureExtractor:
    """Make the feature extractor for `small_hubert`: each clip with zero mean and unit variance."""
    return Wav2Vec2FeatureExtractor(sampling_rate=sampling_rate, do_normalize=True, return_attention_mask=True)


def _keep_padding_out(model: PreTrainedModel, backbone: SpeechBackbone) -> None:
    if any(isinstance(hook, ClipLengths) for hook in model._forward_pre_hooks.values()):
        return
    clips = ClipLengths(backbone.receptive_field, backbone.hop)
    model.register_forward_pre_hook(clips, with_kwargs=True)
    module: Any = model
    first = module.feature_extractor.conv_layers[0]
    if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
        first.layer_norm = ClipNorm(first.layer_norm, clips, model.config.conv_kernel[0], model.config.conv_stride[0])
    positions = module.encoder.pos_conv_embed
    wide = [layer for layer in module.feature_extractor.conv_layers if _is_wide(layer.conv)]
    for unsafe in (positions, *wide):
        module_type: Any = type(unsafe)
        unsafe.__class__ = _disable_autocast(module_type)
    for layer in getattr(positions, "layers", []):  # data2vec: each would see the last one's output behind the end
        layer.register_forward_hook(clips.zero_padding)


def _is_wide(convolution: nn.Conv1d) -> bool:
    """True for a convolution whose gradient in bfloat16 reads memory that nobody has written, in torch 2.13 on CPUs.

    Seen at kernels of twice the stride or more; the gradient is then NaN at times. Those of published models are not
    as wide, but for the first, of one channel, which is right.
    """
    return convolution.in_channels > 1 and convolution.kernel_size[0] >= 2 * convolution.stride[0]


@functools.cache
def _disable_autocast(module_type: Any) -> Any:
    """Derive a class of modules that compute in float32 on a CPU.

    torch 2.13's grouped convolutions in bfloat16 are wrong on CPUs with AMX. For `small_hubert` the error is as large
    as the result; HuBERT base has no error.
    """

    class OutOfAutocast(module_type):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            if hidden.device.type != "cpu":
                return super().forward(hidden)
            with torch.autocast("cpu", enabled=False):
                return super().forward(hidden.float())

        def __reduce_ex__(self, protocol: Any) -> Any:
            # pickle cannot find a class that a function made
            return _make_out_of_autocast, (module_type,), self.__dict__

    OutOfAutocast.__name__ = module_type.__name__
    return OutOfAutocast


def _make_out_of_autocast(module_type: Any) -> Any:
    """Make a module without contents, for unpickling."""
    derived = _disable_autocast(module_type)
    return derived.__new__(derived)


def _describe_other(model: PreTrainedModel) -> str:
    return (
        f"{type(model).__name__} (model_type={model.config.model_type!r}) is not a speech transformer backbone that "
        "takes waveforms: use a HuBERT, wav2vec 2.0, WavLM or data2vec-audio model that AutoModel loads"
    )


def _check_speech(model: PreTrainedModel) -> None:
    config = model.config
    if config.model_type not in MODEL_TYPES:
        raise ValueError(_describe_other(model))
    if getattr(config, "add_adapter", False):
        raise ValueError(
            f"{type(model).__name__} has an adapter that thins out frames at random: "
            "load it by AutoModel.from_pretrained(..., add_adapter=False)"
        )
    if getattr(config, "conv_pos_batch_norm", False):
        raise ValueError(
            f"{type(model).__name__} has a batch norm over padded frames (conv_pos_batch_norm=True), so its features "
            "depend on the batch: use a checkpoint without one"
        )


def _switch_randomness_off(config: Any) -> None:
    if config.layerdrop > 0.0:
        logger.info(
            "layerdrop=%s is set to 0: with layers left out at random, features change in depth from batch to batch, "
            "and several processes wait for gradients that never come",
            config.layerdrop,
        )
        config.layerdrop = 0.0
    if config.mask_feature_prob > 0.0:
        logger.info(
            "mask_feature_prob=%s is set to 0: its masks are drawn from numpy's global generator, "
            "and a resumed run would not see them again",
            config.mask_feature_prob,
        )
        config.mask_feature_prob = 0.0


def _ensure_mask_embedding(model: PreTrainedModel) -> None:
    config: Any = model.config
    if not getattr(config, "apply_spec_augment", True):
        logger.info("apply_spec_augment=False is set to True: the model would ignore the masks that it is given")
        config.apply_spec_augment = True
    if config.mask_time_prob == 0.0:
        logger.info("mask_time_prob=0 is set to %s: the saved model would have no mask embedding", MASK_TIME_PROB)
        config.mask_time_prob = MASK_TIME_PROB
    if not hasattr(model, "masked_spec_embed"):
        embedding = torch.rand(config.hidden_size, generator=torch.Generator().manual_seed(0))
        model.masked_spec_embed = nn.Parameter(embedding.to(model.device))
