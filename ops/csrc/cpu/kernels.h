// The CPU kernels, included once per instruction set by kernels_*.cpp, which define DDETR_NAMESPACE,
// DDETR_TABLE and DDETR_VECTOR_BYTES. No include may stand here: see problem.h.

namespace ddetr_ops::DDETR_NAMESPACE {
namespace {

#include "slice.h"

#if defined(__clang__)
#define DDETR_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define DDETR_INDEPENDENT _Pragma("GCC ivdep")
#endif

constexpr int64_t kChunk = 64;  // points that the backward prepares at a time

// ---- rows of any dtype, in and out of Acc ----
template <typename Acc, typename T>
DDETR_INLINE void copy_in(const T* from, int64_t n, Acc* to) {
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) to[i] = Acc(widen(from[i]));
}
template <typename Acc>
void load_row(const Typed& from, int64_t at, int64_t n, Acc* to) {
  switch (from.kind) {
    case Kind::f32: return copy_in(static_cast<const float*>(from.data) + at, n, to);
    case Kind::f64: return copy_in(static_cast<const double*>(from.data) + at, n, to);
    case Kind::bf16: return copy_in(static_cast<const Bf16*>(from.data) + at, n, to);
    case Kind::f16: return copy_in(static_cast<const Fp16*>(from.data) + at, n, to);
  }
}
template <typename Acc>
void store_row(const Acc* from, int64_t n, const Typed& to, int64_t at) {
  switch (to.kind) {
    case Kind::f32:
      for (int64_t i = 0; i < n; ++i) static_cast<float*>(to.data)[at + i] = float(from[i]);
      return;
    case Kind::f64:
      for (int64_t i = 0; i < n; ++i) static_cast<double*>(to.data)[at + i] = from[i];
      return;
    case Kind::bf16:
      for (int64_t i = 0; i < n; ++i) narrow(float(from[i]), static_cast<Bf16*>(to.data)[at + i]);
      return;
    case Kind::f16:
      for (int64_t i = 0; i < n; ++i) narrow(float(from[i]), static_cast<Fp16*>(to.data)[at + i]);
      return;
  }
}

// ---- softmax ----
// exp of x <= 0 within 2 ulp: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' coefficients).
DDETR_INLINE float exp_nonpositive(float x) {
  const float kShift = 0x1.8p23f;  // adding it rounds to an integer, kept in the low bits
  const float shifted = x * 1.44269504f + kShift;
  const float n = shifted - kShift;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t exponent = (bits_as<uint32_t>(shifted) - bits_as<uint32_t>(kShift) + 127u) << 23;
  return x < -87.0f ? 0.0f : p * bits_as<float>(exponent);
}
DDETR_INLINE double exp_nonpositive(double x) { return __builtin_exp(x); }

template <typename Acc>
DDETR_INLINE void softmax_row(Acc* x, int64_t n) {
  Acc top = n > 0 ? x[0] : Acc(0);
  for (int64_t i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) x[i] = exp_nonpositive(x[i] - top);
  Acc sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  const Acc factor = Acc(1) / sum;
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

// ---- sampling points, as arrays over the points so that the arithmetic vectorises ----
template <typename Acc>
struct Points {
  Acc* raw;                                    // x and y interleaved, as they are read: 2n
  Acc *x, *y, *a;                              // fractions of a pixel; attention weight, 0 outside
  Acc *scale_x, *scale_y, *shift_x, *shift_y;  // pixel = shift + scale * raw
  Acc *width_f, *height_f;                     // -1 for a level without pixels: nothing lies inside
  Acc* b[4];                                   // bilinear weights of the corners, 0 outside the map
  Acc *dots, *grad_raw, *grad_a;               // backward: 4n, 2n, n
  int32_t *width, *height, *start;
  int32_t* at[4];      // the corners' tokens, clamped into the map
  int32_t* corner[4];  // does the corner lie in the map?
  int32_t* inside;     // does the point touch the map at all?

  static int64_t bytes(int64_t n) { return n * int64_t(22 * sizeof(Acc) + 12 * sizeof(int32_t)); }

  Points(void* memory, int64_t n) {
    Acc* next = static_cast<Acc*>(memory);
    const auto take = [&](int64_t arrays) { return (next += arrays * n) - arrays * n; };
    raw = take(2);
    x = take(1), y = take(1), a = take(1);
    scale_x = take(1), scale_y = take(1), shift_x = take(1), shift_y = take(1);
    width_f = take(1), height_f = take(1);
    for (int k = 0; k < 4; ++k) b[k] = take(1);
    dots = take(4), grad_raw = take(2), grad_a = take(1);
    int32_t* next_int = reinterpret_cast<int32_t*>(next);
    const auto take_int = [&] { return (next_int += n) - n; };
    width = take_int(), height = take_int(), start = take_int(), inside = take_int();
    for (int k = 0; k < 4; ++k) at[k] = take_int(), corner[k] = take_int();
  }
};

// Fill what depends on the level only, for points [i, i + n).
template <typename Acc>
void set_level(const Points<Acc>& p, int64_t i, int64_t n, const Level& level, int64_t start) {
  const bool empty = level.height * level.width == 0;
  for (const int64_t end = i + n; i < end; ++i) {
    p.width[i] = int32_t(level.width), p.height[i] = int32_t(level.height), p.start[i] = int32_t(start);
    p.width_f[i] = empty ? Acc(-1) : Acc(level.width), p.height_f[i] = empty ? Acc(-1) : Acc(level.height);
    p.scale_x[i] = Acc(level.width), p.scale_y[i] = Acc(level.height);
    p.shift_x[i] = p.shift_y[i] = Acc(-0.5);  // pixel centres lie on integers
  }
}

// Fused form: how offsets become pixels, around `reference` (x, y) or (cx, cy, w, h), for one query and level.
template <typename Acc>
DDETR_INLINE void set_reference(const Points<Acc>& p, int64_t i, int64_t n, const Level& level,
                                const Acc* reference, int64_t dim) {
  const Acc width = Acc(level.width), height = Acc(level.height);
  const Acc scale_x = dim == 2 ? Acc(1) : reference[2] * width * Acc(0.5) / Acc(n);
  const Acc scale_y = dim == 2 ? Acc(1) : reference[3] * height * Acc(0.5) / Acc(n);
  const Acc shift_x = reference[0] * width - Acc(0.5), shift_y = reference[1] * height - Acc(0.5);
  for (const int64_t end = i + n; i < end; ++i) {
    p.scale_x[i] = scale_x, p.scale_y[i] = scale_y, p.shift_x[i] = shift_x, p.shift_y[i] = shift_y;
  }
}

// From raw, scale, shift and a: everything else. `Weighted` multiplies the corners' weights with a.
template <bool Weighted, typename Acc>
void find_corners(const Points<Acc>& p, int64_t n) {
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    Acc x = p.shift_x[i] + p.scale_x[i] * p.raw[2 * i];
    Acc y = p.shift_y[i] + p.scale_y[i] * p.raw[2 * i + 1];
    const bool inside = (x > -1) & (x < p.width_f[i]) & (y > -1) & (y < p.height_f[i]);  // false for NaN
    x = inside ? x : Acc(0);
    y = inside ? y : Acc(0);
    int32_t x0 = int32_t(x), y0 = int32_t(y);
    x0 -= x < Acc(x0);  // floor
    y0 -= y < Acc(y0);
    const Acc lx = x - Acc(x0), ly = y - Acc(y0);
    const int32_t width = p.width[i], height = p.height[i];
    const bool left = inside & (x0 >= 0), right = inside & (x0 + 1 < width);
    const bool top = y0 >= 0, bottom = y0 + 1 < height;
    const int32_t column0 = x0 < 0 ? 0 : x0, column1 = x0 + 1 < width ? x0 + 1 : x0;
    const int32_t row0 = p.start[i] + (y0 < 0 ? 0 : y0) * width;
    const int32_t row1 = p.start[i] + (y0 + 1 < height ? y0 + 1 : y0) * width;
    const Acc a = inside ? p.a[i] : Acc(0);
    const Acc part = Weighted ? a : Acc(1);
    const Acc upper = (1 - ly) * part, lower = ly * part;
    p.b[0][i] = left & top ? upper * (1 - lx) : Acc(0);
    p.b[1][i] = right & top ? upper * lx : Acc(0);
    p.b[2][i] = left & bottom ? lower * (1 - lx) : Acc(0);
    p.b[3][i] = right & bottom ? lower * lx : Acc(0);
    p.at[0][i] = row0 + column0;
    p.at[1][i] = row0 + column1;
    p.at[2][i] = row1 + column0;
    p.at[3][i] = row1 + column1;
    p.inside[i] = inside;
    if constexpr (!Weighted) {
      p.a[i] = a, p.x[i] = lx, p.y[i] = ly;
      p.corner[0][i] = left & top, p.corner[1][i] = right & top;
      p.corner[2][i] = left & bottom, p.corner[3][i] = right & bottom;
    }
  }
}

// Call f<N>(first channel) for slices that cover all channels.
template <typename F>
DDETR_INLINE void each_slice(int64_t channels, const F& f) {
  int64_t c = 0;
  for (; c + 32 <= channels; c += 32) f.template operator()<32>(c);
  for (; c + 16 <= channels; c += 16) f.template operator()<16>(c);
  for (; c + 8 <= channels; c += 8) f.template operator()<8>(c);
  for (; c < channels; ++c) f.template operator()<1>(c);
}

// ---- forward ----
template <int N, typename T, typename Acc>
DDETR_INLINE void gather(const Points<Acc>& p, int64_t i, int64_t n, const T* value, int64_t stride, T* out) {
  Slice<T, N> sum[2], v;  // two chains of additions hide their latency
  set_zero(sum[0]);
  set_zero(sum[1]);
  for (const int64_t end = i + n; i < end; ++i) {
    if (!p.inside[i]) continue;
    for (int k = 0; k < 4; ++k) {
      v.load(value + p.at[k][i] * stride);
      add_scaled(sum[k % 2], p.b[k][i], v);
    }
  }
  add_scaled(sum[0], Acc(1), sum[1]);
  sum[0].store(out);
}

template <typename T>
void forward_rows(const Shape& s, const Sampling& in, Typed value_tensor, Typed out_tensor, int64_t begin,
                  int64_t end, void* scratch) {
  using Acc = typename Slice<T, 1>::Acc;
  const int64_t n = s.levels * s.points, row_points = s.heads * n, stride = s.heads * s.channels;
  const Points<Acc> p(scratch, row_points);
  Acc* references = reinterpret_cast<Acc*>(static_cast<char*>(scratch) + Points<Acc>::bytes(row_points));
  for (int64_t i = 0; i < row_points; i += s.points) {
    const Level& level = s.level[i / s.points % s.levels];
    set_level(p, i, s.points, level, level.start);
  }
  for (int64_t row = begin; row < end; ++row) {
    load_row(in.places, row * row_points * 2, row_points * 2, p.raw);
    load_row(in.weights, row * row_points, row_points, p.a);
    if (in.logits) {
      for (int64_t i = 0; i < row_points; i += n) softmax_row(p.a + i, n);
    }
    if (in.reference_dim) {
      load_row(in.references, row * s.levels * in.reference_dim, s.levels * in.reference_dim, references);
      for (int64_t i = 0; i < row_points; i += s.points) {
        const int64_t l = i / s.points % s.levels;
        set_reference(p, i, s.points, s.level[l], references + l * in.reference_dim, in.reference_dim);
      }
    }
    find_corners<true>(p, row_points);
    const T* value = static_cast<const T*>(value_tensor.data) + row / s.queries * s.tokens * stride;
    T* out = static_cast<T*>(out_tensor.data) + row * stride;
    for (int64_t m = 0; m < s.heads; ++m) {
      each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
        const int64_t channel = m * s.channels + c;
        gather<N>(p, m * n, n, value + channel, stride, out + channel);
      });
    }
  }
}

