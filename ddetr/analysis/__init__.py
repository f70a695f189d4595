"""Analysis of detectors and training runs: size, FLOPs, speed, errors, diagnosis.

It may import every other package of ddetr; only command lines import it.
"""
