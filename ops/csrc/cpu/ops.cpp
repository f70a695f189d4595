// The operators on the CPU: checks, memory, and the work shared out among PyTorch's threads.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "../arguments.h"
#include "problem.h"

namespace ddetr_ops {
namespace {

Kind kind_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return Kind::f64;
    case ScalarType::BFloat16: return Kind::bf16;
    case ScalarType::Half: return Kind::f16;
    default: return Kind::f32;  // check_arguments lets nothing else through
  }
}

Typed typed(const Tensor& tensor) { return {tensor.data_ptr(), kind_of(tensor.scalar_type())}; }

int64_t index_at(const Tensor& indices, int64_t i) {
  return indices.scalar_type() == ScalarType::Long ? static_cast<const int64_t*>(indices.data_ptr())[i]
                                                   : static_cast<const int32_t*>(indices.data_ptr())[i];
}

// The levels, which must fill the tokens of `value` without a gap.
std::vector<Level> check_levels(const Arguments& a) {
  std::vector<Level> levels;
  int64_t next = 0;
  for (int64_t l = 0; l < a.levels; ++l) {
    const int64_t height = index_at(a.spatial_shapes, 2 * l), width = index_at(a.spatial_shapes, 2 * l + 1);
    DDETR_CHECK(height >= 0 && width >= 0 && (width == 0 || height <= std::numeric_limits<int32_t>::max() / width),
                "spatial_shapes[", l, "] = (", height, ", ", width, ") is not the size of a map");
    DDETR_CHECK(index_at(a.level_start_index, l) == next, "level_start_index[", l, "] must be ", next,
                ", the number of tokens before level ", l, ", got ", index_at(a.level_start_index, l));
    levels.push_back({next, height, width});
    next += height * width;
  }
  DDETR_CHECK(next == a.tokens, "spatial_shapes describe ", next, " tokens, but value has ", a.tokens);
  DDETR_CHECK(a.tokens <= std::numeric_limits<int32_t>::max(), "value has ", a.tokens, " tokens, more than 2^31 - 1");
  DDETR_CHECK(a.heads * a.points <= (int64_t(1) << 24), a.heads * a.points,
              " sampling points per query are more than 2^24");
  return levels;
}

// A checked call as the kernels take it; keeps the tensors that the plain structs point into.
struct Call {
  Arguments arguments;
  std::vector<Level> levels;
  Shape shape;
  Sampling sampling;
  Typed value;

  explicit Call(Arguments checked) : arguments(std::move(checked)), levels(check_levels(arguments)) {
    const Arguments& a = arguments;
    const int64_t points = a.num_points.empty() ? 0 : a.num_points[0];
    for (const int64_t n : a.num_points) DDETR_CHECK(n == points, "num_points differ");
    shape = {a.batch, a.tokens, a.heads, a.channels, a.queries, a.levels, points, levels.data()};
    value = typed(a.value);
    sampling.places = typed(a.locations);
    sampling.weights = typed(a.weights);
    if (a.fused()) sampling.references = typed(a.reference_points);
    sampling.reference_dim = a.reference_dim;
    sampling.logits = a.fused();
  }

  int kind() const { return int(value.kind); }
  Kind acc() const { return kind_of(arguments.acc_dtype); }
  int acc_index() const { return acc() == Kind::f64; }
  int64_t acc_bytes() const { return acc() == Kind::f64 ? 8 : 4; }
};

// The kernels of this machine; DDETR_OPS_ISA=plain asks for those of every machine, for tests. Registers of 512 bits
// were tried: on a Zen 4 they made the forward a fifth slower and the backward almost twice.
const Kernels& kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
#if defined(__x86_64__)
    const char* wish = std::getenv("DDETR_OPS_ISA");
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && std::string(wish ? wish : "") != "plain") return kKernelsAvx2;
#endif
    return kKernelsPlain;
  }();
  return chosen;
}

// Uninitialised memory on a cache line's border.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : memory_(new char[size_t(bytes) + 64]) {}
  void* get() const {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t(63));
  }

 private:
  std::unique_ptr<char[]> memory_;
};

// Tokens of batch element b and head m in a tensor (B, S, M, D) of elements of so many bytes.
Tokens in_place(const Shape& s, void* data, int64_t bytes, int64_t b, int64_t m) {
  const int64_t first = (b * s.tokens * s.heads + m) * s.channels;
  return {static_cast<char*>(data) + first * bytes, s.heads * s.channels};
}
// The same in one batch element's (M, S, D).
Tokens in_packed(const Shape& s, void* data, int64_t bytes, int64_t m) {
  return {static_cast<char*>(data) + m * s.tokens * s.channels * bytes, s.channels};
}