// ---- backward ----
// For points [i, i + n) of one query: add to the value's gradient, and to the dot products of the output's
// gradient with the four corners.
template <int N, typename T, typename Acc>
DDETR_INLINE void scatter(const Points<Acc>& p, int64_t i, int64_t n, const T* value, int64_t stride,
                          const T* grad_out, Acc* grad_value, int64_t grad_stride) {
  Slice<T, N> g, v;
  g.load(grad_out);
  for (const int64_t end = i + n; i < end; ++i) {
    if (!p.inside[i]) continue;
    typename Slice<T, N>::V lanes[4];
    for (int k = 0; k < 4; ++k) {
      v.load(value + p.at[k][i] * stride);
      lanes[k] = dot_lanes(g, v);
      add_scaled_raw(grad_value + p.at[k][i] * grad_stride, p.b[k][i] * p.a[i], g);
    }
    if constexpr (N == 1) {
      for (int k = 0; k < 4; ++k) p.dots[4 * i + k] += lanes[k];
    } else {
      add_lane_sums<Acc, Slice<T, N>::kLanes>(lanes, p.dots + 4 * i);
    }
  }
}

// From the dot products: gradients of the attention weights and of x and y (per pixel, or per unit of raw).
template <typename Acc>
void point_gradients(const Points<Acc>& p, int64_t n, bool per_pixel) {
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Acc d0 = p.corner[0][i] ? p.dots[4 * i] : Acc(0), d1 = p.corner[1][i] ? p.dots[4 * i + 1] : Acc(0);
    const Acc d2 = p.corner[2][i] ? p.dots[4 * i + 2] : Acc(0), d3 = p.corner[3][i] ? p.dots[4 * i + 3] : Acc(0);
    const Acc lx = p.x[i], ly = p.y[i], a = p.a[i];
    const Acc upper = d0 + lx * (d1 - d0), lower = d2 + lx * (d3 - d2);
    p.grad_a[i] = upper + ly * (lower - upper);
    const Acc gx = a * ((d1 - d0) + ly * ((d3 - d2) - (d1 - d0)));
    const Acc gy = a * (lower - upper);
    p.grad_raw[2 * i] = per_pixel ? gx : gx * p.scale_x[i];
    p.grad_raw[2 * i + 1] = per_pixel ? gy : gy * p.scale_y[i];
  }
}

