# SPDX-License-Identifier: Apache-2.0
"""The decoder: every step of a stage is a stack over all stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmdet.registry import MODELS
from torch import Tensor, nn

from lors_det.adamixer.attention import QueryAttention
from lors_det.adamixer.geometry import (
    at_least_float32,
    decode_xyzr,
    refine_xyzr,
)
from lors_det.adamixer.heads import FeedForward, PredictionHeads
from lors_det.adamixer.mixing import AdaptiveMixing
from lors_det.adamixer.sampling import AdaptiveSampling, Pyramid
from lors_det.adamixer.settings import check_decoder


class StageOutput(NamedTuple):
    """Predictions of one stage.

    Args:
        cls_logits: (B, N, num_classes) before the sigmoid.
        bboxes: (B, N, 4) x1, y1, x2, y2 in pixels of the resized image, not
            clipped.
        xyzr: (B, N, 4) refined positions, behind ``bboxes``.
        content: (B, N, C) content that the next stage receives.
    """

    cls_logits: Tensor
    bboxes: Tensor
    xyzr: Tensor
    content: Tensor


@MODELS.register_module()
class AdaMixerDecoder(nn.Module):
    """Refine queries in N stages of the same architecture.

    Source: AdaMixer (arXiv:2203.16507), "Overall AdaMixer detector"; with
    ``stacks`` in the mode ``lors`` it is the decoder of LORS
    (arXiv:2403.04303).

    Args:
        num_classes: Number of classes.
        num_stages: Number of stages.
        embed_dims: Size C of a query's content, and channels of the pyramid.
        num_heads: Heads of the self-attention.
        num_groups: Number G of channel groups in sampling and mixing.
        in_points: Number P_in of sampled points of a group.
        out_points: Number P_out of points of a group after spatial mixing.
        feedforward_channels: Hidden size of the feed-forward network.
        num_cls_fcs: Hidden layers of the class branch.
        num_reg_fcs: Hidden layers of the regression branch.
        strides: Stride of every pyramid level in pixels.
        stacks: Where the weights of the stages come from, by the name of a
            step (``attention``, ``offsets``, ``mixing_kernels``,
            ``mixing_out_proj``, ``ffn``, ``heads``); each a dict with the
            fields of `StackConfig`. Steps that are not named are dense.
        with_cp: Whether training recomputes each stage's mixing in the
            backward pass, to save memory.

    Raises:
        TypeError: If a size or an entry of ``stacks`` has a wrong type.
        ValueError: If a size, divisibility, mode, rank or name is wrong.
    """

    def __init__(
        self,
        num_classes: int,
        num_stages: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_groups: int = 4,
        in_points: int = 32,
        out_points: int = 128,
        feedforward_channels: int = 2048,
        num_cls_fcs: int = 1,
        num_reg_fcs: int = 1,
        strides: Sequence[int] = (4, 8, 16, 32),
        stacks: Mapping[str, Any] | None = None,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        stacks = {} if stacks is None else stacks
        check_decoder(
            {
                'num_classes': num_classes,
                'num_stages': num_stages,
                'embed_dims': embed_dims,
                'num_heads': num_heads,
                'num_groups': num_groups,
                'in_points': in_points,
                'out_points': out_points,
                'feedforward_channels': feedforward_channels,
                'num_cls_fcs': num_cls_fcs,
                'num_reg_fcs': num_reg_fcs,
                'strides': strides,
                'stacks': stacks,
                'with_cp': with_cp,
            }
        )
        self.num_classes = num_classes
        self.num_stages = num_stages
        self.embed_dims = embed_dims
        self.strides = tuple(strides)
        self.attention = QueryAttention(
            num_stages, embed_dims, num_heads, stacks.get('attention')
        )
        self.sampling = AdaptiveSampling(
            num_stages, embed_dims, num_groups, in_points,
            stacks.get('offsets'),
        )  # fmt: skip
        self.mixing = AdaptiveMixing(
            num_stages, embed_dims, num_groups, in_points, out_points,
            stacks.get('mixing_kernels'), stacks.get('mixing_out_proj'),
            with_cp,
        )  # fmt: skip
        self.ffn = FeedForward(
            num_stages, embed_dims, feedforward_channels, stacks.get('ffn')
        )
        self.heads = PredictionHeads(
            num_stages, embed_dims, num_classes, num_cls_fcs, num_reg_fcs,
            stacks.get('heads'),
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Draw initial values of every step anew."""
        for step in (
            self.attention, self.sampling, self.mixing, self.ffn, self.heads
        ):  # fmt: skip
            step.reset_parameters()

    def init_weights(self) -> None:
        """`reset_parameters`, by the name that mmengine calls."""
        self.reset_parameters()

    def forward(
        self, feats: Sequence[Tensor], content: Tensor, xyzr: Tensor
    ) -> list[StageOutput]:
        """Run all stages.

        Args:
            feats: One (B, C, H_l, W_l) per pyramid level.
            content: (B, N, C) initial content.
            xyzr: (B, N, 4) initial positions.

        Returns:
            What every stage predicts, first to last.
        """
        pyramid = Pyramid.build(feats, self.strides)
        outputs = []
        for stage in range(self.num_stages):
            output = self.forward_stage(pyramid, content, xyzr, stage)
            outputs.append(output)
            # Content carries gradients from stage to stage, positions do not.
            content, xyzr = output.content, output.xyzr.detach()
        return outputs

    def forward_stage(
        self, pyramid: Pyramid, content: Tensor, xyzr: Tensor, stage: int
    ) -> StageOutput:
        """Run one stage.

        Args:
            pyramid: What the queries sample.
            content: (B, N, C) query content.
            xyzr: (B, N, 4) query positions.
            stage: Index of the stage, from 0.

        Returns:
            What the stage predicts.
        """
        content = self.attention(content, xyzr, stage)
        sampled = self.sampling(pyramid, content, xyzr, stage)
        content = self.mixing(sampled, content, stage)
        content = self.ffn(content, stage)
        cls_logits, delta = self.heads(content, stage)
        xyzr = refine_xyzr(xyzr, at_least_float32(delta))
        return StageOutput(
            at_least_float32(cls_logits), decode_xyzr(xyzr), xyzr, content
        )
