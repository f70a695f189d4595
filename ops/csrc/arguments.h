// The arguments of the operators, checked: the same checks for every device. What only the values of spatial_shapes can
// tell, the CPU operators check before they run and the CUDA kernels answer with NaN.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <utility>
#include <vector>

#include "checks.h"

namespace ddetr_ops {

using torch::headeronly::ScalarType;
using torch::headeronly::toString;

// B batch, S tokens, M heads, D channels per head, Q queries, L levels, K points of all levels. All tensors are
// contiguous and on one device.
struct Arguments {
  Tensor value;              // (B, S, M, D)
  Tensor spatial_shapes;     // (L, 2), int64 or int32
  Tensor level_start_index;  // (L,), int64 or int32
  Tensor locations;          // (B, Q, M, K, 2), or (B, Q, M, L, P, 2); fused: sampling_offsets
  Tensor weights;            // (B, Q, M, K), or (B, Q, M, L, P); fused: attention_logits
  Tensor reference_points;   // fused only: (B, Q, L, 2 or 4), in acc_dtype
  std::vector<int64_t> num_points;  // of each level
  int64_t batch = 0, tokens = 0, heads = 0, channels = 0, queries = 0, levels = 0;
  int64_t points = 0;         // K
  int64_t reference_dim = 0;  // 2, 4, or 0 where nothing is fused
  ScalarType dtype = ScalarType::Float;         // of value, and of the output
  ScalarType acc_dtype = ScalarType::Float;     // of sums: float64 for a float64 value, else float32
  ScalarType points_dtype = ScalarType::Float;  // of locations and weights: dtype or acc_dtype

