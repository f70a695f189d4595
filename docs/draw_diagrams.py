"""Draw the model diagrams of the documentation into docs/images/models: python docs/draw_diagrams.py [folder].

Each is one column of blocks from the image to the detections; the side column shows what a variant adds. The colours
are readable on a light and on a dark page.
"""

import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

WIDTH, MAIN_WIDTH, SIDE_X, SIDE_WIDTH = 468, 262, 302, 162
BLOCK, GAP = 46, 36
FILL = {
    'data': '#e8ecf1',
    'features': '#d6e6fa',
    'transformer': '#d9f0dc',
    'head': '#fde7cd',
    'new': '#f6d5e5',
}

Side = tuple[str, str, str] | None  # title, note, direction of a box in the side column
MATCHING: Side = ('Training', 'Hungarian matching', 'out')


class Block(NamedTuple):
    """A box of the main column."""

    title: str
    note: str
    kind: str
    gives: str = ''  # label of the arrow below it
    side: Side = None  # its direction: 'in' into the block, 'out' from it, 'down' from it to the next


IMAGE = Block('Images', '(B, 3, H, W), padding mask (B, H, W)', 'data')
RESNET = 'ResNet-50'
BOXES = Block('Detections', 'labels, scores, boxes in pixels', 'data')


def deformable(
    neck: str,
    reference: str,
    decoder: str,
    losses: Side = MATCHING,
    proposals: Side = None,
    queries: Side = None,
) -> list[Block]:
    """Blocks that the variants of Deformable DETR share."""
    levels = 'S tokens of one level' if neck.startswith('1 ') else 'S tokens of all levels'
    return [
        IMAGE,
        Block('Backbone', RESNET, 'features', 'C3, C4, C5' if neck[0] != '1' else 'C5'),
        Block('Neck: ChannelMapper', neck, 'features', levels + ' (B, S, C)'),
        Block('Encoder, 6 layers', 'deformable self-attention', 'transformer', 'memory (B, S, C)', proposals),
        Block('Queries', reference, 'new' if proposals else 'transformer', 'content, position, references'),
        Block(
            'Decoder, 6 layers',
            decoder,
            'new' if 'refined' in decoder or 'twice' in decoder else 'transformer',
            'hidden states (6, B, Q, C)',
            queries,
        ),
        Block('Head', 'class logits and boxes of each layer', 'head', 'last layer, first group', losses),
        BOXES,
    ]


LEARNED = 'Q learned queries and reference points'
PROPOSED = 'the best Q proposals'
PROPOSALS = ('Proposal head', 'a box for each token', 'down')
DIAGRAMS = {
    'faster_rcnn': [
        IMAGE,
        Block('Backbone', RESNET, 'features', 'C2 to C5'),
        Block('Neck: FPN', '5 levels of 256 channels', 'features', 'P2 to P6'),
        Block(
            'RPN head',
            'objectness and deltas for anchors',
            'head',
            'proposals after NMS',
            ('Training', 'IoU assigner, samples', 'out'),
        ),
        Block('RoIAlign', '7 x 7 from the level of the proposal', 'features', '(R, 256, 7, 7)'),
        Block(
            'RoI head',
            'class scores, box deltas by class',
            'head',
            'NMS by class',
            ('Training', 'IoU assigner, samples', 'out'),
        ),
        BOXES,
    ],
    'detr': [
        IMAGE,
        Block('Backbone', RESNET + ', dilated C5 for DC5', 'features', 'C5'),
        Block('Neck: ChannelMapper', 'one level of 256 channels', 'features', 'S tokens (B, S, C)'),
        Block('Encoder, 6 layers', 'self-attention between all tokens', 'transformer', 'memory (B, S, C)'),
        Block(
            'Decoder, 6 layers',
            'self-attention, attention to all tokens',
            'transformer',
            'hidden states (6, B, Q, C)',
            ('Queries', '100 learned', 'in'),
        ),
        Block('Head', 'softmax with "no object", boxes', 'head', 'last layer', MATCHING),
        BOXES,
    ],
    'deformable_detr_single_scale': deformable('1 level, from C5', LEARNED, 'deformable attention to memory'),
    'deformable_detr': deformable(
        '4 levels, the last by stride 2', LEARNED, 'deformable attention to memory'
    ),
    'deformable_detr_refine': deformable(
        '4 levels, the last by stride 2', LEARNED, 'references refined after each layer'
    ),
    'deformable_detr_twostage': deformable(
        '4 levels, the last by stride 2', PROPOSED, 'references refined after each layer', proposals=PROPOSALS
    ),
    'h_detr': deformable(
        '4 levels, the last by stride 2',
        'best positions, learned content',
        'refined, look forward twice',
        queries=('One-to-many', '1500, in training', 'in'),
        proposals=PROPOSALS,
        losses=('Training', 'one-to-one and 1-to-6', 'out'),
    ),
    'dino': deformable(
        '4 or 5 levels',
        'best 900 positions, learned content',
        'refined, look forward twice',
        queries=('Denoising queries', 'noised ground truth', 'in'),
        proposals=PROPOSALS,
        losses=('Training', 'matching and denoising', 'out'),
    ),
}


