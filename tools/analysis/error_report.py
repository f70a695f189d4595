"""Write an HTML report on a detector's errors: AP, error types, confusion matrix, calibration, worst images.

    python tools/analysis/error_report.py CONFIG detections.json
    python tools/analysis/error_report.py CONFIG CHECKPOINT --out report.html
    python tools/analysis/error_report.py CONFIG first.json --compare second.json --names before after

Pass detections written by tools/test.py --out, or a checkpoint, which is first run on the config's test set. The page
is self-contained and can be shared as is.
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
    parser.add_argument(
        'source', metavar='DETECTIONS_OR_CHECKPOINT', help='.json file of detections, or checkpoint'
    )
    parser.add_argument('--compare', metavar='DETECTIONS_OR_CHECKPOINT', help='second model to compare with')
    parser.add_argument('--compare-config', help='config of the second model (default: the same)')
    parser.add_argument('--names', nargs='+', help='model names in the report (default: the file names)')
    parser.add_argument('--out', default='error_report.html', help='output file (default: %(default)s)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum score in pictures and the confusion matrix'
    )
    parser.add_argument(
        '--num-images',
        type=int,
        default=12,
        help='number of images with the most errors to show (default: %(default)s)',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    sources = [args.source, *([args.compare] if args.compare else [])]
    configs = [args.config, args.compare_config or args.config][: len(sources)]
    names = args.names or [None] * len(sources)
    if len(names) != len(sources):
        raise InputError(f'--names has {len(names)} names for {len(sources)} models: pass one for each.')
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
