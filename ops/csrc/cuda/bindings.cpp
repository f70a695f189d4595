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

#include "../arguments.h"
#include "device.h"
#include "problem.h"

namespace ddetr_ops {
namespace {

constexpr int64_t kIntLimit = std::numeric_limits<int32_t>::max();

void check_limit(int64_t number, int64_t limit, const char* what) {
  DDETR_CHECK(number <= limit, what, " = ", number, " is more than the ", limit, " that the GPU kernels take");
}

// What the kernels want beyond the checks of every device.
Arguments check_gpu_arguments(Arguments a) {
  DDETR_CHECK(is_on_device(a.value), "value must be on a GPU");
  check_limit(a.tokens, kIntLimit, "tokens");
  check_limit(a.queries * a.points, kIntLimit, "queries * points");
  check_limit(a.queries, kIntLimit / 4, "queries");
  check_limit(a.batch * a.heads, kIntLimit, "batch * heads");
  check_limit(a.points, kIntLimit / 4, "levels * points");
  check_limit(a.heads * a.channels, int64_t(1) << 28, "heads * channels");  // bytes of a row fit 32 bits
  a.spatial_shapes = torch::stable::to(a.spatial_shapes, ScalarType::Long);
  a.level_start_index = torch::stable::to(a.level_start_index, ScalarType::Long);
  return a;
}

template <typename T>
Problem<T> problem_of(const Arguments& c) {
  for (const int64_t points : c.num_points) DDETR_CHECK(points == c.num_points[0], "num_points differ");
  using A = wide_t<T>;
  Problem<T> p{};
  p.value = static_cast<const T*>(c.value.const_data_ptr());
  p.shapes = static_cast<const int64_t*>(c.spatial_shapes.const_data_ptr());
  p.starts = static_cast<const int64_t*>(c.level_start_index.const_data_ptr());
  if (c.fused()) p.reference = static_cast<const A*>(c.reference_points.const_data_ptr());
  p.where = c.locations.const_data_ptr();
  p.how_much = c.weights.const_data_ptr();
  p.batch = int32_t(c.batch), p.tokens = int32_t(c.tokens), p.queries = int32_t(c.queries);
  p.heads = int32_t(c.heads), p.channels = int32_t(c.channels);
  p.levels = int32_t(c.levels), p.points = int32_t(c.num_points.empty() ? 0 : c.num_points[0]);
  p.value_row = uint32_t(c.heads * c.channels * sizeof(T));
  p.grad_row = uint32_t(c.heads * c.channels * sizeof(A));
  p.reference_size = int32_t(c.reference_dim);
  p.points_are_wide = c.points_dtype == c.acc_dtype;
  return p;
}

// Calls `run` with an element type's Problem, by the dtype of value.
template <typename Run>
void with_problem(const Arguments& c, const Run& run) {
  const DeviceScope scope(c.value);
  const char* error = nullptr;
  switch (c.dtype) {
    case ScalarType::Float: error = run(problem_of<float>(c), scope.stream()); break;
    case ScalarType::Double: error = run(problem_of<double>(c), scope.stream()); break;
    case ScalarType::Half: error = run(problem_of<Half>(c), scope.stream()); break;
    default: error = run(problem_of<BFloat16>(c), scope.stream()); break;
  }
  DDETR_CHECK(!error, "the GPU kernel did not start: ", error);
}

Tensor forward(const Arguments& c) {
  const std::vector<int64_t> sizes{c.batch, c.queries, c.heads * c.channels};
  if (c.empty()) return torch::stable::new_zeros(c.value, sizes);
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

Gradients backward(const Arguments& c, const Tensor& grad_output, bool deterministic) {
  const Tensor grad = check_grad_output(c, grad_output);
  const auto zeros = [&](const Tensor& like, const std::vector<int64_t>& sizes) {
    return torch::stable::new_zeros(like, sizes, c.acc_dtype);
  };
  // Sums run in the wide type: a coarse level's token gets thousands of shares.
  Tensor grad_value = zeros(c.value, {c.batch, c.tokens, c.heads, c.channels});
  Tensor grad_reference;  // one share per head, summed below
  if (c.fused()) grad_reference = zeros(c.value, {c.batch, c.queries, c.heads, c.levels, c.reference_dim});
  const bool empty = c.empty();
  const auto like = [empty](const Tensor& tensor) {
    return empty ? torch::stable::new_zeros(tensor, tensor.sizes()) : torch::stable::empty_like(tensor);
  };
  Tensor grad_where = like(c.locations), grad_how_much = like(c.weights);
  if (!empty) {
    Tensor trail;
    if (deterministic)
      trail = torch::stable::new_empty(c.value, {c.batch, c.heads, c.queries, c.points, 3}, c.acc_dtype);
    with_problem(c, [&](auto problem, void* stream) {
      using A = typename decltype(problem)::A;
      problem.grad_output = static_cast<decltype(problem.grad_output)>(grad.const_data_ptr());
      problem.grad_value = static_cast<A*>(grad_value.mutable_data_ptr());
      problem.grad_where = grad_where.mutable_data_ptr();
      problem.grad_how_much = grad_how_much.mutable_data_ptr();
      if (c.fused()) problem.grad_reference = static_cast<A*>(grad_reference.mutable_data_ptr());
      if (deterministic) problem.trail = static_cast<A*>(trail.mutable_data_ptr());
      return launch_backward(problem, stream);
    });
  }
  if (c.dtype != c.acc_dtype) grad_value = torch::stable::to(grad_value, c.dtype);
  if (c.fused()) {
    const std::vector<int64_t> heads{2};
    grad_reference = torch::stable::sum(grad_reference, heads);
  }
  return {grad_value, grad_reference, grad_where, grad_how_much};
}

Gradients masked(Gradients grads, const GradMask& mask) {
  const auto drop = [](Tensor& grad) { grad = torch::stable::new_empty(grad, {0}); };
  if (!mask.value) drop(grads.value);
  if (grads.reference.defined() && !mask.reference_points) drop(grads.reference);
  if (!mask.locations) drop(grads.where);
  if (!mask.weights) drop(grads.how_much);
  return grads;
}

Tensor ms_deform_attn_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                              const Tensor& sampling_locations, const Tensor& attention_weights,
                              std::vector<int64_t> num_points) {
  return forward(check_gpu_arguments(check_arguments(value, spatial_shapes, level_start_index, nullptr,
                                                     sampling_locations, attention_weights, std::move(num_points))));
}

Tensor ms_deform_attn_fused_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                                    const Tensor& reference_points, const Tensor& sampling_offsets,
                                    const Tensor& attention_logits, std::vector<int64_t> num_points) {
  return forward(check_gpu_arguments(check_arguments(value, spatial_shapes, level_start_index, &reference_points,
                                                     sampling_offsets, attention_logits, std::move(num_points))));
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights, const Tensor& grad_output, bool deterministic,
    std::vector<int64_t> num_points, std::vector<bool> output_mask) {
  const GradMask mask = check_output_mask(output_mask, false);
  const Gradients grads = masked(
      backward(check_gpu_arguments(check_arguments(value, spatial_shapes, level_start_index, nullptr,
                                                   sampling_locations, attention_weights, std::move(num_points))),
               grad_output, deterministic),
      mask);
  return {grads.value, grads.where, grads.how_much};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, const Tensor& grad_output, bool deterministic,
    std::vector<int64_t> num_points, std::vector<bool> output_mask) {
  const GradMask mask = check_output_mask(output_mask, true);
  const Gradients grads = masked(
      backward(check_gpu_arguments(check_arguments(value, spatial_shapes, level_start_index, &reference_points,
                                                   sampling_offsets, attention_logits, std::move(num_points))),
               grad_output, deterministic),
      mask);
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
