# SPDX-License-Identifier: Apache-2.0
"""Many trainings one after another: configs x values x seeds, resumable."""
