"""A short text that changes whenever the data do."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hetmodels.data.splits import number
from hetmodels.data.stacks import Images

SAMPLE = 32  # images whose pixels are part of a fingerprint


def fingerprint(parts: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of named arrays, texts, numbers and mappings of them; None counts as a value.

    Arrays of text are hashed as their distinct values and a number per row, so that a million rows take a fraction
    of a second.
    """
    digest = hashlib.sha256()
    _add(digest, parts)
    return digest.hexdigest()


def image_sample(source: Images) -> np.ndarray:
    """Pixels of up to SAMPLE images spread evenly over the set."""
    return source.read(np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(np.int64)))


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(f"<{key}>".encode())
            _add(digest, value[key])
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        texts = [str(text) for text in value.tolist()]
        digest.update("\n".join(dict.fromkeys(texts)).encode())
        _add(digest, number(texts))
    elif isinstance(value, np.ndarray):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        digest.update(f"{little.dtype.str}{little.shape}".encode())
        digest.update(little.data)
    else:
        digest.update(repr(value).encode())
