// The CPU kernels, included once per instruction set by kernels_*.cpp, which define DDETR_NAMESPACE and
// DDETR_VECTOR_BYTES. Nothing outside this folder may be included here: see problem.h.

namespace ddetr_ops::DDETR_NAMESPACE {
namespace {

#include "slice.h"

#include "points.h"

// Calls f<N>(first channel) for slices that cover all channels.
template <typename F>
DDETR_INLINE void each_slice(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) f.template operator()<32>(c);
  for (; c + 16 <= channels; c += 16) f.template operator()<16>(c);
  for (; c + 8 <= channels; c += 8) f.template operator()<8>(c);
  for (; c < channels; ++c) f.template operator()<1>(c);
}

// ---- forward ----
// Adds points [i, i + n) of one query to `sums`.
template <int N, typename T, typename Acc>
DDETR_INLINE void gather(const Points<Acc>& p, int64_t i, int64_t n, const T* value, int64_t stride, Acc* sums) {
  Slice<T, N> sum[2], v;  // two chains of additions hide their latency
  load_raw(sum[0], sums);
  set_zero(sum[1]);
  for (const int64_t end = i + n; i < end; ++i) {
    if (!p.inside[i]) continue;
    for (int k = 0; k < 4; ++k) {
      v.load(value + p.at[k][i] * stride);
      add_scaled(sum[k % 2], p.b[k][i], v);
    }
  }
  add_scaled(sum[0], Acc(1), sum[1]);
  store_raw(sum[0], sums);
}

template <typename T>
void forward(const Shape& s, const Sampling& in, Head head, Rows value, void* output, Range queries, void* scratch) {
  using Acc = typename Slice<T, 1>::Acc;
  Tile<Acc> tile(s, in, head, scratch);
  Points<Acc> p;
  Acc* const sums = tile.rest;  // (queries, channels)
  const T* const from = static_cast<const T*>(value.data);
  for (int64_t q = queries.begin; q < queries.end; q += tile.capacity) {
    const int64_t count = queries.end - q < tile.capacity ? queries.end - q : tile.capacity;
    tile.load(q, count, 0, s.levels);
    for (int64_t j = 0; j < count; ++j) {
      prefetch(static_cast<T*>(output) + tile.item_of(q + j) * s.channels, s.channels * int64_t(sizeof(T)));
    }
    __builtin_memset(sums, 0, std::size_t(count * s.channels) * sizeof(Acc));
    for (int64_t l = 0; l < s.levels; ++l) {
      const Level& level = s.level[l];
      each_chunk(level, tile.first(level, count), count, [&](int64_t j, int64_t many, int64_t n, int64_t first)
                     DDETR_LAMBDA_INLINE {
        find_corners<Pass::forward>(p, tile.pixels + 2 * first, tile.weights + first, many * n, level);
        for (int64_t i = 0; i < many; ++i) {
          each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
            gather<N>(p, i * n, n, from + c, value.stride, sums + (j + i) * s.channels + c);
          });
        }
      });
    }
    for (int64_t j = 0; j < count; ++j) {
      T* const to = static_cast<T*>(output) + tile.item_of(q + j) * s.channels;
      each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
        Slice<T, N> sum;
        load_raw(sum, sums + j * s.channels + c);
        sum.store(to + c);
      });
    }
  }
}

