#include "launch.h"

template const char* ddetr_ops::launch_forward(const Params<ddetr_ops::Half>&, void*);
template const char* ddetr_ops::launch_backward(const Params<ddetr_ops::Half>&, void*);
template bool ddetr_ops::needs_weight_grads(const Params<ddetr_ops::Half>&);
