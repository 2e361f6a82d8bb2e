"""Structured output in words: the wish for it, and what servers make of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import pydantic

from imagination.llm.requests import Request
from imagination.plain_data import parse_json

# Keywords that only servers understand which compile a schema into a grammar.
GRAMMAR_ONLY = ("prefixItems", "oneOf")
_SCALARS = {"boolean": "boolean", "integer": "number", "number": "number"}
_FENCES = ("```", "```json")


def json_wish(request: Request) -> str:
    """The wish for JSON of the request's schema."""
    return f"nothing but JSON of this schema: {schema_in_words(request.schema)}"


@functools.cache
def schema_in_words(schema: type[pydantic.BaseModel]) -> str:
    """The JSON schema as it stands in a prompt: without what only a grammar needs."""
    short = without_keywords(schema.model_json_schema(), (*GRAMMAR_ONLY, "title"))
    return json.dumps(short, sort_keys=True, separators=(",", ":"))


@functools.cache
def form_in_words(schema: type[pydantic.BaseModel]) -> str:
    """The fields of the schema in one line, with types for values, for models that a grammar holds.

    Many servers hold an answer to its schema and show the model none of it: a weak one then writes
    whatever fits between the quotes. Values that look like values ("...") are copied.
    """
    whole = schema.model_json_schema()
    return _form(whole, whole.get("$defs", {}))


def _form(schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Puts what a schema describes as short as can be."""
    if "$ref" in schema:
        return _form(known[schema["$ref"].rpartition("/")[2]], known)
    if "const" in schema:
        return json.dumps(schema["const"])
    kind = schema.get("type")
    if kind == "object":
        fields = schema.get("properties", {}).items()
        return "{" + ", ".join(f"{json.dumps(n)}: {_form(each, known)}" for n, each in fields) + "}"
    if kind == "array":
        known_items = [_form(each, known) for each in schema.get("prefixItems", ())]
        return f"[{', '.join(known_items) or _form(schema['items'], known) + ', ...'}]"
    if kind in _SCALARS:
        return _SCALARS[kind]
    return " | ".join(map(json.dumps, schema.get("enum", ()))) or "string"


def without_keywords(schema: Any, keywords: tuple[str, ...]) -> Any:
    """A JSON schema without some keywords, at any depth."""
    if isinstance(schema, list):
        return [without_keywords(each, keywords) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {}
    for keyword, value in schema.items():
        if keyword in ("properties", "$defs"):  # their keys are names
            kept[keyword] = {name: without_keywords(v, keywords) for name, v in value.items()}
        elif keyword not in keywords:
            kept[keyword] = without_keywords(value, keywords)
    return kept


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
