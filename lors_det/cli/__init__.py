# SPDX-License-Identifier: Apache-2.0
"""The commands behind tools/: arguments in, one clear line if one is wrong."""
