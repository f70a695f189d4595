"""Write one HTML page about a detector's errors: AP, kinds of errors, confusions, calibration, the worst images.

    python tools/analysis/error_report.py CONFIG detections.json
    python tools/analysis/error_report.py CONFIG CHECKPOINT --out report.html
    python tools/analysis/error_report.py CONFIG first.json --compare second.json --names before after

Detections are those that tools/test.py --out writes; a checkpoint is run on the config's test set first. The page holds
everything that it shows: it can be sent as it is.
"""

import argparse
from pathlib import Path

from ddetr.analysis.error_report import ReportOptions, evaluate_run, read_dataset, write_report
from ddetr.analysis.error_report.runs import check_same_dataset
from ddetr.engine.config import load_config
from ddetr.utils.cli import add_cfg_options, run_cli
from ddetr.utils.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file, whose test set is the ground truth')
    parser.add_argument('source', metavar='DETECTIONS_OR_CHECKPOINT', help='.json of detections, or weights')
    parser.add_argument('--compare', metavar='DETECTIONS_OR_CHECKPOINT', help='of a second model')
    parser.add_argument('--compare-config', help="the second model's config, by default the same")
    parser.add_argument('--names', nargs='+', help="the models' names in the report, by default the files'")
    parser.add_argument('--out', default='error_report.html', help='(default: %(default)s)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score in pictures and confusions'
    )
    parser.add_argument(
        '--num-images', type=int, default=12, help='images with the most errors (default: %(default)s)'
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    sources = [args.source, *([args.compare] if args.compare else [])]
    configs = [args.config, args.compare_config or args.config][: len(sources)]
    names = args.names or [None] * len(sources)
    if len(names) != len(sources):
        raise InputError(f'--names gives {len(names)} names for {len(sources)} models: give one for each.')
    datasets = [read_dataset(load_config(config, args.cfg_options)) for config in dict.fromkeys(configs)]
    for other in datasets[1:]:
        check_same_dataset(datasets[0], other)
    runs = [
        evaluate_run(source, config, datasets[0], name, args.cfg_options)
        for source, config, name in zip(sources, configs, names, strict=True)
    ]
    title = f'Error report: {Path(args.config).stem}'
    write_report(datasets[0], runs, args.out, ReportOptions(title, args.score_thr, args.num_images))
    print(args.out)


if __name__ == '__main__':
    run_cli(main)
