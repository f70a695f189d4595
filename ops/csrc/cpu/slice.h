// N neighbouring channels in vector registers. Included by kernels.h inside the namespace of one instruction set;
// DDETR_VECTOR_BYTES is that set's register width. GCC's and clang's vector types, which
// every CPU has.

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)  // GCC 12, clang
#define DDETR_SHUFFLES 1
#endif
#endif

#if defined(__clang__)
#define DDETR_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define DDETR_INDEPENDENT _Pragma("GCC ivdep")
#endif

#define DDETR_INLINE inline __attribute__((always_inline))
#define DDETR_LAMBDA_INLINE __attribute__((always_inline))

template <typename To, typename From>
DDETR_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename E, int Lanes>
struct VectorOf {
  typedef E type __attribute__((vector_size(sizeof(E) * Lanes)));
};
template <typename E, int Lanes>
using Vector = typename VectorOf<E, Lanes>::type;

template <typename V, typename P>
DDETR_INLINE V load_vector(const P* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
template <typename V, typename P>
DDETR_INLINE void store_vector(P* to, V v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

// ---- scalars ----
DDETR_INLINE float widen(float x) { return x; }
DDETR_INLINE double widen(double x) { return x; }
DDETR_INLINE float widen(Bf16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
DDETR_INLINE float widen(Fp16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = uint32_t(x.bits & 0x7fff) << 13;
  const float scaled = bits_as<float>(rest) * 0x1p112f;  // rebias the exponent; subnormals come out right
  const uint32_t finite = bits_as<uint32_t>(scaled);
  return bits_as<float>((rest >= 0x0f800000u ? (rest | 0x7f800000u) : finite) | sign);
}

template <typename Acc>
DDETR_INLINE void narrow(Acc x, Acc& to) {
  to = x;
}
DDETR_INLINE void narrow(float x, Bf16& to) {
  const uint32_t u = bits_as<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  to.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}
DDETR_INLINE void narrow(float x, Fp16& to) {
  const uint32_t u = bits_as<uint32_t>(x);
  const uint32_t sign = (u >> 16) & 0x8000;
  const uint32_t magnitude = u & 0x7fffffff;
  uint32_t bits;
  if (magnitude > 0x7f800000) {
    bits = 0x7e00;  // NaN
  } else if (magnitude >= 0x477ff000) {
    bits = 0x7c00;  // rounds to infinity
  } else if (magnitude < 0x38800000) {
    bits = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000;  // subnormal: the adder rounds
  } else {
    bits = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  }
  to.bits = uint16_t(sign | bits);
}

// ---- slices: N channels as kVectors vectors of Acc ----
// load/store go to the tensor; what lies in Acc scratch is in the slice's own order (`raw`), which differs from
// the tensor's for bf16.
template <typename T, int N>
struct Slice {  // float, double
  using Acc = T;
  static constexpr int kLanes = N * int(sizeof(T)) < DDETR_VECTOR_BYTES ? N : DDETR_VECTOR_BYTES / int(sizeof(T));
  static constexpr int kVectors = N / kLanes;
  using V = Vector<T, kLanes>;
  V v[kVectors];

  DDETR_INLINE void load(const T* from) {
    for (int k = 0; k < kVectors; ++k) v[k] = load_vector<V>(from + k * kLanes);
  }
  DDETR_INLINE void store(T* to) const {
    for (int k = 0; k < kVectors; ++k) store_vector(to + k * kLanes, v[k]);
  }
};

template <int N>
  requires(N > 1)
struct Slice<Bf16, N> {
  // Pairs of channels are read as one 32-bit word: the even one is its lower half, the odd one its upper half.
  // Two cheap operations give two vectors, in the order (even channels, odd channels) of each block.
  using Acc = float;
  static constexpr int kLanes = N * 2 < DDETR_VECTOR_BYTES ? N / 2 : DDETR_VECTOR_BYTES / 4;
  static constexpr int kVectors = N / kLanes;
  using V = Vector<float, kLanes>;
  using U = Vector<uint32_t, kLanes>;
  V v[kVectors];

  DDETR_INLINE void load(const Bf16* from) {
    for (int k = 0; k < kVectors; k += 2) {
      const U pair = load_vector<U>(from + k * kLanes);
      v[k] = (V)(pair << 16);
      v[k + 1] = (V)(pair & 0xffff0000u);
    }
  }
  static DDETR_INLINE U rounded(V x) {  // the result's upper half holds the bf16
    const U u = (U)x;
    const U up = u + 0x7fffu + ((u >> 16) & 1u);
    const U nan = (U)(x != x);
    return (up & ~nan) | (nan & 0x7fc00000u);
  }
  DDETR_INLINE void store(Bf16* to) const {
    for (int k = 0; k < kVectors; k += 2) {
      store_vector(to + k * kLanes, (U)((rounded(v[k]) >> 16) | (rounded(v[k + 1]) & 0xffff0000u)));
    }
  }
};

template <int N>
  requires(N > 1)
struct Slice<Fp16, N> {
  using Acc = float;
  static constexpr int kLanes = N * 4 < DDETR_VECTOR_BYTES ? N : DDETR_VECTOR_BYTES / 4;
  static constexpr int kVectors = N / kLanes;
  using V = Vector<float, kLanes>;
  V v[kVectors];

  DDETR_INLINE void load(const Fp16* from) {
    for (int k = 0; k < kVectors; ++k) {
      const Fp16* at = from + k * kLanes;
#if DDETR_VECTOR_BYTES >= 32
      if constexpr (kLanes == 8) {
        v[k] = (V)_mm256_cvtph_ps(load_vector<__m128i>(at));
        continue;
      }
#endif
      V lanes{};
      for (int c = 0; c < kLanes; ++c) lanes[c] = widen(at[c]);
      v[k] = lanes;
    }
  }
  DDETR_INLINE void store(Fp16* to) const {  // once a query: the conversion needs no vectors
    for (int k = 0; k < kVectors; ++k) {
      for (int c = 0; c < kLanes; ++c) narrow(v[k][c], to[k * kLanes + c]);
    }
  }
};

template <typename T>
struct Slice<T, 1> {
  using Acc = decltype(widen(T{}));
  static constexpr int kLanes = 1;
  static constexpr int kVectors = 1;
  using V = Acc;
  V v[1];

  DDETR_INLINE void load(const T* from) { v[0] = widen(*from); }
  DDETR_INLINE void store(T* to) const { narrow(v[0], *to); }
};

template <typename S>
DDETR_INLINE void set_zero(S& slice) {
  for (int k = 0; k < S::kVectors; ++k) slice.v[k] = typename S::V{};
}
template <typename S>
DDETR_INLINE void add_scaled(S& sum, typename S::Acc factor, const S& x) {
  for (int k = 0; k < S::kVectors; ++k) sum.v[k] += factor * x.v[k];
}
template <typename S>
DDETR_INLINE void add_scaled_raw(typename S::Acc* sum, typename S::Acc factor, const S& x) {
  for (int k = 0; k < S::kVectors; ++k) {
    typename S::Acc* at = sum + k * S::kLanes;
    store_vector(at, load_vector<typename S::V>(at) + factor * x.v[k]);
  }
}
template <typename S>
DDETR_INLINE void store_raw(const S& slice, typename S::Acc* to) {
  for (int k = 0; k < S::kVectors; ++k) store_vector(to + k * S::kLanes, slice.v[k]);
}
template <typename S>
DDETR_INLINE void load_raw(S& slice, const typename S::Acc* from) {
  for (int k = 0; k < S::kVectors; ++k) slice.v[k] = load_vector<typename S::V>(from + k * S::kLanes);
}

// The product's partial sums, one vector.
template <typename S>
DDETR_INLINE typename S::V dot_lanes(const S& a, const S& b) {
  typename S::V sum = a.v[0] * b.v[0];
  for (int k = 1; k < S::kVectors; ++k) sum += a.v[k] * b.v[k];
  return sum;
}

// to[k] += the sum of all lanes of s[k], for the four corners at once: halve until four lanes are left, then
// add across a 4 x 4 transposition.
template <typename Acc, int Lanes>
DDETR_INLINE void add_lane_sums(const Vector<Acc, Lanes> (&s)[4], Acc* to) {
  if constexpr (Lanes > 4) {
    using Half = Vector<Acc, Lanes / 2>;
    struct Halves {
      Half low, high;
    };
    Half half[4];
    for (int k = 0; k < 4; ++k) {
      const Halves h = bits_as<Halves>(s[k]);
      half[k] = h.low + h.high;
    }
    add_lane_sums<Acc, Lanes / 2>(half, to);
#if DDETR_SHUFFLES
  } else if constexpr (Lanes == 4) {
    using V = Vector<Acc, 4>;
    const V low = __builtin_shufflevector(s[0], s[1], 0, 4, 1, 5) + __builtin_shufflevector(s[0], s[1], 2, 6, 3, 7);
    const V high = __builtin_shufflevector(s[2], s[3], 0, 4, 1, 5) + __builtin_shufflevector(s[2], s[3], 2, 6, 3, 7);
    const V sums =
        __builtin_shufflevector(low, high, 0, 1, 4, 5) + __builtin_shufflevector(low, high, 2, 3, 6, 7);
    store_vector(to, load_vector<V>(to) + sums);
#endif
  } else {
    for (int k = 0; k < 4; ++k) {
      Acc sum = 0;
      for (int c = 0; c < Lanes; ++c) sum += s[k][c];
      to[k] += sum;
    }
  }
}

#if DDETR_SHUFFLES
// The same for two points' corners, s[0..3] and s[4..7], in two thirds of the operations and with the same sums.
template <typename Acc>
DDETR_INLINE void add_lane_sums_of_pair(const Vector<Acc, 8> (&s)[8], Acc* to) {
  using V = Vector<Acc, 8>;
  V t[4];
  for (int k = 0; k < 4; ++k) {
    t[k] = __builtin_shufflevector(s[k], s[k + 4], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(s[k], s[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  const V low = __builtin_shufflevector(t[0], t[1], 0, 8, 1, 9, 4, 12, 5, 13) +
                __builtin_shufflevector(t[0], t[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const V high = __builtin_shufflevector(t[2], t[3], 0, 8, 1, 9, 4, 12, 5, 13) +
                 __builtin_shufflevector(t[2], t[3], 2, 10, 3, 11, 6, 14, 7, 15);
  const V sums = __builtin_shufflevector(low, high, 0, 1, 8, 9, 4, 5, 12, 13) +
                 __builtin_shufflevector(low, high, 2, 3, 10, 11, 6, 7, 14, 15);
  store_vector(to, load_vector<V>(to) + sums);
}
#endif
