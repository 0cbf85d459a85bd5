"""Serve the page of a project and its JSON, on this machine by default.

    GET  /                    the page; /lead the lead's; their script and style
    GET  /api/project         kind, scales, guidelines
    GET  /api/next            the item to judge now
    GET  /api/steps           what this person has judged; /api/steps/3 one of them
    POST /api/judgements      a judgement, a skip or an undo; answers with the next item
    GET  /api/lead            progress, agreement, divided items; the lead's token
    GET  /api/lead/export     the judgements, without names; the lead's token
    POST /api/lead/stop       end the project

The store itself is never served, and nothing on the page may load or run what is not from here.
"""

import contextlib
import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hfstack.errors import ConfigError, DataError, MachineError, MissingExtraError
from hfstack.feedback.access import LEAD, Guard, RateLimit, find_name, token_of
from hfstack.feedback.desk import Desk
from hfstack.feedback.export import anonymous_rows
from hfstack.logs import NOTICE, get_logger
from hfstack.machine import LOOPBACK_NAMES

logger = get_logger(__name__)

# Returns whose request it is, or raises the refusal.
Identify = Callable[[Any], str]

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/outbox.js": ("outbox.js", "text/javascript"),
    "/lead": ("lead.html", "text/html"),
    "/lead.js": ("lead.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Far above what a person does, and below what guessing a token would need.
_PER_S, _BURST = 20.0, 60.0
_WRONG_PER_S, _WRONG_BURST = 0.2, 20.0
# Pages stay open this long after the last judgement, so that it can still be undone.
LINGER_S = 60.0


def make_app(desk: Desk) -> Any:
    """Return the ASGI application of a project.

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse, Response
    except ImportError:
        raise MissingExtraError("fastapi", "feedback") from None

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    key = desk.project["key"]
    own_tokens = {name: token_of(key, name) for name in desk.annotators}
    lead_token = {LEAD: token_of(key, LEAD)}
    known = RateLimit(_PER_S, _BURST, time.monotonic)
    wrong = RateLimit(_WRONG_PER_S, _WRONG_BURST, time.monotonic)

    def identify(request: Request, *, lead: bool = False) -> str:
        """Return whose request it is, or raise the refusal."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        name = find_name(lead_token if lead else own_tokens, token)
        if name is None:
            sender = request.client.host if request.client else ""
            if not wrong.allows(sender):
                raise _Refused(429, "too many requests with an unknown token: wait a minute")
            raise _Refused(401, "unknown token: open the link that annotate printed")
        if not known.allows(name):
            raise _Refused(429, "too many requests: wait a second")
        return name

    @app.exception_handler(_Refused)
    async def refuse(request: Request, error: _Refused) -> Any:
        later = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse({"error": str(error)}, status_code=error.status, headers=later)

    @app.exception_handler(DataError)
    async def refuse_data(request: Request, error: DataError) -> Any:
        return JSONResponse({"error": str(error)}, status_code=422)

    # The page keeps what could not be written, and sends it again.
    @app.exception_handler(MachineError)
    async def report_machine(request: Request, error: MachineError) -> Any:
        logger.error("%s", error)
        return JSONResponse({"error": str(error)}, status_code=503)

    _add_files(app, Request, Response)

    _add_annotator_routes(app, desk, identify)
    _add_lead_routes(app, desk, lambda request: identify(request, lead=True))
    return Guard(app, _HEADERS)


def _add_annotator_routes(app: Any, desk: Desk, identify: Identify) -> None:
    from fastapi import Request
    from fastapi.responses import JSONResponse

    @app.get("/api/project")
    async def project(request: Request) -> Any:
        return desk.describe() | {"annotator": identify(request)}

    @app.get("/api/next")
    async def next_item(request: Request) -> Any:
        return JSONResponse(desk.next(identify(request)))

    @app.get("/api/steps")
    async def steps(request: Request) -> Any:
        return desk.history(identify(request))

    @app.get("/api/steps/{number}")
    async def step(request: Request, number: int) -> Any:
        return desk.step(identify(request), number)

    @app.post("/api/judgements")
    async def judge(request: Request) -> Any:
        name = identify(request)
        if desk.stopped:
            raise _Refused(409, "the lead has ended this project: nothing more is taken")
        return JSONResponse(desk.judge(name, _read_body(await request.body())))


def _add_lead_routes(app: Any, desk: Desk, identify: Identify) -> None:
    from fastapi import Request
    from fastapi.responses import Response

    @app.get("/api/lead")
    async def lead_summary(request: Request) -> Any:
        identify(request)
        return desk.summary()

    @app.post("/api/lead/stop")
    async def stop(request: Request) -> Any:
        identify(request)
        desk.stopped = True
        return {"stopped": True}

    @app.get("/api/lead/export")
    async def export(request: Request) -> Any:
        identify(request)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in anonymous_rows(desk.store))
        return Response("".join(lines), media_type="application/x-ndjson")


def _add_files(app: Any, request_class: type, response_class: type) -> None:
    """Serve the files of the page, and no other."""
    folder = Path(__file__).parent
    contents = {path: (folder / name).read_bytes() for path, (name, _) in _FILES.items()}

    async def serve(request: request_class) -> response_class:  # pyright: ignore
        path = request.url.path  # pyright: ignore[reportAttributeAccessIssue]
        kind = f"{_FILES[path][1]}; charset=utf-8"
        return response_class(contents[path], media_type=kind)

    for path in _FILES:
        app.add_api_route(path, serve, response_class=response_class)


def _read_body(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise DataError("the request is no JSON") from None
    if not isinstance(given, dict):
        raise DataError("the request must be a JSON object")

    # \ud83d alone is JSON, and nothing that could be sent to the lead or written to a file
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise DataError("the request holds half a character (a lone surrogate)") from None
    return given


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that a port in use is found at once.

    Args:
        host: an address of this machine.
        port: 0 for any that is free.

    Raises:
        ConfigError: the port is in use, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or error
        advice = "give another --port (0 for any free one)"
        if isinstance(error, socket.gaierror) or getattr(error, "errno", 0) == errno.EADDRNOTAVAIL:
            advice = "give a --host that is an address of this machine"
        raise ConfigError(
            f"--host {host} --port {port} cannot be used: {reason}; {advice}"
        ) from None

    if host not in LOOPBACK_NAMES:
        logger.warning(
            "serving on %s: whoever can reach this machine can read the page, and tokens travel "
            "in plain text; put a proxy with TLS in front (docs/recipes/annotate.md)",
            host,
        )
    return sock


@contextlib.contextmanager
def serving(desk: Desk, sock: socket.socket) -> Iterator[None]:
    """Serve a project in a thread of its own while the block runs.

    Raises:
        MissingExtraError: uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError:
        raise MissingExtraError("uvicorn", "feedback") from None

    # uvicorn's own set-up of logging would close every handler that this process has
    config = uvicorn.Config(
        make_app(desk),
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        sock.close()


def wait_for_people(desk: Desk) -> None:
    """Return when all is judged and nobody has come for a minute, or the lead ends it."""
    logger.log(
        NOTICE,
        "open a link in a browser; each judgement is kept at once: Ctrl-C stops, and the same "
        "command goes on",
    )
    is_told = False
    while not desk.stopped:
        time.sleep(0.5)
        if not is_told and desk.is_complete:
            is_told = True
            logger.log(NOTICE, "all is judged; the last can be undone for %.0f s", LINGER_S)
        if time.monotonic() - desk.last_request_s > LINGER_S and desk.is_finished:
            return
    time.sleep(2)  # so that open pages see that it has ended
