# SPDX-License-Identifier: Apache-2.0
"""AdaMixer's neck: every level on its own, one norm for all."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import MODELS
from torch import Tensor, nn

from lors_det.adamixer.settings import check_neck


@MODELS.register_module()
class SharedNormMapper(nn.Module):
    """A 1x1 convolution per level, then one GroupNorm shared by all levels.

    Source: AdaMixer (arXiv:2203.16507), "Adaptive location sampling" (no
    top-down path), and its release. mmdet's ``ChannelMapper`` has a norm per
    level and no bias before it, which is another function. The norm's
    statistics include the padding of a batch, so an image's result depends on
    what it is batched with, as in the release.

    Args:
        in_channels: Channels of every level of the backbone.
        out_channels: Channels C of every level of the pyramid.
        num_norm_groups: Groups of the GroupNorm.

    Raises:
        TypeError: If a size has a wrong type.
        ValueError: If a size is below 1, or C is not divisible by
            ``num_norm_groups``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_norm_groups: int = 32,
    ) -> None:
        super().__init__()
        check_neck(in_channels, out_channels, num_norm_groups)
        self.in_channels = tuple(in_channels)
        self.num_outs = len(self.in_channels)
        self.out_channels = out_channels
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, out_channels, 1) for channels in in_channels
        )
        self.norm = nn.GroupNorm(num_norm_groups, out_channels)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw initial values as the release does."""
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)
        self.norm.reset_parameters()

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Map all levels to the same number of channels.

        Args:
            feats: One (B, in_channels[l], H_l, W_l) per level.

        Returns:
            One (B, C, H_l, W_l) per level.

        Raises:
            ValueError: If the backbone gives other channels.
        """
        found = tuple(feat.shape[1] for feat in feats)
        if found != self.in_channels:
            raise ValueError(
                f'neck.in_channels={list(self.in_channels)}: the backbone '
                f'gives {list(found)}'
            )
        return tuple(
            self.norm(conv(feat))
            for conv, feat in zip(self.convs, feats, strict=True)
        )
