#define MOETRACE_KERNELS kernels_avx2
#define MOETRACE_KERNELS_NAME "avx2"
#define MOETRACE_VECTOR 4
#include "moetrace/stats/kernel_body.h"
