"""Structured output in words: the wish for it, and what servers make of it."""

from __future__ import annotations

import functools
import itertools
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
_TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


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


def begins_as_json(text: str) -> bool:
    """True if a text begins like a JSON object, in a code block or not."""
    return text.lstrip().startswith(("{", *_FENCES))


def holds_to(text: str, schema: Mapping[str, Any]) -> bool:
    """True if a text is JSON of a schema and nothing else, as from a server with a grammar."""
    try:
        value = parse_json(text, "", ValueError)
    except ValueError:
        return False
    return _fits(value, schema, schema.get("$defs", {}))


def _fits(value: Any, schema: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """True if a value is of a JSON schema, by the keywords that are sent to servers."""
    if "$ref" in schema and not _fits(value, known[schema["$ref"].rpartition("/")[2]], known):
        return False
    for keyword in ("oneOf", "anyOf"):
        if keyword in schema and not any(_fits(value, each, known) for each in schema[keyword]):
            return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "type" in schema and not _is_of_type(value, schema["type"]):
        return False
    if isinstance(value, dict):
        return _has_fields(value, schema, known)
    if isinstance(value, list):
        return _has_items(value, schema, known)
    if isinstance(value, str):
        return _is_within(len(value), schema, "Length")
    return isinstance(value, bool) or value is None or _is_within(value, schema, "imum")


def _is_of_type(value: Any, name: str) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in ("integer", "number"):
        return is_number and (name == "number" or value == value // 1)
    return isinstance(value, _TYPES.get(name, object))


def _has_fields(
    value: Mapping[str, Any], schema: Mapping[str, Any], known: Mapping[str, Any]
) -> bool:
    fields = schema.get("properties", {})
    if schema.get("additionalProperties") is False and value.keys() - fields.keys():
        return False
    return value.keys() >= set(schema.get("required", ())) and all(
        _fits(each, fields[name], known) for name, each in value.items() if name in fields
    )


def _has_items(value: list[Any], schema: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    if not _is_within(len(value), schema, "Items"):
        return False
    first = schema.get("prefixItems", ())
    others = itertools.repeat(schema.get("items", {}))
    pairs = zip(value, itertools.chain(first, others), strict=False)
    return all(_fits(item, of, known) for item, of in pairs)


def _is_within(size: float, schema: Mapping[str, Any], what: str) -> bool:
    return schema.get(f"min{what}", size) <= size <= schema.get(f"max{what}", size)


@functools.cache
def full_schema(schema: type[pydantic.BaseModel]) -> dict[str, Any]:
    """All that the schema says; for servers that compile it into a grammar."""
    return closed(without_keywords(schema.model_json_schema(), ("title",)))


def closed(schema: Any) -> Any:
    """A schema whose objects have all their properties and no others."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {keyword: closed(value) for keyword, value in schema.items()}
    # Servers that find several of these look at one alone.
    if "oneOf" in whole:
        return {"oneOf": whole["oneOf"]}
    if "prefixItems" in whole:
        whole.pop("items", None)
    if whole.get("type") == "object":
        whole |= {"required": list(whole.get("properties", ())), "additionalProperties": False}
    return whole
