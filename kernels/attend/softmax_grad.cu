// The gradients of a softmax with a bias of the room `bias`: softmax_grad.cuh.
#include "attend/softmax_grad.cuh"

extern "C" __global__ void __launch_bounds__(256, 3) KERNEL(grad) { softmax_grad<RowBias>(args); }

// One block a head: thread t adds the rows t, t + 256, ... of every sequence, with compensation.
extern "C" __global__ void __launch_bounds__(256) KERNEL(sink_grad) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    unsigned head = blockIdx.x;
    float sink = static_cast<const float*>(args.sinks)[head];
    Sum sum;
    for (unsigned batch = 0; batch < args.batch; ++batch) {
        long long first = (static_cast<long long>(batch) * args.heads + head) * args.queries;
        for (unsigned query = threadIdx.x; query < args.queries; query += 256) {
            float lse = static_cast<const float*>(args.lse)[first + query];
            float dot = static_cast<const float*>(args.dots)[first + query];
            // The sink is one of the terms of lse, so that it is never above it but for a rounding.
            if (lse != -infinity()) sum.add(-exp_below_zero(fminf(sink - lse, 0.0f)) * dot);
        }
    }
    float total = Team(8, space).sum(sum.total);
    if (threadIdx.x == 0) static_cast<float*>(args.grad)[head] = total;
}