// A head's tokens lie M * D elements apart, which leaves most of the cache's sets unused. Where every token is
// going to be read several times, it pays to copy each head's together first, a batch element at a time.
bool worth_packing(const Shape& s) { return s.heads > 1 && s.queries * s.levels * s.points >= s.tokens; }

void pack(const Shape& s, const Typed& value, int64_t bytes, int64_t b, void* packed) {
  const size_t row = size_t(s.channels * bytes);
  torch::stable::parallel_for(0, s.tokens, 1024, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const char* from = static_cast<const char*>(value.data) + (b * s.tokens + t) * s.heads * int64_t(row);
      for (int64_t m = 0; m < s.heads; ++m) {
        memcpy(static_cast<char*>(packed) + (m * s.tokens + t) * int64_t(row), from + m * int64_t(row), row);
      }
    }
  });
}

Tensor forward(const Call& call) {
  const Shape& s = call.shape;
  Tensor out = torch::stable::new_empty(call.arguments.value, {s.batch, s.queries, s.heads * s.channels});
  const Kernels& k = kernels();
  const int64_t bytes = int64_t(call.arguments.value.element_size());
  const bool packs = worth_packing(s);
  const Scratch packed(packs ? s.tokens * s.heads * s.channels * bytes : 0);
  // A few pieces for each thread, but none so small that its start would show.
  const int64_t by_work = s.queries * s.levels * s.points * (16 + 4 * s.channels) / 65536;
  const int64_t by_threads = 4 * int64_t(torch::stable::get_num_threads()) / std::max<int64_t>(s.heads, 1);
  const int64_t pieces = std::max<int64_t>(1, std::min(by_work, by_threads));
  // Batch elements one after the other where they share the packed memory, else all at once.
  for (int64_t b0 = 0; b0 < s.batch; b0 += packs ? 1 : s.batch) {
    if (packs) pack(s, call.value, bytes, b0, packed.get());
    const int64_t tasks = (packs ? 1 : s.batch) * s.heads * pieces;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      const Scratch scratch(k.scratch_bytes(s));
      for (int64_t task = begin; task < end; ++task) {
        const Unit unit{b0 + task / pieces / s.heads, task / pieces % s.heads, 0};
        const int64_t piece = task % pieces;
        const Tokens value = packs ? in_packed(s, packed.get(), bytes, unit.m)
                                   : in_place(s, call.value.data, bytes, unit.b, unit.m);
        k.forward[call.kind()](s, call.sampling, unit, value, out.data_ptr(), s.queries * piece / pieces,
                               s.queries * (piece + 1) / pieces, scratch.get());
      }
    });
  }
  return out;
}

// The units of all batch elements, and the value's gradient from their sums.
void run_backward(const Call& call, const Sampling& sampling, const Tensor& grad_out, const Tensor& grad_value,
                  const SamplingGrads& grads) {
  const Shape& s = call.shape;
  const Kernels& k = kernels();
  const int64_t bytes = int64_t(call.arguments.value.element_size()), acc_bytes = call.acc_bytes();
  const int64_t elements = s.tokens * s.heads * s.channels, units = s.heads * s.levels;
  const bool packs = worth_packing(s), sums_apart = packs || bytes != acc_bytes;
  const Scratch packed(packs ? elements * bytes : 0), sums(sums_apart ? elements * acc_bytes : 0);
  for (int64_t b = 0; b < s.batch; ++b) {
    if (packs) pack(s, call.value, bytes, b, packed.get());
    char* to_zero = sums_apart ? static_cast<char*>(sums.get())
                               : static_cast<char*>(grad_value.data_ptr()) + b * elements * acc_bytes;
    torch::stable::parallel_for(0, elements, 1 << 18, [&](int64_t begin, int64_t end) {
      memset(to_zero + begin * acc_bytes, 0, size_t((end - begin) * acc_bytes));
    });
    torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
      const Scratch scratch(k.scratch_bytes(s));
      for (int64_t i = begin; i < end; ++i) {
        const Unit unit{b, i / s.levels, i % s.levels};
        const Tokens value = packs ? in_packed(s, packed.get(), bytes, unit.m)
                                   : in_place(s, call.value.data, bytes, b, unit.m);
        const Tokens unit_sums = sums_apart ? in_packed(s, sums.get(), acc_bytes, unit.m)
                                            : in_place(s, grad_value.data_ptr(), acc_bytes, b, unit.m);
        k.backward[call.kind()](s, sampling, unit, value, grad_out.data_ptr(), unit_sums, grads, scratch.get());
      }
    });
    if (!sums_apart) continue;
    torch::stable::parallel_for(0, s.tokens, 1024, [&](int64_t begin, int64_t end) {
      k.unpack[call.kind()](s, sums.get(), grad_value.data_ptr(), b, begin, end);
    });
  }
}

