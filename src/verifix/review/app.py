"""The page over HTTP: a few fixed addresses; samples have numbers, and nothing else of the disk can be named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from verifix.errors import OutputError, VerifixError, one_line
from verifix.review.desk import Asked, Desk, Sent, files_of_page, place_in
from verifix.review.pictures import Shown

KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".html": "text/html"}
PAGE = Path(__file__).with_name("page")

Content = TypeVar("Content")


def application(desk: Desk) -> Starlette:
    """Return the application around a desk, without its guard.

    Parameters
    ----------
    desk
        The queue and its decisions.

    Returns
    -------
    Starlette
        Answers in JSON; errors are one line of text, of a client's fault 400 and of a full disk 507.
    """
    static = {name: (PAGE / name).read_bytes() for name in ("page.html", *files_of_page())}
    routes = [
        Route("/", partial(_file, static["page.html"], ".html"), methods=["GET"]),
        *(
            Route(f"/page/{name}", partial(_file, static[name], Path(name).suffix), methods=["GET"])
            for name in files_of_page()
        ),
        Route("/sample/{place}", partial(_sample, desk, desk.pictures.shown), methods=["GET"]),
        Route("/small/{place}", partial(_sample, desk, desk.pictures.small), methods=["GET"]),
        Route("/queue", partial(_answer, desk.described), methods=["GET"]),
        Route("/standing", partial(_answer, desk.standing), methods=["GET"]),
        Route("/decided", partial(_take, Asked, desk.decided), methods=["POST"]),
        Route("/decide", partial(_take, Sent, desk.decide), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={VerifixError: _refused, OutputError: _not_saved})


async def _file(content: bytes, suffix: str, _: Request) -> Response:
    return Response(content, media_type=KINDS[suffix])


async def _sample(desk: Desk, show: Callable[[int], Shown], request: Request) -> Response:
    place = place_in(desk.queue, request.path_params["place"])
    shown = await run_in_threadpool(show, desk.queue.entries[place].id)
    return Response(shown.content, headers={"content-type": shown.kind})


async def _answer(answer: Callable[[], dict[str, Any]], _: Request) -> Response:
    return _json(await run_in_threadpool(answer))


async def _take(kind: type[Content], take: Callable[[Content], dict[str, Any]], request: Request) -> Response:
    try:
        content = msgspec.json.decode(await request.body(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return PlainTextResponse(f"Refused: the request is not as it must be ({one_line(error, 200)}).\n", 400)
    return _json(await run_in_threadpool(take, content))


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"Refused: {one_line(error, 300)}.\n", 400)


async def _not_saved(_: Request, error: Exception) -> Response:
    return PlainTextResponse(f"Not saved: {one_line(error, 300)}.\n", 507)
