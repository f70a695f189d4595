// The operators on the GPU: checks, memory, and one or two kernels on PyTorch's current stream.
//
// Shapes and starts stay on the GPU: nothing here waits for it. What only their values could tell, the kernels
// answer with NaN (points.h, prepare).
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "device.h"
#include "problem.h"

namespace ddetr_ops {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kIntLimit = std::numeric_limits<int32_t>::max();

// The tensors of a call, contiguous and checked against each other.
struct Call {
  Tensor value, shapes, starts, where, how_much, reference;
  int64_t batch, tokens, heads, channels, queries, levels, points, reference_size;
  ScalarType dtype, wide;
  bool points_are_wide;

  // Neither something to read nor something to write.
  bool is_empty() const { return batch * queries * heads * channels == 0 || tokens == 0 || levels * points == 0; }
};

void require_here(const Tensor& tensor, const char* name, const Tensor& value) {
  require(is_on_device(tensor) && tensor.get_device_index() == value.get_device_index(), name,
          " must be on the same GPU as value");
}

Tensor checked(const Tensor& tensor, const char* name, const Tensor& value, ScalarType dtype) {
  require_here(tensor, name, value);
  require(tensor.scalar_type() == dtype, name, " must be ", torch::headeronly::toString(dtype), ", got ",
          torch::headeronly::toString(tensor.scalar_type()));
  return torch::stable::contiguous(tensor);
}

void require_below(int64_t number, int64_t limit, const char* what) {
  require(number <= limit, what, " = ", number, " is more than ", limit, ", which the GPU kernels do not do");
}

void check_limits(const Call& c) {
  require_below(c.tokens, kIntLimit, "tokens");
  require_below(c.queries * c.points, kIntLimit, "queries * points");
  require_below(c.queries, kIntLimit / 4, "queries");
  require_below(c.batch * c.heads, kIntLimit, "batch * heads");
  require_below(c.levels * c.points, kIntLimit / 4, "levels * points");
  require_below(c.heads * c.channels, int64_t(1) << 28, "heads * channels");  // bytes of a row fit 32 bits
}

Call check(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& where,
           const Tensor& how_much, const Tensor* reference) {
  const char* where_name = reference ? "sampling_offsets" : "sampling_locations";
  const char* how_much_name = reference ? "attention_logits" : "attention_weights";
  Call c;
  require(value.dim() == 4, "value must have the shape (B, S, M, D), got ", sizes_of(value));
  require(is_on_device(value), "value must be on a GPU");
  c.dtype = value.scalar_type();
  require(c.dtype == ScalarType::Float || c.dtype == ScalarType::Double || c.dtype == ScalarType::Half ||
              c.dtype == ScalarType::BFloat16,
          "value must be float32, float64, bfloat16 or float16, got ", torch::headeronly::toString(c.dtype));
  c.wide = c.dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  c.batch = value.size(0), c.tokens = value.size(1), c.heads = value.size(2), c.channels = value.size(3);
  require(spatial_shapes.dim() == 2, "spatial_shapes must have the shape (L, 2), got ", sizes_of(spatial_shapes));
  c.levels = spatial_shapes.size(0);
  require_sizes(spatial_shapes, "spatial_shapes", "(L, 2)", {c.levels, 2});
  require_sizes(level_start_index, "level_start_index", "(L,)", {c.levels});
  require(where.dim() == 6, where_name, " must have the shape (B, Q, M, L, P, 2), got ", sizes_of(where));
  c.queries = where.size(1), c.points = where.size(4);
  require_sizes(where, where_name, "(B, Q, M, L, P, 2)", {c.batch, c.queries, c.heads, c.levels, c.points, 2});
  if (reference) {
    require_sizes(how_much, how_much_name, "(B, Q, M, L * P)", {c.batch, c.queries, c.heads, c.levels * c.points});
    c.reference_size = reference->dim() == 4 ? reference->size(3) : 0;
    require(c.reference_size == 2 || c.reference_size == 4,
            "reference_points must have the shape (B, Q, L, 2 or 4), got ", sizes_of(*reference));
    require_sizes(*reference, "reference_points", "(B, Q, L, 2 or 4)",
                  {c.batch, c.queries, c.levels, c.reference_size});
    c.reference = checked(*reference, "reference_points", value, c.wide);
  } else {
    require_sizes(how_much, how_much_name, "(B, Q, M, L, P)", {c.batch, c.queries, c.heads, c.levels, c.points});
    c.reference_size = 0;
  }
  check_limits(c);
  const ScalarType fine = where.scalar_type();
  require(fine == c.dtype || fine == c.wide, where_name, " is ", torch::headeronly::toString(fine),
          ", but with a value of ", torch::headeronly::toString(c.dtype), " it must have that dtype or ",
          torch::headeronly::toString(c.wide));
  c.points_are_wide = fine == c.wide;
  c.value = checked(value, "value", value, c.dtype);
  c.shapes = checked(spatial_shapes, "spatial_shapes", value, ScalarType::Long);
  c.starts = checked(level_start_index, "level_start_index", value, ScalarType::Long);
  c.where = checked(where, where_name, value, fine);
  c.how_much = checked(how_much, how_much_name, value, fine);
  return c;
}

template <typename T>
Problem<T> problem_of(const Call& c) {
  using A = wide_t<T>;
  Problem<T> p{};
  p.value = static_cast<const T*>(c.value.const_data_ptr());
  p.shapes = static_cast<const int64_t*>(c.shapes.const_data_ptr());
  p.starts = static_cast<const int64_t*>(c.starts.const_data_ptr());
  if (c.reference_size) p.reference = static_cast<const A*>(c.reference.const_data_ptr());
  p.where = c.where.const_data_ptr();
  p.how_much = c.how_much.const_data_ptr();
  p.batch = int32_t(c.batch), p.tokens = int32_t(c.tokens), p.queries = int32_t(c.queries);
  p.heads = int32_t(c.heads), p.channels = int32_t(c.channels);
  p.levels = int32_t(c.levels), p.points = int32_t(c.points);
  p.value_row = uint32_t(c.heads * c.channels * sizeof(T));
  p.grad_row = uint32_t(c.heads * c.channels * sizeof(A));
  p.reference_size = int32_t(c.reference_size);
  p.points_are_wide = c.points_are_wide;
  return p;
}

// Calls `run` with an element type's Problem, by the dtype of value.
template <typename Run>
void with_problem(const Call& c, const Run& run) {
  const DeviceScope scope(c.value);
  const char* error = nullptr;
  switch (c.dtype) {
    case ScalarType::Float: error = run(problem_of<float>(c), scope.stream()); break;
    case ScalarType::Double: error = run(problem_of<double>(c), scope.stream()); break;
    case ScalarType::Half: error = run(problem_of<Half>(c), scope.stream()); break;
    default: error = run(problem_of<BFloat16>(c), scope.stream()); break;
  }
  require(!error, "the GPU kernel did not start: ", error ? error : "");
}

Tensor forward(const Call& c) {
  const std::vector<int64_t> sizes{c.batch, c.queries, c.heads * c.channels};
  if (c.is_empty()) return torch::stable::new_zeros(c.value, sizes);
  Tensor output = torch::stable::new_empty(c.value, sizes);
  with_problem(c, [&](auto problem, void* stream) {
    problem.output = static_cast<decltype(problem.output)>(output.mutable_data_ptr());
    return launch_forward(problem, stream);
  });
  return output;
}

struct Gradients {
  Tensor value, reference, where, how_much;
};

Gradients backward(const Call& c, const Tensor& grad_output, bool deterministic) {
  require_sizes(grad_output, "grad_output", "(B, Q, M * D)", {c.batch, c.queries, c.heads * c.channels});
  const Tensor grad = checked(grad_output, "grad_output", c.value, c.dtype);
  const auto zeros = [&](const Tensor& like, const std::vector<int64_t>& sizes) {
    return torch::stable::new_zeros(like, sizes, c.wide);
  };
  // Sums run in the wide type: a coarse level's token gets thousands of shares.
  Tensor grad_value = zeros(c.value, {c.batch, c.tokens, c.heads, c.channels});
  Tensor grad_reference;  // one share per head, summed below
  if (c.reference_size) grad_reference = zeros(c.value, {c.batch, c.queries, c.heads, c.levels, c.reference_size});
  const bool empty = c.is_empty();
  const auto like = [empty](const Tensor& tensor) {
    return empty ? torch::stable::new_zeros(tensor, tensor.sizes()) : torch::stable::empty_like(tensor);
  };
  Tensor grad_where = like(c.where), grad_how_much = like(c.how_much);
  if (!empty) {
    Tensor trail;
    if (deterministic)
      trail = torch::stable::new_empty(c.value, {c.batch, c.heads, c.levels, c.queries, c.points, 3}, c.wide);
    with_problem(c, [&](auto problem, void* stream) {
      using A = typename decltype(problem)::A;
      problem.grad_output = static_cast<decltype(problem.grad_output)>(grad.const_data_ptr());
      problem.grad_value = static_cast<A*>(grad_value.mutable_data_ptr());
      problem.grad_where = grad_where.mutable_data_ptr();
      problem.grad_how_much = grad_how_much.mutable_data_ptr();
      if (c.reference_size) problem.grad_reference = static_cast<A*>(grad_reference.mutable_data_ptr());
      if (deterministic) problem.trail = static_cast<A*>(trail.mutable_data_ptr());
      return launch_backward(problem, stream);
    });
  }
  if (c.dtype != c.wide) grad_value = torch::stable::to(grad_value, c.dtype);
  if (c.reference_size) {
    const std::vector<int64_t> heads{2};
    grad_reference = torch::stable::sum(grad_reference, heads);
  }
  return {grad_value, grad_reference, grad_where, grad_how_much};
}

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

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(const Tensor& value, const Tensor& spatial_shapes,
                                                           const Tensor& level_start_index,
                                                           const Tensor& sampling_locations,
                                                           const Tensor& attention_weights, const Tensor& grad_output,
                                                           bool deterministic) {
  const Gradients grads =
      backward(check(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, nullptr),
               grad_output, deterministic);
  return {grads.value, grads.where, grads.how_much};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, const Tensor& grad_output, bool deterministic) {
  const Gradients grads =
      backward(check(value, spatial_shapes, level_start_index, sampling_offsets, attention_logits, &reference_points),
               grad_output, deterministic);
  return {grads.value, grads.reference, grads.where, grads.how_much};
}

}  // namespace
}  // namespace ddetr_ops

#if !defined(DDETR_OPS_EMULATED_GPU)
STABLE_TORCH_LIBRARY_IMPL(ddetr_ops, CUDA, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_forward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_backward));
}
#endif
