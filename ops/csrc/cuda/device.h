// Which GPU and which stream. Through LibTorch's stable C functions; the one of them that lives in the CUDA half
// of LibTorch is looked up when it is needed, so that this library also loads under a PyTorch without CUDA.
#pragma once

#include "../checks.h"
#include "problem.h"

#if defined(DDETR_OPS_EMULATED_GPU)

namespace ddetr_ops {

inline bool is_on_device(const Tensor& tensor) { return tensor.is_cpu(); }

struct DeviceScope {
  explicit DeviceScope(const Tensor&) {}
  void* stream() const { return nullptr; }
};

}  // namespace ddetr_ops

#else

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

namespace ddetr_ops {

inline bool is_on_device(const Tensor& tensor) { return tensor.is_cuda(); }

inline void* current_stream(int32_t device) {
  using Lookup = AOTITorchError (*)(int32_t, void**);
  static const Lookup lookup = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Lookup>(symbol);
  }();
  DDETR_CHECK(lookup != nullptr, "this PyTorch has no libtorch_cuda.so loaded, so there is no CUDA stream to run on");
  void* stream = nullptr;
  DDETR_CHECK(lookup(device, &stream) == AOTI_TORCH_SUCCESS, "PyTorch gives no current stream for GPU ", device);
  return stream;
}

// Makes a tensor's GPU the current one, for PyTorch and for this library, as long as it lives.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& tensor)
      : guard_(tensor.get_device_index()), stream_(current_stream(tensor.get_device_index())) {
    const char* error = use_device(tensor.get_device_index());
    DDETR_CHECK(!error, "GPU ", tensor.get_device_index(), " cannot be used: ", error);
  }
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

}  // namespace ddetr_ops

#endif
