// The CUDA operators, checks and launches and kernels and all, on tests/ops/emulation/emulated_gpu.h: registered
// for CPU tensors as torch.ops.ddetr_emulated.
#include "bindings.cpp"
#include "emulated_gpu.h"

// Additions to global memory so far: what merging is there to save.
static int64_t additions() { return simt::machine().additions; }

STABLE_TORCH_LIBRARY(ddetr_emulated, m) {
  m.def("ms_deform_attn_forward(Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, int[] n=[]) -> Tensor");
  m.def("ms_deform_attn_backward(Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, bool g=False, int[] n=[], bool[] m=[])"
        " -> (Tensor, Tensor, Tensor)");
  m.def("ms_deform_attn_fused_forward(Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, int[] n=[]) -> Tensor");
  m.def("ms_deform_attn_fused_backward(Tensor a, Tensor b, Tensor c, Tensor d, Tensor e, Tensor f, Tensor g, bool h=False, int[] n=[], bool[] m=[])"
        " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("additions() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(ddetr_emulated, CompositeExplicitAutograd, m) { m.impl("additions", TORCH_BOX(&additions)); }

STABLE_TORCH_LIBRARY_IMPL(ddetr_emulated, CPU, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_forward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_backward));
}