// ---- gradients of the points ----
// Adds the products of grad_output with the corners of points [i, i + n) of one query.
template <int N, typename T, typename Acc>
DDETR_INLINE void add_dots(Points<Acc>& p, int64_t i, int64_t n, const T* value, int64_t stride,
                           const T* grad_output) {
  Slice<T, N> g;
  g.load(grad_output);
  const auto lanes_of = [&](int64_t j, int k) DDETR_LAMBDA_INLINE {
    Slice<T, N> v;
    v.load(value + p.at[k][j] * stride);
    return dot_lanes(g, v);
  };
  const int64_t end = i + n;
#if DDETR_SHUFFLES
  if constexpr (Slice<T, N>::kLanes == 8) {
    for (; i + 2 <= end; i += 2) {
      // A point outside has rows, too, of a map with pixels; an empty map has no point inside.
      if (!(p.inside[i] | p.inside[i + 1])) continue;
      typename Slice<T, N>::V lanes[8];
      for (int k = 0; k < 8; ++k) lanes[k] = lanes_of(i + k / 4, k % 4);
      add_lane_sums_of_pair<Acc>(lanes, p.dots + 4 * i);
    }
  }
#endif
  for (; i < end; ++i) {
    if (!p.inside[i]) continue;
    typename Slice<T, N>::V lanes[4];
    for (int k = 0; k < 4; ++k) lanes[k] = lanes_of(i, k);
    if constexpr (N == 1) {
      for (int k = 0; k < 4; ++k) p.dots[4 * i + k] += lanes[k];
    } else {
      add_lane_sums<Acc, Slice<T, N>::kLanes>(lanes, p.dots + 4 * i);
    }
  }
}

// From the dot products: the gradients of the weights and of x and y, per pixel and interleaved. A corner whose
// coefficient is zero, because the point lies on a pixel centre, counts in the derivative towards it; as zero if its
// product is not finite.
template <typename Acc>
void point_gradients(const Points<Acc>& p, int64_t n, Acc* grad_pixels, Acc* grad_weights) {
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Acc dot0 = p.dots[4 * i], dot1 = p.dots[4 * i + 1], dot2 = p.dots[4 * i + 2], dot3 = p.dots[4 * i + 3];
    const Acc lx = p.x[i], ly = p.y[i], a = p.a[i];
    const int32_t off_x = lx != 0 ? 1 : 0, off_y = ly != 0 ? 1 : 0;
    const int32_t keep1 = p.in_map[1][i] & (off_x | (dot1 - dot1 == 0 ? 1 : 0));
    const int32_t keep2 = p.in_map[2][i] & (off_y | (dot2 - dot2 == 0 ? 1 : 0));
    const int32_t keep3 = p.in_map[3][i] & ((off_x & off_y) | (dot3 - dot3 == 0 ? 1 : 0));
    const Acc d0 = p.in_map[0][i] ? dot0 : Acc(0), d1 = keep1 ? dot1 : Acc(0);
    const Acc d2 = keep2 ? dot2 : Acc(0), d3 = keep3 ? dot3 : Acc(0);
    const Acc upper = d0 + lx * (d1 - d0), lower = d2 + lx * (d3 - d2);
    grad_weights[i] = upper + ly * (lower - upper);
    grad_pixels[2 * i] = a * ((d1 - d0) + ly * ((d3 - d2) - (d1 - d0)));
    grad_pixels[2 * i + 1] = a * (lower - upper);
  }
}

// Gradients of one query's points, in the tile's order, on their way to the tensors.
template <typename Acc>
struct PointGradients {
  const Tile<Acc>& tile;
  const Acc *pixels, *weights;  // of the whole tile
  int64_t count, j;             // the tile's queries, and the query's place among them
  int64_t item;                 // of (B * Q * M)

  int64_t first(const Level& level) const { return tile.first(level, count) + j * level.num_points; }

  DDETR_INLINE void store_weights(const Array& to) const {
    const Shape& s = tile.s;
    const bool logits = tile.in.fused();
    Acc mean = 0;  // the softmax's gradient is p * (grad_p - sum of p * grad_p)
    for (int64_t l = 0; l < s.levels && logits; ++l) {
      const int64_t at = first(s.level[l]);
      for (int64_t i = at; i < at + s.level[l].num_points; ++i) mean += tile.weights[i] * weights[i];
    }
    for (int64_t l = 0; l < s.levels; ++l) {
      const int64_t at = first(s.level[l]);
      Acc* const row = tile.row + s.level[l].first_point;
      for (int64_t i = 0; i < s.level[l].num_points; ++i) {
        row[i] = logits ? tile.weights[at + i] * (weights[at + i] - mean) : weights[at + i];
      }
    }
    store_row(tile.row, s.points, to, item * s.points);
  }

