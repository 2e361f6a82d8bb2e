"""Loggers: where the numbers of a run go while it is under way, and its scores at the end.

    with open_logger(config, folder.metrics(unit)) as logger:
        logger.resume(step)                     # 0 for a new training
        logger.log(50, {"loss": 0.3})
        logger.summary({"average/mean_reward": 3.4})

JSON Lines are always written: a resumed training and the report read them. `LoggingConfig.backends`
names what is written beside them: those of `BACKENDS`, or a .py file whose LOGGER is a class with
the methods of `Logger`, made with `(config, log_file, settings)`. Whatever is logged comes from the
code; no logger looks into the environment, where the keys are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiments.files import DAMAGE, read_json_object, write_atomically
from ilql_jax.errors import UserError, shown
from ilql_jax.own_file import defined_in
from ilql_jax.settings import SettingError, Settings, setting
from imagination.checks import is_finite
from imagination.llm.secrets import without_password

Value = float | int | str


class LoggerError(UserError, RuntimeError):
    """A backend that cannot be used on this machine."""


class Logger(Protocol):
    """Receives the numbers of one training, or of the whole run."""

    def resume(self, step: int) -> None:
        """Forgets what was logged after `step`, which is going to be done again. Called once,
        before the first `log` of a session; `step` is 0 for a new training."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the metrics of a step; steps rise within a session."""

    def summary(self, values: Mapping[str, Value]) -> None:
        """Sets final values, e.g. evaluation scores; replaces values of the same names."""

    def table(
        self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
    ) -> None:
        """Sets a table of results; replaces the table of the same name (letters, digits, -)."""

    def close(self) -> None:
        """Writes what is buffered. Nothing is logged afterwards."""


@dataclasses.dataclass(frozen=True)
class LoggingConfig(Settings):
    """Settings of the loggers."""

    backends: tuple[str, ...] = setting(
        "Loggers of metrics and scores, beside JSON Lines: tensorboard, wandb, or a .py file that "
        "defines LOGGER.",
        ("tensorboard",),
        shapes_result=False,
    )
    wandb_project: str = setting("Project of the W&B runs.", "ilql-jax", shapes_result=False)
    wandb_mode: str = setting(
        "online sends to the W&B server, offline keeps everything in the run's folder.",
        "online",
        choices=("online", "offline"),
        shapes_result=False,
    )

    def __post_init__(self):
        super().__post_init__()
        if len(set(self.backends)) < len(self.backends):
            raise SettingError("backends", self.backends, "must name each backend once")
        for name in self.backends:
            if name not in BACKENDS and not name.endswith(".py"):
                known = f"{', '.join(BACKENDS)}, or a .py file that defines LOGGER"
                raise SettingError("backends", self.backends, f"each must be one of {known}")


def check_backends(config: LoggingConfig) -> None:
    """Raises `LoggerError` for a backend whose package is not installed or whose file is no use."""
    for name in config.backends:
        _backend(name)
    if "wandb" in config.backends and importlib.util.find_spec("wandb") is None:
        raise LoggerError(
            "config.logging.backends names wandb, which is not installed here. Install it "
            "(pip install 'ilql-jax[wandb]'), or leave it out."
        )


@contextlib.contextmanager
def open_logger(
    config: LoggingConfig, log_file: Path, settings: Mapping[str, Any] | None = None
) -> Iterator[Logger]:
    """Opens JSON Lines and the configured backends, and closes them in the end.

    Args:
        config: The backends.
        log_file: File of the JSON Lines, `<run folder>/metrics/<name>.jsonl`; the other backends
            keep their files beside it.
        settings: Settings of the run, shown by backends that have a place for them. Passwords in
            URLs are left out.
    """
    check_backends(config)
    loggers: list[Logger] = [JsonLines(log_file)]
    for name in config.backends:
        loggers.append(_backend(name)(config, log_file, settings or {}))
    logger = Composite(loggers)
    try:
        yield logger
    finally:
        logger.close()