Tensor empty_as(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }
Tensor empty_as(const Tensor& tensor, ScalarType dtype) {
  return torch::stable::new_empty(tensor, tensor.sizes(), dtype);
}
Tensor not_asked_for(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

Tensor ms_deform_attn_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                              const Tensor& sampling_locations, const Tensor& attention_weights,
                              std::vector<int64_t> num_points) {
  return forward(Call(check_arguments(value, spatial_shapes, level_start_index, nullptr, sampling_locations,
                                      attention_weights, std::move(num_points))));
}

Tensor ms_deform_attn_fused_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                                    const Tensor& reference_points, const Tensor& sampling_offsets,
                                    const Tensor& attention_logits, std::vector<int64_t> num_points) {
  return forward(Call(check_arguments(value, spatial_shapes, level_start_index, &reference_points, sampling_offsets,
                                      attention_logits, std::move(num_points))));
}

// `deterministic` says nothing new here: the CPU's sums always run in the same order.
std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights, const Tensor& grad_output,
    bool /*deterministic*/, std::vector<int64_t> num_points, std::vector<bool> output_mask) {
  const Call call(check_arguments(value, spatial_shapes, level_start_index, nullptr, sampling_locations,
                                  attention_weights, std::move(num_points)));
  const Arguments& a = call.arguments;
  const Tensor grad_out = check_grad_output(a, grad_output);
  const GradMask mask = check_output_mask(output_mask, false);
  Tensor grad_value = empty_as(a.value), grad_locations = empty_as(a.locations), grad_weights = empty_as(a.weights);
  const SamplingGrads grads{typed(grad_locations), typed(grad_weights), {}};
  run_backward(call, call.sampling, grad_out, grad_value, grads);
  if (!mask.value) grad_value = not_asked_for(a.value);
  if (!mask.locations) grad_locations = not_asked_for(a.value);
  if (!mask.weights) grad_weights = not_asked_for(a.value);
  return {grad_value, grad_locations, grad_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, const Tensor& grad_output, bool /*deterministic*/,
    std::vector<int64_t> num_points, std::vector<bool> output_mask) {
  const Call call(check_arguments(value, spatial_shapes, level_start_index, &reference_points, sampling_offsets,
                                  attention_logits, std::move(num_points)));
  const Arguments& a = call.arguments;
  const Shape& s = call.shape;
  const Kernels& k = kernels();
  const Tensor grad_out = check_grad_output(a, grad_output);
  const GradMask mask = check_output_mask(output_mask, true);
  Tensor grad_value = empty_as(a.value), grad_offsets = empty_as(a.locations);
  Tensor grad_logits = empty_as(a.weights), grad_references = empty_as(a.reference_points);
  const SamplingGrads result{typed(grad_offsets), typed(grad_logits), typed(grad_references)};

  const Tensor probabilities = empty_as(a.weights, a.acc_dtype);
  Sampling sampling = call.sampling;  // with the softmax done
  sampling.weights = typed(probabilities);
  sampling.logits = false;
  torch::stable::parallel_for(0, s.batch * s.queries, 256, [&](int64_t begin, int64_t end) {
    k.softmax[call.acc_index()](s, call.sampling, sampling.weights, begin, end);
  });

  // The units leave their results in the results' own memory where the dtype allows it.
  const Tensor raw_locations = result.places.kind == call.acc() ? grad_offsets : empty_as(a.locations, a.acc_dtype);
  const Tensor raw_weights = result.weights.kind == call.acc() ? grad_logits : empty_as(a.weights, a.acc_dtype);
  const SamplingGrads raw{typed(raw_locations), typed(raw_weights), {}};
  run_backward(call, sampling, grad_out, grad_value, raw);

  torch::stable::parallel_for(0, s.batch * s.queries, 64, [&](int64_t begin, int64_t end) {
    const Scratch scratch(k.scratch_bytes(s));
    k.finish_fused[call.acc_index()](s, call.sampling, raw, sampling.weights, result, begin, end, scratch.get());
  });
  if (!mask.value) grad_value = not_asked_for(a.value);
  if (!mask.reference_points) grad_references = not_asked_for(a.value);
  if (!mask.locations) grad_offsets = not_asked_for(a.value);
  if (!mask.weights) grad_logits = not_asked_for(a.value);
  return {grad_value, grad_references, grad_offsets, grad_logits};
}

}  // namespace
}  // namespace ddetr_ops

STABLE_TORCH_LIBRARY_IMPL(ddetr_ops, CPU, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_forward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_backward));
}
