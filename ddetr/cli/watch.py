"""Show the curves and validation images of a training run in the browser, live or afterwards.

Serves a page on this machine that reloads itself while training runs. Training also writes it to WORK_DIR/curves.html.
From another machine: ssh -L 8080:localhost:8080 HOST, then open http://localhost:8080.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('work_dir', metavar='WORK_DIR', help='work directory of the training run')
    parser.add_argument(
        '--port', type=int, default=8080, help='port; 0 chooses a free one (default: %(default)s)'
    )
    parser.add_argument(
        '--once', action='store_true', help='write WORK_DIR/curves.html and exit, for an earlier run'
    )


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C, or write it."""
    from ddetr.visualization.page_server import serve_training_page
    from ddetr.visualization.training_page import write_training_page

    if args.once:
        print(write_training_page(args.work_dir))
    else:
        serve_training_page(args.work_dir, args.port)