  bool fused() const { return reference_dim != 0; }
  bool empty() const { return batch * queries * heads * channels == 0 || tokens == 0 || points == 0; }
  const char* locations_name() const { return fused() ? "sampling_offsets" : "sampling_locations"; }
  const char* weights_name() const { return fused() ? "attention_logits" : "attention_weights"; }
};

namespace detail {

inline Tensor contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::pair<int32_t, int32_t> device_of(const Tensor& tensor) {
  int32_t type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
  return {type, tensor.get_device_index()};
}

inline void check_device(const Tensor& tensor, const char* name, const Tensor& value) {
  DDETR_CHECK(device_of(tensor) == device_of(value), name, " must be on the same device as value");
}

inline bool is_index(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Long || tensor.scalar_type() == ScalarType::Int;
}

// Levels, queries and points, from the shapes of spatial_shapes, locations and weights.
inline void check_points(Arguments& a, std::vector<int64_t> num_points) {
  const bool uniform = num_points.empty();
  const char* dims = uniform ? "(B, Q, M, L, P, 2)" : "(B, Q, M, K, 2)";
  const int64_t rank = uniform ? 6 : 5;
  DDETR_CHECK(a.locations.dim() == rank && a.locations.size(rank - 1) == 2, a.locations_name(),
              " must have the shape ", dims, ", got ", shape_text(a.locations));
  a.queries = a.locations.size(1);
  if (uniform) {
    const int64_t points = a.locations.size(4);
    check_shape(a.locations, a.locations_name(), dims, {a.batch, a.queries, a.heads, a.levels, points, 2});
    a.points = a.levels * points;
    a.num_points.assign(size_t(a.levels), points);
  } else {
    DDETR_CHECK(int64_t(num_points.size()) == a.levels, "num_points has ", num_points.size(), " entries for ", a.levels,
                " levels");
    for (const int64_t points : num_points) {
      DDETR_CHECK(points >= 0, "num_points holds ", points, ", which is no number of points");
      a.points += points;
    }
    check_shape(a.locations, a.locations_name(), dims, {a.batch, a.queries, a.heads, a.points, 2});
    a.num_points = std::move(num_points);
  }
  if (uniform && !a.fused()) {
    check_shape(a.weights, a.weights_name(), "(B, Q, M, L, P)",
                {a.batch, a.queries, a.heads, a.levels, a.locations.size(4)});
  } else {
    check_shape(a.weights, a.weights_name(), uniform ? "(B, Q, M, L * P)" : "(B, Q, M, K)",
                {a.batch, a.queries, a.heads, a.points});
  }
}

inline void check_dtypes(const Arguments& a) {
  for (const auto& [tensor, name] : {std::pair(&a.locations, a.locations_name()), {&a.weights, a.weights_name()}}) {
    const ScalarType dtype = tensor->scalar_type();
    DDETR_CHECK(dtype == a.dtype || dtype == a.acc_dtype, name, " is ", toString(dtype), ", but with a value of ",
                toString(a.dtype), " it must have that dtype or ", toString(a.acc_dtype));
  }
  DDETR_CHECK(a.locations.scalar_type() == a.weights.scalar_type(), a.locations_name(), " and ", a.weights_name(),
              " must have one dtype, got ", toString(a.locations.scalar_type()), " and ",
              toString(a.weights.scalar_type()));
  DDETR_CHECK(!a.fused() || a.reference_points.scalar_type() == a.acc_dtype, "reference_points is ",
              toString(a.reference_points.scalar_type()), ", but with a value of ", toString(a.dtype), " it must be ",
              toString(a.acc_dtype));
}

}  // namespace detail

// `reference_points` is null in the classic form. `num_points` empty: the same number for every level.
inline Arguments check_arguments(const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
                                 const Tensor* reference_points, const Tensor& locations, const Tensor& weights,
                                 std::vector<int64_t> num_points) {
  Arguments a{value, spatial_shapes, level_start_index, locations, weights};
  DDETR_CHECK(value.dim() == 4, "value must have the shape (B, S, M, D), got ", shape_text(value));
  a.batch = value.size(0), a.tokens = value.size(1), a.heads = value.size(2), a.channels = value.size(3);
  a.dtype = value.scalar_type();
  DDETR_CHECK(a.dtype == ScalarType::Float || a.dtype == ScalarType::Double || a.dtype == ScalarType::Half ||
                  a.dtype == ScalarType::BFloat16,
              "value must be float32, float64, bfloat16 or float16, got ", toString(a.dtype));
  a.acc_dtype = a.dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  a.points_dtype = locations.scalar_type();

  a.levels = spatial_shapes.dim() == 2 ? spatial_shapes.size(0) : 0;
  DDETR_CHECK(has_shape(spatial_shapes, {a.levels, 2}), "spatial_shapes must have the shape (L, 2), got ",
              shape_text(spatial_shapes));
  DDETR_CHECK(detail::is_index(spatial_shapes) && detail::is_index(level_start_index),
              "spatial_shapes and level_start_index must be int64 or int32, got ",
              toString(spatial_shapes.scalar_type()), " and ", toString(level_start_index.scalar_type()));
  if (reference_points) {
    const int64_t dim = reference_points->dim() == 4 ? reference_points->size(3) : 0;
    DDETR_CHECK(dim == 2 || dim == 4, "reference_points must have the shape (B, Q, L, 2 or 4), got ",
                shape_text(*reference_points));
    a.reference_points = *reference_points;
    a.reference_dim = dim;
  }
  detail::check_points(a, std::move(num_points));
  DDETR_CHECK(has_shape(level_start_index, {a.levels}), "level_start_index must have one entry for each of the ",
              a.levels, " levels, got the shape ", shape_text(level_start_index));
  if (reference_points) {
    check_shape(*reference_points, "reference_points", "(B, Q, L, 2 or 4)",
                {a.batch, a.queries, a.levels, a.reference_dim});
  }
  detail::check_dtypes(a);
  for (const auto& [tensor, name] :
       {std::pair(&a.spatial_shapes, "spatial_shapes"), {&a.level_start_index, "level_start_index"},
        {&a.locations, a.locations_name()}, {&a.weights, a.weights_name()},
        {a.fused() ? &a.reference_points : &a.value, "reference_points"}}) {
    detail::check_device(*tensor, name, value);
  }
  for (Tensor* tensor : {&a.value, &a.spatial_shapes, &a.level_start_index, &a.locations, &a.weights}) {
    *tensor = detail::contiguous(*tensor);
  }
  if (a.fused()) a.reference_points = detail::contiguous(a.reference_points);
  return a;
}

// The gradients that are asked for. What is not comes back as a tensor without elements.
struct GradMask {
  bool value = true, reference_points = true, locations = true, weights = true;
};

// `output_mask` in the order of the results: value, (fused: reference_points), locations, weights; empty: all of them.
inline GradMask check_output_mask(const std::vector<bool>& output_mask, bool fused) {
  if (output_mask.empty()) return {};
  const size_t results = fused ? 4 : 3;
  DDETR_CHECK(output_mask.size() == results, "output_mask has ", output_mask.size(), " entries for ", results,
              " gradients");
  return {output_mask[0], fused && output_mask[1], output_mask[results - 2], output_mask[results - 1]};
}

inline Tensor check_grad_output(const Arguments& a, const Tensor& grad_output) {
  check_shape(grad_output, "grad_output", "(B, Q, M * D)", {a.batch, a.queries, a.heads * a.channels});
  DDETR_CHECK(grad_output.scalar_type() == a.dtype, "grad_output is ", toString(grad_output.scalar_type()),
              ", value is ", toString(a.dtype));
  detail::check_device(grad_output, "grad_output", a.value);
  return detail::contiguous(grad_output);
}

}  // namespace ddetr_ops
