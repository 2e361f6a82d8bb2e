"""Pages of a study, over HTTP: what a participant sees and sends.

One address, `/study`, shows the step at which a participant is; every form leads back to it. So a
reload, the back button and a second window show where they are, and what is sent twice or out of
order changes nothing. All of it works without the script.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from experiments.human_study.answering import Answering
from experiments.human_study.assignment import alias
from experiments.human_study.config import StudyConfig
from experiments.human_study.records import RATER, TALKER, Platform
from experiments.human_study.session import (
    CHAT,
    DONE,
    JUDGE,
    MOST_CHARACTERS,
    MOST_COMMENT,
    RANKING,
    RATE,
    TOLD,
    WITHDRAWN,
    Refused,
    Study,
    cleaned,
)
from experiments.human_study.web import Durable, Guard, Signer, TooLarge, is_from_here, read_form

HERE = Path(__file__).parent
COOKIE = "study"
POLL_SECONDS = 20.0  # a question for news waits so long for an answer
NO_SCRIPT_SECONDS = 2  # without the script a page asks again
MOST_ID = 100  # characters of a platform's id
# As Prolific names them in the address.
PLATFORM_IDS = ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID")


def templates() -> jinja2.Environment:
    """The pages; every text is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


class Visitor:
    """A request of somebody whose cookie stands for a participant, or for nobody."""

    def __init__(self, request: Request, study: Study):
        self.token = request.cookies.get(COOKIE, "")
        self.number = study.store.number_of(self.token) if self.token else None


Fields = Mapping[str, str]  # of a posted form
# Does what a form asks for. Its response, or None: the page of where the participant now is.
Handler = Callable[[Visitor, Fields, Request], Response | None]


