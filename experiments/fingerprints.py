"""Fingerprints of checkpoints, tokenizers and files, by which a run knows one that was moved.

Files of GBs are not read whole, so that a fingerprint takes no longer than it takes to start.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from experiments.files import version_of
from ilql_jax.models.hugging_face.families import PretrainedError
from ilql_jax.models.hugging_face.read import weight_files

_WHOLE = 1 << 23  # bytes of a file that is read whole
_BEGINNING = 1 << 20  # holds the header of safetensors
_BLOCKS, _BLOCK = 256, 1 << 14  # of a larger file, at equal distances

# What transformers reads a tokenizer from.
_OF_TOKENIZERS = ("tokenizer*.json", "*.model", "vocab.*", "merges.txt", "chat_template.*")
_OF_TOKENIZERS += ("special_tokens_map.json", "added_tokens.json")


def of_checkpoint(name: str) -> str:
    """Fingerprint of the checkpoint in a folder: of its `config.json` and its weights.

    Of each file of weights count the name and the size, and, where it is larger than 8 MiB, its
    first MiB and 256 blocks of 16 KiB at equal distances up to its end: all of a smaller one.
    A training of all weights changes it; a change of a few tensors between two blocks may not.

    Args:
        name: Folder, or a name on the Hugging Face hub.

    Returns:
        The fingerprint; "" for a name on the hub, and for a folder that cannot be read.
    """
    return _of_files(name, lambda folder: [folder / "config.json", *weight_files(folder)])


def of_tokenizer(name: str) -> str:
    """Fingerprint of the files of a tokenizer in a folder; see `of_checkpoint`."""
    return _of_files(name, lambda folder: {p for each in _OF_TOKENIZERS for p in folder.glob(each)})


def of_file(name: str) -> str:
    """Fingerprint of a file; see `of_checkpoint`. "" where there is none that can be read."""
    path = os.path.expanduser(name)
    if not name or not os.path.isfile(path):
        return ""
    try:
        return _digest(Path(path), *version_of(Path(path)))[:16]
    except OSError:
        return ""


def _of_files(name: str, files_of: Callable[[Path], Iterable[Path]]) -> str:
    folder = os.path.expanduser(name)
    if not name or not os.path.isdir(folder):
        return ""
    try:
        files = sorted(files_of(Path(folder)))
        if not files or not all(path.is_file() for path in files):
            return ""
        parts = [f"{p.relative_to(folder)} {_digest(p, *version_of(p))}" for p in files]
    except (OSError, PretrainedError):
        return ""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


@functools.cache
def _digest(path: Path, size: int, *_: int) -> str:
    """Digest of a file of this size; a run asks for it at every stage."""
    digest = hashlib.sha256(f"{size} ".encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(file.read(_BEGINNING))
        for number in range(_BLOCKS):
            file.seek((size - _BLOCK) * (number + 1) // _BLOCKS)
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()
