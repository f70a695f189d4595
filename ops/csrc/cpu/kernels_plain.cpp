// The kernels for whatever the compiler targets by default; every machine can run them.
#include "problem.h"

#define DDETR_NAMESPACE plain
#define DDETR_VECTOR_BYTES 16
#include "kernels.h"

const ddetr_ops::Kernels ddetr_ops::kKernelsPlain = ddetr_ops::plain::kKernels;
