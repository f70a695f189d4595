#include "launch.h"

template const char* ddetr_ops::launch_forward(const Problem<double>&, void*);
template const char* ddetr_ops::launch_backward(const Problem<double>&, void*);
