# SPDX-License-Identifier: Apache-2.0
"""What one looks at: costs, timing, plots."""
