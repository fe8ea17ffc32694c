// The softmax of logits with a bias of the room `bias`: softmax.cuh.
#include "attend/softmax.cuh"

extern "C" __global__ void __launch_bounds__(256, 3) KERNEL(softmax) { softmax<RowBias>(args); }
