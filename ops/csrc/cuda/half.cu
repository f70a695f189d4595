#include "launch.h"

template const char* ddetr_ops::launch_forward(const Problem<ddetr_ops::Half>&, void*);
template const char* ddetr_ops::launch_backward(const Problem<ddetr_ops::Half>&, void*);
