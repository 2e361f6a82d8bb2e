"""`Store`: a study in one SQLite file. What has been acknowledged is committed, and on disk.

Each method is one transaction; `web.Durable` flushes it before anybody is told of it. What is sent
twice is kept once: a form that begins a participant by its token, a message by its place and token,
ratings by rater, conversation and question. There is no address of anybody in the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.human_study.assignment import Cell
from experiments.human_study.records import (
    TALKER,
    Judgement,
    Message,
    Participant,
    Platform,
    Progress,
    Rating,
    StudyError,
    Talk,
)

VERSION = 1  # of the tables; raised with every change of them
_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE participants (
    number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, form TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL, platform TEXT NOT NULL, platform_study TEXT NOT NULL,
    platform_session TEXT NOT NULL, row INTEGER NOT NULL, agents TEXT NOT NULL,
    persona TEXT NOT NULL, code TEXT NOT NULL, agreed_at REAL NOT NULL, seen_at REAL NOT NULL,
    instructed_at REAL, finished_at REAL, withdrawn_at REAL,
    comment TEXT NOT NULL DEFAULT '', ranking TEXT NOT NULL DEFAULT '[]');
CREATE INDEX participants_platform ON participants (platform);
CREATE TABLE talks (
    number INTEGER PRIMARY KEY, participant INTEGER NOT NULL REFERENCES participants,
    position INTEGER NOT NULL, agent TEXT NOT NULL, seed INTEGER NOT NULL, begun_at REAL NOT NULL,
    ended_at REAL, told_at REAL, rated_at REAL, ended_by TEXT NOT NULL DEFAULT '',
    aside TEXT NOT NULL DEFAULT '', failure TEXT NOT NULL DEFAULT '',
    UNIQUE (participant, position));
CREATE TABLE messages (
    talk INTEGER NOT NULL REFERENCES talks, number INTEGER NOT NULL, speaker TEXT NOT NULL,
    text TEXT NOT NULL, at REAL NOT NULL, token TEXT NOT NULL, details TEXT NOT NULL,
    PRIMARY KEY (talk, number)) WITHOUT ROWID;
CREATE TABLE judgements (
    rater INTEGER NOT NULL REFERENCES participants, position INTEGER NOT NULL,
    talk INTEGER NOT NULL REFERENCES talks, rated_at REAL, PRIMARY KEY (rater, position),
    UNIQUE (rater, talk)) WITHOUT ROWID;
CREATE TABLE ratings (
    rater INTEGER NOT NULL REFERENCES participants, talk INTEGER NOT NULL REFERENCES talks,
    question TEXT NOT NULL, value INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (rater, talk, question)) WITHOUT ROWID;
CREATE TABLE attention (
    participant INTEGER PRIMARY KEY REFERENCES participants, value INTEGER NOT NULL,
    passed INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE steps (
    participant INTEGER NOT NULL REFERENCES participants, at REAL NOT NULL, step TEXT NOT NULL);
CREATE INDEX steps_participant ON steps (participant);
"""


