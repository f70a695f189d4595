"""ddetr: the Deformable DETR family of object detectors as an MMDetection-style toolbox."""

__version__ = '0.1.0'
