"""Images and vision backbones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_plr.data.columns import find_image_column
from hf_plr.data.image_augmentation import IMAGE_AUGMENTATIONS, SAMPLING_AUGMENTATIONS, ImageAugmentation
from hf_plr.data.image_geometry import KEPT_BACKGROUND, ImageGeometry, scale_processor
from hf_plr.data.image_store import ImageStore, collate_images
from hf_plr.data.manifest import find_manifest_folder
from hf_plr.data.sample_store import SampleStore
from hf_plr.modality.base import Modality, choose_augmentation, quote_python
from hf_plr.models.auto_classes import find_owner
from hf_plr.models.vision import load_backbone, load_image_processor
from hf_plr.models.vision_backbone import VisionBackbone, count_channels

if TYPE_CHECKING:
    from hf_plr.training_args import BaseTrainingArguments

logger = logging.getLogger(__name__)

SNIPPET = """{numpy}import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained({name})
model = AutoModel.from_pretrained({name}).eval()
{image}
with torch.inference_mode():
    output = model(**processor(image, return_tensors="pt"){arguments})
tokens = {tokens}
feature = {feature}  # shape (1, {width})"""

OPENED = 'image = ImageOps.exif_transpose(Image.open("image.png")){convert}  # upright'
DEEP = """if image.mode.startswith(("I", "F")):  # {low:,.10g} to {high:,.10g} become 0 to 255, as in training
    pixels = np.asarray(image, dtype=np.float64) - {low:.10g}
    image = Image.fromarray((pixels.clip(0, {span:.10g}) * 255 / {span:.10g}).astype(np.uint8))"""
TRANSPARENT = """upright = image.convert("RGBA")
image = Image.new("RGB", upright.size, {background})  # behind transparent pixels, as in training
image.paste(upright, mask=upright)"""
CONVERT = {1: '.convert("L")', 3: '.convert("RGB")'}  # by number of channels; other images have them already


class ImageModality(Modality):
    """Images, for a vision backbone.

    Args:
        model: a vision backbone, its name or its path.
        args: the arguments.
        dataset: the images to train on or to describe; their size and the range of their pixels hold for all others.
        column: column with the images.
        processor: the image processor, which is copied; None takes the one saved with the model.
        augmentation: called with images (B, C, H, W) in [0, 1] and random numbers (B, 16); None takes the one that the
            arguments name, "affine" where they name none.

    Raises:
        ValueError: if model, processor, arguments and images do not fit together.
    """

    noun = "image"
    plural = "images"
    processor_name = "image processor"
    pipeline_tag = "image-feature-extraction"
    card_template = "image_backbone.md"
    classifier_name = "AutoModelForImageClassification"
    recipe = "image"
    collate = staticmethod(collate_images)

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: BaseTrainingArguments,
        dataset: Dataset,
        column: str,
        processor: Any = None,
        augmentation: ImageAugmentation | None = None,
    ):
        self.args = args
        self.column = column
        if augmentation is None:
            augmentation = choose_augmentation(args.augmentation or "affine", IMAGE_AUGMENTATIONS, self.plural)
        self.augmentation = augmentation
        self.model = load_backbone(model)
        # Copied: what is found of these images is stored with it.
        self.processor = load_image_processor(self.model) if processor is None else copy.deepcopy(processor)
        if args.image_size is not None:
            scale_processor(self.processor, args.image_size)
        self.geometry = ImageGeometry(
            self.processor,
            count_channels(self.model),
            args.pixel_range,
            args.transparency_background,
            args.decoded_size,
        )
        for note in self.geometry.fit(dataset, column):
            if args.process_index == 0:
                logger.warning("%s.", note)
        self.backbone = VisionBackbone(self.model, args.pooling, self.geometry.image_size, args.layer)

    @property
    def classifier(self) -> str | None:
        """What loads the backbone into a stock classifier; None if transformers has none for this kind."""
        is_tower = find_owner(self.model.config, self.classifier_name) is not None
        return "hf_plr.models.image_classifier.load_image_classifier" if is_tower else super().classifier

    @property
    def feature_size(self) -> int:
        """Width D of a feature."""
        return self.backbone.feature_size

    def open(
        self,
        dataset: Dataset,
        label_column: str | None,
        label_names: dict[str, int],
        numbers: np.ndarray | None = None,
        has_manifest: bool = True,
    ) -> ImageStore:
        """Open a data set as samples; see `Modality.open`."""
        args = self.args
        return ImageStore(
            dataset,
            find_image_column(dataset, self.column),
            self.geometry,
            label_column=label_column,
            label_names=label_names,
            cache_bytes=int(args.image_cache_gib * 2**30),
            cache_dir=args.image_cache_dir,
            skip_unreadable=args.skip_unreadable,
            manifest_dir=find_manifest_folder(args.image_cache_dir) if has_manifest else None,
            state=args.distributed_state,
            numbers=numbers,
        )

    def features(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor], numbers: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute features (B, D) of a batch; see `Modality.features`."""
        images = self.geometry.unit_range(batch["pixel_values"])
        if numbers is None:
            images = self.geometry.reduce(images)
        elif self.augmentation in SAMPLING_AUGMENTATIONS and images.shape[2:] != self.geometry.image_size:
            images = self.augmentation(images, numbers, self.geometry.image_size)
        else:
            images = self.augmentation(self.geometry.reduce(images), numbers)
        return self.backbone.features(model, self.geometry.normalise(images))

    def example(self) -> dict[str, torch.Tensor]:
        """Make a black batch of one image, by which a model is tried."""
        shape = 1, count_channels(self.model), *self.geometry.image_size
        return {"pixel_values": torch.zeros(shape, dtype=torch.uint8, device=self.model.device)}

    def freeze_unused(self) -> None:
        """Freeze what no feature depends on, and interpolated positions where a GPU must give the same bits."""
        self.backbone.freeze_unused(self.model)
        if self.args.is_exact_gpu:
            self.backbone.freeze_positions(self.model)

    def batches(self, store: SampleStore, positions: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
        """Split positions into batches of one size; images all cost the same."""
        return positions.split(size) if len(positions) else ()

    def costs(self, store: SampleStore) -> np.ndarray | None:
        """Give no costs, since all images cost the same."""
        return None

    def usage_snippet(self, name: str) -> str:
        """Write the Python for a model card that computes a feature; see `Modality.usage_snippet`."""
        pixel_range, convert = self.geometry.settings.pixel_range, CONVERT.get(self.geometry.num_channels, "")
        background = getattr(self.processor, KEPT_BACKGROUND, None)
        is_laid = background is not None and bool(convert)  # images of other channels are taken as they are
        steps = [OPENED.format(convert="" if is_laid or pixel_range is not None else convert)]
        if pixel_range is not None:
            low, high = pixel_range
            steps.append(DEEP.format(low=low, high=high, span=high - low))
        if is_laid and background is not None:
            steps.append(TRANSPARENT.format(background=quote_python(background)))
        if convert and len(steps) > 1:
            steps.append(f"image = image{convert}")
        return SNIPPET.format(
            numpy="" if pixel_range is None else "import numpy as np\n",
            image="\n".join(steps),
            name=quote_python(name),
            arguments=self.backbone.forward_expression(),
            tokens=self.backbone.tokens_expression(),
            feature=self.backbone.feature_expression(),
            width=self.feature_size,
        )
