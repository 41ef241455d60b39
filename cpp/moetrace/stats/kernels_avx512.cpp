#define MOETRACE_KERNELS kernels_avx512
#define MOETRACE_KERNELS_NAME "avx512"
#define MOETRACE_VECTOR 8
#include "moetrace/stats/kernel_body.h"
