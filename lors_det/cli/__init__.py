# SPDX-License-Identifier: Apache-2.0
"""What tools/ call: arguments in, one clear line out when one is wrong."""
