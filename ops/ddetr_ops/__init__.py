"""Multi-scale deformable attention for PyTorch: fast on the CPU and the GPU, one wheel for many versions."""

from .functional import discrete_sampling_locations, ms_deform_attn, ms_deform_attn_fused

__all__ = ['discrete_sampling_locations', 'ms_deform_attn', 'ms_deform_attn_fused']
__version__ = '1.0.0'
