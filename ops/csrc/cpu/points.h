// Sampling points: loading a tile of queries, and the bilinear corners of its points. Included by kernels.h.

constexpr int64_t kChunk = 64;  // points whose corners are computed at a time
constexpr int64_t kTile = 32;   // queries of a tile, at most

// ---- rows of any dtype, converted to and from Acc ----
template <typename Acc, typename T>
DDETR_INLINE void convert(const T* from, int64_t n, Acc* to) {
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) to[i] = Acc(widen(from[i]));
}

// n elements from index `at` on: where they lie if they are Acc, else converted into `buffer`.
template <typename Acc>
DDETR_INLINE const Acc* load_row(const Array& from, int64_t at, int64_t n, Acc* buffer) {
  switch (from.dtype) {
    case DType::f32:
      if constexpr (sizeof(Acc) == 4) return static_cast<const Acc*>(from.data) + at;
      convert(static_cast<const float*>(from.data) + at, n, buffer);
      break;
    case DType::f64:
      if constexpr (sizeof(Acc) == 8) return static_cast<const Acc*>(from.data) + at;
      convert(static_cast<const double*>(from.data) + at, n, buffer);
      break;
    case DType::bf16: convert(static_cast<const Bf16*>(from.data) + at, n, buffer); break;
    case DType::f16: convert(static_cast<const Fp16*>(from.data) + at, n, buffer); break;
  }
  return buffer;
}

template <typename T, typename Acc>
DDETR_INLINE void narrow_row(const Acc* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (sizeof(T) == 2) {
      narrow(float(from[i]), to[i]);
    } else {
      to[i] = T(from[i]);
    }
  }
}
template <typename Acc>
DDETR_INLINE void store_row(const Acc* from, int64_t n, const Array& to, int64_t at) {
  switch (to.dtype) {
    case DType::f32: return narrow_row(from, n, static_cast<float*>(to.data) + at);
    case DType::f64: return narrow_row(from, n, static_cast<double*>(to.data) + at);
    case DType::bf16: return narrow_row(from, n, static_cast<Bf16*>(to.data) + at);
    case DType::f16: return narrow_row(from, n, static_cast<Fp16*>(to.data) + at);
  }
}

DDETR_INLINE int64_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

DDETR_INLINE void prefetch(const void* data, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(data) + i);
}
DDETR_INLINE void prefetch_row(const Array& array, int64_t at, int64_t n) {
  if (array.data == nullptr) return;
  const int64_t size = bytes_of(array.dtype);
  prefetch(static_cast<const char*>(array.data) + at * size, n * size);
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
DDETR_INLINE void softmax(const Acc* logits, int64_t n, Acc* to) {
  Acc top = n > 0 ? logits[0] : Acc(0);
  for (int64_t i = 1; i < n; ++i) top = logits[i] > top ? logits[i] : top;
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) to[i] = exp_nonpositive(logits[i] - top);
  Acc sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += to[i];
  const Acc factor = Acc(1) / sum;
  for (int64_t i = 0; i < n; ++i) to[i] *= factor;
}

// ---- pixel coordinates ----
// pixel = shift + scale * location (or offset); pixel centres lie on integers.
template <typename Acc>
struct Affine {
  Acc scale_x, scale_y, shift_x, shift_y;
};

// Offsets are pixels around a reference point, or fractions of half a reference box times the level's points.
template <typename Acc>
DDETR_INLINE Affine<Acc> to_pixels(const Level& level, const Acc* reference, int64_t reference_dim) {
  const Acc width = Acc(level.width), height = Acc(level.height), half = Acc(0.5);
  if (reference_dim == 0) return {width, height, -half, -half};
  const Acc shift_x = reference[0] * width - half, shift_y = reference[1] * height - half;
  if (reference_dim == 2) return {Acc(1), Acc(1), shift_x, shift_y};
  const Acc per_point = half / Acc(level.num_points);
  return {reference[2] * width * per_point, reference[3] * height * per_point, shift_x, shift_y};
}

