# SPDX-License-Identifier: Apache-2.0
"""What a run needs and mmengine lacks."""
