"""The web demo's HTTP interface, on Starlette. docs/web_demo.md lists the addresses.

No address and no body names a file: results are found by random ids, examples by their number, and the page's own three
files by a table.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import cv2
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ddetr.apis.results import Selection
from ddetr.utils.errors import InputError

from .detection import Demo, Detected, Limits, PointsView, check_image, check_upload_size
from .jobs import Job, JobQueue, QueueFull

PAGE = {
    '/': ('index.html', 'text/html'),
    '/page.css': ('page.css', 'text/css'),
    '/page.js': ('page.js', 'text/javascript'),
}
HEADERS = {
    'content-security-policy': "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'no-referrer',
    'cache-control': 'no-store',
}
NAME_LENGTH = 120  # of a file's name, as far as it is kept
JPEG_QUALITY = 92


class Setup(NamedTuple):
    """What the server is started with."""

    facts: Mapping[str, Any]  # about the detector, for the page
    examples: Sequence[Path]
    limits: Limits
    queue_length: int = 32
    score_thr: float = 0.3  # that the page begins with
    hosts: Sequence[str] = ('*',)  # names that requests may address the server by


def build_app(demo: Demo, setup: Setup) -> Starlette:
    """The server's application."""
    handlers = Handlers(demo, setup, JobQueue(demo, setup.queue_length))
    pages = [Route(path, _page(*page)) for path, page in PAGE.items()]
    image = '/api/images/{id:str}'
    routes = [
        Route('/api/detector', handlers.detector),
        Route('/api/examples/{index:int}', handlers.example),
        Route('/api/examples/{index:int}', handlers.run_example, methods=['POST']),
        Route('/api/images', handlers.upload, methods=['POST']),
        Route(image, handlers.state),
        Route(f'{image}/picture', handlers.picture),
        Route(f'{image}/detections.json', handlers.detections),
        Route(f'{image}/refinement/{{index:int}}', handlers.refinement),
        Route(f'{image}/points/{{index:int}}', handlers.points),
    ]
    return Starlette(
        routes=pages + routes,
        middleware=[
            Middleware(Guard),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(setup.hosts), www_redirect=False),
        ],
        exception_handlers={InputError: _input_error, HTTPException: _http_error, Exception: _server_error},  # type: ignore[dict-item]
    )


