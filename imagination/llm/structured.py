"""Structured output in words: the wish for it, and what servers make of it."""

from __future__ import annotations

from imagination.llm.requests import Request, schema_json
from imagination.plain_data import parse_json

_FENCES = ("```", "```json")


def json_wish(request: Request) -> str:
    """The wish for JSON of the request's schema."""
    return f"nothing but JSON of this schema: {schema_json(request.schema)}"


def json_of(text: str) -> str:
    """The JSON of an answer: servers without structured output wrap it in a code block."""
    opening, _, inside = text.strip().partition("\n")
    if opening.rstrip() in _FENCES and inside.endswith("```"):
        return inside.removesuffix("```")
    return text


def has_form(text: str, request: Request, is_whole: bool = True) -> bool:
    """True if a text is a JSON object with the fields of the request's schema.

    Of one that is not whole only the beginning is looked at.
    """
    if not is_whole:
        return text.lstrip().startswith(("{", *_FENCES))
    try:
        value = parse_json(json_of(text), "", ValueError)
    except ValueError:
        return False
    return isinstance(value, dict) and request.schema.model_fields.keys() <= value.keys()
