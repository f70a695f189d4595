// The operators' schemas; shapes, dtypes and units are those of ddetr_ops/functional.py. Kernels register
// against them: CPU in cpu/, CUDA in a second library; autograd and fake kernels come from Python
// (ddetr_ops/_registrations.py).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ddetr_ops, m) {
  m.def(
      "ms_deform_attn_forward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights, int[] num_points=[]) -> Tensor");
  // grads of value, sampling_locations, attention_weights
  m.def(
      "ms_deform_attn_backward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights, Tensor grad_output, "
      "bool deterministic=False, int[] num_points=[], bool[] output_mask=[]) -> (Tensor, Tensor, Tensor)");
  m.def(
      "ms_deform_attn_fused_forward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, int[] num_points=[]) -> Tensor");
  // grads of value, reference_points, sampling_offsets, attention_logits
  m.def(
      "ms_deform_attn_fused_backward(Tensor value, Tensor spatial_shapes, Tensor level_start_index, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, Tensor grad_output, "
      "bool deterministic=False, int[] num_points=[], bool[] output_mask=[]) -> (Tensor, Tensor, Tensor, Tensor)");
}
