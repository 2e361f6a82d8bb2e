"""The researcher's page: progress, pause, withdrawal; behind a token of the environment."""

from __future__ import annotations

import datetime
import hmac
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from experiments.human_study.overview import overview
from experiments.human_study.pages import templates
from experiments.human_study.records import StudyError
from experiments.human_study.session import Study
from experiments.human_study.web import Signer, is_from_here, read_form
from experiments.human_study.words import ENGLISH

VARIABLE = "STUDY_TOKEN"
COOKIE = "study_admin"
FEWEST_SIGNS = 12


def admin_token(environment: Mapping[str, str]) -> str:
    """The researcher's token; "" = there is none, and no page.

    Raises:
        StudyError: It can be guessed.
    """
    token = environment.get(VARIABLE, "").strip()
    if token and len(token) < FEWEST_SIGNS:
        raise StudyError(
            f"The variable {VARIABLE} has {len(token)} characters, which can be guessed. Give at "
            f"least {FEWEST_SIGNS} (python -c 'import secrets; print(secrets.token_urlsafe())')."
        )
    return token


class Admin:
    """Handlers of the researcher's page.

    Args:
        study: The study.
        token: By which the researcher is known.
        floor: Least time of an answer, in seconds.
        secure: Cookie over https alone.
    """

    def __init__(self, study: Study, token: str, floor: float, secure: bool):
        self._study, self._token, self._floor, self._secure = study, token, floor, secure
        self._signer = Signer(study.store.secret())
        self._templates = templates()

    def routes(self) -> list[Route]:
        """No route where there is no token: the page is not there then."""
        if not self._token:
            return []
        return [
            Route("/admin", self.show),
            Route("/admin/enter", self.enter, methods=["POST"]),
            Route("/admin/pause", self.pause, methods=["POST"]),
            Route("/admin/withdraw", self.withdraw, methods=["POST"]),
        ]

    def _cookie(self) -> str:
        # Of the token too: another token ends all sessions.
        return self._signer.sign(f"admin {self._token}")

    def _is_known(self, request: Request) -> bool:
        given = request.cookies.get(COOKIE, "").encode("utf-8", "replace")
        return hmac.compare_digest(given, self._cookie().encode())

    def _page(self, status: int = 200, error: str = "", **values: object) -> HTMLResponse:
        shared = {"title": "Study", "notices": (), "csrf": "", "reload": 0, "error": error}
        shared["say"] = ENGLISH  # the researcher reads English
        template = self._templates.get_template("admin.html.j2")
        return HTMLResponse(template.render(**{**shared, "seen": None, **values}), status)

    async def show(self, request: Request) -> Response:
        if not self._is_known(request):
            return self._page(form=self._signer.fresh())
        return self._page(
            seen=overview(self._study, self._floor),
            form=self._signer.sign(f"form {self._cookie()}"),
            when=_when,
            floor=self._floor,
        )

    async def enter(self, request: Request) -> Response:
        form = await read_form(request)
        given = form.get("token", "").strip().encode("utf-8", "replace")
        is_ours = self._signer.is_ours(form.get("form", "")) and is_from_here(request)
        if not is_ours or not hmac.compare_digest(given, self._token.encode()):
            return self._page(403, "This is not the token.", form=self._signer.fresh())
        response = RedirectResponse("/admin", 303)
        response.set_cookie(
            COOKIE,
            self._cookie(),
            max_age=12 * 3600,
            httponly=True,
            samesite="strict",
            secure=self._secure,
            path="/admin",
        )
        return response

    async def _form(self, request: Request) -> dict[str, str] | None:
        """The fields of a form of the researcher's; None where it is not theirs."""
        form = await read_form(request)
        signed = self._signer.matches(f"form {self._cookie()}", form.get("form", ""))
        return form if self._is_known(request) and signed and is_from_here(request) else None

    async def pause(self, request: Request) -> Response:
        form = await self._form(request)
        if form is not None:
            self._study.pause(form.get("paused") == "yes")
        return RedirectResponse("/admin", 303)

    async def withdraw(self, request: Request) -> Response:
        form = await self._form(request)
        number = form.get("participant", "") if form else ""
        if form is not None and form.get("sure") == "yes" and number.isdecimal():
            known = {person.number for person in self._study.store.participants()}
            if len(number) < 10 and int(number) in known:
                self._study.withdraw(int(number))
        return RedirectResponse("/admin", 303)


def _when(seconds: float) -> str:
    """A time as text, in UTC."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M")
