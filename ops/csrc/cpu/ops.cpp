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
#include "run.h"

namespace ddetr_ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType kind_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: break;
  }
  require(false, name, " must be float32, float64, bfloat16 or float16, got ",
          torch::headeronly::toString(tensor.scalar_type()));
  return DType::f32;
}

Array typed(const Tensor& tensor, const char* name) { return {tensor.data_ptr(), kind_of(tensor, name)}; }

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

std::vector<Level> read_levels(const Tensor& spatial_shapes, const Tensor& level_start_index, int64_t tokens, int64_t points) {
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
    levels.push_back({next, height, width, points, points * int64_t(l)});
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
  Array value_typed;
  const char *places_name, *weights_name;

  bool fused() const { return sampling.reference_dim != 0; }
  DType acc() const { return value_typed.dtype == DType::f64 ? DType::f64 : DType::f32; }
  ScalarType acc_dtype() const { return acc() == DType::f64 ? ScalarType::Double : ScalarType::Float; }
  int64_t acc_bytes() const { return acc() == DType::f64 ? 8 : 4; }
  int kind() const { return int(value_typed.dtype); }
  int acc_index() const { return acc() == DType::f64; }
};

void require_same_precision(const Call& call, const Tensor& tensor, const char* name) {
  const DType kind = kind_of(tensor, name);
  require(kind == call.value_typed.dtype || kind == call.acc(), name, " is ",
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
  call.levels = read_levels(spatial_shapes, level_start_index, value.size(1), points);

  call.value = torch::stable::contiguous(value);
  call.value_typed = typed(call.value, "value");
  call.places = torch::stable::contiguous(places);
  call.weights = torch::stable::contiguous(weights);
  require_same_precision(call, places, call.places_name);
  require_same_precision(call, weights, call.weights_name);
  call.sampling.locations = typed(call.places, call.places_name);
  call.sampling.weights = typed(call.weights, call.weights_name);
  if (references) {
    require_same_precision(call, *references, "reference_points");
    call.references = torch::stable::contiguous(*references);
    call.sampling.references = typed(call.references, "reference_points");
    call.sampling.reference_dim = references->size(3);
  }
  call.shape = {batch, value.size(1), heads, value.size(3), queries, levels, levels * points, call.levels.data()};
  return call;
}

Tensor forward(const Call& call) {
  const Shape& s = call.shape;
  Tensor out = torch::stable::new_empty(call.value, {s.batch, s.queries, s.heads * s.channels});
  run_forward(s, call.sampling, call.value_typed, out.data_ptr());
  return out;
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
  run_backward(call.shape, call.sampling, call.value_typed, grad_out.data_ptr(), typed(grad_value, "value"),
               {typed(grad_places, "locations"), typed(grad_weights, "weights"), {}});
  return {grad_value, grad_places, grad_weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, const Tensor& grad_output, bool /*deterministic*/) {
  const Call call =
      check(value, spatial_shapes, level_start_index, sampling_offsets, attention_logits, &reference_points);
  const Tensor grad_out = checked_grad_output(call, grad_output);
  Tensor grad_value = empty_as(call.value), grad_offsets = empty_as(call.places);
  Tensor grad_logits = empty_as(call.weights), grad_references = empty_as(call.references);
  run_backward(call.shape, call.sampling, call.value_typed, grad_out.data_ptr(), typed(grad_value, "value"),
               {typed(grad_offsets, "offsets"), typed(grad_logits, "logits"),
                typed(grad_references, "reference_points")});
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
