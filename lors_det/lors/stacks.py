# SPDX-License-Identifier: Apache-2.0
"""The weights of a stack of N layers: shared plus low-rank.

`StackedLinear` holds weights that are learnt (LORS-T), `AdaptiveStack`
weights that are generated from a query (LORS-A).

Source: LORS (arXiv:2403.04303).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lors_det.lors.config import StackConfig, check_at_least

#: What the parameters of a stack are for, by the first part of their name.
PARTS = {
    'dense': 'dense',
    'shared': 'shared',
    'private_A': 'private',
    'private_B': 'private',
    'private_E': 'private',
    'bias': 'bias',
}


class Stack(nn.Module):
    """N weights of one shape, used by N layers of the same architecture.

    A checkpoint that was written for another depth, mode or rank is refused
    when it is loaded, also where the caller loads with ``strict=False``:
    skipping the stack would leave random weights without a word.

    Args:
        num_layers: Depth N.
        config: Where the weights come from; a ``StackConfig``, a dict of its
            fields, or None for dense.
        key: Name of the stack's setting, for error messages.

    Attributes:
        always_sum: Whether weights are summed up however few the inputs are:
            for exported graphs, whose runtime does it once for all.

    Raises:
        TypeError: If ``num_layers`` or ``config`` has a wrong type.
        ValueError: If ``num_layers`` is below 1 or the mode is unknown.
    """

    always_sum = False

    def __init__(self, num_layers: int, config: object, key: str) -> None:
        super().__init__()
        check_at_least(1, num_layers=num_layers)
        self.num_layers = num_layers
        self.config = StackConfig.parse(config, key)
        self.key = key

    def like(self, config: object) -> Any:
        """Build a stack of the same kind and sizes, with new weights.

        Args:
            config: Where the weights come from, as for this stack.

        Returns:
            The new stack, with the device, dtype, training mode and
            ``requires_grad`` of this one.
        """
        stack = self._build(config)
        parameter = next(self.parameters())
        stack.to(parameter.device, parameter.dtype).train(self.training)
        return stack.requires_grad_(parameter.requires_grad)

    def _build(self, config: object) -> Stack:
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any
    ) -> None:
        found = {
            name.removeprefix(prefix): tuple(value.shape)
            for name, value in state_dict.items()
            if name.startswith(prefix)
            and name.removeprefix(prefix).split('.')[0] in PARTS
        }
        expected = {
            name: tuple(value.shape) for name, value in self.named_parameters()
        }
        if found and _layout(found) != _layout(expected):
            raise ValueError(
                f'{self.key}: the checkpoint ({prefix}*) holds '
                f'{_layout(found)}; the model was built with '
                f'{_layout(expected)}: build it with the depth, mode '
                'and rank of the checkpoint'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


class StackedLinear(Stack):
    """N linear layers of one shape whose weights may have a part in common.

    ``W_i = W_shared + sum_k B_ik A_ik`` in the mode ``lors``; the other modes
    leave one of the two parts out, or make the N matrices unrelated. The K
    terms of a layer are stored as one term of rank K r, which is the same
    matrix.

    Source: LORS (arXiv:2403.04303), static low-rank residual structure
    (LORS-T).

    Args:
        num_layers: Depth N.
        in_features: Size h of the input.
        out_features: Size d of the output.
        config: Where the N matrices come from; a ``StackConfig``, a dict of
            its fields, or None for dense.
        bias: Whether each layer has a bias (always its own).
        key: Name of the stack's setting, for error messages.

    Raises:
        TypeError: If a size or an entry of ``config`` has a wrong type.
        ValueError: If a size, mode, rank or number of entries is wrong.

    Example:
        >>> stack = StackedLinear(12, 192, 576, dict(mode='lors', rank=8))
        >>> stack(torch.rand(4, 192), layer=3).shape
        torch.Size([4, 576])
    """

    def __init__(
        self,
        num_layers: int,
        in_features: int,
        out_features: int,
        config: object = None,
        bias: bool = True,
        key: str = 'stack',
    ) -> None:
        super().__init__(num_layers, config, key)
        check_at_least(1, in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        max_rank = min(in_features, out_features)
        sizes = self.config.private_sizes(num_layers, max_rank, key)
        num_dense = num_layers if self.config.mode == 'dense' else 0
        self.dense = nn.ParameterList(
            _matrix(out_features, in_features) for _ in range(num_dense)
        )
        self.shared = None
        if self.config.has_shared:
            self.shared = _matrix(out_features, in_features)
        # Dicts, not lists: a layer of rank 0 has no factors at all.
        self.private_A = nn.ParameterDict()
        self.private_B = nn.ParameterDict()
        for i, (k, r) in enumerate(sizes):
            if r:
                self.private_A[str(i)] = _matrix(k * r, in_features)
                self.private_B[str(i)] = _matrix(out_features, k * r)
        self.bias = nn.ParameterList(
            _matrix(out_features) for _ in range(num_layers if bias else 0)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values.

        Dense and shared matrices follow ``nn.Linear``. In the mode ``lors``
        A is drawn, B and the biases are zero as in the LORS release, so that
        every layer starts as the shared one. In the mode ``private`` B is
        drawn too, with the scale that gives ``B A`` the variance of a dense
        matrix: with B zero a stack without shared part would start dead.
        """
        bound = 1 / math.sqrt(self.in_features)
        for weight in self.dense:
            nn.init.uniform_(weight, -bound, bound)
        if self.shared is not None:
            nn.init.uniform_(self.shared, -bound, bound)
        for layer, a in self.private_A.items():
            limit = math.sqrt(6 / self.in_features)
            nn.init.uniform_(a, -limit, limit)
            limit = math.sqrt(1 / (2 * len(a))) if self.shared is None else 0
            nn.init.uniform_(self.private_B[layer], -limit, limit)
        for b in self.bias:
            limit = bound if self.config.mode == 'dense' else 0
            nn.init.uniform_(b, -limit, limit)

    def weight(self, layer: int) -> Tensor:
        """Build the matrix of one layer.

        Args:
            layer: Index of the layer, from 0.

        Returns:
            (out_features, in_features).
        """
        if self.dense:
            return self.dense[layer]
        name = str(layer)
        if name not in self.private_A:
            assert self.shared is not None
            return self.shared
        a, b = self.private_A[name], self.private_B[name]
        if self.shared is None:
            return b @ a
        return torch.addmm(self.shared, b, a)

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """Apply one layer.

        Args:
            x: (..., in_features).
            layer: Index of the layer, from 0.

        Returns:
            (..., out_features).
        """
        bias = self.bias[layer] if self.bias else None
        num_rows = math.prod(x.shape[:-1])
        if not self.use_unmerged(num_rows, layer):
            return F.linear(x, self.weight(layer), bias)
        name = str(layer)
        # As rows, so that autograd sums the two gradients of x in place.
        rows = x.reshape(-1, self.in_features)
        low = F.linear(rows, self.private_A[name])
        y = F.linear(low, self.private_B[name], bias)
        if self.shared is not None:
            y = torch.addmm(y, rows, self.shared.mT)
        return y.view(*x.shape[:-1], self.out_features)

    def use_unmerged(self, num_rows: int, layer: int) -> bool:
        """Choose by multiply-adds: apply the low-rank part, or sum up first.

        Args:
            num_rows: Number of inputs.
            layer: Index of the layer, from 0.

        Returns:
            Whether ``B (A x)`` is cheaper than ``B A``.
        """
        if self.always_sum:
            return False
        applied = num_rows * (self.in_features + self.out_features)
        summed = self.in_features * self.out_features
        if self.shared is None:
            summed += num_rows * summed
        return str(layer) in self.private_A and applied < summed

    def _build(self, config: object) -> StackedLinear:
        return StackedLinear(
            self.num_layers, self.in_features, self.out_features, config,
            bias=len(self.bias) > 0, key=self.key,
        )  # fmt: skip


