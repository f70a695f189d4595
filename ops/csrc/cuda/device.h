// The GPU of a tensor and PyTorch's current stream there, through LibTorch's stable C functions. The one function that
// lives in libtorch_cuda is looked up at the first call, so this library also loads under a PyTorch without CUDA.
#ifndef DDETR_OPS_CUDA_DEVICE_H_
#define DDETR_OPS_CUDA_DEVICE_H_

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "../checks.h"
#include "params.h"

namespace ddetr_ops {

inline bool is_on_gpu(const Tensor& tensor) { return tensor.is_cuda(); }

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

// While it lives, the tensor's GPU is the current one, for PyTorch and for this library's CUDA runtime.
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

#endif  // DDETR_OPS_CUDA_DEVICE_H_
