// The operators on the GPU: checks, memory, and kernels on PyTorch's current stream.
//
// spatial_shapes and level_start_index stay on the GPU, and nothing here waits for it: levels that do not lie within
// the tokens give NaN (points.h, load_point).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

#include "../arguments.h"
#include "device.h"
#include "params.h"

namespace ddetr_ops {
namespace {

constexpr int64_t kIntLimit = std::numeric_limits<int32_t>::max();
constexpr int64_t kUint32Limit = std::numeric_limits<uint32_t>::max();

void check_limit(int64_t number, int64_t limit, const char* what) {
  DDETR_CHECK(number <= limit, what, " = ", number, " is more than the ", limit, " that the GPU kernels take");
}

// Limits of the kernels, beyond the checks of every device.
Arguments check_gpu_arguments(Arguments a) {
  DDETR_CHECK(is_on_gpu(a.value), "value must be on a GPU");
  check_limit(a.tokens, kIntLimit, "tokens");
  check_limit(a.queries * a.points, kIntLimit, "queries * points");
  check_limit(a.queries, kIntLimit / 4, "queries");
  check_limit(a.batch * a.heads, kIntLimit, "batch * heads");
  check_limit(a.points, kIntLimit / 4, "levels * points");
  check_limit(a.heads * a.channels, int64_t(1) << 28, "heads * channels");  // bytes of a token fit 32 bits
  a.spatial_shapes = torch::stable::to(a.spatial_shapes, ScalarType::Long);
  a.level_start_index = torch::stable::to(a.level_start_index, ScalarType::Long);
  return a;
}

template <typename T>
void set_num_points(Params<T>& p, const Arguments& a) {
  const int64_t first = a.num_points.empty() ? 0 : a.num_points[0];
  const bool uniform = std::all_of(a.num_points.begin(), a.num_points.end(), [&](int64_t n) { return n == first; });
  if (uniform && first > 0) {
    check_limit(a.points * first, kUint32Limit, "levels * points * points");  // level_of is exact up to there
    p.num_points = int32_t(first);
    p.num_points_factor = uint32_t(kUint32Limit / first);
    return;
  }
  check_limit(a.levels, kMaxLevelsOfOwnPoints, "levels that differ in num_points");
  int32_t end = 0;
  for (size_t level = 0; level < a.num_points.size(); ++level) p.level_end[level] = end += int32_t(a.num_points[level]);
}

template <typename T>
Params<T> params_of(const Arguments& a) {
  using A = acc_t<T>;
  Params<T> p{};
  p.value = static_cast<const T*>(a.value.const_data_ptr());
  p.spatial_shapes = static_cast<const int64_t*>(a.spatial_shapes.const_data_ptr());
  p.level_start_index = static_cast<const int64_t*>(a.level_start_index.const_data_ptr());
  if (a.fused()) p.reference_points = static_cast<const A*>(a.reference_points.const_data_ptr());
  p.locations = a.locations.const_data_ptr();
  p.weights = a.weights.const_data_ptr();
  p.batch = int32_t(a.batch), p.tokens = int32_t(a.tokens), p.queries = int32_t(a.queries);
  p.heads = int32_t(a.heads), p.channels = int32_t(a.channels);
  p.levels = int32_t(a.levels), p.points = int32_t(a.points);
  p.value_row = uint32_t(a.heads * a.channels * sizeof(T));
  p.grad_row = uint32_t(a.heads * a.channels * sizeof(A));
  p.reference_dim = int32_t(a.reference_dim);
  p.points_in_acc = a.points_dtype == a.acc_dtype;
  set_num_points(p, a);
  return p;
}

// Calls `run` with the Params of the element type of value, and with the stream.
template <typename Run>
void with_params(const Arguments& a, const Run& run) {
  const DeviceScope scope(a.value);
  const char* error = nullptr;
  switch (a.dtype) {
    case ScalarType::Float: error = run(params_of<float>(a), scope.stream()); break;
    case ScalarType::Double: error = run(params_of<double>(a), scope.stream()); break;
    case ScalarType::Half: error = run(params_of<Half>(a), scope.stream()); break;
    default: error = run(params_of<BFloat16>(a), scope.stream()); break;
  }
  DDETR_CHECK(!error, "the GPU kernels cannot run: ", error);
}

Tensor forward(const Arguments& a) {
  const std::vector<int64_t> sizes{a.batch, a.queries, a.heads * a.channels};
  if (a.empty()) return torch::stable::new_zeros(a.value, sizes);
  Tensor output = torch::stable::new_empty(a.value, sizes);
  with_params(a, [&](auto p, void* stream) {
    p.output = static_cast<decltype(p.output)>(output.mutable_data_ptr());
    return launch_forward(p, stream);
  });
  return output;
}

// Memory of the deterministic backward. 32 bytes per point (float64: 48), 8 per token and head, and the sort's own.
struct SortBuffers {
  Tensor pairs, segments, corner_weights, workspace;

