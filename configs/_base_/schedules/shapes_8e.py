# The quickstart's schedule: one epoch more than shapes_7e.py.
_base_ = 'shapes_7e.py'
train_cfg = dict(max_epochs=8)
