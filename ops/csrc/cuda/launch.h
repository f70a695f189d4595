// Chooses kernel and block size for a call. Included once per element type (float.cu, half.cu, ...).
#pragma once

#include "backward.h"
#include "forward.h"
#include "owners.h"

namespace ddetr_ops {

// Below this many queries they are a decoder's, which lie apart: merging would find nothing to merge.
#if !defined(DDETR_OPS_MERGE_FROM_QUERIES)
#define DDETR_OPS_MERGE_FROM_QUERIES 1024
#endif

constexpr int64_t kSharedLimit = 48 * 1024;   // what every GPU gives without being asked
constexpr int64_t kBlockLimit = 2147483647;   // a grid's blocks

template <typename T>
struct Lanes {  // 16-byte vectors, and as many lanes as cover 32 channels (doubles: 16)
  static constexpr int V = 16 / sizeof(T), LANES = sizeof(T) == 2 ? 4 : 8;
};
template <typename T, bool FUSED>
using Known = Plan<T, Lanes<T>::V, Lanes<T>::LANES, 32, 4, 4, FUSED>;
template <typename T, bool FUSED>
using Vector = Plan<T, Lanes<T>::V, Lanes<T>::LANES, 0, 0, 0, FUSED>;
template <typename T, bool FUSED>
using Scalar = Plan<T, 1, 8, 0, 0, 0, FUSED>;

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Whether rows can be moved 16 bytes at a time.
template <typename T>
bool rows_are_vectors(const Problem<T>& p) {
  return p.channels % Lanes<T>::V == 0 && aligned(p.value) && aligned(p.output) && aligned(p.grad_output) &&
         aligned(p.grad_value);
}

template <typename T>
bool is_known(const Problem<T>& p) {
  return sizeof(T) < 8 && rows_are_vectors(p) && p.channels == 32 && p.levels == 4 && p.points == 4;
}

template <typename T>
int64_t blocks_of(const Problem<T>& p, int groups) {
  return int64_t(p.batch) * p.heads * ((int64_t(p.queries) + groups - 1) / groups);
}

template <typename C>
const char* start_forward(const Problem<typename C::T>& p, void* stream) {
  // Few queries are spread over the whole GPU in small blocks.
  const int64_t items = int64_t(p.batch) * p.queries * p.heads;
  const int threads = items * C::LANES >= 64 * 1024 * 4 ? kForwardThreads : 64;
  const int groups = threads / C::LANES;
  const int64_t slices = (p.channels + C::SPAN - 1) / C::SPAN;
  const int64_t blocks = blocks_of(p, groups) * slices;
  if (blocks > kBlockLimit) return "too many queries for one launch";
  return simt::launch(forward_kernel<C>, blocks, threads, 0, stream, p);
}

template <typename C, Scatter SCATTER>
const char* start_backward(const Problem<typename C::T>& p, void* stream, int threads) {
  const int groups = threads / C::LANES;
  const int64_t blocks = blocks_of(p, groups);
  const int64_t shared = backward_shared_bytes<C, SCATTER>(threads, p);
  if (blocks > kBlockLimit) return "too many queries for one launch";
  if (shared > kSharedLimit) return "too many levels times points: the gradient's softmax does not fit on chip";
  return simt::launch(backward_kernel<C, SCATTER>, blocks, threads, shared, stream, p);
}

template <typename C>
const char* start_direct(const Problem<typename C::T>& p, void* stream) {
  int threads = 128;
  while (threads > 32 && backward_shared_bytes<C, Scatter::kDirect>(threads, p) > kSharedLimit) threads /= 2;
  return start_backward<C, Scatter::kDirect>(p, stream, threads);
}

template <typename C>
const char* start_backward_of(const Problem<typename C::T>& p, void* stream) {
  const bool merges = p.grad_value && !p.trail && p.queries >= DDETR_OPS_MERGE_FROM_QUERIES &&
                      backward_shared_bytes<C, Scatter::kMerged>(kBackwardThreads, p) <= kSharedLimit;
  return merges ? start_backward<C, Scatter::kMerged>(p, stream, kBackwardThreads) : start_direct<C>(p, stream);
}

template <typename T, bool FUSED>
const char* choose_forward(const Problem<T>& p, void* stream) {
  if constexpr (sizeof(T) < 8) {
    if (is_known(p)) return start_forward<Known<T, FUSED>>(p, stream);
  }
  return rows_are_vectors(p) ? start_forward<Vector<T, FUSED>>(p, stream) : start_forward<Scalar<T, FUSED>>(p, stream);
}

template <typename T, bool FUSED>
const char* choose_backward(const Problem<T>& p, void* stream) {
  if constexpr (sizeof(T) < 8) {
    if (is_known(p)) return start_backward_of<Known<T, FUSED>>(p, stream);
    if (rows_are_vectors(p)) return start_backward_of<Vector<T, FUSED>>(p, stream);
  } else {
    if (rows_are_vectors(p)) return start_direct<Vector<T, FUSED>>(p, stream);
  }
  return start_direct<Scalar<T, FUSED>>(p, stream);
}

template <typename T>
const char* launch_forward(const Problem<T>& p, void* stream) {
  return p.reference_size ? choose_forward<T, true>(p, stream) : choose_forward<T, false>(p, stream);
}

// With a trail, the first kernel leaves grad_value alone and the second one adds it up in order.
template <typename T>
const char* launch_backward(const Problem<T>& p, void* stream) {
  Problem<T> first = p;
  if (p.trail) first.grad_value = nullptr;
  const char* error =
      p.reference_size ? choose_backward<T, true>(first, stream) : choose_backward<T, false>(first, stream);
  if (error || !p.trail) return error;
  const int64_t runs = (int64_t(p.tokens) + kRun - 1) / kRun;
  const int64_t blocks = (runs * 32 + kOwnerThreads - 1) / kOwnerThreads * p.batch * p.heads;
  if (blocks > kBlockLimit) return "too many tokens for one launch";
  return simt::launch(owners_kernel<T>, blocks, kOwnerThreads, 0, stream, p);
}

}  // namespace ddetr_ops
