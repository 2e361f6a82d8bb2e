"""Readers of published human dialogue data, and how to split a corpus.

A corpus is read from the files exactly as its authors published them; the data is not part of this
repository. What comes out are ordinary dialogues (`dialogue.py`) of kind "human", which go on to
`tokenization.py` like any others. `experiments/persuasion.py` trains on them.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from imagination.dialogue import Dialogue, Speaker, Turn

PERSUASION_FOR_GOOD_HELP = """\
PersuasionForGood (Wang et al., ACL 2019, arXiv 1906.06725; Apache License 2.0) is published at
https://gitlab.com/ucdavisnlp/persuasionforgood. Two of its files are needed, both in the folder
data/FullData: full_dialog.csv (what was said) and full_info.csv (who gave how much).
Download them into one folder and name it: --config.data.path=FOLDER"""

_PERSUADER, _PERSUADEE = "0", "1"
_SPEAKER_OF_ROLE: dict[str, Speaker] = {_PERSUADER: "agent", _PERSUADEE: "human"}
_DIALOG_COLUMNS = ("B2", "B4", "Turn", "Unit")
_INFO_COLUMNS = ("B2", "B4", "B6")
# Of the survey's 32 columns, those that bear on how to talk to somebody about giving.
_PERSONA_COLUMNS = {
    "age": "age.x",
    "sex": "sex.x",
    "education": "edu.x",
    "ideology": "ideology.x",
    "extroversion": "extrovert.x",
    "agreeableness": "agreeable.x",
    "conscientiousness": "conscientious.x",
    "neuroticism": "neurotic.x",
    "openness": "open.x",
}


class CorpusError(ValueError):
    """A corpus that cannot be read. The message names file, line and value, and the way out."""


def read_persuasion_for_good(
    dialog_csv: str | os.PathLike[str],
    info_csv: str | os.PathLike[str],
    max_donation: float = 2.0,
) -> list[Dialogue]:
    """Reads PersuasionForGood (arXiv 1906.06725): one person asks another to give to a charity.

    The persuader is the agent, the persuadee the human. What one side says in several utterances
    without a reply becomes one turn.

    Args:
        dialog_csv: `full_dialog.csv`: `B2` dialogue, `B4` role (0 persuader, 1 persuadee), `Turn`,
            `Unit` one utterance.
        info_csv: `full_info.csv`: a line for each participant, `B6` the donation in dollars.
        max_donation: The reward is the persuadee's donation, at most this. The task paid two
            dollars, yet a few people say they gave hundreds.

    Returns:
        The dialogues in the order of the file. `source` keeps both donations as they were made and
        the participants' ids (several people took part more than once); `persona` keeps a part of
        the persuadee's survey, where it was filled in.

    Raises:
        CorpusError: A file that is missing or has other columns, a donation that is not a finite
            number from 0 up, an unknown role, a dialogue in which one side never speaks or whose
            persuadee has no line in `info_csv`.
    """
    if not (math.isfinite(max_donation) and max_donation > 0):
        raise CorpusError(f"max_donation must be a positive number of dollars, got {max_donation}.")
    dialog_csv, info_csv = Path(dialog_csv), Path(info_csv)
    missing = [str(path) for path in (dialog_csv, info_csv) if not path.is_file()]
    if missing:
        raise CorpusError(f"No such file: {', '.join(missing)}.\n{PERSUASION_FOR_GOOD_HELP}")
    participants = _read_participants(info_csv)
    dialogues = []
    for name, transcript in _read_transcripts(dialog_csv).items():
        persuadee = participants.get((name, _PERSUADEE))
        if persuadee is None:
            raise CorpusError(
                f"{dialog_csv}, line {transcript.line}: dialogue {name!r} has no line for its "
                f"persuadee (B2 = {name}, B4 = {_PERSUADEE}) in {info_csv}, so its donation is "
                "unknown. Do both files come from the same release?"
            )
        persuader = participants.get((name, _PERSUADER))
        dialogues.append(
            Dialogue(
                id=name,
                task="persuasion",
                turns=transcript.turns(dialog_csv),
                reward=min(persuadee.donation, max_donation),
                persona=persuadee.persona,
                source={
                    "kind": "human",
                    "corpus": "PersuasionForGood",
                    "donation": persuadee.donation,
                    "persuader_donation": persuader.donation if persuader else None,
                    "persuadee": persuadee.user,
                    "persuader": persuader.user if persuader else None,
                },
            )
        )
    return dialogues


def split_dialogues(
    dialogues: Sequence[Dialogue], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Dialogue]]:
    """Splits a corpus into named parts, whole dialogues at a time.

    Which part a dialogue falls into depends on the ids and the seed, not on the order in which the
    dialogues come. Dialogues with and without a reward above zero are split apart, so that every
    part has its share of both.

    Args:
        dialogues: With unique ids.
        fractions: Part -> share, e.g. `{"train": 0.8, "validation": 0.1, "test": 0.1}`.
        seed: Another seed gives another split.

    Returns:
        Part -> its dialogues, ordered by id. A size differs from its share by at most two.

    Raises:
        ValueError: Shares that are negative or don't sum to 1, or an id that occurs twice.
    """
    shares = list(fractions.values())
    if not all(share >= 0 for share in shares) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(
            f"fractions must be shares from 0 up that sum to 1, got {dict(fractions)} "
            f"(sum {sum(shares):g})."
        )
    by_id = {dialogue.id: dialogue for dialogue in dialogues}
    if len(by_id) < len(dialogues):
        ids = sorted(dialogue.id for dialogue in dialogues)
        repeated = next(a for a, b in itertools.pairwise(ids) if a == b)
        raise ValueError(f"Dialogue id {repeated!r} occurs more than once; ids must be unique.")
    parts: dict[str, list[Dialogue]] = {name: [] for name in fractions}
    for rewarded in (False, True):
        stratum = [name for name in by_id if (by_id[name].total_reward > 0) == rewarded]
        stratum.sort(key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
        start, cumulated = 0, 0.0
        for name, share in fractions.items():
            cumulated += share
            stop = round(cumulated * len(stratum))
            parts[name].extend(by_id[key] for key in stratum[start:stop])
            start = stop
    return {name: sorted(part, key=lambda dialogue: dialogue.id) for name, part in parts.items()}


@dataclasses.dataclass(frozen=True)
class _Participant:
    user: str
    donation: float
    persona: dict[str, str]


@dataclasses.dataclass
class _Transcript:
    """What was said in one dialogue, as it stands in the file from `line` on."""

    line: int
    utterances: list[tuple[Speaker, str]] = dataclasses.field(default_factory=list)
    last_turn: float = -math.inf

    def turns(self, path: Path) -> tuple[Turn, ...]:
        said: list[tuple[Speaker, list[str]]] = []
        for speaker, text in self.utterances:
            if not said or said[-1][0] != speaker:
                said.append((speaker, []))
            said[-1][1].append(text)
        silent = {"agent", "human"} - {speaker for speaker, _ in said}
        if silent:
            who = {"agent": "persuader (B4 = 0)", "human": "persuadee (B4 = 1)"}[min(silent)]
            raise CorpusError(
                f"{path}: in the dialogue that begins at line {self.line} the {who} never "
                "speaks. Complete or delete it."
            )
        return tuple(Turn(speaker, " ".join(texts)) for speaker, texts in said)


def _read_transcripts(path: Path) -> dict[str, _Transcript]:
    transcripts: dict[str, _Transcript] = {}
    for line, row in _read_rows(path, _DIALOG_COLUMNS):
        name, role = row["B2"].strip(), row["B4"].strip()
        _require(name != "", path, line, "B2", name, "the id of a dialogue")
        _require(role in _SPEAKER_OF_ROLE, path, line, "B4", role, "0 (persuader) or 1 (persuadee)")
        transcript = transcripts.setdefault(name, _Transcript(line))
        turn = _number(row["Turn"])
        # Also what a file that was appended to itself looks like.
        _require(
            turn >= transcript.last_turn,
            path,
            line,
            "Turn",
            row["Turn"],
            f"a number not below the turn before it in dialogue {name!r}",
        )
        transcript.last_turn = turn
        text = _clean(row["Unit"])
        if text:
            transcript.utterances.append((_SPEAKER_OF_ROLE[role], text))
    if not transcripts:
        raise CorpusError(f"{path}: no dialogue below the header.\n{PERSUASION_FOR_GOOD_HELP}")
    return transcripts


def _read_participants(path: Path) -> dict[tuple[str, str], _Participant]:
    """(dialogue, role) -> who took part."""
    participants: dict[tuple[str, str], _Participant] = {}
    for line, row in _read_rows(path, _INFO_COLUMNS):
        name, role = row["B2"].strip(), row["B4"].strip()
        _require(role in _SPEAKER_OF_ROLE, path, line, "B4", role, "0 (persuader) or 1 (persuadee)")
        donation = _number(row["B6"])
        _require(
            donation >= 0 and math.isfinite(donation),
            path,
            line,
            "B6",
            row["B6"],
            "a donation in dollars, a finite number from 0 up",
        )
        _require(
            (name, role) not in participants,
            path,
            line,
            "B2, B4",
            f"{name}, {role}",
            "one line for each participant of a dialogue, not a second one",
        )
        answers = {axis: row.get(column, "").strip() for axis, column in _PERSONA_COLUMNS.items()}
        participants[name, role] = _Participant(
            user=row.get("B3", "").strip(),
            donation=donation,
            persona={axis: text.removesuffix(".0") for axis, text in answers.items() if text},
        )
    return participants


def _read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields each row of a CSV file with the line it begins at; `columns` must all be there."""
    rows = csv.reader(io.StringIO(_decode(path.read_bytes()), newline=""), strict=True)
    line = 1
    try:
        header = [name.strip() for name in next(rows, [])]
        absent = [name for name in columns if name not in header]
        if absent:
            raise CorpusError(
                f"{path}: missing columns {', '.join(absent)}; found "
                f"{', '.join(filter(None, header)) or 'none'}.\n{PERSUASION_FOR_GOOD_HELP}"
            )
        line = rows.line_num + 1
        for row in rows:
            if row:
                if len(row) != len(header):
                    raise CorpusError(
                        f"{path}, line {line}: {len(row)} fields where the header has "
                        f"{len(header)}: {','.join(row)[:80]!r}. A comma without quotes around it?"
                    )
                yield line, dict(zip(header, row, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise CorpusError(
            f"{path}: not valid CSV ({error}) in what begins at line {line}. A quotation mark "
            "that is not closed?"
        ) from None


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # What spreadsheet programs save on Windows.
        return content.decode("cp1252", errors="replace")


def _clean(text: str) -> str:
    """Whitespace as single spaces; the published files' escapes and mangled signs undone."""
    text = re.sub(r"\\+(?=['\"])", "", text)
    # Some utterances hold Chinese-keyboard punctuation (GBK) that was read as Latin-1: '¡ª' is a
    # dash, '¡ê' a pound sign.
    text = re.sub("¡[\u00a1-\u00fe]", _from_gbk, text)
    return " ".join(text.split())


def _from_gbk(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", match[0].encode("latin-1").decode("gbk", errors="ignore"))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _require(
    condition: bool, path: Path, line: int, column: str, value: str, expected: str
) -> None:
    if not condition:
        raise CorpusError(
            f"{path}, line {line}, column {column}: expected {expected}, got {value[:80]!r}."
        )
