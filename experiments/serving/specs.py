"""`AgentSpec`: the words that name an agent on a command line.

| spec | agents |
| --- | --- |
| `runs/teaching` | all trained methods of a run, each with its chosen decoding |
| `runs/teaching:ilql` | one of them |
| `runs/teaching:ilql-seed2` | of another training, counted from 0 |
| `runs/teaching:ilql:greedy` | with another decoding |
| `world:teaching:optimum`, `world:teaching:BEHAVIOUR` | of an embedded world |
| `prompted:runs/teaching:plain` | an LLM, as the run's settings have it |
| `chat:http://127.0.0.1:8000/v1#MODEL` | any server that speaks chat completions |
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ilql_jax.decoding_config import DECODING_PARTS, DecodingConfig, PolicyError
from ilql_jax.errors import UserError, shown
from imagination.llm.secrets import problem_of_address, without_password

_FORMS = (
    "FOLDER, FOLDER:METHOD, FOLDER:METHOD:DECODING, world:NAME:BEHAVIOUR, prompted:FOLDER:AGENT or "
    "chat:URL#MODEL"
)
_UNIT = re.compile(r"(?P<method>.+?)(-seed(?P<seed>\d{1,4}))?")


class SpecError(UserError, ValueError):
    """Words that name no agent. The message says which, and what would."""


@dataclasses.dataclass(frozen=True)
class AgentSpec:
    """A parsed spec.

    Attributes:
        text: As it was given, without a password.
        kind: `run`, `world`, `prompted` or `chat`.
        place: Folder of the run, name of the world, or address of the server.
        choice: Method ("" = all), behaviour, prompted agent, or model.
        seed: Training of the method, counted from 0.
        decoding: Way of choosing words; None = the chosen one.
    """

    text: str
    kind: str
    place: str
    choice: str
    seed: int = 0
    decoding: DecodingConfig | None = None


def split_specs(text: str) -> tuple[str, ...]:
    """Splits specs at commas, but for those of a decoding such as `sampled, best of 4`."""
    specs: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if specs and _is_decoding(part):
            specs[-1] += f", {part}"
        else:
            specs.append(part)
    return tuple(specs)


def parse_spec(text: str) -> AgentSpec:
    """Parses one spec; looks at no file but for whether the folder is there.

    Raises:
        SpecError: It has none of the forms, or there is no such folder.
    """
    kind, _, rest = text.partition(":")
    if kind == "chat":
        return _chat(text, rest)
    if kind in ("world", "prompted"):
        place, _, choice = rest.rpartition(":")
        if not place or not choice:
            raise SpecError(f"agent {_shown(text)}: write it as {_form(kind)}.")
        return AgentSpec(text, kind, place, choice)
    return _of_run(text)


def _chat(text: str, rest: str) -> AgentSpec:
    address, _, model = rest.partition("#")
    if not model.strip():
        raise SpecError(f"agent {_shown(text)}: name the model too, as in {_form('chat')}.")
    if problem := problem_of_address(address):
        raise SpecError(f"agent {_shown(text)}: its address {problem}.")
    return AgentSpec(without_password(text), "chat", address, model.strip())


def _of_run(text: str) -> AgentSpec:
    # The longest beginning that is a folder: folders may have colons in their names.
    places = [place for place, sign in enumerate(text) if sign == ":"][::-1]
    for end in (len(text), *places):
        folder = Path(text[:end]).expanduser()
        if text[:end] and _is_folder(folder):
            break
    else:
        raise SpecError(
            f"agent {_shown(text)}: there is no such folder. Name an agent as {_FORMS}."
        )
    unit, _, decoding = text[end + 1 :].partition(":")
    found = _UNIT.fullmatch(unit)
    return AgentSpec(
        text,
        "run",
        str(folder),
        found["method"] if found else "",
        int(found["seed"] or 0) if found else 0,
        _decoding(text, decoding) if decoding else None,
    )


def _decoding(text: str, decoding: str) -> DecodingConfig:
    try:
        return DecodingConfig.parse(decoding)
    except PolicyError as error:
        raise SpecError(f"agent {_shown(text)}: {error}") from None


def _is_decoding(part: str) -> bool:
    try:
        DecodingConfig.parse(part)
    except PolicyError:
        return part.startswith(tuple(f"{each} " for each in DECODING_PARTS))
    return True


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _form(kind: str) -> str:
    return next(form for form in re.split(r", | or ", _FORMS) if form.startswith(kind))


def _shown(text: str) -> str:
    return shown(without_password(text), 200, repr)