template <typename Acc>
DDETR_INLINE void apply(const Affine<Acc>& map, const Acc* from, int64_t n, Acc* to) {
  constexpr int kPoints = 8 / int(sizeof(Acc));  // of one vector of 16 bytes
  using V = Vector<Acc, 2 * kPoints>;
  V scale, shift;
  for (int k = 0; k < kPoints; ++k) {
    scale[2 * k] = map.scale_x, scale[2 * k + 1] = map.scale_y;
    shift[2 * k] = map.shift_x, shift[2 * k + 1] = map.shift_y;
  }
  int64_t i = 0;
  for (; i + kPoints <= n; i += kPoints) store_vector(to + 2 * i, shift + scale * load_vector<V>(from + 2 * i));
  for (; i < n; ++i) {
    to[2 * i] = map.shift_x + map.scale_x * from[2 * i];
    to[2 * i + 1] = map.shift_y + map.scale_y * from[2 * i + 1];
  }
}

// ---- a tile: the points of some consecutive queries of one head ----
// Ordered by level, then query, then point, so that consecutive points share one small window of one level's map,
// which the first-level cache can hold.
template <typename Acc>
struct Tile {
  const Shape& s;
  const Sampling& in;
  const Head head;
  const int64_t capacity;  // queries
  Acc *pixels, *weights;   // 2 * capacity * K, capacity * K
  Acc* row;                // one query's numbers of any kind: max(2 * K, 4 * L)
  Acc* rest;               // what the kernels keep per query

  static int64_t capacity_of(const Shape& s) {
    const int64_t fit = 1024 / (s.points > 0 ? s.points : 1);
    return fit < 1 ? 1 : fit > kTile ? kTile : fit;
  }
  static int64_t row_size(const Shape& s) { return 2 * s.points + 4 * s.levels; }
  static int64_t size(const Shape& s) { return capacity_of(s) * 3 * s.points + row_size(s); }

  Tile(const Shape& shape, const Sampling& sampling, Head which, void* scratch)
      : s(shape), in(sampling), head(which), capacity(capacity_of(shape)) {
    pixels = static_cast<Acc*>(scratch);
    weights = pixels + capacity * 2 * s.points;
    row = weights + capacity * s.points;
    rest = row + row_size(s);
  }

  // Index in (B * Q * M).
  int64_t item_of(int64_t query) const { return (head.batch * s.queries + query) * s.heads + head.head; }
  // Reference points of one row of (B * Q), null in the classic form.
  DDETR_INLINE const Acc* references_of(int64_t query_row) const {
    const int64_t n = s.levels * in.reference_dim;
    return in.fused() ? load_row(in.references, query_row * n, n, row + 2 * s.points) : nullptr;
  }
  // Index of a level's first point in a tile of `count` queries.
  int64_t first(const Level& level, int64_t count) const { return level.first_point * count; }

  // Loads levels [from, to) of `count` queries and prefetches the next tile's.
  DDETR_INLINE void load(int64_t query, int64_t count, int64_t from, int64_t to) {
    for (int64_t j = 0; j < count; ++j) {
      const int64_t item = item_of(query + j), dim = in.reference_dim;
      if (query + j + capacity < s.queries) {
        const int64_t next = item_of(query + j + capacity);
        prefetch_row(in.locations, next * s.points * 2, s.points * 2);
        prefetch_row(in.weights, next * s.points, s.points);
      }
      const Acc* raw = load_row(in.weights, item * s.points, s.points, row);
      if (in.fused()) {
        softmax(raw, s.points, row);
        raw = row;
      }
      for (int64_t l = from; l < to; ++l) {
        const Level& level = s.level[l];
        Acc* at = weights + first(level, count) + j * level.num_points;
        for (int64_t i = 0; i < level.num_points; ++i) at[i] = raw[level.first_point + i];
      }
      raw = load_row(in.locations, item * 2 * s.points, 2 * s.points, row);
      const Acc* const references = references_of(item / s.heads);
      for (int64_t l = from; l < to; ++l) {
        const Level& level = s.level[l];
        apply(to_pixels(level, references + l * dim, dim), raw + 2 * level.first_point, level.num_points,
              pixels + 2 * (first(level, count) + j * level.num_points));
      }
    }
  }
};