  DDETR_INLINE void store_locations(const Array& to) const {
    const Shape& s = tile.s;
    const Acc* const references = tile.references_of(item / s.heads);
    for (int64_t l = 0; l < s.levels; ++l) {
      const Level& level = s.level[l];
      Affine<Acc> map = to_pixels(level, references + l * tile.in.reference_dim, tile.in.reference_dim);
      map.shift_x = map.shift_y = 0;
      apply(map, pixels + 2 * first(level), level.num_points, tile.row + 2 * level.first_point);
    }
    store_row(tile.row, 2 * s.points, to, item * 2 * s.points);
  }

  // This head's share of the gradients of the query's reference points.
  DDETR_INLINE void store_references(const Array& to) const {
    const Shape& s = tile.s;
    const int64_t dim = tile.in.reference_dim;
    const Acc* const offsets = load_row(tile.in.locations, item * 2 * s.points, 2 * s.points, tile.row);
    Acc* share = static_cast<Acc*>(to.data) + item * s.levels * dim;
    for (int64_t l = 0; l < s.levels; ++l, share += dim) {
      const Level& level = s.level[l];
      const Acc *pixel = pixels + 2 * first(level), *offset = offsets + 2 * level.first_point;
      Acc x = 0, y = 0, w = 0, h = 0;
      for (int64_t i = 0; i < level.num_points; ++i) {
        x += pixel[2 * i], w += pixel[2 * i] * offset[2 * i];
        y += pixel[2 * i + 1], h += pixel[2 * i + 1] * offset[2 * i + 1];
      }
      const Acc width = Acc(level.width), height = Acc(level.height);
      share[0] = x * width, share[1] = y * height;
      if (dim == 4) {
        const Acc per_point = Acc(0.5) / Acc(level.num_points > 0 ? level.num_points : 1);
        share[2] = w * width * per_point, share[3] = h * height * per_point;
      }
    }
  }
};

template <typename Acc>
void add_reference_grads(const Shape& s, int64_t reference_dim, const void* shares, Array result, Range rows) {
  const int64_t n = s.levels * reference_dim;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    for (int64_t i = 0; i < n; ++i) {
      Acc sum = 0;
      for (int64_t m = 0; m < s.heads; ++m) sum += static_cast<const Acc*>(shares)[(row * s.heads + m) * n + i];
      store_row(&sum, 1, result, row * n + i);
    }
  }
}

// ---- gradient of the value ----
// Adds grad_output, times the coefficients of points [i, i + n) of one query, to the rows of their corners.
template <int N, bool Bounded, typename T, typename Acc>
DDETR_INLINE void scatter(const Points<Acc>& p, int64_t i, int64_t n, const T* grad_output, Acc* sums, int64_t stride,
                          Range tokens) {
  Slice<T, N> g;
  g.load(grad_output);
  for (const int64_t end = i + n; i < end; ++i) {
    if (!p.inside[i]) continue;
    for (int k = 0; k < 4; ++k) {
      const int64_t token = p.at[k][i];
      if (Bounded && (token < tokens.begin || token >= tokens.end)) continue;
      add_scaled_raw(sums + token * stride, p.b[k][i], g);
    }
  }
}

