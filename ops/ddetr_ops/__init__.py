"""Multi-scale deformable attention for PyTorch, with CPU and GPU kernels in one wheel for many PyTorch versions."""

from .functional import discrete_sampling_locations, ms_deform_attn, ms_deform_attn_fused

__all__ = ['discrete_sampling_locations', 'ms_deform_attn', 'ms_deform_attn_fused']
__version__ = '1.0.0'
