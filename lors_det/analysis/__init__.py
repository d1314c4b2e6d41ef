# SPDX-License-Identifier: Apache-2.0
"""Costs, timing and plots of models."""
