# SPDX-License-Identifier: Apache-2.0
"""Print a model's parameters by part: python tools/model_report.py CONFIG."""

import argparse

import lors_det  # noqa: F401  # before mmdet: it may need our mmcv._ext
from lors_det.engine import UsageError
from lors_det.engine.launch import load_config
from lors_det.engine.report import parameter_table


def main():
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description="Print a model's parameters by part."
    )
    parser.add_argument('config', help='config file')
    try:
        config = load_config(parser.parse_args().config)
        print(parameter_table(config.model))
    except UsageError as error:
        raise SystemExit(f'error: {error}') from None


if __name__ == '__main__':
    main()