class Store:
    """The study's file; one process at a time has it open for writing.

    Args:
        path: The file; made where it is missing.
        identity: Parts that may not change during a study (agents, questionnaire), name -> text.

    Attributes:
        commits: Transactions so far.

    Raises:
        StudyError: A file of another version or study, or one that is no database.
    """

    def __init__(self, path: Path, identity: Mapping[str, str] | None = None):
        self.path, self.commits = path, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        except (sqlite3.Error, OSError) as error:
            raise StudyError(
                f"{path} cannot be opened as a study ({error}). Move it away, or give another "
                "folder (--folder=...)."
            ) from None
        if version != VERSION and (version or tables):
            raise StudyError(
                f"{path} is the file of a study of version {version}, and this is version "
                f"{VERSION}. Use the release that made it, or give another folder (--folder=...)."
            )
        # WAL: a reader never waits. NORMAL: a commit outlives the process, and with `flush` a power
        # cut; with FULL all would wait for the disk at each. What is deleted is overwritten.
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        if not tables:
            self._db.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        if identity is not None:
            self._check(identity)
        self.flush()
        _sync(path.parent)

    def flush(self) -> None:
        """Makes everything that is committed outlive a power cut; from any thread.

        Raises:
            OSError: The disk does not keep it.
        """
        log = self.path.with_name(self.path.name + "-wal")
        # Without a log SQLite has put all of it into the file, and waited for the disk.
        _sync(log if log.exists() else self.path)

    def close(self) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
            self.commits += 1
        except BaseException:
            if self._db.in_transaction:  # a full disk may have ended it already
                self._db.execute("ROLLBACK")
            raise

    # --- the study as a whole ---

    def _check(self, identity: Mapping[str, str]) -> None:
        """Binds the file to a study; as long as nobody has taken part it may become another."""
        begun = bool(self._db.execute("SELECT count(*) FROM participants").fetchone()[0])
        for name, value in identity.items():
            known = self.fact(name)
            if begun and known != value:
                raise StudyError(
                    f"{self.path} holds a study with other {name}, and people have taken part. "
                    f"Give what it began with, or another folder (--folder=...)."
                )
        with self._transaction():
            for name, value in identity.items():
                self._set_fact(name, value)

    def fact(self, name: str) -> str | None:
        """A fact about the study; None where there is none of this name."""
        found = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return found and found["value"]

    def set_fact(self, name: str, value: str | None) -> None:
        """Keeps a fact; None = forgets it."""
        with self._transaction():
            self._set_fact(name, value)

    def _set_fact(self, name: str, value: str | None) -> None:
        self._db.execute("DELETE FROM facts WHERE name = ?", (name,))
        if value is not None:
            self._db.execute("INSERT INTO facts VALUES (?, ?)", (name, value))

    def spend(self, agent: str, spent: Mapping[str, float]) -> None:
        """Adds to what an agent has cost; it stays when a participant withdraws."""
        with self._transaction():
            total = self.spending(agent)
            for name, value in spent.items():
                total[name] = total.get(name, 0) + value
            self._set_fact(f"spent by {agent}", json.dumps(total))

    def spending(self, agent: str) -> dict[str, float]:
        """Everything that an agent has cost so far, by the names that `spend` was given."""
        return json.loads(self.fact(f"spent by {agent}") or "{}")

    def secret(self) -> str:
        """A key of the study's own, which outlives a restart."""
        with self._transaction():
            if (found := self.fact("secret")) is None:
                found = secrets.token_hex(32)
                self._set_fact("secret", found)
        return found

    # --- participants ---

    def begin(
        self,
        form: str,
        platform: Platform,
        kind: str,
        now: float,
        choose: Callable[[int], tuple[int, Sequence[str], Mapping[str, str], Sequence[int]]],
    ) -> tuple[Participant, str]:
        """Lets somebody take part, once for each form.

        Args:
            form: Token of the form by which they agreed.
            platform: Ids of the platform.
            kind: `TALKER` or `RATER`.
            now: Seconds since 1970.
            choose: Number of the participant -> row, agents in order, persona, and conversations
                to rate; called within the transaction.

        Returns:
            The participant, and the token that stands for them from now on.
        """
        with self._transaction() as db:
            known = db.execute("SELECT number, token FROM participants WHERE form = ?", (form,))
            if (found := known.fetchone()) is None:
                last = db.execute("SELECT max(number) FROM participants").fetchone()[0] or 0
                row, order, persona, to_rate = choose(last + 1)
                token, code = secrets.token_urlsafe(24), secrets.token_hex(4).upper()
                db.execute(
                    "INSERT INTO participants (number, token, form, kind, platform,"
                    " platform_study, platform_session, row, agents, persona, code, agreed_at,"
                    " seen_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        last + 1,
                        token,
                        form,
                        kind,
                        platform.participant,
                        platform.study,
                        platform.session,
                        row,
                        json.dumps(list(order)),
                        json.dumps(dict(persona)),
                        code,
                        now,
                        now,
                    ),
                )
                for position, talk in enumerate(to_rate):
                    db.execute(
                        "INSERT INTO judgements VALUES (?, ?, ?, NULL)", (last + 1, position, talk)
                    )
                self._note(last + 1, now, "agreed")
                found = {"number": last + 1, "token": token}
        return self.participant(found["number"]), found["token"]

    def number_of(self, token: str) -> int | None:
        """The participant that a token stands for; None for a token of nobody."""
        found = self._db.execute("SELECT number FROM participants WHERE token = ?", (token,))
        row = found.fetchone()
        return row and row["number"]

    def of_form(self, form: str) -> tuple[Participant, str] | None:
        """The participant who agreed by this form, and the token that stands for them."""
        found = self._db.execute("SELECT * FROM participants WHERE form = ?", (form,))
        row = found.fetchone()
        return None if row is None else (_participant(row), row["token"])

    def of_platform(self, participant: str) -> list[tuple[Participant, str]]:
        """Participants with this id of a platform, each with the token that stands for them."""
        rows = self._db.execute(
            "SELECT * FROM participants WHERE platform = ? AND platform != ''", (participant,)
        )
        return [(_participant(row), row["token"]) for row in rows]

    def participant(self, number: int) -> Participant:
        """Raises `KeyError` for a number of nobody."""
        found = self._db.execute("SELECT * FROM participants WHERE number = ?", (number,))
        if (row := found.fetchone()) is None:
            raise KeyError(number)
        return _participant(row)

    def participants(self) -> list[Participant]:
        rows = self._db.execute("SELECT * FROM participants ORDER BY number")
        return [_participant(row) for row in rows]

    def progress(self, number: int) -> Progress:
        """Raises `KeyError` for a number of nobody."""
        judgements = self._db.execute(
            "SELECT * FROM judgements WHERE rater = ? ORDER BY position", (number,)
        )
        return Progress(
            self.participant(number),
            tuple(self.talks(number)),
            tuple(Judgement(row["position"], row["talk"], row["rated_at"]) for row in judgements),
        )

    def cells(self, rows: int, since: float) -> list[Cell]:
        """Participants of each row of the design; those not seen `since` then have dropped out."""
        found = self._db.execute(
            "SELECT row, sum(finished_at IS NOT NULL OR seen_at >= ?) AS kept, count(*) AS begun"
            " FROM participants WHERE kind = ? AND withdrawn_at IS NULL GROUP BY row",
            (since, TALKER),
        )
        cells = {row["row"]: Cell(row["kept"], row["begun"]) for row in found}
        return [cells.get(row, Cell(0, 0)) for row in range(rows)]

    def count(self) -> int:
        """Participants who talk and have not withdrawn."""
        found = self._db.execute(
            "SELECT count(*) FROM participants WHERE kind = ? AND withdrawn_at IS NULL", (TALKER,)
        )
        return found.fetchone()[0]

    def instructed(self, number: int, now: float, agent: str | None, seed: int) -> None:
        """Notes that the instructions were read, and begins the first conversation, if any."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE participants SET instructed_at = ? WHERE number = ? AND"
                " instructed_at IS NULL",
                (now, number),
            )
            if done.rowcount:
                self._note(number, now, "instructed")
            if agent is not None:
                self._begin_talk(number, 0, agent, seed, now)

    def rank(self, number: int, order: Sequence[str], now: float) -> None:
        """Keeps the ranking of the agents, best first; the first that is sent counts."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE participants SET ranking = ? WHERE number = ? AND ranking = '[]'",
                (json.dumps(list(order)), number),
            )
            if done.rowcount:
                self._note(number, now, "ranked")

    def finish(self, number: int, now: float) -> None:
        """Notes that a participant is done; the first time counts."""
        with self._transaction() as db:
            done = db.execute(
                "UPDATE participants SET finished_at = ? WHERE number = ? AND finished_at IS NULL",
                (now, number),
            )
            if done.rowcount:
                self._note(number, now, "finished")

    def comment(self, number: int, text: str, now: float) -> None:
        with self._transaction() as db:
            db.execute("UPDATE participants SET comment = ? WHERE number = ?", (text, number))
            self._note(number, now, "commented")

    def withdraw(self, number: int, now: float) -> None:
        """Deletes all that a participant said, was said to them and was said about it.

        Their number stays, without anything about them, so that they are counted and told.
        """
        with self._transaction() as db:
            own = "SELECT number FROM talks WHERE participant = ?"
            for table in ("messages", "ratings", "judgements"):
                db.execute(f"DELETE FROM {table} WHERE talk IN ({own})", (number,))
            for table, column in (
                ("ratings", "rater"),
                ("judgements", "rater"),
                ("talks", "participant"),
                ("attention", "participant"),
                ("steps", "participant"),
            ):
                db.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))
            db.execute(
                "UPDATE participants SET withdrawn_at = ?, platform = '', platform_study = '',"
                " platform_session = '', persona = '{}', comment = '', ranking = '[]',"
                " finished_at = NULL, agreed_at = ?, seen_at = ?, instructed_at = NULL"
                " WHERE number = ? AND withdrawn_at IS NULL",
                (now, now, now, number),
            )
        # Otherwise the words would stay in the write-ahead log until it is used again.
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _note(self, number: int, now: float, step: str) -> None:
        self._db.execute("INSERT INTO steps VALUES (?, ?, ?)", (number, now, step))
        self._db.execute("UPDATE participants SET seen_at = ? WHERE number = ?", (now, number))

    def steps(self, number: int) -> list[tuple[float, str]]:
        """Times and names of what a participant did."""
        rows = self._db.execute(
            "SELECT at, step FROM steps WHERE participant = ? ORDER BY at, rowid", (number,)
        )
        return [(row["at"], row["step"]) for row in rows]

    # --- conversations ---

    def begin_talk(self, participant: int, position: int, agent: str, seed: int, now: float):
        """Begins the conversation at this place, unless it has begun."""
        with self._transaction():
            self._begin_talk(participant, position, agent, seed, now)

    def _begin_talk(
        self, participant: int, position: int, agent: str, seed: int, now: float
    ) -> None:
        done = self._db.execute(
            "INSERT OR IGNORE INTO talks (participant, position, agent, seed, begun_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (participant, position, agent, seed, now),
        )
        if done.rowcount:
            self._note(participant, now, f"began {position + 1}")

    def talks(self, participant: int | None = None) -> list[Talk]:
        """Conversations of one participant or of all, by participant and position."""
        where = "" if participant is None else "WHERE participant = ?"
        chosen = () if participant is None else (participant,)
        rows = self._db.execute(
            f"SELECT * FROM talks {where} ORDER BY participant, position", chosen
        ).fetchall()
        said: dict[int, list[Message]] = {row["number"]: [] for row in rows}
        messages = self._db.execute(
            f"SELECT messages.* FROM messages JOIN talks ON talks.number = talk {where}"
            " ORDER BY talk, messages.number",
            chosen,
        )
        for row in messages:
            said[row["talk"]].append(_message(row))
        return [_talk(row, said[row["number"]]) for row in rows]

    def talk(self, number: int) -> Talk:
        """Raises `KeyError` for a number of no conversation."""
        row = self._db.execute("SELECT * FROM talks WHERE number = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(number)
        rows = self._db.execute("SELECT * FROM messages WHERE talk = ? ORDER BY number", (number,))
        return _talk(row, [_message(each) for each in rows])

    def add_message(self, talk: int, message: Message) -> bool:
        """Keeps a message in its place of an open conversation.

        Returns:
            True where it is kept, also from before (the same speaker and token in the same place);
            False where another stands there, one before it is missing, or the conversation is over.
        """
        with self._transaction() as db:
            kept = db.execute(
                "SELECT speaker, token FROM messages WHERE talk = ? AND number = ?",
                (talk, message.number),
            ).fetchone()
            if kept is not None:
                return (kept["speaker"], kept["token"]) == (message.speaker, message.token)
            row = db.execute(
                "SELECT participant, ended_at, (SELECT count(*) FROM messages WHERE talk = ?) AS n"
                " FROM talks WHERE number = ?",
                (talk, talk),
            ).fetchone()
            if row is None or row["ended_at"] is not None or row["n"] != message.number:
                return False
            db.execute(
                "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    talk,
                    message.number,
                    message.speaker,
                    message.text,
                    message.at,
                    message.token,
                    json.dumps(dict(message.details)),
                ),
            )
            if message.speaker == "human":
                self._note(row["participant"], message.at, f"said {message.number + 1}")
        return True

    def end_talk(
        self, talk: int, ended_by: str, now: float, aside: str = "", failure: str = ""
    ) -> None:
        """Ends an open conversation; one that is over stays as it is."""
        with self._transaction() as db:
            row = db.execute(
                "UPDATE talks SET ended_at = ?, ended_by = ?, aside = ?, failure = ? WHERE"
                " number = ? AND ended_at IS NULL RETURNING participant, position",
                (now, ended_by, aside, failure, talk),
            ).fetchone()
            if row is not None:
                step = f"ended {row['position'] + 1} by {ended_by}"
                self._note(row["participant"], now, f"{step}{', ' + aside if aside else ''}")

    def told(self, talk: int, now: float) -> None:
        """Notes that the participant knows that a conversation was set aside."""
        with self._transaction() as db:
            row = db.execute(
                "UPDATE talks SET told_at = ? WHERE number = ? AND told_at IS NULL"
                " RETURNING participant, position",
                (now, talk),
            ).fetchone()
            if row is not None:
                self._note(row["participant"], now, f"told {row['position'] + 1}")

    def rate(
        self,
        rater: int,
        talk: int,
        values: Mapping[str, int],
        now: float,
        attention: tuple[int, bool] | None = None,
    ) -> None:
        """Keeps the ratings of a conversation, all or none; those that are sent first count.

        Args:
            rater: The participant who talked, or somebody who was given it to rate.
            talk: The conversation.
            values: Question -> rating.
            now: Seconds since 1970.
            attention: Answer to the attention check and whether it is the right one, where asked.
        """
        with self._transaction() as db:
            row = (
                db.execute(
                    "UPDATE talks SET rated_at = ? WHERE number = ? AND participant = ? AND"
                    " rated_at IS NULL RETURNING position",
                    (now, talk, rater),
                ).fetchone()
                or db.execute(
                    "UPDATE judgements SET rated_at = ? WHERE talk = ? AND rater = ? AND"
                    " rated_at IS NULL RETURNING position",
                    (now, talk, rater),
                ).fetchone()
            )
            if row is None:
                return
            for question, value in values.items():
                db.execute(
                    "INSERT INTO ratings VALUES (?, ?, ?, ?, ?)",
                    (rater, talk, question, value, now),
                )
            if attention is not None:
                db.execute(
                    "INSERT OR IGNORE INTO attention VALUES (?, ?, ?, ?)",
                    (rater, attention[0], attention[1], now),
                )
            self._note(rater, now, f"rated {row['position'] + 1}")

    # --- what came of it ---

    def ratings(self) -> list[Rating]:
        rows = self._db.execute("SELECT * FROM ratings ORDER BY talk, rater, question")
        return [Rating(**dict(row)) for row in rows]

    def attention(self) -> dict[int, bool]:
        """Participant -> True where they passed the attention check."""
        rows = self._db.execute("SELECT participant, passed FROM attention")
        return {row["participant"]: bool(row["passed"]) for row in rows}

    def to_judge(self, count: int, raters: int, not_of: str) -> list[int]:
        """Conversations for a rater: those that others have begun to rate, then the next.

        Args:
            count: Most of them.
            raters: Raters who are to see each.
            not_of: Id of the platform whose own conversations are left out.
        """
        rows = self._db.execute(
            "SELECT talks.number, (SELECT count(*) FROM judgements WHERE talk = talks.number) AS n"
            " FROM talks JOIN participants ON participants.number = participant"
            " WHERE talks.rated_at IS NOT NULL AND n < ? AND (platform = '' OR platform != ?)"
            " ORDER BY n DESC, talks.number LIMIT ?",
            (raters, not_of, count),
        )
        return [row["number"] for row in rows]


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _participant(row: sqlite3.Row) -> Participant:
    return Participant(
        number=row["number"],
        kind=row["kind"],
        platform=Platform(row["platform"], row["platform_study"], row["platform_session"]),
        row=row["row"],
        order=tuple(json.loads(row["agents"])),
        persona=json.loads(row["persona"]),
        ranking=tuple(json.loads(row["ranking"])),
        **{
            name: row[name]
            for name in (
                "code",
                "agreed_at",
                "seen_at",
                "instructed_at",
                "finished_at",
                "withdrawn_at",
                "comment",
            )
        },
    )


def _talk(row: sqlite3.Row, messages: Sequence[Message]) -> Talk:
    return Talk(**dict(row), messages=tuple(messages))


def _message(row: sqlite3.Row) -> Message:
    values: dict[str, Any] = {
        name: row[name] for name in ("number", "speaker", "text", "at", "token")
    }
    return Message(**values, details=json.loads(row["details"]))
