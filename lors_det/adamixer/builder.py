# SPDX-License-Identifier: Apache-2.0
"""Build the parts of a detector from its config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry


def build_component(registry: Registry, config: object, key: str) -> Any:
    """Build a part of a model; an error names its setting.

    A registry's own errors do not say which setting was wrong.

    Args:
        registry: Where the part's class is registered.
        config: What the config file holds: a dict with ``type``.
        key: Name of the setting, for error messages.

    Returns:
        The part.

    Raises:
        TypeError: If ``config`` is no dict with ``type``, or has a key that
            the class does not take.
        ValueError: If no such class is registered, or it refuses a value.
    """
    if not isinstance(config, Mapping) or 'type' not in config:
        raise TypeError(f"{key}={config!r}: expected a dict with 'type'")
    _check_keys(_class_of(registry, config, key), config, key)
    try:
        return registry.build(config)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        if str(error).startswith(f'{key}.'):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f'{key}={config!r}: {error}') from error


def _class_of(registry: Registry, config: Mapping[str, Any], key: str) -> Any:
    """Return the class that a config names."""
    found = config['type']
    if isinstance(found, str):
        with registry.switch_scope_and_registry(
            config.get('_scope_')
        ) as scoped:
            try:
                found = scoped.get(found)
            except RuntimeError:  # mmengine's way to say that there is none
                found = None
    if not callable(found):
        raise ValueError(
            f'{key}.type={config["type"]!r}: expected the name of a class in '
            f'the registry {registry.name!r}'
        )
    return found


def _check_keys(part: Any, config: Mapping[str, Any], key: str) -> None:
    """Refuse keys that a class does not take."""
    parameters = inspect.signature(part).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name, value in config.items():
        if name not in ('type', '_scope_', *parameters):
            raise TypeError(
                f'{key}.{name}={value!r}: expected keys out of '
                f'{list(parameters)}'
            )
