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

#include "../checks.h"
#include "problem.h"

namespace ddetr_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Kind kind_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Kind::f32;
    case ScalarType::Double: return Kind::f64;
    case ScalarType::BFloat16: return Kind::bf16;
    case ScalarType::Half: return Kind::f16;
    default: break;
  }
  require(false, name, " must be float32, float64, bfloat16 or float16, got ",
          torch::headeronly::toString(tensor.scalar_type()));
  return Kind::f32;
}

Typed typed(const Tensor& tensor, const char* name) { return {tensor.data_ptr(), kind_of(tensor, name)}; }

std::vector<int64_t> integers(const Tensor& tensor, const char* name) {
  const bool wide = tensor.scalar_type() == ScalarType::Long;
  require(wide || tensor.scalar_type() == ScalarType::Int, name, " must be int64 or int32, got ",
          torch::headeronly::toString(tensor.scalar_type()));
  require(tensor.is_cpu(), name, " must be on the CPU with the value");
  const Tensor dense = torch::stable::contiguous(tensor);
  std::vector<int64_t> result(size_t(dense.numel()));
  for (size_t i = 0; i < result.size(); ++i) {
    result[i] = wide ? static_cast<const int64_t*>(dense.data_ptr())[i] : static_cast<const int32_t*>(dense.data_ptr())[i];
  }
  return result;
}

std::vector<Level> read_levels(const Tensor& spatial_shapes, const Tensor& level_start_index, int64_t tokens) {
  require(spatial_shapes.dim() == 2 && spatial_shapes.size(1) == 2, "spatial_shapes must have the shape (L, 2), got ",
          sizes_of(spatial_shapes));
  require(level_start_index.dim() == 1 && level_start_index.size(0) == spatial_shapes.size(0),
          "level_start_index must have one entry for each of the ", spatial_shapes.size(0), " levels, got the shape ",
          sizes_of(level_start_index));
  const std::vector<int64_t> shapes = integers(spatial_shapes, "spatial_shapes");
  const std::vector<int64_t> starts = integers(level_start_index, "level_start_index");
  std::vector<Level> levels;
  int64_t next = 0;
  for (size_t l = 0; l < starts.size(); ++l) {
    const int64_t height = shapes[2 * l], width = shapes[2 * l + 1];
    require(height >= 0 && width >= 0 && (width == 0 || height <= std::numeric_limits<int32_t>::max() / width),
            "spatial_shapes[", l, "] = (", height, ", ", width, ") is not the size of a map");
    require(starts[l] == next, "level_start_index[", l, "] must be ", next, ", the number of tokens before level ", l,
            ", got ", starts[l]);
    levels.push_back({next, height, width});
    next += height * width;
  }
  require(next == tokens, "spatial_shapes describe ", next, " tokens, but value has ", tokens);
  require(tokens <= std::numeric_limits<int32_t>::max(), "value has ", tokens, " tokens, more than 2^31 - 1");
  return levels;
}

// All that a call needs, checked; keeps the tensors that the plain structs point into.
struct Call {
  Tensor value, places, weights, references;
  std::vector<Level> levels;
  Shape shape;
  Sampling sampling;
  Typed value_typed;
  const char *places_name, *weights_name;

  bool fused() const { return sampling.reference_dim != 0; }
  Kind acc() const { return value_typed.kind == Kind::f64 ? Kind::f64 : Kind::f32; }
  ScalarType acc_dtype() const { return acc() == Kind::f64 ? ScalarType::Double : ScalarType::Float; }
  int64_t acc_bytes() const { return acc() == Kind::f64 ? 8 : 4; }
  int kind() const { return int(value_typed.kind); }
  int acc_index() const { return acc() == Kind::f64; }
};

void require_same_precision(const Call& call, const Tensor& tensor, const char* name) {
  const Kind kind = kind_of(tensor, name);
  require(kind == call.value_typed.kind || kind == call.acc(), name, " is ",
          torch::headeronly::toString(tensor.scalar_type()), ", but with a value of ",
          torch::headeronly::toString(call.value.scalar_type()), " it must have that dtype or ",
          torch::headeronly::toString(call.acc_dtype()));
  require(tensor.is_cpu(), name, " must be on the CPU with the value");
}

