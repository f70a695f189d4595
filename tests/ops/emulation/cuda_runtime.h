// The part of CUDA's runtime and device functions that the kernels use, on the CPU: a GPU thread is a coroutine with a
// stack of its own. Found before CUDA's own header, so the kernels' sources know nothing of it.
//
// The threads of a block run one after the other, each up to its next shuffle or barrier; a thread whose partners have
// all arrived goes on. Lanes and warps take turns in a random order, and warps run ahead of each other as far as
// barriers let them, so a missing barrier shows as a wrong number. A wait that a partner never joins is an error, not a
// hang. Neither speed nor memory ordering is emulated.
//
// __CUDA_ARCH__ may be defined on the command line, to choose between the kernels' variants.
#pragma once

#include <sanitizer/asan_interface.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct Index {
  unsigned x;
};
using dim3 = Index;
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline Index threadIdx, blockIdx, blockDim;

constexpr size_t kSharedBytes = 48 * 1024;
namespace ddetr_ops::simt {
alignas(16) inline unsigned char ddetr_ops_shared[kSharedBytes];  // the kernels' extern __shared__ array
}

namespace emulated {

constexpr int kStackBytes = 64 * 1024;

enum class State { kReady, kWaitsForWarp, kWaitsForBlock, kDone };

struct Thread {
  ucontext_t context;
  State state;
  int exchanges;  // how many there were: even and odd ones use different mailboxes
  std::unique_ptr<char[]> stack;
};

struct Warp {
  alignas(16) unsigned char mailbox[2][32][16];
};

struct Block {
  ucontext_t scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int64_t reductions = 0;     // floating-point additions to memory since the program started
  int driver_version = 13000;
};

inline Block& machine() {
  static Block block;
  return block;
}

inline int thread() { return static_cast<int>(threadIdx.x); }

inline void wait(State state) {
  Block& block = machine();
  Thread& me = block.threads[threadIdx.x];
  me.state = state;
  swapcontext(&me.context, &block.scheduler);
}

// Puts a value into my mailbox, waits for the warp, and reads lane `source` of the warp's.
template <typename V, typename Read>
auto exchange_in_warp(V value, const Read& read) {
  static_assert(sizeof(V) <= 16);
  Thread& me = machine().threads[static_cast<size_t>(thread())];
  Warp& warp = machine().warps[static_cast<size_t>(thread() / 32)];
  auto& mailbox = warp.mailbox[me.exchanges++ % 2];
  std::memcpy(mailbox[thread() % 32], &value, sizeof value);
  wait(State::kWaitsForWarp);
  return read([&mailbox](int lane) {
    V theirs;
    std::memcpy(&theirs, mailbox[lane], sizeof theirs);
    return theirs;
  });
}

// Lets the threads [first, last) go on if every one of them has come to wait for the others.
inline bool release(Block& block, size_t first, size_t last, State state) {
  const auto begin = block.threads.begin() + static_cast<long>(first);
  const auto end = block.threads.begin() + static_cast<long>(last);
  // A thread that has left the kernel is not missed by its block, but by its warp.
  const bool all = std::all_of(begin, end, [state](const Thread& t) {
    return t.state == state || (t.state == State::kDone && state == State::kWaitsForBlock);
  });
  bool any = false;
  for (auto t = begin; all && t != end; ++t) {
    if (t->state != state) continue;
    t->state = State::kReady;
    any = true;
  }
  return any;
}

inline bool release_warp(Block& block, size_t warp) {
  return release(block, 32 * warp, 32 * warp + 32, State::kWaitsForWarp);
}

template <typename Params>
struct Call {
  void (*kernel)(Params);
  const Params* params;
  static inline Call current;
  static void enter() {
    current.kernel(*current.params);
    wait(State::kDone);
  }
};

inline void run_thread(Block& block, size_t index) {
  if (block.threads[index].state != State::kReady) return;
  threadIdx.x = static_cast<unsigned>(index);
  swapcontext(&block.scheduler, &block.threads[index].context);
}

template <typename Params>
bool run_block(Block& block, std::minstd_rand& random) {
  for (Thread& thread : block.threads) {
    thread.state = State::kReady;
    thread.exchanges = 0;
    getcontext(&thread.context);
    if (!thread.stack) thread.stack = std::make_unique<char[]>(kStackBytes);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, Call<Params>::enter, 0);
  }
  std::vector<size_t> warps(block.warps.size()), lanes(32);
  std::iota(warps.begin(), warps.end(), 0);
  std::iota(lanes.begin(), lanes.end(), 0);
  bool any = true;
  while (any) {
    any = false;
    std::shuffle(warps.begin(), warps.end(), random);
    for (size_t warp : warps) {
      // Every other time as far as the warp gets without the block, so that warps drift apart.
      const bool far = random() & 64u;
      bool goes_on = true;
      for (int step = 0; goes_on && (far || step == 0); ++step) {
        std::shuffle(lanes.begin(), lanes.end(), random);
        for (size_t lane : lanes) run_thread(block, 32 * warp + lane);
        goes_on = release_warp(block, warp);
        any = any || goes_on;
      }
    }
    any = release(block, 0, block.threads.size(), State::kWaitsForBlock) || any;
  }
  return std::all_of(block.threads.begin(), block.threads.end(),
                     [](const Thread& t) { return t.state == State::kDone; });
}

