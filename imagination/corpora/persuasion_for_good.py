"""PersuasionForGood: one person asks another to give a part of their pay to a charity."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagination.checks import require
from imagination.corpora.corpus import (
    Corpus,
    CorpusError,
    Reading,
    ReadOptions,
    decode,
    join_utterances,
    tells_unreadable,
)
from imagination.dialogue import Dialogue, Speaker, Turn
from imagination.task import Task

LICENCE = "Apache License 2.0"
HOMEPAGE = "https://gitlab.com/ucdavisnlp/persuasionforgood"
PERSUASION_FOR_GOOD_HELP = f"""\
PersuasionForGood (Wang et al., ACL 2019, arXiv 1906.06725; {LICENCE}) is published at
{HOMEPAGE}. Two of its files are needed, both in the folder
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
            number from 0 up, an unknown role, a dialogue in which one side never speaks, that the
            persuadee opens, or whose persuadee has no line in `info_csv`.
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


def _task(options: ReadOptions) -> Task:
    return Task(
        name="persuasion",
        description=(
            "One person (the persuader) talks with another (the persuadee), who was paid for the "
            "talk, about the charity Save the Children, and tries to persuade them to give a part "
            "of their payment to it. Afterwards the persuadee decides in private how much to give."
        ),
        agent_role="persuader",
        human_role="persuadee",
        persona_axes={},
        reward_range=(0.0, options.max_reward),
        success_reward=min(0.01, options.max_reward),  # a cent
        max_turns=20,
        success="The persuadee gives a part of the payment.",
        reward_unit="dollars that the persuadee gives",
    )


@tells_unreadable
def _read(path: Path, options: ReadOptions) -> Reading:
    cap = options.max_reward
    dialogues = read_persuasion_for_good(
        path / "full_dialog.csv", path / "full_info.csv", max_donation=cap
    )
    donations = [dialogue.source["donation"] for dialogue in dialogues]
    capped = [donation for donation in donations if donation > cap]
    notes = []
    if capped:
        notes.append(
            f"{len(capped)} of {len(dialogues):,} persuadees gave more than {cap:g} dollars (up to "
            f"{max(capped):g}); their reward is {cap:g}."
        )
    return Reading(dialogues, tuple(notes))


PERSUASION_FOR_GOOD = Corpus(
    name="persuasionforgood",
    title="PersuasionForGood",
    licence=LICENCE,
    homepage=HOMEPAGE,
    task=_task,
    read=_read,
)


@dataclasses.dataclass(frozen=True)
class _Participant:
    user: str
    donation: float
    persona: dict[str, str]


@dataclasses.dataclass
class _Transcript:
    """Utterances of one dialogue, as they stand in the file from `line` on."""

    line: int
    utterances: list[Turn] = dataclasses.field(default_factory=list)
    last_turn: float = -math.inf

    def turns(self, path: Path) -> tuple[Turn, ...]:
        turns = join_utterances(self.utterances)
        silent = {"agent", "human"} - {turn.speaker for turn in turns}
        if silent:
            who = {"agent": "persuader (B4 = 0)", "human": "persuadee (B4 = 1)"}[min(silent)]
            raise CorpusError(
                f"{path}: in the dialogue that begins at line {self.line} the {who} never "
                "speaks. Complete or delete it."
            )
        if turns[0].speaker == "human":
            raise CorpusError(
                f"{path}: the dialogue that begins at line {self.line} is opened by the persuadee "
                "(B4 = 1); as published, the persuader opens all of them. Are the roles swapped? "
                "Correct B4 or delete it."
            )
        return turns


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
            transcript.utterances.append(Turn(_SPEAKER_OF_ROLE[role], text))
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
    rows = csv.reader(io.StringIO(decode(path.read_bytes()), newline=""), strict=True)
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
    place = f"{path}, line {line}, column {column}"
    require(condition, CorpusError, place, "", value, expected)
