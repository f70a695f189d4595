"""The original Deformable DETR's extension module, by ddetr_ops: see ddetr_ops/compat/original.py."""

from ddetr_ops.compat.original import ms_deform_attn_backward, ms_deform_attn_forward

__all__ = ['ms_deform_attn_backward', 'ms_deform_attn_forward']