template <typename T>
void backward(const Shape& s, const Sampling& in, Head head, Rows value, const void* grad_output,
              const SamplingGrads& grads, Range queries, Rows sums, Range tokens, void* scratch) {
  using Acc = typename Slice<T, 1>::Acc;
  Tile<Acc> tile(s, in, head, scratch);
  Points<Acc> p;
  Acc* const grad_weights = tile.rest;
  Acc* const grad_pixels = grad_weights + tile.capacity * s.points;
  const bool wants_points = grads.locations.data || grads.weights.data || grads.references.data;
  const auto end_of = [&](int64_t l) { return s.level[l].start + s.level[l].height * s.level[l].width; };
  int64_t from = 0, to = s.levels;
  if (!wants_points) {  // only the levels that `tokens` touches
    while (from < to && end_of(from) <= tokens.begin) ++from;
    while (from < to && s.level[to - 1].start >= tokens.end) --to;
  }
  for (int64_t q = queries.begin; q < queries.end; q += tile.capacity) {
    const int64_t count = queries.end - q < tile.capacity ? queries.end - q : tile.capacity;
    tile.load(q, count, from, to);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t item = tile.item_of(q + j);
      prefetch_row(grads.locations, item * 2 * s.points, 2 * s.points);
      prefetch_row(grads.weights, item * s.points, s.points);
    }
    for (int64_t l = from; l < to; ++l) {
      const Level& level = s.level[l];
      const bool whole = tokens.begin <= level.start && tokens.end >= end_of(l);
      each_chunk(level, tile.first(level, count), count, [&](int64_t j, int64_t many, int64_t n, int64_t first)
                     DDETR_LAMBDA_INLINE {
        find_corners<Pass::backward>(p, tile.pixels + 2 * first, tile.weights + first, many * n, level);
        const auto grad_of = [&](int64_t i) {
          return static_cast<const T*>(grad_output) + tile.item_of(q + j + i) * s.channels;
        };
        if (wants_points) {
          __builtin_memset(p.dots, 0, sizeof(p.dots));
          for (int64_t i = 0; i < many; ++i) {
            each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
              add_dots<N>(p, i * n, n, static_cast<const T*>(value.data) + c, value.stride, grad_of(i) + c);
            });
          }
          point_gradients(p, many * n, grad_pixels + 2 * first, grad_weights + first);
        }
        if (!sums.data) return;
        for (int64_t i = 0; i < many; ++i) {
          each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
            Acc* const at = static_cast<Acc*>(sums.data) + c;
            if (whole) {
              scatter<N, false>(p, i * n, n, grad_of(i) + c, at, sums.stride, tokens);
            } else {
              scatter<N, true>(p, i * n, n, grad_of(i) + c, at, sums.stride, tokens);
            }
          });
        }
      });
    }
    for (int64_t j = 0; j < count && wants_points; ++j) {
      const PointGradients<Acc> point_grads{tile, grad_pixels, grad_weights, count, j, tile.item_of(q + j)};
      if (grads.weights.data) point_grads.store_weights(grads.weights);
      if (grads.locations.data) point_grads.store_locations(grads.locations);
      if (grads.references.data) point_grads.store_references(grads.references);
    }
  }
}

template <typename T>
void unpack(const Shape& s, Head head, Rows sums, void* grad_value, Range tokens) {
  using Acc = typename Slice<T, 1>::Acc;
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    const Acc* from = static_cast<const Acc*>(sums.data) + t * sums.stride;
    T* to = static_cast<T*>(grad_value) + ((head.batch * s.tokens + t) * s.heads + head.head) * s.channels;
    each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
      Slice<T, N> sum;
      load_raw(sum, from + c);
      sum.store(to + c);
    });
  }
}

int64_t scratch_bytes(const Shape& s) {
  const int64_t per_query = s.channels > 3 * s.points ? s.channels : 3 * s.points;
  return int64_t(sizeof(double)) * (Tile<double>::size(s) + Tile<double>::capacity_of(s) * per_query);
}

constexpr Kernels kKernels = {
    scratch_bytes,
    {forward<float>, forward<double>, forward<Bf16>, forward<Fp16>},
    {backward<float>, backward<double>, backward<Bf16>, backward<Fp16>},
    {unpack<float>, unpack<double>, unpack<Bf16>, unpack<Fp16>},
    {add_reference_grads<float>, add_reference_grads<double>},
};

}  // namespace
}  // namespace ddetr_ops::DDETR_NAMESPACE
