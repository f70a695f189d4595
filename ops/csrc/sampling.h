// The arithmetic of one sampling point, the same text for the CPU's and the GPU's compiler.
//
// Pixel coordinates have the centre of the first pixel at 0. A point counts if it lies in the open rectangle
// (-1, width) x (-1, height); on or outside its border, or where a coordinate is NaN or infinite, it
// contributes nothing and gets no gradient. A corner outside the map counts as zero and is never read.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define DDETR_OPS_HD __host__ __device__ __forceinline__
#else
#define DDETR_OPS_HD inline
#endif

namespace ddetr_ops {

// Corners in the order top left, top right, bottom left, bottom right; bit c of a mask is corner c.
constexpr unsigned kAllCorners = 15u;

// The pixel above and to the left of a point, and how far the point lies beyond that pixel's centre.
template <typename A>
struct Cell {
  int32_t x, y;      // -1 <= x < width, -1 <= y < height
  A fx, fy;          // in [0, 1)
  unsigned corners;  // which of the four lie on the map; 0: the point contributes nothing
};

// The derivatives of one point's share of the loss, from the four products grad_output . corner value.
template <typename A>
struct PointGrads {
  A weight;  // by the attention weight
  A x, y;    // by the pixel coordinates
};

// Normalised to pixel coordinates: 0 and 1 are the outer borders of the map, hence the half.
template <typename A>
DDETR_OPS_HD A pixel_of_location(A location, int32_t size) {
  return location * A(size) - A(0.5);
}

// The fused form's locations: reference + offset / size for points. The division cancels in pixels.
template <typename A>
DDETR_OPS_HD A pixel_of_point_offset(A reference, A offset, int32_t size) {
  return reference * A(size) + offset - A(0.5);
}

// For boxes: centre + offset / points * extent / 2 (extent: the box's width or height, normalised).
template <typename A>
DDETR_OPS_HD A pixel_of_box_offset(A centre, A extent, A offset, int32_t points, int32_t size) {
  return (centre + offset * (extent * (A(0.5) / A(points)))) * A(size) - A(0.5);
}

template <typename A>
DDETR_OPS_HD Cell<A> locate(A x, A y, int32_t height, int32_t width) {
  // Written so that NaN fails; infinities fail too. Only then is the conversion to an integer defined.
  if (!(x > A(-1) && y > A(-1) && x < A(width) && y < A(height))) return {0, 0, A(0), A(0), 0u};
  const A left = std::floor(x), top = std::floor(y);
  Cell<A> cell{static_cast<int32_t>(left), static_cast<int32_t>(top), x - left, y - top, kAllCorners};
  if (cell.x < 0) cell.corners &= 10u;               // no left corners
  if (cell.x + 1 >= width) cell.corners &= 5u;       // no right corners
  if (cell.y < 0) cell.corners &= 12u;               // no top corners
  if (cell.y + 1 >= height) cell.corners &= 3u;      // no bottom corners
  return cell;
}

// Bilinear coefficients times `weight`; exactly zero for a corner that does not count, whatever the weight.
template <typename A>
DDETR_OPS_HD void corner_weights(const Cell<A>& cell, A weight, A (&out)[4]) {
  const A gx = A(1) - cell.fx, gy = A(1) - cell.fy;
  out[0] = cell.corners & 1u ? weight * (gx * gy) : A(0);
  out[1] = cell.corners & 2u ? weight * (cell.fx * gy) : A(0);
  out[2] = cell.corners & 4u ? weight * (gx * cell.fy) : A(0);
  out[3] = cell.corners & 8u ? weight * (cell.fx * cell.fy) : A(0);
}

// `products`: grad_output . value of each corner, zero for those that do not count.
template <typename A>
DDETR_OPS_HD PointGrads<A> point_grads(const Cell<A>& cell, A weight, const A (&products)[4]) {
  if (cell.corners == 0u) return {A(0), A(0), A(0)};
  const A gx = A(1) - cell.fx, gy = A(1) - cell.fy;
  const A top = gx * products[0] + cell.fx * products[1];
  const A bottom = gx * products[2] + cell.fx * products[3];
  const A along_x = gy * (products[1] - products[0]) + cell.fy * (products[3] - products[2]);
  return {gy * top + cell.fy * bottom, weight * along_x, weight * (bottom - top)};
}

}  // namespace ddetr_ops
