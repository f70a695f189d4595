// What the CPU kernels are told. Plain data, no PyTorch: the kernels compile once per instruction set and must
// not share inline functions with the rest (the linker would keep any one of the copies, for every machine).
#pragma once
#include <cstddef>
#include <cstdint>

namespace ddetr_ops {

enum class Kind : int { f32, f64, bf16, f16 };
constexpr int kKinds = 4;

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

// A contiguous tensor's memory.
struct Typed {
  void* data = nullptr;
  Kind kind = Kind::f32;
};

struct Level {
  int64_t start;  // first token
  int64_t height;
  int64_t width;
};

struct Shape {
  int64_t batch = 0, tokens = 0, heads = 0, channels = 0;  // value: (B, S, M, D)
  int64_t queries = 0, levels = 0, points = 0;             // locations: (B, Q, M, L, P, 2)
  const Level* level = nullptr;                            // (L,)
};

// Where to look and how much of it to take.
struct Sampling {
  Typed places;   // (B, Q, M, L, P, 2): locations in [0, 1], or the offsets of the fused form
  Typed weights;  // (B, Q, M, L, P): attention weights, or logits where `logits` is set
  Typed references;           // fused form: (B, Q, L, 2 or 4)
  int64_t reference_dim = 0;  // 2 or 4; 0 for the classic form
  bool logits = false;
};

// Where the tokens of one batch element and head lie: token t at data + t * stride elements.
struct Tokens {
  void* data;
  int64_t stride;
};

// Which batch element, head and (backward only) level.
struct Unit {
  int64_t b, m, l;
};

// Gradients of `Sampling`'s members.
struct SamplingGrads {
  Typed places, weights, references;
};

// One instruction set's kernels, by the kind of `value`. Sums run in fp64 for fp64 and in fp32 for the others:
// that type is called Acc, and the scratch holds Acc.
struct Kernels {
  // Bytes of scratch that each of the functions below needs for itself.
  int64_t (*scratch_bytes)(const Shape&);
  // Output of queries [begin, end); `out` is the whole (B, Q, M, D).
  void (*forward[kKinds])(const Shape&, const Sampling&, Unit, Tokens value, void* out, int64_t begin, int64_t end,
                          void* scratch);
  // One level of one head. Adds to `sums`, the value's gradient in Acc and in the order of `unpack`, and sets the
  // unit's part of `grads`; no other unit writes to either. Fused form: grads.places per pixel, for `finish_fused`.
  void (*backward[kKinds])(const Shape&, const Sampling&, Unit, Tokens value, const void* grad_out, Tokens sums,
                           const SamplingGrads& grads, void* scratch);
  // From sums (M, S, D) of batch element b, tokens [begin, end), to the value's gradient (B, S, M, D).
  void (*unpack[kKinds])(const Shape&, const void* sums, void* grad_value, int64_t b, int64_t begin, int64_t end);
  // Fused form, rows [begin, end) of B * Q, by the kind of Acc: probabilities (B, Q, M, L, P) of the logits ...
  void (*softmax[2])(const Shape&, const Sampling&, Typed probabilities, int64_t begin, int64_t end);
  // ... and the chain from the units' results (per pixel, per probability) to offsets, logits and references.
  void (*finish_fused[2])(const Shape&, const Sampling&, const SamplingGrads& raw, Typed probabilities,
                          const SamplingGrads& result, int64_t begin, int64_t end, void* scratch);
};

extern const Kernels kKernelsPlain;
#if defined(__x86_64__)
extern const Kernels kKernelsAvx2;
#endif

}  // namespace ddetr_ops