template <typename T>
void backward_unit(const Shape& s, const Sampling& in, Typed value_tensor, Typed grad_out_tensor,
                   const Gradients& grads, int64_t unit, void* scratch, void* rows) {
  using Acc = typename Slice<T, 1>::Acc;
  const int64_t l = unit % s.levels, m = unit / s.levels % s.heads, b = unit / s.levels / s.heads;
  const Level& level = s.level[l];
  const int64_t pixels = level.height * level.width, stride = s.heads * s.channels;
  const int64_t first = ((b * s.tokens + level.start) * s.heads + m) * s.channels;
  const int64_t chunk = s.points < kChunk ? kChunk / (s.points ? s.points : 1) : 1;  // queries
  const Points<Acc> p(scratch, chunk * s.points);
  Acc* reference = reinterpret_cast<Acc*>(static_cast<char*>(scratch) + Points<Acc>::bytes(chunk * s.points));
  set_level(p, 0, chunk * s.points, level, 0);

  const T* value = static_cast<const T*>(value_tensor.data) + first;
  T* grad_value = static_cast<T*>(grads.value.data) + first;
  // Without `rows`, T is Acc.
  Acc* sums = rows ? static_cast<Acc*>(rows) : reinterpret_cast<Acc*>(grad_value);
  const int64_t sums_stride = rows ? s.channels : stride;
  for (int64_t t = 0; t < pixels; ++t) {
    __builtin_memset(sums + t * sums_stride, 0, std::size_t(s.channels) * sizeof(Acc));
  }

  for (int64_t q0 = 0; q0 < s.queries; q0 += chunk) {
    const int64_t count = s.queries - q0 < chunk ? s.queries - q0 : chunk;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t query = b * s.queries + q0 + j, i = j * s.points;
      const int64_t at = ((query * s.heads + m) * s.levels + l) * s.points;
      load_row(in.places, at * 2, s.points * 2, p.raw + 2 * i);
      load_row(in.weights, at, s.points, p.a + i);
      if (in.reference_dim) {
        load_row(in.references, (query * s.levels + l) * in.reference_dim, in.reference_dim, reference);
        set_reference(p, i, s.points, level, reference, in.reference_dim);
      }
    }
    find_corners<false>(p, count * s.points);
    __builtin_memset(p.dots, 0, std::size_t(4 * count * s.points) * sizeof(Acc));
    for (int64_t j = 0; j < count; ++j) {
      const int64_t query = b * s.queries + q0 + j;
      const T* grad_out = static_cast<const T*>(grad_out_tensor.data) + query * stride + m * s.channels;
      each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
        scatter<N>(p, j * s.points, s.points, value + c, stride, grad_out + c, sums + c, sums_stride);
      });
    }
    point_gradients(p, count * s.points, in.reference_dim != 0);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = (((b * s.queries + q0 + j) * s.heads + m) * s.levels + l) * s.points;
      store_row(p.grad_raw + 2 * j * s.points, s.points * 2, grads.places, at * 2);
      store_row(p.grad_a + j * s.points, s.points, grads.weights, at);
    }
  }
  if (!rows) return;
  for (int64_t t = 0; t < pixels; ++t) {
    each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
      Slice<T, N> sum;
      load_raw(sum, sums + t * sums_stride + c);
      sum.store(grad_value + t * stride + c);
    });
  }
}