// Fills the block's shared memory with garbage, as on a GPU, and lets AddressSanitizer watch what lies beyond it.
inline void prepare_shared_memory(size_t bytes) {
  unsigned char* memory = ddetr_ops::simt::ddetr_ops_shared;
  ASAN_UNPOISON_MEMORY_REGION(memory, kSharedBytes);
  std::memset(memory, 0xcd, kSharedBytes);
  ASAN_POISON_MEMORY_REGION(memory + bytes, kSharedBytes - bytes);
}

}  // namespace emulated

template <typename V>
V __shfl_sync(unsigned, V value, int source, int width) {
  const int lane = emulated::thread() % 32 / width * width + source % width;
  return emulated::exchange_in_warp(value, [lane](const auto& of) { return of(lane); });
}
template <typename V>
V __shfl_xor_sync(unsigned, V value, int mask) {
  const int lane = emulated::thread() % 32 ^ mask;
  return emulated::exchange_in_warp(value, [lane](const auto& of) { return of(lane); });
}
inline void __syncthreads() { emulated::wait(emulated::State::kWaitsForBlock); }
inline void __syncwarp() { emulated::exchange_in_warp(0, [](const auto&) { return 0; }); }

inline int atomicCAS(int* at, int expected, int wanted) {
  const int old = *at;
  if (old == expected) *at = wanted;
  return old;
}
inline int atomicExch(int* at, int value) { return std::exchange(*at, value); }
inline int atomicAdd(int* at, int value) { return std::exchange(*at, *at + value); }
template <typename A>
void atomicAdd(A* at, A value) {
  *at += value;
  ++emulated::machine().reductions;
}
inline void atomicAdd(float4* at, float4 value) {
  *at = {at->x + value.x, at->y + value.y, at->z + value.z, at->w + value.w};
  ++emulated::machine().reductions;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t(a) * b >> 32); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }

enum cudaError_t { cudaSuccess, cudaErrorInsufficientDriver, cudaErrorInvalidConfiguration, cudaErrorLaunchFailure };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor };
using cudaStream_t = void*;

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "threads wait for each other for ever" : "invalid launch configuration";
}
inline cudaError_t cudaSetDevice(int) {
  return emulated::machine().driver_version < 13000 ? cudaErrorInsufficientDriver : cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 8;
  return cudaSuccess;
}
inline void cudaDriverGetVersion(int* version) { *version = emulated::machine().driver_version; }
inline void cudaRuntimeGetVersion(int* version) { *version = 13000; }

template <typename Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 blocks, dim3 threads, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  using namespace emulated;
  static std::minstd_rand random(1);
  if (blocks.x == 0 || threads.x % 32 != 0 || threads.x > 1024 || shared_bytes > kSharedBytes)
    return cudaErrorInvalidConfiguration;
  Block& block = machine();
  block.threads.resize(threads.x);
  block.warps.resize(threads.x / 32);
  blockDim = threads;
  Call<Params>::current = {kernel, static_cast<const Params*>(arguments[0])};
  for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
    prepare_shared_memory(shared_bytes);
    if (!run_block<Params>(block, random)) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}
