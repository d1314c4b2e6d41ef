# SPDX-License-Identifier: Apache-2.0
"""The defects of a data set, what becomes of each, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass, field

from lors_det.errors import UsageError

#: Every defect that is looked for, and what becomes of what has it. A file
#: with something `refused` starts no run. `docs/data.md` has the reasons.
ANSWERS = {
    # What the annotation file says of images.
    'image record without id, file_name, width or height': 'refused',
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
    'annotation without id, image_id, category_id or bbox': 'refused',
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
    'missing image': 'replaced in training; no detections in testing',
    'empty image file': 'replaced in training; no detections in testing',
    'file that is no image, or cut off': 'replaced in training; no '
    'detections in testing',
    'image of another size than its record': 'used as it is',
    'image to be turned by its EXIF data': 'turned, unless its record has '
    'the size of the unturned image',
    'grey image': 'used, the value in all three channels',
    'image with transparency': 'used without it',
    'image in CMYK': 'used, converted',
    'image of 16 bits': 'used, the upper 8 bits',
    'image of a pixel or two': 'used, if filter_cfg.min_size lets it',
}


@dataclass
class Finding:
    """How often a defect occurs, and where.

    Args:
        count: Number of images or annotations that have it.
        examples: The first few.
    """

    MAX_EXAMPLES = 5

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """The count and the examples."""
        more = ', ...' if self.count > len(self.examples) else ''
        return f'{self.count} ({", ".join(self.examples)}{more})'


class Findings(dict[str, Finding]):
    """Defects that were found; keys are those of `ANSWERS`."""

    def add(self, kind: str, example: object) -> None:
        """Count one.

        Args:
            kind: A key of `ANSWERS`.
            example: Names the image or annotation.
        """
        assert kind in ANSWERS, kind
        found = self.setdefault(kind, Finding())
        found.count += 1
        if len(found.examples) < Finding.MAX_EXAMPLES:
            found.examples.append(str(example))

    def raise_refused(self, name: str) -> None:
        """Raise the first finding that is refused, if any is.

        Args:
            name: The annotation file.

        Raises:
            UsageError: If something is refused.
        """
        for kind, answer in ANSWERS.items():
            if answer == 'refused' and kind in self:
                raise UsageError(f'{name}: {kind}: {self[kind]}')