class Pages:
    """The handlers of all pages of participants.

    Args:
        study: The study: knows what may come next, and keeps what was done.
        answering: Asks the agents.
        config: Settings of the study.
        notices: Shown with the consent and beside every conversation.
    """

    def __init__(
        self, study: Study, answering: Answering, config: StudyConfig, notices: Sequence[str]
    ):
        self._study, self._answering, self._config = study, answering, config
        self._notices, self._say = tuple(notices), study.questionnaire.words
        self._templates = templates()
        self._signer = Signer(study.store.secret())

    def routes(self) -> list[Route | Mount]:
        posts = {
            "instructions": self.instructions,
            "say": self.say,
            "finish": self.finish,
            "told": self.told,
            "rate": self.rate,
            "rank": self.rank,
            "comment": self.comment,
            "withdraw": self.withdraw,
        }
        return [
            Route("/", self.welcome),
            Route("/judge", self.welcome_raters),
            Route("/study", self.here),
            Route("/news", self.news),
            Route("/withdraw", self.ask_withdraw),
            Route("/healthz", self.healthz),
            Route("/consent", self.consent, methods=["POST"]),
            *(
                Route(f"/{name}", self.posted(handle), methods=["POST"])
                for name, handle in posts.items()
            ),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]

    def page(self, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Renders a template."""
        shared = {
            "title": self._study.questionnaire.title,
            "notices": self._notices,
            "say": self._say,
            "csrf": "",
            "reload": 0,
        }
        template = self._templates.get_template(f"{name}.html.j2")
        return HTMLResponse(template.render(**shared | values), status)

    def message(
        self, word: str, status: int, heading: str = "problem_heading", **values: Any
    ) -> HTMLResponse:
        """A friendly page with one message; `values` fill the blanks of its words."""
        told = {"heading": self._say(heading), "text": self._say(word, **values)}
        return self.page("message", status, **told)

    def _told(self, reason: Refused) -> str:
        return self._say(reason.word, **reason.values)

    def _agent(self, position: int) -> str:
        """Neutral name of the agent at this place."""
        return self._say("agent", letter=alias(position))

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    # --- the beginning ---

    async def welcome(self, request: Request) -> Response:
        return self._welcome(request, TALKER)

    async def welcome_raters(self, request: Request) -> Response:
        return self._welcome(request, RATER)

    def _welcome(self, request: Request, kind: str) -> Response:
        visitor = Visitor(request, self._study)
        if visitor.number is not None and not any(n in request.query_params for n in PLATFORM_IDS):
            return RedirectResponse("/study", 303)
        if kind == TALKER and not self._study.is_open:
            return self.message("closed", 200, "closed_heading")
        return self._consent_page(kind, {n: request.query_params.get(n, "") for n in PLATFORM_IDS})

    def _consent_page(
        self, kind: str, ids: Mapping[str, str], error: str = "", status: int = 200
    ) -> Response:
        form = self._signer.fresh()
        return self.page(
            "consent",
            status,
            form=form,
            kind=kind,
            ids={name: value[:MOST_ID] for name, value in ids.items()},
            questionnaire=self._study.questionnaire,
            error=error,
        )

    async def consent(self, request: Request) -> Response:
        form = await read_form(request)
        if not is_from_here(request) or not self._signer.is_ours(form.get("form", "")):
            return self.message("old_form", 403)
        kind = RATER if form.get("kind") == RATER else TALKER
        ids = {name: form.get(name, "")[:MOST_ID] for name in PLATFORM_IDS}
        if form.get("agree") != "yes":
            return self._consent_page(kind, ids, self._say("tick_the_box"), 422)
        try:
            known = [cleaned(value, MOST_ID, single_line=True) for value in ids.values()]
            _, token = self._study.begin(form["form"], Platform(*known), kind)
        except Refused as reason:
            return self.message(reason.word, 409, "closed_heading", **reason.values)
        response = RedirectResponse("/study", 303)
        response.set_cookie(
            COOKIE,
            token,
            max_age=30 * 24 * 3600,
            httponly=True,
            samesite="lax",
            secure=self._config.behind_tls,
        )
        return response

    # --- where somebody is ---

    async def here(self, request: Request) -> Response:
        visitor = Visitor(request, self._study)
        if visitor.number is None:
            return RedirectResponse("/", 303)
        self._study.resume(visitor.number)
        return self._show(visitor)

    def _show(self, visitor: Visitor, status: int = 200, **more: Any) -> HTMLResponse:
        """The page of the step at which somebody is."""
        step = self._study.step(visitor.number)
        participant = self._study.store.participant(visitor.number)
        questionnaire = self._study.questionnaire
        values: dict[str, Any] = {
            "step": step,
            "participant": participant,
            "questionnaire": questionnaire,
            "card": questionnaire.sentences(participant.persona),
            "csrf": self._csrf(visitor),
            "error": "",
            "answers": {},
            "text": "",
            "agent": self._agent(step.talk.position) if step.talk else "",
        }
        if step.name == CHAT:
            self._answering.ensure(step.talk)
            waits = self._study.awaits_agent(step.talk)
            values |= {
                "waits": waits,
                "can_finish": self._study.can_finish(step.talk),
                "fewest": questionnaire.fewest_turns,
                "most_characters": MOST_CHARACTERS,
                "reload": NO_SCRIPT_SECONDS if waits else 0,
                "form": self._signer.fresh(),
            }
        elif step.name in (RATE, JUDGE):
            values["questions"] = self._study.questions(step)
        elif step.name == RANKING:
            talks = self._study.store.progress(visitor.number).talks
            said = {alias(talk.position): talk for talk in talks}
            values["agents"] = [
                (letter, self._agent(said[letter].position), said[letter].messages)
                for letter, _ in self._study.to_rank(visitor.number)
            ]
        elif step.name == DONE:
            code = self._config.code or participant.code
            values |= {
                "code": code,
                "return_url": self._config.return_url.replace("{code}", code),
                "most_characters": MOST_COMMENT,
                "saved": False,
            }
        template = "rate" if step.name == JUDGE else step.name
        return self.page(template, status, **values | more)

    def _csrf(self, visitor: Visitor) -> str:
        return self._signer.sign(f"participant {visitor.token}")

    async def news(self, request: Request) -> Response:
        """Messages from a place on, as JSON; waits while the agent has the word."""
        visitor = Visitor(request, self._study)
        if visitor.number is None:
            return JSONResponse({"error": self._say("not_there")}, 403)
        step = self._study.step(visitor.number)
        if step.name == CHAT and step.key == request.query_params.get("key"):
            await self._answering.wait(step.talk, POLL_SECONDS)
        return JSONResponse(self._news(visitor, request.query_params))

    def _news(self, visitor: Visitor, query: Mapping[str, str]) -> dict[str, Any]:
        """State of the conversation that a window shows, for the script."""
        place = query.get("from", "0")
        first = int(place) if place.isdecimal() and len(place) < 6 else 0
        number = query.get("key", "").rpartition("-")[2]
        talks = self._study.store.progress(visitor.number).talks
        talk = next((t for t in talks if str(t.position + 1) == number), None)
        if talk is None:
            return {"messages": [], "waits": False, "over": True, "can_finish": False}
        shown = [
            {"number": m.number, "speaker": m.speaker, "text": m.text}
            for m in talk.messages[first:]
        ]
        return {
            "messages": shown,
            "waits": self._study.awaits_agent(talk),
            "over": talk.ended_at is not None,
            "can_finish": self._study.can_finish(talk),
        }

    # --- what is sent ---

    def posted(self, handle: Handler) -> Callable[[Request], Awaitable[Response]]:
        """A handler of a form: who sends it must be known, and the form theirs."""

        async def handled(request: Request) -> Response:
            form = await read_form(request)
            visitor = Visitor(request, self._study)
            if visitor.number is None:
                return self.message("not_there", 403, "unknown_heading")
            signed = self._signer.matches(f"participant {visitor.token}", form.get("csrf", ""))
            if not signed or not is_from_here(request):
                return self.message("old_form", 403)
            return handle(visitor, form, request) or RedirectResponse("/study", 303)

        return handled

    def instructions(self, visitor: Visitor, form: Fields, request: Request) -> None:
        self._study.read_instructions(visitor.number)

    def say(self, visitor: Visitor, form: Fields, request: Request) -> Response | None:
        text, place, error = form.get("text", ""), form.get("place", ""), ""
        try:
            kept = (
                self._study.step(visitor.number).key == form.get("key")
                and place.isdecimal()
                and len(place) < 6
                and self._study.say(visitor.number, int(place), form.get("form", "")[:200], text)
            )
            if not kept:
                error = self._say("other_window")
        except Refused as reason:
            error = self._told(reason)
        step = self._study.step(visitor.number)
        if step.name == CHAT:
            self._answering.ensure(step.talk)
        if request.headers.get("accept") == "application/json":  # of the script
            return JSONResponse({"error": error}, 422 if error else 200)
        if error and step.name == CHAT:
            return self._show(visitor, 422, error=error, text=text[:MOST_CHARACTERS])
        return None

    def finish(self, visitor: Visitor, form: Fields, request: Request) -> None:
        if self._study.step(visitor.number).key == form.get("key"):
            self._study.end_by_human(visitor.number)

    def told(self, visitor: Visitor, form: Fields, request: Request) -> None:
        step = self._study.step(visitor.number)
        if step.name == TOLD and step.key == form.get("key"):
            self._study.was_told(visitor.number)

    def rate(self, visitor: Visitor, form: Fields, request: Request) -> Response | None:
        answers = _named(form, "q-")
        try:
            self._study.rate(visitor.number, form.get("key", ""), answers)
        except Refused as reason:
            return self._show(visitor, 422, error=self._told(reason), answers=answers)
        return None

    def rank(self, visitor: Visitor, form: Fields, request: Request) -> Response | None:
        places = _named(form, "place-")
        try:
            self._study.rank(visitor.number, places)
        except Refused as reason:
            return self._show(visitor, 422, error=self._told(reason), answers=places)
        return None

    def comment(self, visitor: Visitor, form: Fields, request: Request) -> Response | None:
        try:
            self._study.comment(visitor.number, form.get("text", ""))
        except Refused as reason:
            return self._show(visitor, 422, error=self._told(reason))
        is_done = self._study.step(visitor.number).name == DONE
        return self._show(visitor, saved=True) if is_done else None

    def withdraw(self, visitor: Visitor, form: Fields, request: Request) -> None:
        self._study.withdraw(visitor.number)

    async def ask_withdraw(self, request: Request) -> Response:
        visitor = Visitor(request, self._study)
        if visitor.number is None or self._study.step(visitor.number).name == WITHDRAWN:
            return RedirectResponse("/study", 303)
        return self.page("withdraw", csrf=self._csrf(visitor))


def _named(form: Fields, prefix: str) -> dict[str, str]:
    """Fields whose names begin so, without it."""
    return {n.removeprefix(prefix): v for n, v in form.items() if n.startswith(prefix)}


def build_app(
    study: Study,
    answering: Answering,
    config: StudyConfig,
    notices: Sequence[str] = (),
    more_routes: Sequence[Route] = (),
) -> ASGIApp:
    """The pages as an ASGI application, guarded.

    Args:
        study: The study: knows what may come next, and keeps what was done.
        answering: Asks the agents.
        config: Settings of the study.
        notices: Shown with the consent and beside every conversation.
        more_routes: Routes of the researcher's page.
    """
    pages = Pages(study, answering, config, notices)

    async def not_found(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return pages.message("not_there", status, "not_there_heading")

    async def too_large(request: Request, error: Exception) -> Response:
        return pages.message("too_large", 413)

    async def not_kept(request: Request, error: Exception) -> Response:
        return pages.message("not_kept", 503)

    async def broken(request: Request, error: Exception) -> Response:
        return pages.message("broken", 500)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        study.recover()
        yield
        await answering.close()

    app = Starlette(
        routes=[*pages.routes(), *more_routes],
        exception_handlers={
            404: not_found,
            405: not_found,
            TooLarge: too_large,
            sqlite3.Error: not_kept,
            Exception: broken,
        },
        lifespan=lifespan,
    )
    return Guard(Durable(app, study.store), config.requests_per_second, study.questionnaire.words)
