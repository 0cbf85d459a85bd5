"""Serve an index on this machine alone.

    GET  /search?query=...&top=5          what is found for one query
    POST /search {"queries": [...], "top": 5}                     for several

Only this machine reaches the address, and only requests that name it so are answered: a web page
elsewhere, whose name leads here, gets nothing.
"""

from collections.abc import Sequence
from typing import Any

from hfstack.errors import ConfigError
from hfstack.logs import NOTICE, get_logger
from hfstack.machine import LOOPBACK_NAMES
from hfstack.tasks.retrieval.libraries import import_library
from hfstack.tasks.retrieval.search import Searcher

logger = get_logger(__name__)

HOST = LOOPBACK_NAMES[0]
_MOST_QUERIES, _MOST_CHARACTERS, _MOST_TOP = 100, 10_000, 1000


def make_search_app(searcher: Searcher, top: int) -> Any:
    """Return the ASGI application of an index.

    Args:
        top: passages of a query where a request does not say.

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    fastapi = import_library("fastapi")
    hosts = import_library("starlette.middleware.trustedhost")
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(hosts.TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_NAMES, "[::1]"])

    # plain functions: FastAPI runs them beside its loop, in a thread
    @app.get("/search")
    def search(query: str, top: int = top) -> Any:
        return {"results": _ask([query], top)[0]}

    @app.post("/search")
    def search_several(body: dict[str, Any]) -> Any:
        queries = body.get("queries")
        return {"results": _ask(queries, body.get("top", top))}

    def _ask(queries: Any, most: Any) -> list[list[dict[str, Any]]]:
        if (problem := _problem_of(queries, most)) is not None:
            raise fastapi.HTTPException(422, problem)
        return searcher.ask(queries, most)

    return app


def _problem_of(queries: Any, top: Any) -> str | None:
    """Return what is wrong with a request, or None."""
    is_list = isinstance(queries, Sequence) and not isinstance(queries, str)
    if not is_list or not 0 < len(queries) <= _MOST_QUERIES:
        return f"queries must be a list of 1 to {_MOST_QUERIES} texts"
    for query in queries:
        if not isinstance(query, str) or not query.strip() or len(query) > _MOST_CHARACTERS:
            return f"a query must be a text of 1 to {_MOST_CHARACTERS} characters"
    is_number = isinstance(top, int) and not isinstance(top, bool)
    return None if is_number and 0 < top <= _MOST_TOP else f"top must be from 1 to {_MOST_TOP}"


def serve_searches(searcher: Searcher, *, port: int, top: int) -> None:
    """Answer requests at the loopback address until Ctrl-C.

    Raises:
        ConfigError: the port is in use.
        MissingExtraError: uvicorn is not installed.
    """
    import socket

    uvicorn = import_library("uvicorn")
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with sock:
        try:
            sock.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"--port {port} cannot be used: {reason}; give another") from None

        logger.log(NOTICE, "http://%s:%d/search?query=...", HOST, sock.getsockname()[1])
        config = uvicorn.Config(
            make_search_app(searcher, top),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
        )
        uvicorn.Server(config).run(sockets=[sock])
