// The kernels for x86-64 with AVX-512 (F, BW, DQ, VL). The instruction set is switched on after the system's headers, so
// that no inline function of theirs is compiled for it.
#if defined(__x86_64__)
#include <immintrin.h>

#include "problem.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define DDETR_NAMESPACE avx512
#define DDETR_TABLE kTable
#define DDETR_VECTOR_BYTES 64
#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

const ddetr_ops::Kernels ddetr_ops::kKernelsAvx512 = ddetr_ops::avx512::kTable;
#endif
