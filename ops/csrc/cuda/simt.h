// CUDA as the kernels use it: thread indices, warp shuffles, atomics, launches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>

// threads: largest block; blocks: resident blocks per multiprocessor, which bounds the registers
#define DDETR_OPS_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define DDETR_OPS_DEVICE __device__ __forceinline__

namespace ddetr_ops::simt {

constexpr unsigned kFullMask = 0xffffffffu;

// Floats per reduction to global memory; 16-byte reductions need sm_90.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kReductionWidth = 4;
#else
constexpr int kReductionWidth = 1;
#endif

DDETR_OPS_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
DDETR_OPS_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
DDETR_OPS_DEVICE unsigned block() { return blockIdx.x; }

// Value of lane `source` of the caller's group of WIDTH lanes. All 32 lanes of the warp must call.
template <int WIDTH, typename V>
DDETR_OPS_DEVICE V shuffle(V value, int source) {
  return __shfl_sync(kFullMask, value, source, WIDTH);
}

// Value of lane (caller ^ mask). All 32 lanes of the warp must call.
template <typename V>
DDETR_OPS_DEVICE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(kFullMask, value, mask);
}

// Sum over aligned groups of WIDTH lanes, in every lane. All 32 lanes of the warp must call.
template <int WIDTH, typename V>
DDETR_OPS_DEVICE V group_sum(V value) {
#pragma unroll
  for (int step = WIDTH / 2; step; step /= 2) value += shuffle_xor(value, step);
  return value;
}

// Dynamic shared memory, aligned to 16 bytes.
DDETR_OPS_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char ddetr_ops_shared[];
  return ddetr_ops_shared;
}

// Additions to global memory that nobody reads back here, so they compile to RED instead of ATOM.
DDETR_OPS_DEVICE void reduce_add(double* to, const double (&values)[1]) { atomicAdd(to, values[0]); }
DDETR_OPS_DEVICE void reduce_add(float* to, const float (&values)[1]) { atomicAdd(to, values[0]); }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
DDETR_OPS_DEVICE void reduce_add(float* to, const float (&values)[4]) {
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
}
#endif

inline const char* message_of(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// Queues the kernel. Returns null, or an error message.
template <typename Params>
const char* launch(void (*kernel)(Params), int64_t blocks, int threads, int64_t shared_bytes, void* stream,
                   const Params& params) {
  if (blocks > 2147483647) return "the grid has more than 2^31 - 1 blocks: split the batch";
  void* arguments[] = {const_cast<Params*>(&params)};
  return message_of(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)),
                                     dim3(static_cast<unsigned>(threads)), arguments,
                                     static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream)));
}

// Major compute capability of the current device, 0 if it cannot be read.
inline int compute_capability() {
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return 0;
  return major;
}

inline std::string cuda_version(int number) {
  return std::to_string(number / 1000) + '.' + std::to_string(number % 1000 / 10);
}

// Selects the device. Returns null, or an error message.
inline const char* use_device(int device) {
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaErrorInsufficientDriver) return message_of(error);
  static const std::string message = [] {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    return "the GPU driver supports CUDA " + cuda_version(driver) + ", but ddetr_ops was built with the nvcc of CUDA " +
           cuda_version(runtime) + ". Update the driver, or rebuild ddetr_ops with an nvcc of CUDA " +
           std::to_string(driver / 1000) + ".x";
  }();
  return message.c_str();
}

}  // namespace ddetr_ops::simt
