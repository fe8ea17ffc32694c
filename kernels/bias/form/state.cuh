// What one row of a bias keeps in registers. Every form is this state with functions of its own: a warp's rows have one
// form, so that forms share registers, and a kernel branches over them uniformly.
#pragma once
#include "args.cuh"
#include "bias/bias.cuh"
#include "bias/row.cuh"

struct BiasState {
    // slopes of the past and the future; or the first and the last number
    float left, right;
    // of FIRE's distances
    float factor;
    const float* values;
};
