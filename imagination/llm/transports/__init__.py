"""Wire formats: one file for each, with the same few methods (`base.py`, `Transport`).

The SDKs take a second to load, so a transport is made with the first call: a run that needs no
call, as all answers are on disk, goes without.
"""

from __future__ import annotations

from imagination.llm.config import LLMConfig
from imagination.llm.transports.base import Transport


def open_transport(config: LLMConfig) -> Transport:
    """Makes the transport of the wire format that the config names.

    Raises:
        LLMError: The SDK is not installed; no key where one is needed, or one that cannot be; no
            address.
    """
    if config.api == "messages":
        from imagination.llm.transports.messages import MessagesTransport

        return MessagesTransport(config)
    from imagination.llm.transports.chat_completions import ChatCompletionsTransport

    return ChatCompletionsTransport(config)
