// Loads and stores of elements, and their conversion to and from the accumulation type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "params.h"
#include "simt.h"

namespace ddetr_ops {

DDETR_OPS_DEVICE float widen(float x) { return x; }
DDETR_OPS_DEVICE double widen(double x) { return x; }
DDETR_OPS_DEVICE float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
DDETR_OPS_DEVICE float widen(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }

template <typename T>
DDETR_OPS_DEVICE T narrow(acc_t<T> x) {
  return x;
}
template <>
DDETR_OPS_DEVICE Half narrow<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
DDETR_OPS_DEVICE BFloat16 narrow<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

// The two elements of a word, the first one in the low half.
template <typename T>
DDETR_OPS_DEVICE void widen_pair(uint32_t word, float& first, float& second) {
  first = widen(T{static_cast<uint16_t>(word)});
  second = widen(T{static_cast<uint16_t>(word >> 16)});
}
template <>
DDETR_OPS_DEVICE void widen_pair<BFloat16>(uint32_t word, float& first, float& second) {
  first = __uint_as_float(word << 16);
  second = __uint_as_float(word & 0xffff0000u);
}

// N elements in one access; the alignment makes the compiler emit a vector instruction.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T items[N];
};

template <int N, typename T>
DDETR_OPS_DEVICE void load(const T* from, acc_t<T> (&to)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = widen(pack.items[i]);
}

// Loads, or gives zeros without reading if `condition` is false. For 16 bits the zeros are packed words, so that
// only the load is predicated and not the conversions; for 32 bits there is nothing to convert.
template <int N, typename T>
DDETR_OPS_DEVICE void load_if(bool condition, const T* from, acc_t<T> (&to)[N]) {
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    Pack<uint32_t, N / 2> words = {};
    if (condition) words = *reinterpret_cast<const Pack<uint32_t, N / 2>*>(from);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) widen_pair<T>(words.items[i], to[2 * i], to[2 * i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = acc_t<T>(0);
    if (condition) load(from, to);
  }
}

template <int N, typename T>
DDETR_OPS_DEVICE void store(T* to, const acc_t<T> (&from)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.items[i] = narrow<T>(from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

}  // namespace ddetr_ops