class AdaptiveStack(Stack):
    """N generators of query-dependent matrices, with a part in common.

    ``W_i(q) = W_shared(q) + sum_k B_ik E_ik(q) A_ik`` in the mode ``lors``:
    one linear generator makes ``W_shared(q)`` for all layers, a small one per
    layer the (r, r) kernels ``E_ik(q)`` between factors that do not depend on
    the query. The other modes leave one of the two parts out, or give each
    layer a full generator of its own (``dense``, plain AdaMixer).

    Each of G groups has matrices of its own. All generators start with zero
    weights, so the first matrices depend on their biases only.

    Source: LORS (arXiv:2403.04303), adaptive low-rank residual structure
    (LORS-A); initial values as in the LORS and AdaMixer releases.

    Args:
        num_layers: Depth N.
        query_dim: Size C of a query.
        num_groups: Number G of groups.
        rows: Rows of a matrix.
        cols: Columns of a matrix.
        config: Where the N matrices come from; a ``StackConfig``, a dict of
            its fields, or None for dense.
        key: Name of the stack's setting, for error messages.

    Raises:
        TypeError: If a size or an entry of ``config`` has a wrong type.
        ValueError: If a size, mode, rank or number of entries is wrong.
    """

    def __init__(
        self,
        num_layers: int,
        query_dim: int,
        num_groups: int,
        rows: int,
        cols: int,
        config: object = None,
        key: str = 'stack',
    ) -> None:
        super().__init__(num_layers, config, key)
        check_at_least(
            1, query_dim=query_dim, num_groups=num_groups, rows=rows, cols=cols
        )
        self.query_dim = query_dim
        self.num_groups = num_groups
        self.rows = rows
        self.cols = cols
        max_rank = min(rows, cols)
        self.sizes = self.config.private_sizes(num_layers, max_rank, key)

        full = num_groups * rows * cols
        num_dense = num_layers if self.config.mode == 'dense' else 0
        self.dense = nn.ModuleList(
            nn.Linear(query_dim, full) for _ in range(num_dense)
        )
        self.shared = None
        if self.config.has_shared:
            self.shared = nn.Linear(query_dim, full)
        # Dicts, not lists: a layer of rank 0 has no private part at all.
        self.private_A = nn.ParameterDict()
        self.private_B = nn.ParameterDict()
        self.private_E = nn.ModuleDict()
        for i, (k, r) in enumerate(self.sizes):
            if r:
                name = str(i)
                self.private_A[name] = _matrix(num_groups, k, r, cols)
                self.private_B[name] = _matrix(num_groups, k, rows, r)
                self.private_E[name] = nn.Linear(
                    query_dim, num_groups * k * r * r
                )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw initial values.

        Generators of whole matrices: weight 0, bias as ``nn.Linear``.
        Generators of E: all zero in the mode ``lors`` as in the release, so
        that every layer starts as the shared one. In the mode ``private``
        their bias is drawn with the scale that gives ``B E A`` the variance
        of a dense matrix: with E zero there would be no gradient through the
        normalisation that follows the mixing.
        """
        for generator in [*self.dense, *filter(None, [self.shared])]:
            generator.reset_parameters()
            nn.init.zeros_(generator.weight)
        for name, e in self.private_E.items():
            assert isinstance(e, nn.Linear)
            b, a = self.private_B[name], self.private_A[name]
            num_terms, rows, r = b.shape[1:]
            for factor, fan_in in ((b, rows * r), (a, r * self.cols)):
                # fan_in as the release has it: of a term's whole factor.
                limit = math.sqrt(6 / fan_in)
                nn.init.uniform_(factor, -limit, limit)
            nn.init.zeros_(e.weight)
            limit = 0.0
            if self.shared is None:
                area = rows * self.cols
                limit = math.sqrt(area / (4 * e.in_features * num_terms))
            nn.init.uniform_(e.bias, -limit, limit)

    def forward(self, query: Tensor, layer: int) -> Tensor:
        """Generate the matrices of one layer.

        Args:
            query: (..., C).
            layer: Index of the layer, from 0.

        Returns:
            (..., G, rows, cols).
        """
        full = self._full_generator(layer)
        name = str(layer)
        if name not in self.private_E:
            assert full is not None
            return self._as_matrices(full(query))
        if self.always_sum or math.prod(query.shape[:-1]) > self.query_dim:
            # Cheaper for many queries: add the terms once, to the generator.
            weight, bias = self.summed_generator(layer)
            return self._as_matrices(F.linear(query, weight, bias))
        b, a = self.private_B[name], self.private_A[name]
        num_terms, r = a.shape[1:3]
        e = self.private_E[name](query)
        e = e.unflatten(-1, (self.num_groups, num_terms, r, r))
        # The K terms, side by side, are one product of inner size K r.
        b = b.transpose(1, 2).flatten(2)  # (G, rows, K r)
        ea = (e @ a).flatten(-3, -2)  # (..., G, K r, cols)
        if full is None:
            return b @ ea
        w = self._as_matrices(full(query))  # (..., G, rows, cols)
        b = b.expand(*w.shape[:-2], -1, -1).flatten(0, -3)
        # In place: nothing else holds w, and it is most of the memory.
        terms = b.to(w), ea.flatten(0, -3).to(w)
        w.view(-1, self.rows, self.cols).baddbmm_(*terms)
        return w

    def summed_generator(self, layer: int) -> tuple[Tensor, Tensor]:
        """Sum the generators of a layer up to one linear map.

        They are linear in the query, and so is their sum, which has as many
        parameters as a dense generator.

        Args:
            layer: Index of the layer, from 0.

        Returns:
            Weight (G * rows * cols, C) and bias (G * rows * cols).
        """
        full = self._full_generator(layer)
        base = None if full is None else _weight_and_bias(full)
        name = str(layer)
        if name in self.private_E:
            b, a = self.private_B[name], self.private_A[name]
            num_terms, r = a.shape[1:3]
            e = _weight_and_bias(self.private_E[name])  # (G K r r, C + 1)
            e = e.unflatten(0, (self.num_groups, num_terms, r, r))
            ea = a.transpose(-1, -2)[:, :, None] @ e  # (G, K, r, cols, C + 1)
            ea = ea.flatten(3).flatten(1, 2)  # (G, K r, cols * (C + 1))
            b = b.transpose(1, 2).flatten(2)  # (G, rows, K r)
            if base is None:
                base = b @ ea
            else:
                base = base.view(self.num_groups, self.rows, -1)
                base = torch.baddbmm(base, b, ea)
            base = base.view(-1, e.shape[-1])
        assert base is not None
        return base[:, :-1], base[:, -1]

    def _full_generator(self, layer: int) -> nn.Module | None:
        """Return the generator of whole matrices, if the mode has one."""
        return self.dense[layer] if self.dense else self.shared

    def _as_matrices(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.num_groups, self.rows, self.cols))

    def _build(self, config: object) -> AdaptiveStack:
        return AdaptiveStack(
            self.num_layers, self.query_dim, self.num_groups, self.rows,
            self.cols, config, self.key,
        )  # fmt: skip


class StackedLayerNorm(nn.ModuleList):
    """N layer norms with affine, one for each layer of a stack.

    Args:
        num_layers: Depth N.
        dims: Size of the last axis.
        eps: Added to the variance.
    """

    def __init__(self, num_layers: int, dims: int, eps: float = 1e-5) -> None:
        super().__init__(
            nn.LayerNorm(dims, eps=eps) for _ in range(num_layers)
        )

    def reset_parameters(self) -> None:
        """Set weights to 1 and biases to 0."""
        for norm in self:
            assert isinstance(norm, nn.LayerNorm)
            norm.reset_parameters()

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """Normalise with the norm of one layer.

        Args:
            x: (..., dims).
            layer: Index of the layer, from 0.

        Returns:
            (..., dims).
        """
        return self[layer](x)


def _layout(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Describe mode, depth and ranks, from the shapes in a state dict."""
    ranks = {}  # by layer: K r of a learnt weight, K x r of a generated one
    for name, shape in shapes.items():
        if name.startswith('private_B.'):
            is_static = len(shape) == 2
            rank = f'{shape[1]}' if is_static else f'{shape[1]} x {shape[3]}'
            ranks[int(name.split('.')[1])] = rank
    parts = {PARTS[name.split('.')[0]] for name in shapes}
    if 'dense' in parts:
        mode = 'dense'
    elif not ranks:
        mode = 'shared'
    else:
        mode = 'lors' if 'shared' in parts else 'private'
    text = f'mode {mode!r}'
    indices = [re.match(r'\w+\.(\d+)', name) for name in shapes]
    depth = max((int(m[1]) + 1 for m in indices if m), default=0)
    if depth:
        text += f', {depth} layers'
    return f'{text}, ranks {ranks}' if ranks else text


def _matrix(*shape: int) -> nn.Parameter:
    """Return an uninitialised parameter."""
    return nn.Parameter(torch.empty(*shape))


def _weight_and_bias(linear: nn.Module) -> Tensor:
    """Return (out, in + 1): the weight of a linear map and its bias."""
    assert isinstance(linear, nn.Linear)
    return torch.cat([linear.weight, linear.bias[:, None]], dim=1)
