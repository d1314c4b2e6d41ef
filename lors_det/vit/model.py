# SPDX-License-Identifier: Apache-2.0
"""The image classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn
from torchvision.transforms import v2

from lors_det.lors.config import check_at_least
from lors_det.vit.embed import PatchEmbedding
from lors_det.vit.encoder import NORM_EPS, ViTEncoder


@MODELS.register_module()
class ViTClassifier(BaseModel):
    """DeiT without distillation; LORS-DeiT with ``stacks`` of mode ``lors``.

    Source: DeiT (arXiv:2012.12877); LORS (arXiv:2403.04303). The defaults are
    DeiT-Tiny for images of 32 x 32 pixels.

    train: images -> mixup or cutmix -> tokens -> encoder -> norm -> head ->
    cross-entropy; predict: the same without mixing, and a softmax.

    Args:
        num_classes: Number of classes.
        img_size: Side of the images, in pixels; for images of another size
            the position embedding is interpolated.
        patch_size: Side of a patch, in pixels.
        in_channels: Channels of an image.
        embed_dims: Size C of a token.
        num_layers: Number of layers.
        num_heads: Number of attention heads.
        feedforward_channels: Hidden size of the feed-forward network.
        stacks: Where the weights of the layers come from; see `ViTEncoder`.
        label_smoothing: Share of the target, hard or soft, that is spread
            evenly over all classes, from 0 to 1.
        mixup: Parameter alpha of mixup; 0 for no mixup.
        cutmix: Parameter alpha of cutmix; 0 for no cutmix.
        data_preprocessor: Config of mmengine's `ImgDataPreprocessor`.

    Raises:
        TypeError: If a size or an entry of ``stacks`` has a wrong type.
        ValueError: If a setting is out of range, or two do not fit.
    """

    def __init__(
        self,
        num_classes: int,
        img_size: int = 32,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dims: int = 192,
        num_layers: int = 12,
        num_heads: int = 3,
        feedforward_channels: int = 768,
        stacks: Mapping[str, Any] | None = None,
        label_smoothing: float = 0.1,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        check_at_least(1, **{'model.num_classes': num_classes})
        if not 0 <= label_smoothing <= 1:
            raise ValueError(
                f'model.label_smoothing={label_smoothing!r}: expected a '
                'number from 0 to 1'
            )
        self.label_smoothing = label_smoothing
        self.mixing = _batch_mixing(num_classes, mixup=mixup, cutmix=cutmix)
        self.embed = PatchEmbedding(
            img_size, patch_size, in_channels, embed_dims
        )
        self.encoder = ViTEncoder(
            num_layers, embed_dims, num_heads, feedforward_channels, stacks
        )
        self.norm = nn.LayerNorm(embed_dims, eps=NORM_EPS)
        self.head = nn.Linear(embed_dims, num_classes)
        # Every class starts with the same probability.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Tensor | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Compute losses, predictions or logits, as mmengine's models do.

        Args:
            inputs: (B, in_channels, H, W) normalised images.
            data_samples: (B,) classes, or (B, num_classes) probabilities.
            mode: ``loss``, ``predict`` or ``tensor``.

        Returns:
            See `loss` and `predict`; (B, num_classes) logits for ``tensor``.

        Raises:
            ValueError: If the mode is unknown, or ``loss`` has no labels.
        """
        if mode == 'tensor':
            return self.logits(inputs)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode != 'loss':
            raise ValueError(f'mode={mode!r}: expected loss, predict, tensor')
        if data_samples is None:
            raise ValueError("mode='loss' needs data_samples: got None")
        return self.loss(inputs, data_samples)

    def logits(self, images: Tensor) -> Tensor:
        """Compute the class logits.

        Args:
            images: (B, in_channels, H, W) normalised.

        Returns:
            (B, num_classes) before the softmax.
        """
        tokens = self.encoder(self.embed(images))
        return self.head(self.norm(tokens[:, 0]))

    def loss(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the loss of a batch after mixup or cutmix.

        Args:
            images: (B, in_channels, H, W) normalised.
            labels: (B,) classes, or (B, num_classes) probabilities.

        Returns:
            ``loss``, the mean over the batch.
        """
        if self.mixing is not None:
            images, labels = self.mixing(images, labels)
        logits = self.logits(images)
        loss = F.cross_entropy(
            logits, labels, label_smoothing=self.label_smoothing
        )
        return {'loss': loss}

    def predict(
        self, images: Tensor, labels: Tensor | None = None
    ) -> list[dict[str, Tensor]]:
        """Predict the classes of a batch.

        Args:
            images: (B, in_channels, H, W) normalised.
            labels: (B,) classes, or None.

        Returns:
            For every image ``pred_scores`` (num_classes,) probabilities,
            ``pred_label`` () class, and ``gt_label`` () where it is known.
        """
        scores = self.logits(images).softmax(dim=-1)
        results = [
            {'pred_scores': row, 'pred_label': row.argmax()} for row in scores
        ]
        if labels is not None:
            for result, label in zip(results, labels, strict=True):
                result['gt_label'] = label
        return results


def _batch_mixing(num_classes: int, **alphas: float) -> nn.Module | None:
    """Return torchvision's mixup or cutmix, one at random for each batch.

    Each image is mixed with the next one of its batch, so the data have to be
    shuffled. Sources: mixup (arXiv:1710.09412), cutmix (arXiv:1905.04899).
    """
    choices = []
    for key, kind in (('mixup', v2.MixUp), ('cutmix', v2.CutMix)):
        alpha = alphas[key]
        if alpha < 0:
            raise ValueError(
                f'model.{key}={alpha!r}: expected a number above 0, or 0 '
                f'for no {key}'
            )
        if alpha:
            # Their constructors make tensors and read their values.
            with torch.device('cpu'):
                choices.append(kind(alpha=alpha, num_classes=num_classes))
    return v2.RandomChoice(choices) if choices else None