  template <typename T>
  void allocate(const Arguments& a, Params<T>& p) {
    const int64_t count = a.batch * a.queries * a.heads * a.points, keys = a.batch * a.heads * a.tokens;
    check_limit(count, kUint32Limit, "deterministic backward: batch * queries * heads * points");
    check_limit(keys, kUint32Limit, "deterministic backward: batch * heads * tokens");
    SortedPoints& s = p.sorted;
    s.workspace_bytes = sort_workspace_bytes(count, sort_key_bits(keys));
    pairs = torch::stable::new_empty(a.value, {4, count}, ScalarType::Int);
    segments = torch::stable::new_zeros(a.value, {2, keys}, ScalarType::Int);
    corner_weights = torch::stable::new_empty(a.value, {count, 4}, a.acc_dtype);
    workspace = torch::stable::new_empty(a.value, {s.workspace_bytes}, ScalarType::Byte);
    s.keys = static_cast<uint32_t*>(pairs.mutable_data_ptr());
    s.other_keys = s.keys + count, s.indices = s.keys + 2 * count, s.other_indices = s.keys + 3 * count;
    s.begin = static_cast<uint32_t*>(segments.mutable_data_ptr());
    s.end = s.begin + keys;
    s.workspace = workspace.mutable_data_ptr();
    p.corner_weights = static_cast<acc_t<T>*>(corner_weights.mutable_data_ptr());
  }
};

// Those that are not asked for have no elements.
struct Gradients {
  Tensor value, reference_points, locations, weights;
};

// grad_value is summed in acc_dtype: a token of a coarse level gets thousands of shares. grad_reference_points comes
// per head, (B, Q, M, L, 2 or 4).
Gradients allocate_gradients(const Arguments& a, const GradMask& mask) {
  const auto none = [&] { return torch::stable::new_empty(a.value, {0}); };
  const auto zeros = [&](const std::vector<int64_t>& sizes) {
    return torch::stable::new_zeros(a.value, sizes, a.acc_dtype);
  };
  const auto like = [&](const Tensor& tensor) {
    return a.empty() ? torch::stable::new_zeros(tensor, tensor.sizes()) : torch::stable::empty_like(tensor);
  };
  return {mask.value ? zeros({a.batch, a.tokens, a.heads, a.channels}) : none(),
          mask.reference_points ? zeros({a.batch, a.queries, a.heads, a.levels, a.reference_dim}) : none(),
          mask.locations ? like(a.locations) : none(), mask.weights ? like(a.weights) : none()};
}

void run_backward(const Arguments& a, const Tensor& grad_output, const GradMask& mask, bool deterministic,
                  const Gradients& grads) {
  with_params(a, [&](auto p, void* stream) {
    using A = typename decltype(p)::A;
    p.grad_output = static_cast<decltype(p.grad_output)>(grad_output.const_data_ptr());
    if (mask.value) p.grad_value = static_cast<A*>(grads.value.mutable_data_ptr());
    if (mask.reference_points) p.grad_reference_points = static_cast<A*>(grads.reference_points.mutable_data_ptr());
    if (mask.locations) p.grad_locations = grads.locations.mutable_data_ptr();
    if (mask.weights) p.grad_weights = grads.weights.mutable_data_ptr();
    Tensor weight_grads;
    if (needs_weight_grads(p)) {
      weight_grads = torch::stable::new_empty(a.value, a.weights.sizes(), a.acc_dtype);
      p.weight_grads = static_cast<A*>(weight_grads.mutable_data_ptr());
    }
    SortBuffers buffers;
    if (deterministic && mask.value) buffers.allocate(a, p);
    return launch_backward(p, stream);
  });
}

Gradients backward(const Arguments& a, const Tensor& grad_output, bool deterministic,
                   const std::vector<bool>& output_mask) {
  GradMask mask = check_output_mask(output_mask, a.fused());
  mask.reference_points = mask.reference_points && a.fused();
  const Tensor grad = check_grad_output(a, grad_output);
  Gradients grads = allocate_gradients(a, mask);
  if (!a.empty()) run_backward(a, grad, mask, deterministic, grads);
  if (mask.value && a.dtype != a.acc_dtype) grads.value = torch::stable::to(grads.value, a.dtype);
  if (mask.reference_points) {
    const std::vector<int64_t> heads{2};
    grads.reference_points = torch::stable::sum(grads.reference_points, heads);
  }
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
  const Gradients grads =
      backward(check_gpu_arguments(check_arguments(value, spatial_shapes, level_start_index, nullptr,
                                                   sampling_locations, attention_weights, std::move(num_points))),
               grad_output, deterministic, output_mask);
  return {grads.value, grads.locations, grads.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, const Tensor& grad_output, bool deterministic,
    std::vector<int64_t> num_points, std::vector<bool> output_mask) {
  const Gradients grads =
      backward(check_gpu_arguments(check_arguments(value, spatial_shapes, level_start_index, &reference_points,
                                                   sampling_offsets, attention_logits, std::move(num_points))),
               grad_output, deterministic, output_mask);
  return {grads.value, grads.reference_points, grads.locations, grads.weights};
}

}  // namespace
}  // namespace ddetr_ops

STABLE_TORCH_LIBRARY_IMPL(ddetr_ops, CUDA, m) {
  m.impl("ms_deform_attn_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused_forward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_forward));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr_ops::ms_deform_attn_fused_backward));
}