// ---- the fused form's ends ----
template <typename Acc>
void softmax_rows(const Shape& s, const Sampling& in, Typed probabilities, int64_t begin, int64_t end) {
  const int64_t n = s.levels * s.points;
  for (int64_t row = begin * s.heads; row < end * s.heads; ++row) {
    Acc* to = static_cast<Acc*>(probabilities.data) + row * n;
    load_row(in.weights, row * n, n, to);
    softmax_row(to, n);
  }
}

template <typename Acc>
void finish_fused(const Shape& s, const Sampling& in, const Gradients& raw, Typed probabilities,
                  const Gradients& result, int64_t begin, int64_t end, void* scratch) {
  const int64_t n = s.levels * s.points, dim = in.reference_dim;
  Acc* const offsets = static_cast<Acc*>(scratch);
  Acc* const pixels = offsets + 2 * n;
  Acc* const logits = pixels + 2 * n;
  Acc* const reference = logits + n;
  Acc* const grad_reference = reference + 4 * s.levels;
  for (int64_t row = begin; row < end; ++row) {
    load_row(in.references, row * s.levels * dim, s.levels * dim, reference);
    __builtin_memset(grad_reference, 0, std::size_t(4 * s.levels) * sizeof(Acc));
    for (int64_t m = 0; m < s.heads; ++m) {
      const int64_t at = (row * s.heads + m) * n;
      const Acc* p = static_cast<const Acc*>(probabilities.data) + at;
      const Acc* grad_p = static_cast<const Acc*>(raw.weights.data) + at;
      Acc mean = 0;
      for (int64_t i = 0; i < n; ++i) mean += p[i] * grad_p[i];
      for (int64_t i = 0; i < n; ++i) logits[i] = p[i] * (grad_p[i] - mean);
      store_row(logits, n, result.weights, at);

      load_row(in.places, at * 2, n * 2, offsets);
      load_row(raw.places, at * 2, n * 2, pixels);
      for (int64_t l = 0; l < s.levels; ++l) {
        const Acc width = Acc(s.level[l].width), height = Acc(s.level[l].height);
        const Acc half_x = width * Acc(0.5) / Acc(s.points), half_y = height * Acc(0.5) / Acc(s.points);
        const Acc scale_x = dim == 2 ? Acc(1) : reference[l * dim + 2] * half_x;
        const Acc scale_y = dim == 2 ? Acc(1) : reference[l * dim + 3] * half_y;
        Acc gx = 0, gy = 0, gw = 0, gh = 0;
        for (int64_t i = l * s.points; i < (l + 1) * s.points; ++i) {
          gx += pixels[2 * i], gw += pixels[2 * i] * offsets[2 * i];
          gy += pixels[2 * i + 1], gh += pixels[2 * i + 1] * offsets[2 * i + 1];
          pixels[2 * i] *= scale_x, pixels[2 * i + 1] *= scale_y;
        }
        Acc* to = grad_reference + l * dim;
        to[0] += gx * width, to[1] += gy * height;
        if (dim == 4) to[2] += gw * half_x, to[3] += gh * half_y;
      }
      store_row(pixels, n * 2, result.places, at * 2);
    }
    store_row(grad_reference, s.levels * dim, result.references, row * s.levels * dim);
  }
}

int64_t scratch_bytes(const Shape& s) {
  const int64_t row = s.heads * s.levels * s.points;
  const int64_t points = row > kChunk ? row : (s.points > kChunk ? s.points : kChunk);
  return Points<double>::bytes(points) + int64_t(sizeof(double)) * (5 * s.levels * s.points + 8 * s.levels + 8);
}

}  // namespace

extern const Kernels DDETR_TABLE;
const Kernels DDETR_TABLE = {
    scratch_bytes,
    {forward_rows<float>, forward_rows<double>, forward_rows<Bf16>, forward_rows<Fp16>},
    {backward_unit<float>, backward_unit<double>, backward_unit<Bf16>, backward_unit<Fp16>},
    {softmax_rows<float>, softmax_rows<double>},
    {finish_fused<float>, finish_fused<double>},
};

}  // namespace ddetr_ops::DDETR_NAMESPACE
