#include "launch.h"

template const char* ddetr_ops::launch_forward(const Params<ddetr_ops::BFloat16>&, void*);
template const char* ddetr_ops::launch_backward(const Params<ddetr_ops::BFloat16>&, void*);
template bool ddetr_ops::needs_weight_grads(const Params<ddetr_ops::BFloat16>&);
