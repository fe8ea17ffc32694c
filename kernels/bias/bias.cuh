// Biases of attention logits as functions of query and key, for any kernel. Needs no other header.
//
// distance = key - query, in positions; the bias is added to the scaled logit, before the mask:
//
//     logit = scale * dot(q, k) + posenc_alibi(slope, slope, key - query);
//
// All arithmetic is in float, and as written: compile with -fmad=false for the bits of this library's own kernels.
#pragma once

// ALiBi: -left * |distance| before the query, -right * |distance| after it, 0 at it. An infinite slope masks its side.
// Causal and symmetric: the same slope twice. The slopes are those of the whole model's heads; one table serves all
// ranks.
__device__ __forceinline__ float posenc_alibi(float left, float right, int distance) {
    float bias = (distance < 0 ? left : -right) * static_cast<float>(distance);
    // 0 * infinity
    return distance == 0 ? 0.0f : bias;
}

// T5, KERPLE, Sandwich: one head's row of `count` numbers for the distances from `first` on. Distances outside take the
// value at the row's end, which is exact for T5, whose row covers -max_distance to max_distance (or to 0).
__device__ __forceinline__ float posenc_toeplitz(const float* row, int first, int count, int distance) {
    // The nearest distance that the row holds; no difference leaves 32 bits.
    int last = first + (count - 1);
    int near = distance > first ? distance : first;
    return row[(near < last ? near : last) - first];
}

// The entry of a distance in a table of `count` relative positions from `first` on (Shaw, Transformer-XL, Conformer,
// DeBERTa, Inkling): the nearest one outside, or -1 if nothing is added there. Where a model counts query - key, hand
// in that. DeBERTa's buckets are a second look-up.
__device__ __forceinline__ int posenc_distance_entry(int distance, int first, int count, bool zero_outside) {
    int last = first + (count - 1);
    if (zero_outside && (distance < first || distance > last)) return -1;
    int near = distance > first ? distance : first;
    return (near < last ? near : last) - first;
}

// The entry of a difference of rows and columns in the table of a window of height x width tokens: query - key for Swin
// and BEiT, key - query for MaxViT.
__device__ __forceinline__ int posenc_window_entry(int dy, int dx, int height, int width) {
    return (dy + height - 1) * (2 * width - 1) + dx + width - 1;
}

// FIRE's input: the normalised distance. `logs[n]` is ln(c n + 1) for n below `count`; a query's factor is
// posenc_fire_factor, once per query.
__device__ __forceinline__ float posenc_fire_factor(const float* logs, int count, float least_norm, float eps,
                                                    int query) {
    int index = query < 0 ? 0 : query < count ? query : count - 1;
    float norm = logs[index] + eps;
    return 1.0f / (norm > least_norm ? norm : least_norm);
}

__device__ __forceinline__ float posenc_fire_input(const float* logs, int count, float factor, int distance) {
    int size = distance < 0 ? -distance : distance;
    // The least integer has no size: without its sign it is far away all the same.
    return logs[static_cast<unsigned>(size) < static_cast<unsigned>(count) ? size : count - 1] * factor;
}

// The line of FIRE's network at `x`: lines meet at `count` breaks, ascending.
__device__ __forceinline__ unsigned posenc_fire_line(const float* breaks, unsigned count, float x) {
    unsigned low = 0;
    unsigned high = count;
    while (low < high) {
        unsigned middle = (low + high) / 2;
        if (breaks[middle] <= x) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// FIRE's network as straight lines: `slopes` and `intercepts` hold the count + 1 numbers of one head.
__device__ __forceinline__ float posenc_fire(const float* breaks, unsigned count, const float* slopes,
                                             const float* intercepts, float x) {
    unsigned line = posenc_fire_line(breaks, count, x);
    return slopes[line] * x + intercepts[line];
}
