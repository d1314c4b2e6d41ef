# SPDX-License-Identifier: Apache-2.0
"""Measurements of time and memory; not part of the installed package."""
