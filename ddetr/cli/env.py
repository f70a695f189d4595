"""Print the versions that a bug report needs.

Package versions, how the op was built, GPUs, compilers and the environment variables that matter. No user names and no
paths: the report can be pasted into an issue as it is.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('--json', action='store_true', help='print JSON')


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    import json

    from ddetr.utils.environment import collect

    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    for group, entries in facts.items():
        print(f'{group}:')
        for name, fact in entries.items():
            print(f'  {name}: {fact}')
