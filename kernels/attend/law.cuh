// The order of scale, softcap and bias, for every kernel that has logits:
//
//     SOFTCAP_THEN_BIAS   z = softcap(scale * s) + bias
//     BIAS_THEN_SOFTCAP   z = softcap(scale * s + bias)
//     BIAS_THEN_SCALE     z = softcap(scale * (s + bias))       softcap(x) = cap * tanh(x / cap)
//
// `scale` is the law's, times that of the row's head where heads have their own: one number for each row.
#pragma once
#include "args.cuh"
#include "common/exp.cuh"

// From eight logits and their biases to what the softcap takes: x becomes that. `late`: the bias comes after the
// softcap.
__device__ __forceinline__ void before_softcap(const SoftmaxLaw& law, float scale, bool late, const float (&bias)[KEYS],
                                               float (&x)[KEYS]) {
    if (law.order == LogitOrder::BIAS_THEN_SCALE) {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] = (x[i] + bias[i]) * scale;
    } else if (late) {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] *= scale;
    } else {
#pragma unroll
        for (int i = 0; i < KEYS; ++i) x[i] = fmaf(x[i], scale, bias[i]);
    }
}

// What the biases of a softmax are multiplied by before they are added: log2(e) where nothing but a mask comes behind
// them, 1 where a scale or a softcap does. `log2e` is that of the call: power.cuh.
__device__ __forceinline__ float bias_factor(const SoftmaxLaw& law, float log2e) {
    bool last = law.cap == 0.0f ? law.order != LogitOrder::BIAS_THEN_SCALE : law.order == LogitOrder::SOFTCAP_THEN_BIAS;
    return last ? log2e : 1.0f;
}

// To what is raised to powers of two, the mask still missing: x becomes z. Biases are those times `bias_factor`.
__device__ __forceinline__ void powers_of(const SoftmaxLaw& law, float scale, float log2e, const float (&bias)[KEYS],
                                          float (&x)[KEYS]) {
    if (law.cap == 0.0f) {
        before_softcap(law, scale * log2e, false, bias, x);
        return;
    }
    bool late = law.order == LogitOrder::SOFTCAP_THEN_BIAS;
    before_softcap(law, scale, late, bias, x);
    float cap = law.cap * log2e;
#pragma unroll
    for (int i = 0; i < KEYS; ++i) x[i] = fmaf(cap, tanh_fixed(x[i] * law.inverse_cap), late ? bias[i] : 0.0f);
}

// From the gradients of eight z through the softcap, of which `x` holds what it took: dx becomes those of the logits.
__device__ __forceinline__ void softcap_gradients(const SoftmaxLaw& law, float scale, const float (&x)[KEYS],
                                                  float (&dz)[KEYS], float (&dx)[KEYS]) {
#pragma unroll
    for (int i = 0; i < KEYS; ++i) {
        float t = tanh_fixed(x[i] * law.inverse_cap);
        // A masked logit may be infinite; its gradient is 0 all the same.
        float slope = dz[i] == 0.0f ? 0.0f : dz[i] * fmaf(-t, t, 1.0f);
        dx[i] = slope * scale;
        if (law.order == LogitOrder::BIAS_THEN_SOFTCAP) dz[i] = slope;
    }
}

// The same without a softcap.
__device__ __forceinline__ void scale_gradients(float scale, const float (&dz)[KEYS], float (&dx)[KEYS]) {
#pragma unroll
    for (int i = 0; i < KEYS; ++i) dx[i] = dz[i] * scale;
}

// The gradients of the biases, from those of the logits and from what the softcap left of those of z.
__device__ __forceinline__ void bias_gradients(const SoftmaxLaw& law, const float (&dx)[KEYS], float (&dz)[KEYS]) {
#pragma unroll
    for (int i = 0; i < KEYS; ++i) dz[i] = law.order == LogitOrder::BIAS_THEN_SCALE ? dx[i] : dz[i];
}
