"""A small web server for the page of a training."""

from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ddetr.utils.errors import InputError

from .training_page import REFRESH_S, training_page

HOST = '127.0.0.1'
WAITING = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="{}"><title>ddetr</title><p>{}</p>'


def page_server(work_dir: str | Path, port: int) -> ThreadingHTTPServer:
    """A server, bound to this machine, that answers `/` with the page as it is at that moment.

    Raises:
        InputError: The folder does not exist, or the port is taken.
    """
    if not Path(work_dir).is_dir():
        raise InputError(f'{work_dir} is no folder: name the work directory of a training.')

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # a page of another host that has itself resolved to this machine must not read it
            host = self.headers.get('Host', '').rpartition(':')[0] or self.headers.get('Host', '')
            if self.path != '/' or host not in ('localhost', HOST):
                self.send_error(404)
                return
            try:
                text = training_page(work_dir)
            except InputError as error:  # nothing is logged yet
                text = WAITING.format(REFRESH_S, escape(str(error)))
            body = text.encode()
            self.send_response(200)
            self.send_header('Content-Type', 'text/html; charset=utf-8')
            self.send_header('Content-Length', str(len(body)))
            self.send_header('Cache-Control', 'no-store')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """A line for each request would fill the terminal."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(f'port {port} cannot be used: {error}. Choose another with --port.') from error


def serve_training_page(work_dir: str | Path, port: int) -> None:
    """Serve the page until Ctrl-C; see `page_server`."""
    with page_server(work_dir, port) as server:
        print(f'{work_dir} is shown at http://localhost:{server.server_port}; Ctrl-C ends this.', flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
