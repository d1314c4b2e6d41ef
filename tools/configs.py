# SPDX-License-Identifier: Apache-2.0
"""List the configs that come with lors_det: python tools/configs.py."""

import argparse

from lors_det.cli.configs import describe_configs


def main():
    """Parse the command line and list."""
    argparse.ArgumentParser(
        description='List the configs that come with lors_det. Every command '
        'takes them as lors_det::PATH, a _base_ too; `lors-det init` copies '
        'one by its name.'
    ).parse_args()
    print('\n'.join(describe_configs()))


if __name__ == '__main__':
    main()
