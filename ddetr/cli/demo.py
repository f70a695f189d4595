"""Serve a detector as a page in the browser.

Without CONFIG, it is the one that the checkpoint was trained with, which training checkpoints carry. CHECKPOINT may be
a work directory. The page takes images, shows detections, where the detector looked for each, and how its box was
refined. It is served to this machine only unless --host says otherwise. Needs `pip install ddetr[web]`.
"""

import argparse

from ddetr.utils.cli import add_cfg_options
from ddetr.utils.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file, or name of one')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint, or work directory')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on; 0.0.0.0 for every machine that can reach this one (default: 127.0.0.1)',
    )
    parser.add_argument('--port', type=int, default=7860, help='0 for any free one (default: 7860)')
    parser.add_argument(
        '--examples',
        nargs='+',
        metavar='IMAGE',
        help="images or folders to offer; by default the first of the config's test set, where it is there",
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='threshold at first (default: 0.3)')
    parser.add_argument(
        '--max-upload-mb', type=float, default=20, metavar='MB', help='largest file (default: 20)'
    )
    parser.add_argument(
        '--max-megapixels', type=float, default=40, metavar='MP', help='largest image (default: 40)'
    )
    parser.add_argument(
        '--queue',
        type=int,
        default=32,
        dest='queue_length',
        metavar='N',
        help='most images that wait (default: 32)',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ...; by default a GPU if there is one')
    add_cfg_options(parser)
    parser.add_argument('--allow-partial', action='store_true', help='take of the checkpoint what fits')


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    try:
        from ddetr.web.serving import ServeOptions, serve
    except ModuleNotFoundError as error:
        if error.name not in ('starlette', 'uvicorn'):
            raise
        raise InputError(f"the web demo needs {error.name}: pip install 'ddetr[web]'.") from None
    options = ServeOptions(**{key: getattr(args, key) for key in ServeOptions._fields})
    detector = {key: getattr(args, key) for key in ('device', 'cfg_options', 'allow_partial')}
    try:
        serve(args.config, args.checkpoint, options, **detector)
    except KeyboardInterrupt:
        print('ended')
