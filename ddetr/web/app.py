"""HTTP interface of the web demo, based on Starlette. docs/web_demo.md lists the endpoints.

Requests never contain file paths: results have random ids, examples are numbered, and the three files of the page are
listed in a table.
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
NAME_LENGTH = 120  # maximum length of a stored file name
JPEG_QUALITY = 92


class Setup(NamedTuple):
    """Settings of the server."""

    facts: Mapping[str, Any]  # facts about the detector, shown on the page
    examples: Sequence[Path]
    limits: Limits
    queue_length: int = 32
    score_thr: float = 0.3  # initial threshold on the page
    hosts: Sequence[str] = ('*',)  # allowed host names in requests


def build_app(demo: Demo, setup: Setup) -> Starlette:
    """Build the application of the server."""
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
    """ASGI middleware that adds security headers to every response and rejects cross-site POST requests."""

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

        site = dict(scope['headers']).get(
            b'sec-fetch-site', b'none'
        )  # set by browsers; pages cannot change it
        app = self.app
        if scope['method'] != 'GET' and site not in (b'none', b'same-origin'):
            app = JSONResponse({'error': 'Requests from other sites are not accepted.'}, 403)
        await app(scope, receive, send_with_headers)


class Handlers:
    """Request handlers of the endpoints."""

    def __init__(self, demo: Demo, setup: Setup, jobs: JobQueue) -> None:
        self.demo, self.setup, self.jobs = demo, setup, jobs

    async def detector(self, request: Request) -> Response:
        """Return the detector, its classes, the limits and the names of the examples."""
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
        """Return the thumbnail of an example."""
        data = await run_in_threadpool(_thumbnail, self._example(request))
        return Response(data, media_type='image/jpeg')

    async def run_example(self, request: Request) -> Response:
        """Queue an example."""
        path = self._example(request)
        return self._submit(path.name, await run_in_threadpool(path.read_bytes))

    async def upload(self, request: Request) -> Response:
        """Queue the image in the request body; `name` in the query is displayed and used for downloads."""
        limits, body = self.setup.limits, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limits.upload_bytes:
                break
        check_upload_size(len(body), limits)
        return self._submit(_clean(request.query_params.get('name', '')), bytes(body))

    async def state(self, request: Request) -> Response:
        """Return the queue position of an image or, once finished, all its detections, best first."""
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
        """Draw the selected detections: a JPEG of at most `width` pixels, or with `download` a full-size PNG."""
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
        """Return the selected detections in the JSON format of `ddetr predict`."""
        detected = self._result(request)
        height, width = detected.image.shape[:2]
        rows = self.demo.rows(detected, self._selection(request))
        text = json.dumps(
            {'image': detected.name, 'width': width, 'height': height, 'detections': rows}, indent=1
        )
        disposition = {'content-disposition': _attachment(detected.name, '.json')}
        return Response(text, media_type='application/json', headers=disposition)

    async def refinement(self, request: Request) -> Response:
        """Return a detection's box after each decoder layer."""
        detected = self._result(request)
        return JSONResponse(self.demo.refinement(detected, self._index(request, detected)))

    async def points(self, request: Request) -> Response:
        """Return a PNG of a detection's sampling points."""
        detected, query = self._result(request), request.query_params
        split, layer = query.get('split', 'layers'), query.get('layer')
        if split not in ('layers', 'heads', 'levels'):
            raise HTTPException(422, "split must be 'layers', 'heads' or 'levels'.")
        number = None if layer is None else _integer(layer, 'layer', 1, 1000)
        view = PointsView(split, number, 'zoom' in query)
        index = self._index(request, detected)
        return Response(
            await run_in_threadpool(self.demo.points, detected, index, view), media_type='image/png'
        )

    def _example(self, request: Request) -> Path:
        index = request.path_params['index']
        if index >= len(self.setup.examples):
            raise HTTPException(404, f'Example {index} does not exist.')
        return self.setup.examples[index]

    def _submit(self, name: str, data: bytes) -> Response:
        check_image(data, self.setup.limits)
        try:
            job = self.jobs.submit(name, data)
        except QueueFull:
            raise HTTPException(
                503, f'{self.setup.queue_length} images are already waiting: try again in a moment.'
            ) from None
        return JSONResponse({'id': job.id, 'name': job.name}, 202)

    def _job(self, request: Request) -> Job:
        job = self.jobs.get(request.path_params['id'])
        if job is None:
            raise HTTPException(404, 'This result has expired: run detection on the image again.')
        return job

    def _result(self, request: Request) -> Detected:
        job = self._job(request)
        if job.result is None:
            raise HTTPException(409, job.error or 'This image has not been processed yet.')
        return job.result

    def _index(self, request: Request, detected: Detected) -> int:
        index, count = request.path_params['index'], len(detected.look.sample.pred_instances)
        if index >= count:
            raise HTTPException(
                404, f'Detection {index} does not exist: the image has {count} detections, numbered from 0.'
            )
        return index

    def _selection(self, request: Request) -> Selection:
        """Parse `score_thr`, `labels` (comma-separated numbers) and `top_k`."""
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
    """Parse an integer of a query; HTTPException unless it lies between `low` and `high`."""
    if not re.fullmatch('[0-9]{1,9}', text) or not low <= int(text) <= high:
        raise HTTPException(422, f'{key}={text[:20]!r} is not an integer from {low} to {high}.')
    return int(text)


def _clean(name: str) -> str:
    """Sanitise a client's file name for display: last path component, printable characters only."""
    last = re.split(r'[/\\]', name)[-1]
    return ''.join(c for c in last if c.isprintable())[:NAME_LENGTH].strip() or 'image'


def _attachment(name: str, suffix: str) -> str:
    """Return a header that makes browsers save the response under the image's name with another suffix."""
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
    """Return a generic message; the traceback is printed in the terminal."""
    return JSONResponse({'error': 'Internal server error: see the terminal of the server.'}, 500)
