// The softmax of logits with a sum of terms: softmax.cuh, terms.cuh.
#include "attend/softmax.cuh"
#include "bias/terms.cuh"

extern "C" __global__ void __launch_bounds__(256, 2) KERNEL(softmax_terms) {
    softmax<TermsBias>(args.call, args.terms);
}
