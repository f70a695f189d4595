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

constexpr int64_t kChunk = 64;  // points that are prepared at a time

// So many queries with n points each.
DDETR_INLINE int64_t chunk_of(int64_t n) { return n > kChunk ? 1 : kChunk / (n > 0 ? n : 1); }

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
  int32_t *width, *start;
  int32_t* at[4];      // the corners' tokens, clamped into the map
  int32_t* corner[4];  // does the corner lie in the map?
  int32_t* inside;     // does the point touch the map at all?

  static int64_t bytes(int64_t n) { return n * int64_t(22 * sizeof(Acc) + 11 * sizeof(int32_t)); }

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
    width = take_int(), start = take_int(), inside = take_int();
    for (int k = 0; k < 4; ++k) at[k] = take_int(), corner[k] = take_int();
  }
};

// Fill what depends on the level only, for points [i, i + n).
template <typename Acc>
void set_level(const Points<Acc>& p, int64_t i, int64_t n, const Level& level, int64_t start) {
  const bool empty = level.height * level.width == 0;
  for (const int64_t end = i + n; i < end; ++i) {
    p.width[i] = int32_t(level.width), p.start[i] = int32_t(start);
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

// From raw, scale, shift and a: everything else. `Weighted` multiplies the corners' weights with a. Conditions are
// numbers and every load stands by itself, or the compiler would not vectorise this.
template <bool Weighted, typename Acc>
void find_corners(const Points<Acc>& p, int64_t n) {
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Acc x = p.shift_x[i] + p.scale_x[i] * p.raw[2 * i], width_f = p.width_f[i];
    const Acc y = p.shift_y[i] + p.scale_y[i] * p.raw[2 * i + 1], height_f = p.height_f[i];
    const int32_t width = p.width[i], start = p.start[i];
    const Acc weight = p.a[i];
    // A comparison with NaN is false.
    const int32_t in_x = (x > -1 ? 1 : 0) & (x < width_f ? 1 : 0), in_y = (y > -1 ? 1 : 0) & (y < height_f ? 1 : 0);
    const int32_t inside = in_x & in_y;
    const Acc a = inside ? weight : Acc(0), px = inside ? x : Acc(0), py = inside ? y : Acc(0);
    const int32_t cut_x = int32_t(px), cut_y = int32_t(py);
    const int32_t x0 = cut_x - (px < Acc(cut_x) ? 1 : 0), y0 = cut_y - (py < Acc(cut_y) ? 1 : 0);  // floor
    const Acc lx = px - Acc(x0), ly = py - Acc(y0);
    const int32_t left = inside & (x0 >= 0 ? 1 : 0), right = inside & (Acc(x0 + 1) < width_f ? 1 : 0);
    const int32_t top = y0 >= 0 ? 1 : 0, bottom = Acc(y0 + 1) < height_f ? 1 : 0;
    const Acc part = Weighted ? a : Acc(1), upper = (1 - ly) * part, lower = ly * part;
    const Acc b0 = upper * (1 - lx), b1 = upper * lx, b2 = lower * (1 - lx), b3 = lower * lx;
    p.b[0][i] = left & top ? b0 : Acc(0);
    p.b[1][i] = right & top ? b1 : Acc(0);
    p.b[2][i] = left & bottom ? b2 : Acc(0);
    p.b[3][i] = right & bottom ? b3 : Acc(0);
    // Of x0 and x0 + 1 at least one lies in the map, the other is moved onto it.
    const int32_t column0 = x0 + 1 - left, column1 = x0 + right;
    const int32_t row0 = start + (y0 + 1 - top) * width, row1 = start + (y0 + bottom) * width;
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
void forward(const Shape& s, const Sampling& in, Unit unit, Tokens value, void* out_tensor, int64_t begin,
             int64_t end, void* scratch) {
  using Acc = typename Slice<T, 1>::Acc;
  const int64_t n = s.levels * s.points, chunk = chunk_of(n);
  const Points<Acc> p(scratch, chunk * n);
  Acc* references = reinterpret_cast<Acc*>(static_cast<char*>(scratch) + Points<Acc>::bytes(chunk * n));
  for (int64_t i = 0; i < chunk * n; i += s.points) {
    const Level& level = s.level[i / s.points % s.levels];
    set_level(p, i, s.points, level, level.start);
  }
  for (int64_t q0 = begin; q0 < end; q0 += chunk) {
    const int64_t count = end - q0 < chunk ? end - q0 : chunk;
    for (int64_t j = 0; j < count; ++j) {
      const int64_t row = unit.b * s.queries + q0 + j, at = (row * s.heads + unit.m) * n;
      load_row(in.places, at * 2, n * 2, p.raw + j * n * 2);
      load_row(in.weights, at, n, p.a + j * n);
      if (in.logits) softmax_row(p.a + j * n, n);
      if (in.reference_dim) {
        load_row(in.references, row * s.levels * in.reference_dim, s.levels * in.reference_dim, references);
        for (int64_t l = 0; l < s.levels; ++l) {
          set_reference(p, j * n + l * s.points, s.points, s.level[l], references + l * in.reference_dim,
                        in.reference_dim);
        }
      }
    }
    find_corners<true>(p, count * n);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t row = unit.b * s.queries + q0 + j;
      T* out = static_cast<T*>(out_tensor) + (row * s.heads + unit.m) * s.channels;
      each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
        gather<N>(p, j * n, n, static_cast<const T*>(value.data) + c, value.stride, out + c);
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
    const Acc dot0 = p.dots[4 * i], dot1 = p.dots[4 * i + 1], dot2 = p.dots[4 * i + 2], dot3 = p.dots[4 * i + 3];
    const Acc d0 = p.corner[0][i] ? dot0 : Acc(0), d1 = p.corner[1][i] ? dot1 : Acc(0);
    const Acc d2 = p.corner[2][i] ? dot2 : Acc(0), d3 = p.corner[3][i] ? dot3 : Acc(0);
    const Acc lx = p.x[i], ly = p.y[i], a = p.a[i];
    const Acc upper = d0 + lx * (d1 - d0), lower = d2 + lx * (d3 - d2);
    p.grad_a[i] = upper + ly * (lower - upper);
    p.x[i] = a * ((d1 - d0) + ly * ((d3 - d2) - (d1 - d0)));
    p.y[i] = a * (lower - upper);
  }
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Acc scale_x = p.scale_x[i], scale_y = p.scale_y[i];
    p.grad_raw[2 * i] = p.x[i] * (per_pixel ? Acc(1) : scale_x);
    p.grad_raw[2 * i + 1] = p.y[i] * (per_pixel ? Acc(1) : scale_y);
  }
}

template <typename T>
void backward(const Shape& s, const Sampling& in, Unit unit, Tokens value, const void* grad_out_tensor, Tokens sums,
              const SamplingGrads& grads, void* scratch) {
  using Acc = typename Slice<T, 1>::Acc;
  const Level& level = s.level[unit.l];
  const int64_t n = s.points, chunk = chunk_of(n);
  const Points<Acc> p(scratch, chunk * n);
  Acc* reference = reinterpret_cast<Acc*>(static_cast<char*>(scratch) + Points<Acc>::bytes(chunk * n));
  set_level(p, 0, chunk * n, level, level.start);
  for (int64_t q0 = 0; q0 < s.queries; q0 += chunk) {
    const int64_t count = s.queries - q0 < chunk ? s.queries - q0 : chunk;
    const auto row_of = [&](int64_t j) { return unit.b * s.queries + q0 + j; };
    const auto points_of = [&](int64_t j) { return ((row_of(j) * s.heads + unit.m) * s.levels + unit.l) * n; };
    for (int64_t j = 0; j < count; ++j) {
      load_row(in.places, points_of(j) * 2, n * 2, p.raw + j * n * 2);
      load_row(in.weights, points_of(j), n, p.a + j * n);
      if (in.reference_dim) {
        load_row(in.references, (row_of(j) * s.levels + unit.l) * in.reference_dim, in.reference_dim, reference);
        set_reference(p, j * n, n, level, reference, in.reference_dim);
      }
    }
    find_corners<false>(p, count * n);
    __builtin_memset(p.dots, 0, std::size_t(4 * count * n) * sizeof(Acc));
    for (int64_t j = 0; j < count; ++j) {
      const T* grad_out = static_cast<const T*>(grad_out_tensor) + (row_of(j) * s.heads + unit.m) * s.channels;
      each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
        scatter<N>(p, j * n, n, static_cast<const T*>(value.data) + c, value.stride, grad_out + c,
                   static_cast<Acc*>(sums.data) + c, sums.stride);
      });
    }
    point_gradients(p, count * n, in.reference_dim != 0);
    for (int64_t j = 0; j < count; ++j) {
      store_row(p.grad_raw + j * n * 2, n * 2, grads.places, points_of(j) * 2);
      store_row(p.grad_a + j * n, n, grads.weights, points_of(j));
    }
  }
}

