// Arguments of the CPU kernels. Plain data without PyTorch: the kernels compile once per instruction set and must not
// share inline functions with other translation units, because the linker keeps one copy for all machines.
#pragma once
#include <cstddef>
#include <cstdint>

namespace ddetr_ops {

enum class DType : int { f32, f64, bf16, f16 };
constexpr int kDTypes = 4;

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

// Memory of a contiguous tensor; null where a gradient is not requested.
struct Array {
  void* data = nullptr;
  DType dtype = DType::f32;
};

struct Level {
  int64_t start;  // first token
  int64_t height;
  int64_t width;
  int64_t num_points;   // sampling points of every query and head
  int64_t first_point;  // the first of them among the points of all levels
};

struct Shape {
  int64_t batch = 0, tokens = 0, heads = 0, channels = 0;  // value: (B, S, M, D)
  int64_t queries = 0, levels = 0;
  int64_t points = 0;            // K: points of a query and head, all levels together
  const Level* level = nullptr;  // (L,)
};

// Sampling points of the classic form (reference_dim 0) or of the fused form.
struct Sampling {
  Array locations;            // (B, Q, M, K, 2): normalised locations; fused: offsets
  Array weights;              // (B, Q, M, K): attention weights; fused: logits
  Array references;           // fused: (B, Q, L, reference_dim)
  int64_t reference_dim = 0;  // fused: 2 for points (x, y), 4 for boxes (cx, cy, w, h)

  bool fused() const { return reference_dim != 0; }
};

// One head of one batch element.
struct Head {
  int64_t batch, head;
};

// A range of queries or tokens.
struct Range {
  int64_t begin, end;
};

// Rows of one head's tokens: the row of token t starts at element t * stride.
struct Rows {
  void* data;
  int64_t stride;
};

// Gradients of Sampling's members. `references` holds one share per head, (B, Q, M, L, reference_dim) in Acc.
struct SamplingGrads {
  Array locations, weights, references;
};

// The kernels of one instruction set, by the dtype of `value`. Sums run in float64 for float64 and in float32
// otherwise; that type is called Acc.
struct Kernels {
  // Bytes of scratch memory that each kernel needs.
  int64_t (*scratch_bytes)(const Shape&);
  // Output of the queries; `output` is the whole (B, Q, M, D).
  void (*forward[kDTypes])(const Shape&, const Sampling&, Head, Rows value, void* output, Range queries,
                           void* scratch);
  // Gradients of the queries' locations and weights (fused: offsets, logits and references), where `grads` has memory;
  // and where `sums` has memory, adds the queries' contributions to its rows of `tokens`: the gradient of value, in Acc
  // and in the channel order of `unpack`. The order of additions to a row does not depend on the ranges of tokens.
  void (*backward[kDTypes])(const Shape&, const Sampling&, Head, Rows value, const void* grad_output,
                            const SamplingGrads& grads, Range queries, Rows sums, Range tokens, void* scratch);
  // From sums to the gradient of value (B, S, M, D) for the tokens of one head.
  void (*unpack[kDTypes])(const Shape&, Head, Rows sums, void* grad_value, Range tokens);
  // Sums the heads' shares of the references' gradients, for rows of (B * Q).
  void (*add_reference_grads[2])(const Shape&, int64_t reference_dim, const void* shares, Array result, Range rows);
};

extern const Kernels kKernelsPlain;
#if defined(__x86_64__)
extern const Kernels kKernelsAvx2;
#endif

}  // namespace ddetr_ops
