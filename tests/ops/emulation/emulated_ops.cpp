// The CUDA operators with checks, launches and kernels, emulated: torch.ops.ddetr_emulated, for CPU tensors. Compiled
// with -Dddetr_ops=ddetr_emulated.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cuda_runtime.h>

#include "checks.h"
#include "cuda/params.h"

#define DDETR_OPS_CUDA_DEVICE_H_  // instead of cuda/device.h
namespace ddetr_ops {
inline bool is_on_gpu(const Tensor& tensor) { return tensor.is_cpu(); }
struct DeviceScope {
  explicit DeviceScope(const Tensor&) {
    const char* error = use_device(0);
    DDETR_CHECK(!error, error);
  }
  void* stream() const { return nullptr; }
};
}  // namespace ddetr_ops

#define CUDA CPU  // the operators' dispatch key
#include "cuda/bindings.cpp"
#include "schemas.cpp"

// Additions to global memory so far.
static int64_t reductions() { return emulated::machine().reductions; }
static void set_driver_version(int64_t version) { emulated::machine().driver_version = int(version); }

STABLE_TORCH_LIBRARY_FRAGMENT(ddetr_ops, m) {
  m.def("reductions() -> int");
  m.def("set_driver_version(int version) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ddetr_ops, CompositeExplicitAutograd, m) {
  m.impl("reductions", TORCH_BOX(&reductions));
  m.impl("set_driver_version", TORCH_BOX(&set_driver_version));
}
