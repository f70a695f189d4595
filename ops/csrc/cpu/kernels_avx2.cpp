// The kernels for x86-64 with AVX2, FMA and F16C. The instruction set is switched on after the system's headers, so
// that no inline function of theirs is compiled for it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "problem.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define DDETR_NAMESPACE avx2
#define DDETR_VECTOR_BYTES 32
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const ddetr_ops::Kernels ddetr_ops::kKernelsAvx2 = ddetr_ops::avx2::kKernels;
#endif
