// The gradients of a softmax with a sum of terms: softmax_grad.cuh, terms.cuh.
#include "attend/softmax_grad.cuh"
#include "bias/terms.cuh"

extern "C" __global__ void __launch_bounds__(256, 2) KERNEL(grad_terms) {
    softmax_grad<TermsBias>(args.call, args.terms);
}