Call check(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& places,
           const Tensor& weights, const Tensor* references) {
  Call call;
  call.places_name = references ? "sampling_offsets" : "sampling_locations";
  call.weights_name = references ? "attention_logits" : "attention_weights";
  require(value.dim() == 4, "value must have the shape (B, S, M, D), got ", sizes_of(value));
  require(value.is_cpu(), "value must be on the CPU");
  require(places.dim() == 6 && places.size(5) == 2, call.places_name, " must have the shape (B, Q, M, L, P, 2), got ",
          sizes_of(places));
  const int64_t batch = value.size(0), heads = value.size(2), levels = spatial_shapes.dim() ? spatial_shapes.size(0) : 0;
  const int64_t queries = places.size(1), points = places.size(4);
  require_sizes(places, call.places_name, "(B, Q, M, L, P, 2)", {batch, queries, heads, levels, points, 2});
  if (references) {
    require_sizes(weights, call.weights_name, "(B, Q, M, L * P)", {batch, queries, heads, levels * points});
    const int64_t dim = references->dim() == 4 ? references->size(3) : 0;
    require(dim == 2 || dim == 4, "reference_points must have the shape (B, Q, L, 2 or 4), got ", sizes_of(*references));
    require_sizes(*references, "reference_points", "(B, Q, L, 2 or 4)", {batch, queries, levels, dim});
  } else {
    require_sizes(weights, call.weights_name, "(B, Q, M, L, P)", {batch, queries, heads, levels, points});
  }
  require(heads * levels * points <= (int64_t(1) << 24), heads * levels * points,
          " sampling points a query are more than 2^24");
  call.levels = read_levels(spatial_shapes, level_start_index, value.size(1));

  call.value = torch::stable::contiguous(value);
  call.value_typed = typed(call.value, "value");
  call.places = torch::stable::contiguous(places);
  call.weights = torch::stable::contiguous(weights);
  require_same_precision(call, places, call.places_name);
  require_same_precision(call, weights, call.weights_name);
  call.sampling.places = typed(call.places, call.places_name);
  call.sampling.weights = typed(call.weights, call.weights_name);
  if (references) {
    require_same_precision(call, *references, "reference_points");
    call.references = torch::stable::contiguous(*references);
    call.sampling.references = typed(call.references, "reference_points");
    call.sampling.reference_dim = references->size(3);
    call.sampling.logits = true;
  }
  call.shape = {batch, value.size(1), heads, value.size(3), queries, levels, points, call.levels.data()};
  return call;
}

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
  Tensor out = torch::stable::new_empty(call.value, {s.batch, s.queries, s.heads * s.channels});
  const Kernels& k = kernels();
  const int64_t bytes = int64_t(call.value.element_size());
  const bool packs = worth_packing(s);
  const Scratch packed(packs ? s.tokens * s.heads * s.channels * bytes : 0);
  // A few pieces for each thread, but none so small that its start would show.
  const int64_t by_work = s.queries * s.levels * s.points * (16 + 4 * s.channels) / 65536;
  const int64_t by_threads = 4 * int64_t(torch::stable::get_num_threads()) / std::max<int64_t>(s.heads, 1);
  const int64_t pieces = std::max<int64_t>(1, std::min(by_work, by_threads));
  // Batch elements one after the other where they share the packed memory, else all at once.
  for (int64_t b0 = 0; b0 < s.batch; b0 += packs ? 1 : s.batch) {
    if (packs) pack(s, call.value_typed, bytes, b0, packed.get());
    const int64_t tasks = (packs ? 1 : s.batch) * s.heads * pieces;
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      const Scratch scratch(k.scratch_bytes(s));
      for (int64_t task = begin; task < end; ++task) {
        const Unit unit{b0 + task / pieces / s.heads, task / pieces % s.heads, 0};
        const int64_t piece = task % pieces;
        const Tokens value = packs ? in_packed(s, packed.get(), bytes, unit.m)
                                   : in_place(s, call.value_typed.data, bytes, unit.b, unit.m);
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
  const int64_t bytes = int64_t(call.value.element_size()), acc_bytes = call.acc_bytes();
  const int64_t elements = s.tokens * s.heads * s.channels, units = s.heads * s.levels;
  const bool packs = worth_packing(s), sums_apart = packs || bytes != acc_bytes;
  const Scratch packed(packs ? elements * bytes : 0), sums(sums_apart ? elements * acc_bytes : 0);
  for (int64_t b = 0; b < s.batch; ++b) {
    if (packs) pack(s, call.value_typed, bytes, b, packed.get());
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
                                   : in_place(s, call.value_typed.data, bytes, b, unit.m);
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

Tensor checked_grad_output(const Call& call, const Tensor& grad_output) {
  const Shape& s = call.shape;
  require_sizes(grad_output, "grad_output", "(B, Q, M * D)", {s.batch, s.queries, s.heads * s.channels});
  require(grad_output.scalar_type() == call.value.scalar_type(), "grad_output is ",
          torch::headeronly::toString(grad_output.scalar_type()), ", value is ",
          torch::headeronly::toString(call.value.scalar_type()));
  require(grad_output.is_cpu(), "grad_output must be on the CPU with the value");
  return torch::stable::contiguous(grad_output);
}

Tensor empty_as(const Tensor& tensor) { return torch::stable::new_empty(tensor, tensor.sizes()); }

Tensor ms_deform_attn_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                              const Tensor& sampling_locations, const Tensor& attention_weights) {
  return forward(check(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, nullptr));
}

Tensor ms_deform_attn_fused_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                                    const Tensor& reference_points, const Tensor& sampling_offsets,
                                    const Tensor& attention_logits) {
  return forward(
      check(value, spatial_shapes, level_start_index, sampling_offsets, attention_logits, &reference_points));
}

// `deterministic` says nothing new here: the CPU's sums always run in the same order.
std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& value, const Tensor& spatial_shapes,
                                                           const Tensor& level_start_index,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights, const Tensor& grad_output,
                                                           bool /*deterministic*/) {
  const Call call =
      check(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, nullptr);
  const Tensor grad_out = checked_grad_output(call, grad_output);
  Tensor grad_value = empty_as(call.value), grad_places = empty_as(call.places), grad_weights = empty_as(call.weights);
  const SamplingGrads grads{typed(grad_places, "locations"), typed(grad_weights, "weights"), {}};
  run_backward(call, call.sampling, grad_out, grad_value, grads);
  return {grad_value, grad_places, grad_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, const Tensor& grad_output, bool /*deterministic*/) {
  const Call call =
      check(value, spatial_shapes, level_start_index, sampling_offsets, attention_logits, &reference_points);
  const Shape& s = call.shape;
  const Kernels& k = kernels();
  const Tensor grad_out = checked_grad_output(call, grad_output);
  const auto in_acc = [&](const Tensor& like) {
    return torch::stable::new_empty(like, like.sizes(), call.acc_dtype());
  };
  Tensor grad_value = empty_as(call.value), grad_offsets = empty_as(call.places);
  Tensor grad_logits = empty_as(call.weights), grad_references = empty_as(call.references);
  const SamplingGrads result{typed(grad_offsets, "offsets"), typed(grad_logits, "logits"),
                             typed(grad_references, "reference_points")};

  const Tensor probabilities = in_acc(call.weights);
  Sampling sampling = call.sampling;  // with the softmax done
  sampling.weights = typed(probabilities, "probabilities");
  sampling.logits = false;
  torch::stable::parallel_for(0, s.batch * s.queries, 256, [&](int64_t begin, int64_t end) {
    k.softmax[call.acc_index()](s, call.sampling, sampling.weights, begin, end);
  });

  // The units leave their results in the results' own memory where the dtype allows it.
  const Tensor raw_places = result.places.kind == call.acc() ? grad_offsets : in_acc(call.places);
  const Tensor raw_weights = result.weights.kind == call.acc() ? grad_logits : in_acc(call.weights);
  const SamplingGrads raw{typed(raw_places, "offsets"), typed(raw_weights, "logits"), {}};
  run_backward(call, sampling, grad_out, grad_value, raw);

  torch::stable::parallel_for(0, s.batch * s.queries, 64, [&](int64_t begin, int64_t end) {
    const Scratch scratch(k.scratch_bytes(s));
    k.finish_fused[call.acc_index()](s, call.sampling, raw, sampling.weights, result, begin, end, scratch.get());
  });
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
