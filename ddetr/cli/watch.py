"""Show the curves and validation pictures of a training in the browser, while it runs or afterwards.

Serves one page on this machine, which reloads itself while the training runs. Trainings also write it to
WORK_DIR/curves.html themselves. From another machine: ssh -L 8080:localhost:8080 HOST, then open http://localhost:8080.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('work_dir', metavar='WORK_DIR', help='work directory of the training')
    parser.add_argument('--port', type=int, default=8080, help='0 for any free one (default: %(default)s)')
    parser.add_argument(
        '--once', action='store_true', help='write WORK_DIR/curves.html instead, for an earlier training'
    )


def run(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C, or write it."""
    from ddetr.visualization.page_server import serve_training_page
    from ddetr.visualization.training_page import write_training_page

    if args.once:
        print(write_training_page(args.work_dir))
    else:
        serve_training_page(args.work_dir, args.port)
