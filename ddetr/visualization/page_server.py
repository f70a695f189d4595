"""Small web server for the page of a training run."""

from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ddetr.utils.errors import InputError

from .training_page import REFRESH_S, training_page

HOST = '127.0.0.1'
WAITING = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{}"><title>ddetr</title><p>{}</p>'


def page_server(work_dir: str | Path, port: int) -> ThreadingHTTPServer:
    """Return a server, bound to localhost, that renders the current page at `/`.

    Raises:
        InputError: The folder does not exist, or the port is in use.
    """
    if not Path(work_dir).is_dir():
        raise InputError(f'{work_dir} is not a folder: give the work directory of a training run.')

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # DNS rebinding: reject requests that reach this machine under another host name
            host = self.headers.get('Host', '').rpartition(':')[0] or self.headers.get('Host', '')
            if self.path != '/' or host not in ('localhost', HOST):
                self.send_error(404)
                return
            try:
                text = training_page(work_dir)
            except InputError as error:  # nothing has been logged yet
                text = WAITING.format(REFRESH_S, escape(str(error)))
            body = text.encode()
            self.send_response(200)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.send_header('Content-Length', str(len(body)))
            self.send_header('Cache-Control', 'no-store')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Do not print a line per request."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f'port {port} is not available: {error}. Choose another with --port.') from error


def serve_training_page(work_dir: str | Path, port: int) -> None:
    """Serve the page until Ctrl-C; see `page_server`."""
    with page_server(work_dir, port) as server:
        print(
            f'Serving {work_dir} at http://localhost:{server.server_port} (press Ctrl-C to stop)', flush=True
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
