// Choice of kernel and block size. Included once per element type (float.cu, half.cu, ...).
#pragma once

#include <cstdlib>

#include "backward.h"
#include "forward.h"

namespace ddetr_ops {

constexpr int64_t kSharedBytes = 48 * 1024;  // per block, on every GPU and without opting in
constexpr int kDirectThreads = 128;
constexpr const char* kTooManyLevels = "the levels do not fit into shared memory";

template <typename T>
struct VectorLanes {  // 16-byte accesses; up to 8 lanes, of 16-bit types 4, as most heads have 32 channels
  static constexpr int V = 16 / sizeof(T), LANES = sizeof(T) == 2 ? 4 : 8;
};
// One vector per lane up to 8 lanes, a cache line of 128 bytes; two above.
constexpr int known_lanes(int vectors) { return vectors <= 8 ? vectors : vectors <= 16 ? 8 : vectors / 2; }
// Rows of any number of vectors; of any number of elements, with any alignment; of D channels.
template <typename T, bool FUSED>
using Vector = Traits<T, VectorLanes<T>::V, VectorLanes<T>::LANES, 0, FUSED>;
template <typename T, bool FUSED>
using Scalar = Traits<T, 1, 8, 0, FUSED>;
template <typename T, int D, bool FUSED>
using Known = Traits<T, VectorLanes<T>::V, known_lanes(D / VectorLanes<T>::V), D, FUSED>;

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether rows can be moved 16 bytes at a time.
template <typename T>
bool rows_are_vectors(const Params<T>& p) {
  return p.channels % VectorLanes<T>::V == 0 && is_aligned(p.value) && is_aligned(p.output) &&
         is_aligned(p.grad_output) && is_aligned(p.grad_value);
}

// Calls `run` with the traits for these sizes: the heads' usual D are compiled in, except for double.
template <typename T, bool FUSED, typename Run>
const char* with_traits(const Params<T>& p, const Run& run) {
  if (!rows_are_vectors(p)) return run(Scalar<T, FUSED>{});
  if constexpr (sizeof(T) < 8) {
    switch (p.channels) {
      case 16: return run(Known<T, 16, FUSED>{});
      case 32: return run(Known<T, 32, FUSED>{});
      case 64: return run(Known<T, 64, FUSED>{});
      case 128: return run(Known<T, 128, FUSED>{});
    }
  }
  return run(Vector<T, FUSED>{});
}

template <typename T>
int64_t blocks_of(const Params<T>& p, int groups) {
  return int64_t(p.batch) * p.heads * ((int64_t(p.queries) + groups - 1) / groups);
}

template <typename C>
const char* start_forward(const Params<typename C::T>& p, void* stream) {
  // Small blocks spread few queries over the whole GPU.
  const int64_t lanes = int64_t(p.batch) * p.queries * p.heads * C::LANES;
  const int threads = lanes >= 1024 * kForwardThreads ? kForwardThreads : 64;
  const int64_t spans = C::D ? 1 : (p.channels + C::SPAN - 1) / C::SPAN;
  if (level_bytes(p) > kSharedBytes) return kTooManyLevels;
  return simt::launch(forward_kernel<C>, blocks_of(p, threads / C::LANES) * spans, threads, level_bytes(p),
                      stream, p);
}

template <typename C, Scatter SCATTER>
const char* start_backward(const Params<typename C::T>& p, int threads, void* stream) {
  const int64_t shared = backward_shared_bytes<C, SCATTER>(threads, p);
  if (shared > kSharedBytes) return kTooManyLevels;
  return simt::launch(backward_kernel<C, SCATTER>, blocks_of(p, threads / C::LANES), threads, shared, stream, p);
}

// Merging pays where neighbouring queries sample the same tokens: an encoder's, not the few of a decoder. It replaces
// additions, which before sm_90 carry one number each, by instructions; see README.md.
inline int64_t merge_min_queries() {
  const char* setting = std::getenv("DDETR_OPS_MERGE_MIN_QUERIES");  // read per call: benchmarks set it
  if (setting) return std::atoll(setting);
  return simt::compute_capability() >= 9 ? int64_t(1) << 32 : 1024;
}

template <typename C>
const char* start_backward_of(const Params<typename C::T>& p, void* stream) {
  if constexpr (sizeof(typename C::T) < 8 && C::V > 1) {
    const bool adds = p.grad_value && !p.sorted.keys;
    if (adds && p.queries >= merge_min_queries() &&
        backward_shared_bytes<C, Scatter::kMerged>(kBackwardThreads, p) <= kSharedBytes)
      return start_backward<C, Scatter::kMerged>(p, kBackwardThreads, stream);
  }
  return start_backward<C, Scatter::kDirect>(p, kDirectThreads, stream);
}

template <typename C>
const char* start_sums(Params<typename C::T> p, void* stream) {
  using T = typename C::T;
  const int64_t count = total_points(p);
  if (const char* error = sort_points(p.sorted, count, sort_key_bits(last_key(p)), stream)) return error;
  const int64_t mark_blocks = (count + kMarkThreads - 1) / kMarkThreads;
  if (const char* error = simt::launch(mark_segments_kernel<T>, mark_blocks, kMarkThreads, 0, stream, p)) return error;
  const int64_t blocks = (int64_t(p.tokens) + kSumThreads / 32 - 1) / (kSumThreads / 32) * p.batch * p.heads;
  return simt::launch(sum_points_kernel<C>, blocks, kSumThreads, level_bytes(p), stream, p);
}

template <typename T>
const char* launch_forward(const Params<T>& p, void* stream) {
  const auto start = [&](auto traits) { return start_forward<decltype(traits)>(p, stream); };
  return p.reference_dim ? with_traits<T, true>(p, start) : with_traits<T, false>(p, start);
}

template <typename T>
const char* launch_backward(const Params<T>& p, void* stream) {
  const auto start = [&](auto traits) { return start_backward_of<decltype(traits)>(p, stream); };
  const char* error = p.reference_dim ? with_traits<T, true>(p, start) : with_traits<T, false>(p, start);
  if (error || !p.sorted.keys) return error;
  return rows_are_vectors(p) ? start_sums<Vector<T, false>>(p, stream) : start_sums<Scalar<T, false>>(p, stream);
}

// On chip if the groups of a kDirectThreads block find room beside the levels; merging needs more and then is left out.
template <typename T>
bool needs_weight_grads(const Params<T>& p) {
  if (!p.reference_dim) return false;
  const auto fits = [&](auto traits) -> const char* {
    using C = decltype(traits);
    return backward_shared_bytes<C, Scatter::kDirect>(kDirectThreads, p) <= kSharedBytes ? "" : nullptr;
  };
  return with_traits<T, true>(p, fits) == nullptr;
}

}  // namespace ddetr_ops
