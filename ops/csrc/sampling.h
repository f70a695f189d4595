// Arithmetic of one sampling point, shared by host and device code.
//
// Pixel coordinates: the centre of the first pixel is 0. A point is inside if it lies in the open rectangle
// (-1, width) x (-1, height). A point on its border or outside, or with a NaN or infinite coordinate, contributes
// nothing and has no gradient. Corners outside the map count as zero and are never read.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define DDETR_OPS_HD __host__ __device__ __forceinline__
#else
#define DDETR_OPS_HD inline
#endif

namespace ddetr_ops {

// Corner order: top left, top right, bottom left, bottom right. Bit c of a mask stands for corner c.
constexpr unsigned kAllCorners = 15u;

// The four pixels around a point.
template <typename A>
struct Cell {
  int32_t x, y;      // top left pixel, -1 <= x < width, -1 <= y < height
  A fx, fy;          // distance of the point from its centre, in [0, 1)
  unsigned corners;  // mask of the corners on the map; 0: the point contributes nothing
};

// Derivatives of the loss by one point.
template <typename A>
struct PointGrads {
  A weight;  // by the attention weight
  A x, y;    // by the pixel coordinates
};

// Locations are normalised: 0 and 1 are the outer borders of the map.
template <typename A>
DDETR_OPS_HD A pixel_of_location(A location, int32_t size) {
  return location * A(size) - A(0.5);
}

// Fused, reference points: location = reference + offset / size.
template <typename A>
DDETR_OPS_HD A pixel_of_point_offset(A reference, A offset, int32_t size) {
  return reference * A(size) + offset - A(0.5);
}

// Fused, reference boxes: location = centre + offset / num_points * extent / 2; extent is the box's width or height.
// half_per_point: 0.5 / num_points.
template <typename A>
DDETR_OPS_HD A pixel_of_box_offset(A centre, A extent, A offset, A half_per_point, int32_t size) {
  return (centre + offset * (extent * half_per_point)) * A(size) - A(0.5);
}

template <typename A>
DDETR_OPS_HD Cell<A> locate(A x, A y, int32_t height, int32_t width) {
  // False for NaN and infinity; past this line the conversion to integers is defined.
  if (!(x > A(-1) && y > A(-1) && x < A(width) && y < A(height))) return {0, 0, A(0), A(0), 0u};
  const A left = std::floor(x), top = std::floor(y);
  Cell<A> cell{static_cast<int32_t>(left), static_cast<int32_t>(top), x - left, y - top, kAllCorners};
  if (cell.x < 0) cell.corners &= 10u;           // left corners are off the map
  if (cell.x + 1 >= width) cell.corners &= 5u;   // right corners
  if (cell.y < 0) cell.corners &= 12u;           // top corners
  if (cell.y + 1 >= height) cell.corners &= 3u;  // bottom corners
  return cell;
}

// Bilinear coefficients times `weight`. Corners off the map get exactly zero, even if `weight` is not finite.
template <typename A>
DDETR_OPS_HD void corner_weights(const Cell<A>& cell, A weight, A (&out)[4]) {
  const A gx = A(1) - cell.fx, gy = A(1) - cell.fy;
  out[0] = cell.corners & 1u ? weight * (gx * gy) : A(0);
  out[1] = cell.corners & 2u ? weight * (cell.fx * gy) : A(0);
  out[2] = cell.corners & 4u ? weight * (gx * cell.fy) : A(0);
  out[3] = cell.corners & 8u ? weight * (cell.fx * cell.fy) : A(0);
}

// A corner's product as point_grads uses it: a corner with coefficient zero is not part of the output, so a NaN or an
// infinity there counts as zero. Finite products stay: at a pixel centre they make the right-sided derivative.
template <typename A>
DDETR_OPS_HD A product_that_counts(A coefficient, A product) {
  return coefficient == A(0) && !(product - product == A(0)) ? A(0) : product;
}

// `products`: grad_output . value of each corner, zero for corners off the map.
template <typename A>
DDETR_OPS_HD PointGrads<A> point_grads(const Cell<A>& cell, A weight, const A (&products)[4]) {
  if (cell.corners == 0u) return {A(0), A(0), A(0)};
  const A gx = A(1) - cell.fx, gy = A(1) - cell.fy;
  const A top_left = product_that_counts(gx * gy, products[0]);
  const A top_right = product_that_counts(cell.fx * gy, products[1]);
  const A bottom_left = product_that_counts(gx * cell.fy, products[2]);
  const A bottom_right = product_that_counts(cell.fx * cell.fy, products[3]);
  const A top = gx * top_left + cell.fx * top_right;
  const A bottom = gx * bottom_left + cell.fx * bottom_right;
  const A along_x = gy * (top_right - top_left) + cell.fy * (bottom_right - bottom_left);
  return {gy * top + cell.fy * bottom, weight * along_x, weight * (bottom - top)};
}

}  // namespace ddetr_ops
