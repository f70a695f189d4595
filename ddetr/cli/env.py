"""Print version information for bug reports.

The report lists package versions, the build of the op, GPUs, compilers and relevant environment variables. It contains
no user names or paths, so it can be pasted into an issue as is.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
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
