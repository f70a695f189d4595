"""COCO's AP over all sizes, written from its definition without pycocotools, for few boxes."""

import numpy as np


def _iou(box, others, crowd):
    """IoU of one x1 y1 x2 y2 box with others; with a crowd, the share of the box that lies in it."""
    inner = np.clip(np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]), 0, None).prod(
        axis=1
    )
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    return inner / np.where(crowd, area, area + areas - inner)


def _hits(detections, truths, threshold):
    """Per detection of one image and class, best first: 1 found, 0 false, None not counted."""
    boxes = np.array([truth['box'] for truth in truths]).reshape(-1, 4)
    crowd = np.array([truth['crowd'] for truth in truths], dtype=bool)
    free = np.ones(len(truths), dtype=bool)
    hits = []
    for detection in detections:
        ious = _iou(detection['box'], boxes, crowd)
        for candidates in (~crowd & free, crowd):  # a crowd takes what no single object does, and any number
            ious_left = np.where(candidates & (ious >= threshold), ious, -1)
            if ious_left.size and ious_left.max() >= 0:
                best = int(ious_left.argmax())
                free[best] = False
                hits.append(None if crowd[best] else 1)
                break
        else:
            hits.append(0)
    return hits


def _class_ap(detections, truths, image_ids, threshold):
    scored = []
    for image_id in image_ids:
        found = sorted((d for d in detections if d['image'] == image_id), key=lambda d: -d['score'])[:100]
        hits = _hits(found, [t for t in truths if t['image'] == image_id], threshold)
        scored += [(d['score'], hit) for d, hit in zip(found, hits, strict=True) if hit is not None]
    positives = sum(not t['crowd'] for t in truths)
    if positives == 0:
        return None
    scored.sort(key=lambda pair: -pair[0])
    hits = np.array([hit for _, hit in scored], dtype=float)
    true = np.cumsum(hits)
    recall, precision = true / positives, true / np.arange(1, len(hits) + 1)
    levels = np.linspace(0, 1, 101)
    return float(np.mean([precision[recall >= level].max(initial=0) for level in levels]))


def average_precision(detections, truths, thresholds):
    """Mean AP over classes and IoU thresholds.

    Args:
        detections: dicts `image`, `label`, `box` (x1 y1 x2 y2 array), `score`; scores all differ.
        truths: dicts `image`, `label`, `box`, `crowd`.
    """
    image_ids = sorted({t['image'] for t in truths} | {d['image'] for d in detections})
    values = [
        _class_ap(
            [d for d in detections if d['label'] == label],
            [t for t in truths if t['label'] == label],
            image_ids,
            threshold,
        )
        for label in sorted({t['label'] for t in truths})
        for threshold in thresholds
    ]
    return float(np.mean([value for value in values if value is not None]))
