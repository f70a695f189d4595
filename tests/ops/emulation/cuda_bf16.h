// Conversions of CUDA's header of this name, in integers.
#pragma once

#include <bit>
#include <cstdint>

struct Bfloat16Bits {
  uint16_t bits;
};
inline uint16_t __bfloat16_as_ushort(Bfloat16Bits x) { return x.bits; }
inline Bfloat16Bits __float2bfloat16_rn(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (x != x) return {0x7fffu};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};  // to nearest, ties to even
}
