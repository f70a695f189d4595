#include "launch.h"

const char* ddetr_ops::use_device(int device) { return simt::use_device(device); }

template const char* ddetr_ops::launch_forward(const Params<float>&, void*);
template const char* ddetr_ops::launch_backward(const Params<float>&, void*);
template bool ddetr_ops::needs_weight_grads(const Params<float>&);
