"""`Browser`: goes through the pages of a study as a browser without script does.

For simulated participants, and for tests: it fills in the forms that it finds, and follows where
they lead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from html.parser import HTMLParser

import httpx2


@dataclasses.dataclass
class Form:
    """A form of a page: hidden and filled fields, and the values of those to choose from."""

    action: str
    fields: dict[str, str] = dataclasses.field(default_factory=dict)
    choices: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    can_be_sent: bool = True


@dataclasses.dataclass
class Page:
    """A page as far as a participant needs it.

    Attributes:
        status: HTTP status.
        path: Path of the page, after redirects.
        forms: By action.
        said: Speaker and text of the messages on it.
        heading, error, code: Words of its parts; "" = there is none.
        waits: True while the agent is writing.
        html: All of it.
    """

    status: int
    path: str
    html: str
    forms: dict[str, Form] = dataclasses.field(default_factory=dict)
    said: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    heading: str = ""
    error: str = ""
    code: str = ""
    waits: bool = False


class Browser:
    """Holds the cookie of one participant.

    Args:
        client: Client of the server; its cookies are this participant's.
    """

    def __init__(self, client: httpx2.AsyncClient):
        self.client = client

    async def open(self, path: str) -> Page:
        return self._page(await self.client.get(path, follow_redirects=True))

    async def send(self, form: Form, fields: Mapping[str, str] | None = None) -> Page:
        """Sends a form with further fields, and follows where it leads."""
        response = await self.client.post(
            form.action, data={**form.fields, **(fields or {})}, follow_redirects=True
        )
        return self._page(response)

    def _page(self, response: httpx2.Response) -> Page:
        parser = _Parser(Page(response.status_code, response.url.path, response.text))
        parser.feed(response.text)
        return parser.page


class _Parser(HTMLParser):
    def __init__(self, page: Page):
        super().__init__()
        self.page = page
        self._form: Form | None = None
        self._speaker = ""
        self._into = ""
        self._select = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name, css = given.get("name", ""), given.get("class", "")
        form = self._form
        if tag == "form":
            self._form = self.page.forms[given["action"]] = Form(given["action"])
        elif tag == "input" and form is not None:
            if given.get("type") in ("radio", "checkbox"):
                form.choices.setdefault(name, []).append(given.get("value", ""))
            else:
                form.fields[name] = given.get("value", "")
        elif tag == "select":
            self._select = name
        elif tag == "option" and form is not None and given.get("value"):
            form.choices.setdefault(self._select, []).append(given["value"])
        elif tag == "button" and form is not None:
            form.can_be_sent = "disabled" not in given
        elif tag == "li" and css in ("human", "agent"):
            self._speaker = css
        elif tag == "span" and css == "say":
            self.page.said.append((self._speaker, ""))
            self._into = "say"
        elif tag == "span" and css == "dots":
            self.page.waits = True
        elif tag == "h1":
            self._into = "heading"
        elif tag == "output":
            self._into = "code"
        elif given.get("role") == "alert":
            self._into = "error"

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        if tag in ("span", "h1", "p", "output"):
            self._into = ""

    def handle_data(self, data: str) -> None:
        if self._into == "say":
            speaker, text = self.page.said[-1]
            self.page.said[-1] = (speaker, text + data)
        elif self._into:
            setattr(self.page, self._into, getattr(self.page, self._into) + data.strip())
