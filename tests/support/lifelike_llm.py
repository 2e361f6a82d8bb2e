"""`lifelike`: stands in for an LLM whose answers have lengths as people's have, for any task."""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

WORDS = "well I would rather like something that is quiet and not too far from where we live now"


def lifelike(body: dict[str, Any]) -> str:
    """Answers of very different lengths; conversations end early, and many are rewritten."""
    system, asked = body["system"][0]["text"], [each["content"] for each in body["messages"]]
    dice = zlib.crc32("".join([system, *asked]).encode())
    text = " ".join([WORDS] * (1 + dice % 4))[: 40 + dice % 200] + f" {dice}."
    fields = set(body["output_config"]["format"]["schema"]["properties"])
    if "profiles" in fields:
        each = {"profile": 4 * text, "reveals": text, "situations": [text], "difficult": False}
        count = asked[0].count("Combination")
        return json.dumps({"profiles": [{"number": i + 1, **each} for i in range(count)]})
    if "turns" in fields:
        sides = ["human", "agent"] * (1 + dice % 4) + ["human"]
        return json.dumps({"turns": [{"speaker": s, "text": text + s} for s in sides]})
    if "verdicts" in fields:
        count = len(re.findall(r"^\d+\. ", system, flags=re.MULTILINE))
        each = {"reason": text, "fulfilled": dice % 3 > 0}
        return json.dumps({"verdicts": [{"number": i + 1, **each} for i in range(count)]})
    if "rating" in fields:
        return json.dumps({"reason": text, "rating": dice % 11 / 10})
    return json.dumps({"text": text, "ends": len(asked) > 1 and dice % 5 == 0})
