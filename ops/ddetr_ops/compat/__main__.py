"""Run an unmodified script that imports the original extension: python -m ddetr_ops.compat SCRIPT [arguments].

Distributed: torchrun --nproc_per_node 8 -m ddetr_ops.compat SCRIPT [arguments].
"""

import os
import runpy
import sys

from .original import install


def main() -> None:
    """Run `sys.argv[1]` as the main script after `ddetr_ops.compat.original.install()`."""
    if len(sys.argv) < 2:
        sys.exit('usage: python -m ddetr_ops.compat SCRIPT [arguments]')
    install()
    del sys.argv[0]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
    main()