def text(x: float, y: float, words: str, size: int, style: str = '') -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle"{style}>{escape(words)}</text>'


def box(x: float, y: float, width: float, block: tuple[str, str], kind: str, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ''
    middle = x + width / 2
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{BLOCK}" rx="7" fill="{FILL[kind]}" stroke="#7d8896"{dash}/>'
        + text(middle, y + 19, block[0], 14, ' font-weight="600" fill="#17202b"')
        + text(middle, y + 36, block[1], 12, ' fill="#33404f"')
    )


def arrow(x1: float, y1: float, x2: float, y2: float, turn_to: float | None = None) -> str:
    turn = '' if turn_to is None else f' L{turn_to} {y2}'
    path = f'M{x1} {y1} L{x2} {y2}{turn}'
    return f'<path d="{path}" fill="none" stroke="#7d8896" stroke-width="1.6" marker-end="url(#tip)"/>'


def draw(name: str, blocks: list[Block]) -> str:
    """The diagram as SVG."""
    left, middle = 4, 4 + MAIN_WIDTH / 2
    parts = []
    for number, block in enumerate(blocks):
        y = 4 + number * (BLOCK + GAP)
        parts.append(box(left, y, MAIN_WIDTH, (block.title, block.note), block.kind))
        if number + 1 < len(blocks):
            parts.append(arrow(middle, y + BLOCK, middle, y + BLOCK + GAP - 2))
        if block.gives:
            parts.append(
                f'<text x="{middle + 9}" y="{y + BLOCK + 22}" font-size="12" fill="#7d8896">'
                f'{escape(block.gives)}</text>'
            )
        if block.side:
            title, note, direction = block.side
            kind = 'head' if title == 'Training' else 'new'
            parts.append(box(SIDE_X, y, SIDE_WIDTH, (title, note), kind, dashed=True))
            ends = (SIDE_X, left + MAIN_WIDTH + 2) if direction == 'in' else (left + MAIN_WIDTH, SIDE_X - 2)
            parts.append(arrow(ends[0], y + BLOCK / 2, ends[1], y + BLOCK / 2))
            if direction == 'down':
                corner, below = SIDE_X + SIDE_WIDTH / 2, y + BLOCK + GAP + BLOCK / 2
                parts.append(arrow(corner, y + BLOCK, corner, below, left + MAIN_WIDTH + 2))
    height = 8 + len(blocks) * (BLOCK + GAP) - GAP
    title = name.replace('_', ' ')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif" role="img" aria-label="{title}, from images to detections">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#7d8896"/></marker></defs>\n' + '\n'.join(parts) + '\n</svg>\n'
    )


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / 'images' / 'models'
    folder.mkdir(parents=True, exist_ok=True)
    for name, blocks in DIAGRAMS.items():
        (folder / f'{name}.svg').write_text(draw(name, blocks))


if __name__ == '__main__':
    main()
