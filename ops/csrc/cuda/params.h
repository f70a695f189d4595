// Parameters of a kernel launch and the functions that launch. Plain data: no PyTorch, no CUDA.
#pragma once

#include <cstdint>

namespace ddetr_ops {

// 16-bit types are storage only: arithmetic and sums are in acc_t, float or, for double, double.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct Accumulation {
  using type = T;
};
template <>
struct Accumulation<Half> {
  using type = float;
};
template <>
struct Accumulation<BFloat16> {
  using type = float;
};
template <typename T>
using acc_t = typename Accumulation<T>::type;

// Levels that may have numbers of points of their own; their table travels with the launch parameters.
constexpr int kMaxLevelsOfOwnPoints = 32;

// Deterministic backward: the points, sorted by the token that their corners are counted from.
struct SortedPoints {
  uint32_t *keys, *other_keys;        // (N,) each, N = B * Q * M * K: (b * M + m) * S + token; B * M * S: no corner
  uint32_t *indices, *other_indices;  // (N,) each: position in attention_weights
  uint32_t *begin, *end;              // (B * M * S,) each, zeros at first: where a key's points lie after sorting
  void* workspace;                    // scratch of the sort, workspace_bytes long
  int64_t workspace_bytes;
};

// Tensors are contiguous. B batch, S tokens, Q queries, M heads, D channels per head, L levels, K points of all levels.
template <typename T>
struct Params {
  using A = acc_t<T>;
  const T* value;                    // (B, S, M, D)
  const int64_t* spatial_shapes;     // (L, 2): height, width
  const int64_t* level_start_index;  // (L,)
  const A* reference_points;         // fused: (B, Q, L, reference_dim); else null
  const void* locations;             // (B, Q, M, K, 2), fused: sampling offsets; T, or A if points_in_acc
  const void* weights;               // (B, Q, M, K), fused: logits; same type as locations
  T* output;                         // forward: (B, Q, M, D)

  // Backward. A gradient whose pointer is null is not computed.
  const T* grad_output;       // (B, Q, M, D)
  A* grad_value;              // (B, S, M, D), zeros at first
  void* grad_locations;       // like locations
  void* grad_weights;         // like weights
  A* grad_reference_points;   // fused: (B, Q, M, L, reference_dim), zeros at first; summed over M by the caller
  A* weight_grads;            // fused: (B, Q, M, K) scratch, where shared memory is too small for it; else null
  SortedPoints sorted;        // deterministic; else keys is null
  A* corner_weights;          // deterministic: (N, 4), weights of the tokens key, key + 1, key + width, key + width + 1

  // S, Q * K, B * M, M * D and K stay below 2^31; the tensors may have more elements.
  int32_t batch, tokens, queries, heads, channels, levels, points;
  int32_t num_points;          // of each level; 0: level l has level_end[l] - level_end[l - 1] of its own
  uint32_t num_points_factor;  // floor((2^32 - 1) / num_points), see level_of
  int32_t level_end[kMaxLevelsOfOwnPoints];
  uint32_t value_row, grad_row;  // bytes of a token in value and in grad_value
  int32_t reference_dim;        // 2: points (x, y); 4: boxes (cx, cy, w, h); 0: not fused
  bool points_in_acc;
};

// Queue the kernels on a CUDA stream. Return null, or an error message.
template <typename T>
const char* launch_forward(const Params<T>& params, void* stream);
template <typename T>
const char* launch_backward(const Params<T>& params, void* stream);

// Whether launch_backward needs Params::weight_grads.
template <typename T>
bool needs_weight_grads(const Params<T>& params);

// Stable sort of `count` (key, index) pairs by the lowest `key_bits` bits of the keys. Swaps keys with other_keys and
// indices with other_indices if the result ends up there.
const char* sort_points(SortedPoints& points, int64_t count, int key_bits, void* stream);
int64_t sort_workspace_bytes(int64_t count, int key_bits);
inline int sort_key_bits(int64_t keys) {
  int bits = 1;
  while (keys >> bits) ++bits;
  return bits;
}

// Selects the device for this library's own copy of the CUDA runtime. Returns null, or an error message.
const char* use_device(int device);

}  // namespace ddetr_ops
