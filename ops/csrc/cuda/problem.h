// One call's tensors and sizes, as the kernels get them, and the functions that start the kernels.
// Plain data: neither PyTorch nor CUDA.
#pragma once

#include <cstdint>

namespace ddetr_ops {

// 16-bit floats are storage only: no arithmetic is done in them.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that sums are kept in, and its conversion from and to memory.
template <typename T>
struct Wide {
  using type = T;
};
template <>
struct Wide<Half> {
  using type = float;
};
template <>
struct Wide<BFloat16> {
  using type = float;
};
template <typename T>
using wide_t = typename Wide<T>::type;

// All tensors are contiguous. B batch, S tokens, Q queries, M heads, D channels of a head, L levels, P points.
template <typename T>
struct Problem {
  using A = wide_t<T>;
  const T* value;             // (B, S, M, D)
  const int64_t* shapes;      // (L, 2), height and width
  const int64_t* starts;      // (L,)
  const A* reference;         // fused: (B, Q, L, reference_size); else null
  const void* where;          // (B, Q, M, L, P, 2) locations; fused: offsets. T, or A where points_are_wide
  const void* how_much;       // (B, Q, M, L, P) weights; fused: logits. Same type
  T* output;                  // (B, Q, M, D), forward only

  // Backward only.
  const T* grad_output;       // (B, Q, M, D)
  A* grad_value;              // (B, S, M, D), zeros to begin with
  void* grad_where;           // as where
  void* grad_how_much;        // as how_much
  A* grad_reference;          // fused: (B, Q, M, L, reference_size), zeros to begin with, to be summed over M
  A* trail;                   // deterministic: (B, M, L, Q, P, 3) pixel x, pixel y, weight; else null

  // S, Q * P, B * M, M * D and L * P stay below 2^31 (the caller checks); the tensors may be larger.
  int32_t batch, tokens, queries, heads, channels, levels, points;
  uint32_t value_row, grad_row;  // bytes from a token to the next in value and in grad_value
  int32_t reference_size;     // 2 points (x, y), 4 boxes (cx, cy, w, h), 0 where nothing is fused
  bool points_are_wide;
};

// Queue the kernels; null, or a message that says what did not work.
template <typename T>
const char* launch_forward(const Problem<T>& problem, void* stream);
template <typename T>
const char* launch_backward(const Problem<T>& problem, void* stream);

// This library carries its own copy of the CUDA runtime, which has to be told PyTorch's device. Null or a message.
const char* use_device(int device);

}  // namespace ddetr_ops