class TrainingLog:
    """The log of one training over several sessions, with the seconds it has taken so far."""

    def __init__(self, logger: Logger, log_file: Path):
        self._logger = logger
        self._log_file = log_file
        self._before = 0.0  # seconds of the sessions before this one
        self._start = time.monotonic()

    def resume(self, step: int) -> None:
        """Goes on from `step`, 0 for a new training."""
        self._logger.resume(step)
        records = [record for record in read_log(self._log_file) if record["step"] <= step]
        seconds = records[-1].get("seconds") if records else 0.0
        self._before = seconds if is_finite(seconds) else 0.0
        self._start = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the metrics of a step."""
        self._logger.log(step, {**values, "seconds": round(self.seconds, 2)})

    @property
    def seconds(self) -> float:
        """Time of this session and of those before it, as far as their work was kept."""
        return self._before + time.monotonic() - self._start


def read_log(log_file: Path) -> list[dict[str, Any]]:
    """Reads the records of a JSON Lines log: `step` and the metrics of that step.

    A line that is not a JSON object is passed over: a killed run leaves half a line.
    """
    if not log_file.exists():
        return []
    records = map(_parsed, log_file.read_text(encoding="utf-8", errors="replace").splitlines())
    return [record for record in records if record is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class Composite:
    """Hands everything on to several loggers, in order."""

    def __init__(self, loggers: Sequence[Logger]):
        self.loggers = loggers

    def resume(self, step: int) -> None:
        for logger in self.loggers:
            logger.resume(step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log(step, values)

    def summary(self, values: Mapping[str, Value]) -> None:
        for logger in self.loggers:
            logger.summary(values)

    def table(
        self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
    ) -> None:
        for logger in self.loggers:
            logger.table(name, headers, rows, title)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


class JsonLines:
    """A record a step in `<name>.jsonl`; final values in `<name>.summary.json`; a table in
    `<name>.<table>.jsonl`, a record a row."""

    def __init__(self, path: Path):
        self.path = path

    def resume(self, step: int) -> None:
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        write_atomically(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def summary(self, values: Mapping[str, Value]) -> None:
        path = self.path.with_suffix(".summary.json")
        before = {}
        with contextlib.suppress(FileNotFoundError, *DAMAGE):  # a damaged one is made again
            before = read_json_object(path)
        write_atomically(path, json.dumps({**before, **values}, indent=1))

    def table(
        self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
    ) -> None:
        records = [dict(zip(headers, row, strict=True)) for row in rows]
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        write_atomically(self.path.with_suffix(f".{name}.jsonl"), "".join(lines))

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files in the folder `<name>/`, made anew from the JSON Lines by each session.

    TensorBoard's own files lose what was not flushed when a run is killed, and cannot forget.
    """

    def __init__(self, config: LoggingConfig, log_file: Path, settings: Mapping[str, Any]):
        self.log_file = log_file
        self.folder = log_file.with_suffix("")
        self._training: Any = None  # writers of tensorboardX
        self._results: Any = None

    def resume(self, step: int) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._training = self._writer("")
        for record in read_log(self.log_file):
            if record["step"] <= step:
                values = {name: value for name, value in record.items() if name != "step"}
                self.log(record["step"], values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._training.add_scalar(name, value, step)

    def summary(self, values: Mapping[str, Value]) -> None:
        records = read_log(self.log_file)
        step = records[-1]["step"] if records else 0
        for name, value in values.items():
            if isinstance(value, str):
                self._of_results.add_text(name, value, step)
            else:
                self._of_results.add_scalar(name, value, step)

    def table(
        self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
    ) -> None:
        lines = [headers, ["---"] * len(headers), *rows]
        markdown = "\n".join("| " + " | ".join(map(_escaped, cells)) + " |" for cells in lines)
        self._of_results.add_text(name, f"**{_escaped(title)}**\n\n{markdown}")

    def close(self) -> None:
        for writer in (self._training, self._results):
            if writer is not None:
                writer.close()

    @property
    def _of_results(self) -> Any:
        """A writer for final values, in a file of its own that replaces an earlier one."""
        if self._results is None:
            for old in self.folder.glob(f"*{_RESULTS}"):
                old.unlink()
            self._results = self._writer(_RESULTS)
        return self._results

    def _writer(self, suffix: str) -> Any:
        # Only now: where torch is installed this loads it, which takes a second in every process.
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.folder), filename_suffix=suffix)


