# SPDX-License-Identifier: Apache-2.0
"""The end of a stage: feed-forward network, class and box branches."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lors_det.adamixer.init import xavier_reset, zero_weights
from lors_det.lors import StackedLayerNorm, StackedLinear

PRIOR_PROBABILITY = 0.01


class FeedForward(nn.Module):
    """Two linear layers with ReLU, residual and norm, of all stages.

    Source: AdaMixer (arXiv:2203.16507), "Overall AdaMixer detector".

    Args:
        num_stages: Number of decoder stages.
        embed_dims: Size C of a query's content.
        feedforward_channels: Size of the hidden layer.
        stack: Where the two layers of the stages come from (`StackConfig`).
    """

    def __init__(
        self,
        num_stages: int,
        embed_dims: int,
        feedforward_channels: int,
        stack: object = None,
    ) -> None:
        super().__init__()
        key = 'decoder.stacks.ffn'
        self.fc1 = StackedLinear(
            num_stages, embed_dims, feedforward_channels, stack, key=key
        )
        self.fc2 = StackedLinear(
            num_stages, feedforward_channels, embed_dims, stack, key=key
        )
        self.norm = StackedLayerNorm(num_stages, embed_dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values as the AdaMixer release does."""
        xavier_reset(self.fc1)
        xavier_reset(self.fc2)
        self.norm.reset_parameters()

    def forward(self, content: Tensor, stage: int) -> Tensor:
        """Transform every query by itself.

        Args:
            content: (B, N, C).
            stage: Index of the stage, from 0.

        Returns:
            (B, N, C).
        """
        hidden = self.fc1(content, stage).relu()
        return self.norm(content + self.fc2(hidden, stage), stage)


class Branch(nn.Module):
    """Some (linear, norm, ReLU) and a last linear layer, of all stages.

    Source: AdaMixer (arXiv:2203.16507), "Overall AdaMixer detector".

    Args:
        num_stages: Number of decoder stages.
        embed_dims: Size C of a query's content.
        out_dims: Size of the output.
        num_fcs: Number of hidden layers.
        stack: Where the layers of the stages come from (`StackConfig`).
    """

    def __init__(
        self,
        num_stages: int,
        embed_dims: int,
        out_dims: int,
        num_fcs: int,
        stack: object = None,
    ) -> None:
        super().__init__()
        key = 'decoder.stacks.heads'
        self.fcs = nn.ModuleList(
            StackedLinear(num_stages, embed_dims, embed_dims, stack, key=key)
            for _ in range(num_fcs)
        )
        self.norms = nn.ModuleList(
            StackedLayerNorm(num_stages, embed_dims) for _ in range(num_fcs)
        )
        self.out = StackedLinear(
            num_stages, embed_dims, out_dims, stack, key=key
        )

    def reset_parameters(self) -> None:
        """Draw initial values; those of ``out`` depend on the branch."""
        for fc, norm in zip(self.fcs, self.norms, strict=True):
            assert isinstance(fc, StackedLinear)
            assert isinstance(norm, StackedLayerNorm)
            xavier_reset(fc)
            norm.reset_parameters()
        xavier_reset(self.out)

    def forward(self, content: Tensor, stage: int) -> Tensor:
        """Predict from the content of every query.

        Args:
            content: (B, N, C).
            stage: Index of the stage, from 0.

        Returns:
            (B, N, out_dims).
        """
        x = content
        for fc, norm in zip(self.fcs, self.norms, strict=True):
            x = norm(fc(x, stage), stage).relu()
        return self.out(x, stage)


class PredictionHeads(nn.Module):
    """Class logits and refinements of the positions, of all stages.

    Source: AdaMixer (arXiv:2203.16507), "Overall AdaMixer detector".

    Args:
        num_stages: Number of decoder stages.
        embed_dims: Size C of a query's content.
        num_classes: Number of classes.
        num_cls_fcs: Number of hidden layers of the class branch.
        num_reg_fcs: Number of hidden layers of the regression branch.
        stack: Where the layers of the stages come from (`StackConfig`).
    """

    def __init__(
        self,
        num_stages: int,
        embed_dims: int,
        num_classes: int,
        num_cls_fcs: int,
        num_reg_fcs: int,
        stack: object = None,
    ) -> None:
        super().__init__()
        self.cls = Branch(
            num_stages, embed_dims, num_classes, num_cls_fcs, stack
        )
        self.reg = Branch(num_stages, embed_dims, 4, num_reg_fcs, stack)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values as the release does.

        All classes start with probability 0.01, all positions unrefined.
        """
        self.cls.reset_parameters()
        for bias in self.cls.out.bias:
            nn.init.constant_(bias, -math.log(1 / PRIOR_PROBABILITY - 1))
        self.reg.reset_parameters()
        zero_weights(self.reg.out)
        for bias in self.reg.out.bias:
            nn.init.zeros_(bias)

    def forward(self, content: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Predict from the content of every query.

        Args:
            content: (B, N, C).
            stage: Index of the stage, from 0.

        Returns:
            (B, N, num_classes) logits before the sigmoid, and (B, N, 4)
            deltas for `refine_xyzr`.
        """
        return self.cls(content, stage), self.reg(content, stage)