// ---- corners ----
// Of a chunk of one level's points, as arrays so that the arithmetic vectorises.
template <typename Acc>
struct Points {
  Acc b[4][kChunk];        // coefficients of the corners, 0 outside the map
  int32_t at[4][kChunk];   // the corners' tokens, clamped to the map
  int32_t inside[kChunk];  // whether the point touches the map at all
  // Backward only:
  int32_t in_map[4][kChunk];
  Acc x[kChunk], y[kChunk], a[kChunk];  // fractions of a pixel; attention weight, 0 outside
  Acc dots[4 * kChunk];                 // grad_output . corner
};

enum class Pass { forward, backward };

// Conditions are numbers and every load stands by itself, or the compiler does not vectorise this.
template <Pass pass, typename Acc>
void find_corners(Points<Acc>& p, const Acc* pixels, const Acc* weights, int64_t n, const Level& level) {
  const int32_t width = int32_t(level.width), start = int32_t(level.start);
  const bool empty = level.height * level.width == 0;  // then nothing lies inside
  const Acc width_f = empty ? Acc(-1) : Acc(level.width), height_f = empty ? Acc(-1) : Acc(level.height);
  DDETR_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Acc x = pixels[2 * i], y = pixels[2 * i + 1], weight = weights[i];
    // A comparison with NaN is false.
    const int32_t in_x = (x > -1 ? 1 : 0) & (x < width_f ? 1 : 0), in_y = (y > -1 ? 1 : 0) & (y < height_f ? 1 : 0);
    const int32_t inside = in_x & in_y;
    const Acc a = inside ? weight : Acc(0), px = inside ? x : Acc(0), py = inside ? y : Acc(0);
    const int32_t cut_x = int32_t(px), cut_y = int32_t(py);
    const int32_t x0 = cut_x - (px < Acc(cut_x) ? 1 : 0), y0 = cut_y - (py < Acc(cut_y) ? 1 : 0);  // floor
    const Acc lx = px - Acc(x0), ly = py - Acc(y0);
    const int32_t left = inside & (x0 >= 0 ? 1 : 0), top = y0 >= 0 ? 1 : 0;
    int32_t right = inside & (Acc(x0 + 1) < width_f ? 1 : 0), bottom = Acc(y0 + 1) < height_f ? 1 : 0;
    // On a pixel centre the next pixel has the coefficient zero and is not read: it may hold a NaN.
    if constexpr (pass == Pass::forward) right &= lx != 0 ? 1 : 0, bottom &= ly != 0 ? 1 : 0;
    const Acc upper = (1 - ly) * a, lower = ly * a;
    const Acc b0 = upper * (1 - lx), b1 = upper * lx, b2 = lower * (1 - lx), b3 = lower * lx;
    p.b[0][i] = left & top ? b0 : Acc(0);
    p.b[1][i] = right & top ? b1 : Acc(0);
    p.b[2][i] = left & bottom ? b2 : Acc(0);
    p.b[3][i] = right & bottom ? b3 : Acc(0);
    // Of x0 and x0 + 1 at least one is in the map; the other is moved onto it.
    const int32_t column0 = x0 + 1 - left, column1 = x0 + right;
    const int32_t row0 = start + (y0 + 1 - top) * width, row1 = start + (y0 + bottom) * width;
    p.at[0][i] = row0 + column0;
    p.at[1][i] = row0 + column1;
    p.at[2][i] = row1 + column0;
    p.at[3][i] = row1 + column1;
    p.inside[i] = inside;
    if constexpr (pass == Pass::backward) {
      p.a[i] = a, p.x[i] = lx, p.y[i] = ly;
      p.in_map[0][i] = left & top, p.in_map[1][i] = right & top;
      p.in_map[2][i] = left & bottom, p.in_map[3][i] = right & bottom;
    }
  }
}

// Calls f(first query of the chunk, its queries, points of each, first point in the tile) for the chunks of one level.
template <typename F>
DDETR_INLINE void each_chunk(const Level& level, int64_t first, int64_t count, const F& f) {
  const int64_t n = level.num_points;
  if (n == 0) return;
  const int64_t together = n < kChunk ? kChunk / n : 1;
  for (int64_t j = 0; j < count; j += together) {
    const int64_t queries = count - j < together ? count - j : together;
    for (int64_t i = 0; i < n; i += kChunk) f(j, queries, n - i < kChunk ? n - i : kChunk, first + j * n + i);
  }
}
