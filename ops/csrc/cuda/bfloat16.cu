#include "launch.h"

template const char* ddetr_ops::launch_forward(const Problem<ddetr_ops::BFloat16>&, void*);
template const char* ddetr_ops::launch_backward(const Problem<ddetr_ops::BFloat16>&, void*);
