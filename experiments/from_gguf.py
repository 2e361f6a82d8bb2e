"""Writes the model of a GGUF file as a folder that --config.model.pretrained reads.

python experiments/from_gguf.py --gguf=FILE.gguf --folder=FOLDER

The weights as float32 safetensors, the tokenizer and its chat template; `transformers` reads the
file (pip install -e '.[gguf]'). For models that were quantized this is no way back: the weights are
those of the file.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from rich.console import Console

from experiments import flags, launch
from ilql_jax.errors import UserError
from ilql_jax.settings import Settings, setting


class GgufError(UserError, ValueError):
    """A GGUF file that cannot be written anew; the message says why."""


@dataclasses.dataclass(frozen=True)
class FromGgufConfig(Settings):
    """Source and destination."""

    gguf: str = setting("File of the model, as llama.cpp reads it.")
    folder: str = setting("Folder that is written; there must be nothing in it yet.")


KINDS = {"from and to": FromGgufConfig}


def main() -> None:
    launch.program(__doc__, KINDS, run, opens_runs=False)


def run(arguments: list[str], console: Console) -> None:
    """Writes the folder.

    Args:
        arguments: As `sys.argv`.
        console: Told the folder.

    Raises:
        UserError: As `convert` does; and a flag that cannot be.
    """
    settings, overrides = flags.parse(tuple(KINDS.values()), arguments)
    if overrides:
        raise GgufError(f"{overrides[0]}: there are no runs here; see --help.")
    wanted = settings[FromGgufConfig]
    convert(Path(wanted.gguf), Path(wanted.folder))
    console.print(
        f"Written: {wanted.folder}; --config.model.pretrained={wanted.folder}", soft_wrap=True
    )


def convert(gguf: Path, folder: Path) -> None:
    """Writes weights, tokenizer and chat template of a GGUF file, all of them or nothing.

    Args:
        gguf: The file.
        folder: Made, or empty.

    Raises:
        GgufError: No such file, one that is no GGUF or of a family that transformers does not read,
            files in the folder, or packages that are missing.
    """
    require_extra()
    if not gguf.is_file():
        raise GgufError(f"{gguf}: there is no such file. Give the .gguf itself.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GgufError(f"{folder} holds something already. Name another folder, or empty it.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**found)
        loaded = AutoModelForCausalLM.from_pretrained(**found, dtype="float32")
        # Some releases keep a mark of the file, by which they refuse to save the network.
        loaded.config.__dict__.pop("quantization_config", None)
        model = type(loaded)(loaded.config)
        model.load_state_dict(loaded.state_dict())
    # Whatever transformers raises for a file that it can do nothing with.
    except Exception as error:
        said = (str(error) or repr(error)).splitlines()[0][:300]
        raise GgufError(f"{gguf}: transformers cannot read it ({said}).") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def require_extra() -> None:
    """Raises `GgufError` where the packages of the extra `gguf` are not installed."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise GgufError(
            f"the package {error.name} is not installed, which reading a GGUF file needs. Install "
            "it: pip install -e '.[gguf]'"
        ) from None


if __name__ == "__main__":
    main()