class Guard:
    """ASGI middleware: security headers on every response, and no POST that another site's page sends."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message['type'] == 'http.response.start':
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, 'headers': [*message['headers'], *extra]}
            await send(message)

        site = dict(scope['headers']).get(b'sec-fetch-site', b'none')  # by browsers; pages cannot set it
        app = self.app
        if scope['method'] != 'GET' and site not in (b'none', b'same-origin'):
            app = JSONResponse({'error': 'Requests from other sites are not accepted.'}, 403)
        await app(scope, receive, send_with_headers)


class Handlers:
    """The functions behind the addresses."""

    def __init__(self, demo: Demo, setup: Setup, jobs: JobQueue) -> None:
        self.demo, self.setup, self.jobs = demo, setup, jobs

    async def detector(self, request: Request) -> Response:
        """The detector, its classes, the limits, and the examples' names."""
        return JSONResponse(
            {
                **self.setup.facts,
                'classes': list(self.demo.classes),
                'score_thr': self.setup.score_thr,
                'upload_bytes': self.setup.limits.upload_bytes,
                'pixels': self.setup.limits.pixels,
                'examples': [path.name for path in self.setup.examples],
            }
        )

    async def example(self, request: Request) -> Response:
        """An example's picture, small."""
        data = await run_in_threadpool(_thumbnail, self._example(request))
        return Response(data, media_type='image/jpeg')

    async def run_example(self, request: Request) -> Response:
        """Queue an example."""
        path = self._example(request)
        return self._submit(path.name, await run_in_threadpool(path.read_bytes))

    async def upload(self, request: Request) -> Response:
        """Queue the image that is the request's body; `name` in the query is shown and names the downloads."""
        limits, body = self.setup.limits, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.upload_bytes:
                break
        check_upload_size(len(body), limits)
        return self._submit(_clean(request.query_params.get('name', '')), bytes(body))

    async def state(self, request: Request) -> Response:
        """Where an image is in the queue, and in the end all of its detections, best first."""
        job = self._job(request)
        answer: dict[str, Any] = {'id': job.id, 'name': job.name, 'state': job.state}
        if job.state == 'waiting':
            answer['ahead'] = self.jobs.ahead(job)
        if job.error is not None:
            answer['error'] = job.error
        if job.result is not None and job.state == 'done':
            height, width = job.result.image.shape[:2]
            answer |= {
                'width': width,
                'height': height,
                'seconds': {'waited': job.waited_s, **job.result.timings._asdict()},
                'layers': self.demo.num_layers(job.result),
                'detections': self.demo.rows(job.result, Selection(-np.inf)),
            }
        return JSONResponse(answer)

    async def picture(self, request: Request) -> Response:
        """The image with the selected detections: a JPEG of at most `width` pixels; with `download` a full-size PNG."""
        detected, query = self._result(request), request.query_params
        selection, download = self._selection(request), 'download' in query
        width = None if download else _integer(query.get('width', '1280'), 'width', 16, 4096)
        start = time.perf_counter()
        picture = await run_in_threadpool(self.demo.picture, detected, selection, width)
        data = await run_in_threadpool(_encode, picture, '.png' if download else '.jpg')
        response = Response(data, media_type='image/png' if download else 'image/jpeg')
        response.headers['server-timing'] = f'draw;dur={1000 * (time.perf_counter() - start):.1f}'
        if download:
            response.headers['content-disposition'] = _attachment(detected.name, '.png')
        return response

    async def detections(self, request: Request) -> Response:
        """The selected detections, as `ddetr predict` writes them into JSON files."""
        detected = self._result(request)
        height, width = detected.image.shape[:2]
        rows = self.demo.rows(detected, self._selection(request))
        text = json.dumps(
            {'image': detected.name, 'width': width, 'height': height, 'detections': rows}, indent=1
        )
        disposition = {'content-disposition': _attachment(detected.name, '.json')}
        return Response(text, media_type='application/json', headers=disposition)

    async def refinement(self, request: Request) -> Response:
        """A detection's box after each decoder layer."""
        detected = self._result(request)
        return JSONResponse(self.demo.refinement(detected, self._index(request, detected)))

    async def points(self, request: Request) -> Response:
        """A PNG of a detection's sampling points."""
        detected, query = self._result(request), request.query_params
        split, layer = query.get('split', 'layers'), query.get('layer')
        if split not in ('layers', 'heads', 'levels'):
            raise HTTPException(422, "split is one of 'layers', 'heads', 'levels'.")
        number = None if layer is None else _integer(layer, 'layer', 1, 1000)
        view = PointsView(split, number, 'zoom' in query)
        index = self._index(request, detected)
        return Response(
            await run_in_threadpool(self.demo.points, detected, index, view), media_type='image/png'
        )

    def _example(self, request: Request) -> Path:
        index = request.path_params['index']
        if index >= len(self.setup.examples):
            raise HTTPException(404, f'There is no example {index}.')
        return self.setup.examples[index]

    def _submit(self, name: str, data: bytes) -> Response:
        check_image(data, self.setup.limits)
        try:
            job = self.jobs.submit(name, data)
        except QueueFull:
            raise HTTPException(
                503, f'{self.setup.queue_length} images are waiting already: try again in a moment.'
            ) from None
        return JSONResponse({'id': job.id, 'name': job.name}, 202)

    def _job(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params['id'])
        if job is None:
            raise HTTPException(404, 'This result is no longer kept: detect on the image again.')
        return job

    def _result(self, request: Request) -> Detected:
        job = self._job(request)
        if job.result is None:
            raise HTTPException(409, job.error or 'The detector has not come to this image yet.')
        return job.result

    def _index(self, request: Request, detected: Detected) -> int:
        index, count = request.path_params['index'], len(detected.look.sample.pred_instances)
        if index >= count:
            raise HTTPException(
                404, f'There is no detection {index}: the image has {count}, numbered from 0.'
            )
        return index

    def _selection(self, request: Request) -> Selection:
        """From `score_thr`, `labels` (numbers with commas) and `top_k`."""
        query, labels = request.query_params, None
        try:
            score_thr = float(query.get('score_thr', self.setup.score_thr))
        except ValueError:
            raise HTTPException(422, f'score_thr={query["score_thr"]!r} is not a number.') from None
        if 'labels' in query:
            numbers = [text for text in query['labels'].split(',') if text]
            labels = frozenset(_integer(text, 'labels', 0, len(self.demo.classes) - 1) for text in numbers)
        top_k = _integer(query['top_k'], 'top_k', 1, 10**6) if 'top_k' in query else None
        return Selection(score_thr, labels, top_k)


def _page(name: str, media_type: str) -> Any:
    content = Path(__file__).with_name('page').joinpath(name).read_bytes()

    async def page(request: Request) -> Response:
        return Response(content, media_type=media_type)

    return page


def _integer(text: str, key: str, low: int, high: int) -> int:
    """A query's number; HTTPException unless it lies between `low` and `high`."""
    if not re.fullmatch('[0-9]{1,9}', text) or not low <= int(text) <= high:
        raise HTTPException(422, f'{key}={text[:20]!r} is not a whole number from {low} to {high}.')
    return int(text)


def _clean(name: str) -> str:
    """A file's name from a client, to be shown: the last part of a path, printable."""
    last = re.split(r'[/\\]', name)[-1]
    return ''.join(c for c in last if c.isprintable())[:NAME_LENGTH].strip() or 'image'


def _attachment(name: str, suffix: str) -> str:
    """A header that makes browsers save the response as the image's name with another suffix."""
    return f"attachment; filename*=UTF-8''{quote(Path(name).stem + suffix, safe='')}"


def _thumbnail(path: Path) -> bytes:
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f'{path.name} cannot be read.')
    scale = min(1.0, 240 / min(image.shape[:2]))
    return _encode(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), '.jpg')


def _encode(image: np.ndarray, suffix: str) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == '.jpg' else []
    encoded, data = cv2.imencode(suffix, image, options)
    assert encoded, suffix
    return data.tobytes()


async def _input_error(request: Request, error: InputError) -> Response:
    return JSONResponse({'error': str(error)}, 422)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({'error': error.detail}, error.status_code)


async def _server_error(request: Request, error: Exception) -> Response:
    """The traceback is printed in the terminal."""
    return JSONResponse({'error': 'The server failed: its terminal says why.'}, 500)
