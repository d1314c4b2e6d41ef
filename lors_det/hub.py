# SPDX-License-Identifier: Apache-2.0
"""Detectors in folders and on Hugging Face's hub, as data without code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.registry import registry

import lors_det.adamixer
import lors_det.lors_detr  # noqa: F401  # both register what configs name
from lors_det.cli.boundary import walk_config
from lors_det.errors import UsageError, one_line
from lors_det.files import atomic_write, check_file
from lors_det.lors import count_parameters
from lors_det.predict import Predictor
from lors_det.safe_load import install, save_checkpoint

try:
    from huggingface_hub import (
        ModelCard,
        ModelCardData,
        ModelHubMixin,
        snapshot_download,
    )
except ImportError:
    raise UsageError(
        'lors_det.hub needs the package huggingface_hub: '
        "pip install 'lors_det[hub]'"
    ) from None

CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
#: A plain word, or the name of a class: no path, no address, no module.
WORD = re.compile(r'((mmdet|mmcv|mmengine)\.[A-Z])?\w*')
#: Values of ``_scope_``, which mmengine imports.
SCOPE = re.compile('mmdet|mmcv|mmengine')
CARD = """---
{head}
---

# {detector} for {classes}

## Data and AP

{data}

| metric | value |
| --- | ---: |
{metrics}

## Parameters

{parameters}

## Run it

After `pip install 'lors_det[onedl,hub]'`:

```python
from lors_det.hub import HubPredictor

predictor = HubPredictor.from_pretrained('FOLDER')  # or its name on the hub
samples = predictor('image.jpg')
print(predictor.to_table(samples))
```
"""


class HubPredictor(Predictor, ModelHubMixin):
    """A `Predictor` that can be saved to a folder, pushed and loaded again.

    ``push_to_hub`` is huggingface_hub's: it uploads what `save_pretrained`
    writes.
    """

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        model_card_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Write config.json, model.safetensors and the model card, README.md.

        Args:
            save_directory: A folder that is empty, or not there.
            model_card_kwargs: See `generate_model_card`.
            **kwargs: See huggingface_hub's ``ModelHubMixin``.

        Returns:
            The address of the commit if ``push_to_hub=True``.

        Raises:
            UsageError: If the folder holds something, or the card would not
                say what was measured.
        """
        folder = Path(save_directory)
        if folder.exists() and (folder.is_file() or any(folder.iterdir())):
            raise UsageError(f'{folder}: is there already; name another')
        card = model_card_kwargs or {}
        if not {'data', 'metrics'} <= {*card}:
            raise UsageError(
                f'model_card_kwargs={card}: expected data and metrics, as in '
                "{'data': 'BCCD', 'metrics': {'AP': 45.7}}"
            )
        return super().save_pretrained(
            folder, model_card_kwargs=card, **kwargs
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write all but the card."""
        model, pipeline = self.config.model, get_test_pipeline_cfg(self.config)
        parts = Config({'model': model, 'test_pipeline': pipeline})
        settings = parts.to_dict()
        for _, node in walk_config(settings):
            if isinstance(node, dict):
                node.pop('init_cfg', None)  # where a training begins
        _check_words(settings, CONFIG)
        atomic_write(save_directory / CONFIG, json.dumps(settings, indent=2))
        state = {
            name: value.cpu().contiguous().clone()
            for name, value in self.model.state_dict().items()
        }
        meta = {'dataset_meta': {'classes': self.classes}}
        save_checkpoint(state, meta, save_directory / WEIGHTS)

    def generate_model_card(
        self, data: str, metrics: Mapping[str, float], **head: Any
    ) -> ModelCard:
        """Return the model card.

        Args:
            data: What the detector was trained and measured on.
            metrics: What was measured, by name.
            **head: More of the card's head, such as ``license='mit'``.
        """
        rows = (f'| {name} | {value} |' for name, value in metrics.items())
        about = ModelCardData(
            library_name='lors_det', pipeline_tag='object-detection', **head
        )
        return ModelCard(
            CARD.format(
                head=about.to_yaml(),
                detector=self.config.model.type,
                classes=', '.join(self.classes),
                data=data,
                metrics='\n'.join(rows),
                parameters=count_parameters(self.model),
            )
        )

    # The mixin's own would let config.json set arguments, such as `trust`.
    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: str | Path, device: str | None = None, **download: Any
    ) -> HubPredictor:
        """Load what `save_pretrained` wrote; nothing in it can run code.

        From then on, mmengine loads checkpoints as data, too (`install`).

        Args:
            name: The folder, or the name of a model on the hub.
            device: See `Predictor`.
            **download: Of huggingface_hub's ``snapshot_download``, such as
                ``revision``.

        Raises:
            UsageError: If it is not there, not whole, or of another kind, or
                names a class that is not registered.
        """
        folder = Path(name)
        if not folder.is_dir():
            try:
                fetched = snapshot_download(
                    str(name), allow_patterns=[CONFIG, WEIGHTS], **download
                )
            except Exception as error:  # its clients have many
                raise UsageError(
                    f'{name}: no folder, and not fetched from the hub: '
                    f'{one_line(error)}'
                ) from None
            folder = Path(fetched)
        cfg = _read_config(folder / CONFIG)
        install()  # for models that load weights of their own
        by_name = registry.get_object_from_string
        # What is in no registry, mmengine would import by its name.
        registry.get_object_from_string = lambda name: None
        try:
            return cls(cfg, folder / WEIGHTS, device)
        except UsageError:
            raise
        except Exception as error:  # of settings that do not fit
            line = one_line(error)
            raise UsageError(f'{folder / CONFIG}: {line}') from error
        finally:
            registry.get_object_from_string = by_name


def _read_config(file: Path) -> Config:
    """Read what describes a detector, and nothing else of the file."""
    check_file(str(file), 'from_pretrained')
    try:
        found = json.loads(file.read_text('utf-8'))
        model, pipeline = found['model'], found['test_pipeline']
    except (ValueError, LookupError, TypeError):
        raise UsageError(
            f'{file}: expected JSON with model and test_pipeline, as '
            'save_pretrained writes it'
        ) from None
    _check_words(found, file)
    for _, node in walk_config(pipeline):
        if isinstance(node, dict) and isinstance(node.get('scale'), list):
            node['scale'] = tuple(node['scale'])  # mmcv takes no list
    dataset = {'pipeline': pipeline}
    return Config({'model': model, 'test_dataloader': {'dataset': dataset}})


def _check_words(settings: Any, file: str | Path) -> None:
    """Refuse text that could name a file or a module."""
    for path, value in walk_config(settings):
        allowed = SCOPE if path[-1:] == ('_scope_',) else WORD
        if isinstance(value, str) and not allowed.fullmatch(value):
            raise UsageError(
                f'{file}: {".".join(path)}={value!r}: expected a plain word, '
                'or the name of a class that lors_det, mmdet, mmcv or '
                'mmengine registered'
            )
