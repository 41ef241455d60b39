#define MOETRACE_KERNELS kernels_portable
#define MOETRACE_KERNELS_NAME "portable"
#define MOETRACE_VECTOR 2
#include "moetrace/stats/kernel_body.h"
