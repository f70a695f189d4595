// The operators on the CPU: checks, results, and the call of the kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <tuple>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "run.h"

namespace ddetr_ops {
namespace {

DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: return DType::f32;  // check_arguments accepts no other
  }
}

Array array_of(const Tensor& tensor) { return {tensor.data_ptr(), dtype_of(tensor)}; }

int64_t index_at(const Tensor& indices, int64_t i) {
  return indices.scalar_type() == ScalarType::Long ? static_cast<const int64_t*>(indices.data_ptr())[i]
                                                   : static_cast<const int32_t*>(indices.data_ptr())[i];
}

// The levels, which must fill the tokens of `value` without a gap.
std::vector<Level> check_levels(const Arguments& a) {
  std::vector<Level> levels;
  int64_t next = 0, first_point = 0;
  for (int64_t l = 0; l < a.levels; ++l) {
    const int64_t height = index_at(a.spatial_shapes, 2 * l), width = index_at(a.spatial_shapes, 2 * l + 1);
    DDETR_CHECK(height >= 0 && width >= 0 && (width == 0 || height <= std::numeric_limits<int32_t>::max() / width),
                "spatial_shapes[", l, "] = (", height, ", ", width, ") is not the size of a map");
    DDETR_CHECK(index_at(a.level_start_index, l) == next, "level_start_index[", l, "] must be ", next,
                ", the number of tokens before level ", l, ", got ", index_at(a.level_start_index, l));
    levels.push_back({next, height, width, a.num_points[size_t(l)], first_point});
    next += height * width;
    first_point += a.num_points[size_t(l)];
  }
  DDETR_CHECK(next == a.tokens, "spatial_shapes describe ", next, " tokens, but value has ", a.tokens);
  DDETR_CHECK(a.tokens <= std::numeric_limits<int32_t>::max(), "value has ", a.tokens, " tokens, more than 2^31 - 1");
  DDETR_CHECK(a.heads * a.points <= (int64_t(1) << 24), a.heads * a.points,
              " sampling points per query are more than 2^24");
  return levels;
}

// A call's checked arguments in the kernels' terms; owns the tensors that the plain structs point into.
struct KernelArguments {
  Arguments checked;
  std::vector<Level> levels;
  Shape shape;
  Sampling sampling;
  Array value;

  explicit KernelArguments(Arguments arguments) : checked(std::move(arguments)), levels(check_levels(checked)) {
    const Arguments& a = checked;
    shape = {a.batch, a.tokens, a.heads, a.channels, a.queries, a.levels, a.points, levels.data()};
    sampling = {array_of(a.locations), array_of(a.weights), {}, a.reference_dim};
    if (a.fused()) sampling.references = array_of(a.reference_points);
    value = array_of(a.value);
  }
};

Tensor forward(const KernelArguments& k) {
  const Arguments& a = k.checked;
  Tensor output = torch::stable::new_empty(a.value, {a.batch, a.queries, a.heads * a.channels});
  run_forward(k.shape, k.sampling, k.value, output.data_ptr());
  return output;
}

struct Grads {
  Tensor value, reference_points, locations, weights;
};

Grads backward(const KernelArguments& k, const Tensor& grad_output, const std::vector<bool>& output_mask) {
  const Arguments& a = k.checked;
  const Tensor grad = check_grad_output(a, grad_output);
  const GradMask mask = check_output_mask(output_mask, a.fused());
  const auto result = [&](bool requested, const Tensor& like) {
    return requested ? torch::stable::new_empty(like, like.sizes()) : torch::stable::new_empty(a.value, {0});
  };
  Grads grads{result(mask.value, a.value), result(a.fused() && mask.reference_points, a.reference_points),
              result(mask.locations, a.locations), result(mask.weights, a.weights)};
  run_backward(k.shape, k.sampling, k.value, grad.data_ptr(), array_of(grads.value),
               {array_of(grads.locations), array_of(grads.weights), array_of(grads.reference_points)});
  return grads;
}

Tensor ms_deform_attn_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                              const Tensor& sampling_locations, const Tensor& attention_weights,
                              std::vector<int64_t> num_points) {
  return forward(KernelArguments(check_arguments(value, spatial_shapes, level_start_index, nullptr,
                                                 sampling_locations, attention_weights, std::move(num_points))));
}

Tensor ms_deform_attn_fused_forward(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                                    const Tensor& reference_points, const Tensor& sampling_offsets,
                                    const Tensor& attention_logits, std::vector<int64_t> num_points) {
  return forward(KernelArguments(check_arguments(value, spatial_shapes, level_start_index, &reference_points,
                                                 sampling_offsets, attention_logits, std::move(num_points))));
}

// `deterministic` has no effect: the CPU's sums always run in the same order.
std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights, const Tensor& grad_output,
    bool /*deterministic*/, std::vector<int64_t> num_points, std::vector<bool> output_mask) {
  const KernelArguments arguments(check_arguments(value, spatial_shapes, level_start_index, nullptr,
                                                  sampling_locations, attention_weights, std::move(num_points)));
  const Grads grads = backward(arguments, grad_output, output_mask);
  return {grads.value, grads.locations, grads.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, const Tensor& grad_output, bool /*deterministic*/,
    std::vector<int64_t> num_points, std::vector<bool> output_mask) {
  const KernelArguments arguments(check_arguments(value, spatial_shapes, level_start_index, &reference_points,
                                                  sampling_offsets, attention_logits, std::move(num_points)));
  const Grads grads = backward(arguments, grad_output, output_mask);
  return {grads.value, grads.reference_points, grads.locations, grads.weights};
}

}  // namespace
}  // namespace ddetr_ops

STABLE_TORCH_LIBRARY_IMPL(ddetr_ops, CPU, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_forward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_backward));
}
