"""What is measured of detectors: size, arithmetic, speed, and how much code a step runs through.

Stands on everything else of ddetr; only command lines stand on it.
"""
