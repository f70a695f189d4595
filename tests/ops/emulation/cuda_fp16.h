// Conversions of CUDA's header of this name, by the host's compiler.
#pragma once

#include <bit>
#include <cstdint>

inline _Float16 __ushort_as_half(uint16_t bits) { return std::bit_cast<_Float16>(bits); }
inline uint16_t __half_as_ushort(_Float16 x) { return std::bit_cast<uint16_t>(x); }
inline float __half2float(_Float16 x) { return static_cast<float>(x); }
inline _Float16 __float2half_rn(float x) { return static_cast<_Float16>(x); }