template <typename T>
void unpack(const Shape& s, const void* sums, void* grad_value, int64_t b, int64_t begin, int64_t end) {
  using Acc = typename Slice<T, 1>::Acc;
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t m = 0; m < s.heads; ++m) {
      const Acc* from = static_cast<const Acc*>(sums) + (m * s.tokens + t) * s.channels;
      T* to = static_cast<T*>(grad_value) + ((b * s.tokens + t) * s.heads + m) * s.channels;
      each_slice(s.channels, [&]<int N>(int64_t c) DDETR_LAMBDA_INLINE {
        Slice<T, N> sum;
        load_raw(sum, from + c);
        sum.store(to + c);
      });
    }
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
void finish_fused(const Shape& s, const Sampling& in, const SamplingGrads& raw, Typed probabilities,
                  const SamplingGrads& result, int64_t begin, int64_t end, void* scratch) {
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
  const int64_t n = s.levels * s.points;
  return Points<double>::bytes(n > kChunk ? n : kChunk) + int64_t(sizeof(double)) * (5 * n + 8 * s.levels + 8);
}

}  // namespace

extern const Kernels DDETR_TABLE;
const Kernels DDETR_TABLE = {
    scratch_bytes,
    {forward<float>, forward<double>, forward<Bf16>, forward<Fp16>},
    {backward<float>, backward<double>, backward<Bf16>, backward<Fp16>},
    {unpack<float>, unpack<double>, unpack<Bf16>, unpack<Fp16>},
    {softmax_rows<float>, softmax_rows<double>},
    {finish_fused<float>, finish_fused<double>},
};

}  // namespace ddetr_ops::DDETR_NAMESPACE
