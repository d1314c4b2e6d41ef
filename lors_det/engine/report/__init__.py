# SPDX-License-Identifier: Apache-2.0
"""What detectors cost: counted, as tables, as plots, as the zoo's page."""

from lors_det.engine.report.costs import ModelReport, build_on_meta, report

__all__ = ['ModelReport', 'build_on_meta', 'report']
