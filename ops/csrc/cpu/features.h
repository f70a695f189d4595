// Whether the processor and the operating system run the AVX2 kernels. Asks cpuid itself: clang 14's
// __builtin_cpu_supports does not know F16C.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace ddetr_ops {

inline bool has_avx2_fma_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0, saved = 0;
  const unsigned needed = bit_FMA | bit_F16C | bit_OSXSAVE, ymm_registers = 6;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & needed) != needed) return false;
  __asm__("xgetbv" : "=a"(saved), "=d"(d) : "c"(0));  // what the system saves when it switches tasks
  if ((saved & ymm_registers) != ymm_registers) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

}  // namespace ddetr_ops
#endif
