// What a kernel asks of the machine: who am I, exchange with my warp, wait for my block, add to memory.
//
// The kernels use nothing else of CUDA, so that a test can put a CPU in the machine's place
// (DDETR_OPS_EMULATED_GPU, tests/ops/emulated_gpu.h) and watch the very same bodies compute.
#pragma once

#if defined(DDETR_OPS_EMULATED_GPU)
#include "emulated_gpu.h"
#else

#include <cuda_runtime.h>

#include <cstdint>

// threads: of the largest block; blocks: how many shall fit on a multiprocessor, which bounds the registers
#define DDETR_OPS_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define DDETR_OPS_DEVICE __device__ __forceinline__

namespace simt {

constexpr unsigned kWholeWarp = 0xffffffffu;

// Floats that one addition to global memory can carry: 16-byte reductions came with sm_90.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr int kReductionWidth = 4;
#else
constexpr int kReductionWidth = 1;
#endif

DDETR_OPS_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
DDETR_OPS_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
DDETR_OPS_DEVICE unsigned block() { return blockIdx.x; }

// The value that lane `source` of my group of WIDTH lanes holds. All 32 lanes of a warp must call.
template <int WIDTH, typename V>
DDETR_OPS_DEVICE V shuffle(V value, int source) {
  return __shfl_sync(kWholeWarp, value, source, WIDTH);
}

// The value of the lane whose number differs from mine in the bits of `mask`. All 32 lanes must call.
template <typename V>
DDETR_OPS_DEVICE V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(kWholeWarp, value, mask);
}

DDETR_OPS_DEVICE unsigned ballot(bool vote) { return __ballot_sync(kWholeWarp, vote); }
DDETR_OPS_DEVICE int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }
DDETR_OPS_DEVICE void block_barrier() { __syncthreads(); }

DDETR_OPS_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char ddetr_ops_shared[];
  return ddetr_ops_shared;
}

DDETR_OPS_DEVICE int compare_exchange(int* at, int expected, int wanted) { return atomicCAS(at, expected, wanted); }
DDETR_OPS_DEVICE int exchange(int* at, int value) { return atomicExch(at, value); }
DDETR_OPS_DEVICE int fetch_add(int* at, int value) { return atomicAdd(at, value); }

// Additions to global memory whose old value nobody asks for: they go out as RED, not as ATOM.
DDETR_OPS_DEVICE void reduce_add(double* at, const double (&values)[1]) { atomicAdd(at, values[0]); }
DDETR_OPS_DEVICE void reduce_add(float* at, const float (&values)[1]) { atomicAdd(at, values[0]); }
DDETR_OPS_DEVICE void reduce_add(float* at, const float (&values)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(at)), "f"(values[0]), "f"(values[1]), "f"(values[2]), "f"(values[3]));
#else
  for (int i = 0; i < 4; ++i) atomicAdd(at + i, values[i]);
#endif
}

// Queues the kernel on the stream; the message of what went wrong, or null.
template <typename Problem>
const char* launch(void (*kernel)(Problem), int64_t blocks, int threads, int64_t shared_bytes, void* stream,
                   const Problem& problem) {
  kernel<<<static_cast<unsigned>(blocks), threads, static_cast<size_t>(shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(problem);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

inline const char* use_device(int device) {
  const cudaError_t error = cudaSetDevice(device);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace simt
#endif