_RESULTS = ".results"  # end of the name of TensorBoard's file of final values


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


class WeightsAndBiases:
    """A W&B run, whose id is kept in `<name>.wandb-id`: every later session goes on in it.

    Runs of one run folder share a group. With `wandb_mode` "offline" everything is kept in
    `wandb/` beside the metrics folder, for `wandb sync`. W&B's own key comes from its login or from
    WANDB_API_KEY, which it reads by itself.
    """

    def __init__(self, config: LoggingConfig, log_file: Path, settings: Mapping[str, Any]):
        import wandb

        folder = log_file.parent.parent
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.wandb_project,
            group=folder.resolve().name,
            name=log_file.stem,
            id=_kept_id(log_file.with_suffix(".wandb-id")),
            resume="allow",
            mode=config.wandb_mode,
            dir=str(folder),
            config=without_password(dict(settings)),
            # Nothing but what is logged here: no terminal output, no code, no command line.
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, x_disable_meta=True
            ),
        )
        self._table = wandb.Table

    def resume(self, step: int) -> None:
        """Keeps what W&B has: a run that goes on does the same steps with the same values."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._run.step:  # the server keeps the steps of an earlier session
            self._run.log(dict(values), step=step)

    def summary(self, values: Mapping[str, Value]) -> None:
        self._run.summary.update(dict(values))

    def table(
        self, name: str, headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = ""
    ) -> None:
        data = [list(row) for row in rows]
        self._run.log({name: self._table(columns=list(headers), data=data)})

    def close(self) -> None:
        self._run.finish()


def _kept_id(path: Path) -> str:
    kept = path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""
    if not re.fullmatch(r"[0-9a-z]{4,64}", kept):
        kept = secrets.token_hex(8)
        write_atomically(path, kept)
    return kept


Backend = Callable[[LoggingConfig, Path, Mapping[str, Any]], Logger]
BACKENDS: dict[str, Backend] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def _backend(name: str) -> Backend:
    """The backend of a name, or of a .py file; raises `LoggerError` if that cannot be used."""
    if name in BACKENDS:
        return BACKENDS[name]
    try:
        return _own_backend(name)
    except LoggerError as error:
        raise LoggerError(f"config.logging.backends: {error}") from error


@functools.cache
def _own_backend(file: str) -> Backend:
    """The LOGGER of a file; raises `LoggerError` if it cannot be used."""
    found = defined_in(file, "LOGGER", LoggerError)
    if not isinstance(found, type):
        raise LoggerError(f"{file}: LOGGER is {shown(found, 80, repr)}, but must be a class.")
    if missing := [each for each in _ARGUMENTS if not callable(getattr(found, each, None))]:
        raise LoggerError(f"{file}: LOGGER has no {', '.join(missing)}. Give it these methods.")
    # Now: most of them are called only when the work is done.
    _check_takes(file, "LOGGER", found, ("config", "log_file", "settings"))
    for name, arguments in _ARGUMENTS.items():
        _check_takes(file, f"LOGGER.{name}", getattr(found, name), ("self", *arguments))
    return found


# Methods of a logger -> what they are called with.
_ARGUMENTS = {
    "resume": ("step",),
    "log": ("step", "values"),
    "summary": ("values",),
    "table": ("name", "headers", "rows", "title"),
    "close": (),
}


def _check_takes(file: str, name: str, function: Callable[..., Any], given: Sequence[str]) -> None:
    """Raises `LoggerError` for a function that cannot be called with these arguments."""
    try:
        inspect.signature(function).bind(*given)
    except TypeError as error:
        takes = ", ".join(each for each in given if each != "self")
        raise LoggerError(f"{file}: {name} must take ({takes}): {error}.") from None
