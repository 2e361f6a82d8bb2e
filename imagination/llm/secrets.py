"""Keys and passwords: checked before they are used, and kept out of files and messages.

Keys come from the environment alone. A password inside an address (`https://name:password@host`)
is sent to that host and written nowhere.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from imagination.llm.requests import LLMError


@dataclasses.dataclass(frozen=True)
class Environment:
    """Variables of one wire format, and the company it is of.

    Attributes:
        key: Variable of the key.
        sent: Variables that its library sends in a header, the key's among them.
        address: Variable of the address.
        official: The company's own address.
        hosts: The company's hosts, which take no call without a key.
    """

    key: str
    sent: tuple[str, ...]
    address: str
    official: str
    hosts: tuple[str, ...]


_ENVIRONMENTS = {
    "messages": Environment(
        "ANTHROPIC_API_KEY",
        ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
        "ANTHROPIC_BASE_URL",
        "https://api.anthropic.com",
        ("anthropic.com", "claude.com"),
    ),
    "chat_completions": Environment(
        "OPENAI_API_KEY",
        ("OPENAI_API_KEY",),
        "OPENAI_BASE_URL",
        "https://api.openai.com/v1",
        ("openai.com",),
    ),
}
APIS = tuple(_ENVIRONMENTS)  # wire formats; the first is the default

_SECRETS = (
    *(variable for each in _ENVIRONMENTS.values() for variable in each.sent),
    *("OPENAI_ADMIN_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"),
)

# Shorter keys, as local servers take them ("ollama"), are ordinary words in an answer.
_SHORTEST_SECRET = 16

_PASSWORD = re.compile(r"(\w://)[^/?#\s'\"]*@")


def environment_of(api: str) -> Environment:
    """Variables of a wire format."""
    return _ENVIRONMENTS[api]


def check_keys(api: str = APIS[0]) -> None:
    """Raises `LLMError`, which does not show it, for a key that no service can have given out."""
    for variable in _ENVIRONMENTS[api].sent:
        key = os.environ.get(variable, "").strip()
        for place, character in enumerate(key):
            if not "!" <= character <= "~":
                kind = "a line break" if character in "\r\n" else "a space"
                if not character.isspace():
                    kind = "a control character" if character < " " else "no ASCII character"
                raise LLMError(
                    f"The key in the environment variable {variable} has {kind} at place "
                    f"{place + 1} of {len(key)}, which no key has. Set it again, to the key alone."
                )


def without_password(value: Any) -> Any:
    """Text, or settings of any depth, in which `://name:password@host` is `://host`."""
    if isinstance(value, Mapping):
        return {key: without_password(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_password, value))
    return _PASSWORD.sub(r"\1", value) if isinstance(value, str) else value


def without_secrets(text: str, *keys: str) -> str:
    """The text with "[key]" for `keys` and those of the environment, and without passwords."""
    for key in (*keys, *(os.environ.get(variable, "") for variable in _SECRETS)):
        # As it is, as Python shows it, and the parts of one that is broken by spaces or lines.
        forms = {key, key.strip(), repr(key)[1:-1], ascii(key)[1:-1], *key.split()}
        for form in sorted(forms, key=len, reverse=True):
            if len(form) >= _SHORTEST_SECRET:
                text = text.replace(form, "[key]")
    return without_password(text)


def address_of(base_url: str, api: str = APIS[0]) -> str:
    """Address that calls go to: `base_url`, else the environment's, else the official one."""
    environment = _ENVIRONMENTS[api]
    return base_url or os.environ.get(environment.address, "") or environment.official


def sends_key_in_the_open(address: str, api: str = APIS[0]) -> bool:
    """True if a key, or a password in the address, goes unencrypted to another machine."""
    parts = urlsplit(address)
    keys = (os.environ.get(variable, "").strip() for variable in _ENVIRONMENTS[api].sent)
    has_secret = parts.password or any(keys)
    return parts.scheme.lower() == "http" and bool(has_secret) and not _is_loopback(parts.hostname)


def _is_loopback(host: str | None) -> bool:
    if host is None or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def problem_of_address(address: str) -> str | None:
    """Names what keeps an address from being one of a server; None where nothing does."""
    if not address.startswith(("http://", "https://")):
        return 'must start with http:// or https://, or be "" for the default'
    try:
        parts = urlsplit(address)
        is_whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or not address.isprintable() or " " in address:
        return "must be an address such as https://host:8000/path (%-encode signs in a password)"
    return None
