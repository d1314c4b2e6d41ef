# SPDX-License-Identifier: Apache-2.0
"""The defects of a data set, and what is done with each."""

from __future__ import annotations

import logging

from lors_det.errors import UsageError

_REPLACED = 'replaced in training; no detections in testing'
#: Every defect that is looked for, and what is done with it. A file with
#: something `refused` starts no run. `docs/data.md` has the reasons.
ANSWERS = {
    # What the annotation file says of images.
    'image record without a proper id, file_name, width or height': 'refused',
    'image id used by two images': 'refused',
    'image ids of which some are text': 'refused',
    'file name that leads out of the image folder': 'refused',
    'image record given twice': 'used once',
    'image without annotation': 'used as background, or left out by '
    'filter_cfg.filter_empty_gt in training',
    'image smaller than filter_cfg.min_size': 'left out in training',
    'more boxes in an image than queries': 'used; no more are matched than '
    'there are queries',
    # What it says of boxes.
    'annotation without a proper id, image_id, category_id or bbox': 'refused',
    'annotation id used twice': 'refused',
    'annotation id that is no positive number': 'used; numbered anew for '
    'the metric, which takes 0 for unmatched',
    'annotation of an unknown category': 'left out',
    'annotation of an unknown image': 'left out',
    'box, area or iscrowd that is no proper number': 'left out',
    'box of negative size': 'left out in training',
    'box smaller than a pixel': 'left out in training',
    'area that is not positive': 'left out in training',
    'box outside of its image': 'left out in training',
    'box that reaches out of its image': 'used; Resize cuts it off',
    'annotation without area or iscrowd': 'used with width x height and 0',
    # The image files.
    'missing image': _REPLACED,
    'empty image file': _REPLACED,
    'file that is no image, or cut off': _REPLACED,
    'image too thin to be resized': _REPLACED,
    'image of another size than its record': 'used as it is',
    'image to be turned by its EXIF data': 'turned, unless its record has '
    'the size of the unturned image',
    'grey image': 'used, the value in all three channels',
    'image with transparency': 'used without it',
    'image in CMYK': 'used, converted',
    'image of 16 bits': 'used, the upper 8 bits',
    'image of a pixel or two': 'used, if filter_cfg.min_size lets it',
}
NUM_EXAMPLES = 5


class Defects(dict[str, list[object]]):
    """Ids or file names that have each defect; keys are those of `ANSWERS`."""

    def add(self, kind: str, example: object) -> None:
        """Add the id or the name of something that has a defect.

        Args:
            kind: A key of `ANSWERS`.
            example: The id or name.
        """
        assert kind in ANSWERS, kind
        self.setdefault(kind, []).append(example)

    def examples(self, kind: str) -> list[str]:
        """Return the first few that have a defect."""
        return list(map(printable, self[kind][:NUM_EXAMPLES]))

    def summary(self, kind: str) -> str:
        """Return how many have a defect, and the first few."""
        more = ', ...' if len(self[kind]) > NUM_EXAMPLES else ''
        return f'{len(self[kind])} ({", ".join(self.examples(kind))}{more})'

    def raise_refused(self, name: str) -> None:
        """Raise the first defect that is refused, if there is one.

        Args:
            name: The annotation file.

        Raises:
            UsageError: If something is refused.
        """
        for kind, answer in ANSWERS.items():
            if answer == 'refused' and kind in self:
                raise UsageError(f'{name}: {kind}: {self.summary(kind)}')

    def log(self, name: str) -> None:
        """Write one line for each kind of defect to the log.

        Args:
            name: The annotation file.
        """
        from mmengine.logging import print_log  # late: --help needs none

        for kind in self:
            used = ANSWERS[kind].startswith('used')
            print_log(
                f'{name}: {kind}, {ANSWERS[kind]}: {self.summary(kind)}',
                logger='current',
                level=logging.INFO if used else logging.WARNING,
            )


def printable(value: object) -> str:
    """Return a text that any terminal and log file can take.

    JSON can hold lone surrogates, which UTF-8 cannot.
    """
    return str(value).encode('utf-8', 'backslashreplace').decode()
