// Elements between memory and registers, one by one and in whole vectors.
#pragma once

#include <cstdint>
#include <cstring>

#include "problem.h"
#include "simt.h"
#if !defined(DDETR_OPS_EMULATED_GPU)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace ddetr_ops {

DDETR_OPS_DEVICE float widen(float x) { return x; }
DDETR_OPS_DEVICE double widen(double x) { return x; }
template <typename T>
DDETR_OPS_DEVICE T narrow(wide_t<T> x) {
  return x;
}

#if defined(DDETR_OPS_EMULATED_GPU)
inline float widen(Half x) {
  _Float16 half;
  std::memcpy(&half, &x, sizeof half);
  return static_cast<float>(half);
}
inline float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}
template <>
inline Half narrow<Half>(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  Half stored;
  std::memcpy(&stored, &half, sizeof stored);
  return stored;
}
template <>
inline BFloat16 narrow<BFloat16>(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return {0x7fc0u};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};  // to nearest, ties to even
}
#else
DDETR_OPS_DEVICE float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
DDETR_OPS_DEVICE float widen(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
template <>
DDETR_OPS_DEVICE Half narrow<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
DDETR_OPS_DEVICE BFloat16 narrow<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
#endif

// N elements that move as one access. The alignment is what makes the compiler emit it.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T items[N];
};

template <int N, typename T>
DDETR_OPS_DEVICE void load(const T* from, wide_t<T> (&to)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = widen(pack.items[i]);
}

template <int N, typename T>
DDETR_OPS_DEVICE void store(T* to, const wide_t<T> (&from)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.items[i] = narrow<T>(from[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

}  // namespace ddetr_ops
