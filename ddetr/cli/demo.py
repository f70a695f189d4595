"""Serve a detector as a web demo.

CONFIG defaults to the config stored in the training checkpoint. CHECKPOINT may be a work directory. The page accepts
images and shows detections, their sampling points and how each box was refined. Without --host it is accessible only
from this machine. Needs `pip install ddetr[web]`.
"""

import argparse

from ddetr.utils.cli import add_cfg_options
from ddetr.utils.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file or name')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint or work directory')
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on; 0.0.0.0 accepts connections from other machines (default: 127.0.0.1)',
    )
    parser.add_argument('--port', type=int, default=7860, help='port; 0 chooses a free one (default: 7860)')
    parser.add_argument(
        '--examples',
        nargs='+',
        metavar='IMAGE',
        help="example images or folders (default: first images of the config's test set, if available)",
    )
    parser.add_argument('--score-thr', type=float, default=0.3, help='initial score threshold (default: 0.3)')
    parser.add_argument(
        '--max-upload-mb', type=float, default=20, metavar='MB', help='maximum file size (default: 20)'
    )
    parser.add_argument(
        '--max-megapixels', type=float, default=40, metavar='MP', help='maximum image size (default: 40)'
    )
    parser.add_argument(
        '--queue',
        type=int,
        default=32,
        dest='queue_length',
        metavar='N',
        help='maximum number of queued images (default: 32)',
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, ... (default: a GPU if available)')
    add_cfg_options(parser)
    parser.add_argument('--allow-partial', action='store_true', help='load only the matching weights')


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
        print('stopped')
