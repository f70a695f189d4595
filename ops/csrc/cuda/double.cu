#include "launch.h"

template const char* ddetr_ops::launch_forward(const Params<double>&, void*);
template const char* ddetr_ops::launch_backward(const Params<double>&, void*);
template bool ddetr_ops::needs_weight_grads(const Params<double>&);
