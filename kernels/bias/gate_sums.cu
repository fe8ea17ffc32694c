// out[b, h, t] = sum over s <= t of gate[b, h, s], as two floats
//
// gates   [batch, heads, tokens] by strides, f32 or the tensors' type: logarithms of gates, or x with ln(sigmoid(x))
// out     f32 [batch, heads, tokens, 2] by strides
// state   u64 [batch, heads, 2]: what the tokens before the call sum to; becomes what they and the call's do
// grad    f32 [batch, heads, tokens] by strides: the sum over t >= s of the gradients of out[t] as a query's and a
//         key's end
//
// Sums are integers in units of 2^-64, so that no order changes a bit: chunks and decode steps give those of the whole.
// A block has a row and takes four tokens of each thread at a time; it begins with the row's first token, or for the
// gradient with its last. Bytes: each gate is read once, and each pair written once.
#include "common/reduce.cuh"
#include "common/scalar.cuh"
#include "common/index.cuh"

namespace {

constexpr unsigned ITEMS = GATE_ITEMS;
constexpr unsigned MOST_WARPS = 8;

// The least gate; smaller ones and -inf count as it, so that differences behind them are numbers.
constexpr float MOST = 65536.0f;
// Whole units of a sum that holds a gate above 0 or NaN.
constexpr unsigned long long BROKEN = 1ull << 62;

// The size of a sum, 0 or more: whole units, and 2^-64 of one.
struct Fixed {
    unsigned long long whole, part;

    // The size of a gate.
    static __device__ Fixed of(float gate) {
        if (!(gate <= 0.0f)) return {BROKEN, 0};
        double size = static_cast<double>(fminf(-gate, MOST));
        unsigned long long whole = static_cast<unsigned long long>(size);
        double rest = size - static_cast<double>(whole);
        return {whole, static_cast<unsigned long long>(rest * 0x1p64)};
    }

    // Any order has the same result; what is broken stays so.
    __device__ Fixed operator+(const Fixed& other) const {
        unsigned long long low = part + other.part;
        unsigned long long high = whole + other.whole + (low < part ? 1 : 0);
        return {high < BROKEN ? high : BROKEN, low};
    }

    __device__ Fixed above(unsigned lanes) const {
        return {__shfl_up_sync(ALL_LANES, whole, lanes), __shfl_up_sync(ALL_LANES, part, lanes)};
    }

    // Minus the size, as two floats.
    __device__ void split(float& first, float& second) const {
        double high = static_cast<double>(whole), low = static_cast<double>(part) * 0x1p-64;
        first = static_cast<float>(-(high + low));
        second = static_cast<float>(-((high + static_cast<double>(first)) + low));
        if (whole >= BROKEN) first = second = __int_as_float(0x7fffffff);
    }
};

struct Real {
    double x;

    __device__ Real operator+(const Real& other) const { return {x + other.x}; }
    __device__ Real above(unsigned lanes) const { return {__shfl_up_sync(ALL_LANES, x, lanes)}; }
};

// Sums of a block's numbers in the order of its threads.
template <class V> struct Scan {
    // of each warp
    V* totals;

    // What the threads before this one have, and `all`, what all of them have. All threads of the block; a barrier must
    // lie between two calls.
    __device__ V before(const V& own, V& all) const {
        unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        V sum = own;
#pragma unroll
        for (unsigned lanes = 1; lanes < 32; lanes *= 2) {
            V other = sum.above(lanes);
            if (lane >= lanes) sum = other + sum;
        }
        if (lane == 31) totals[warp] = sum;
        V first = sum.above(1);
        if (lane == 0) first = V{};
        __syncthreads();
        V ahead{};
        all = V{};
#pragma unroll 1
        for (unsigned i = 0; i < blockDim.x / 32; ++i) {
            if (i == warp) ahead = all;
            all = all + totals[i];
        }
        return ahead + first;
    }
};

// 1 / d for d in 2 .. 4: a line, and three steps that square the error.
__device__ __forceinline__ float reciprocal(float d) {
    float half = 0.5f * d;
    float r = fmaf(half, -0.47058824f, 1.4117647f);
#pragma unroll
    for (int i = 0; i < 3; ++i) r = fmaf(r, fmaf(-half, r, 1.0f), r);
    return 0.5f * r;
}

// ln(sigmoid(x)) = min(x, 0) - ln(1 + e) with e = exp(-|x|), and ln(1 + e) = 2 artanh(e / (2 + e)).
__device__ __forceinline__ float log_sigmoid(float x) {
    float e = exp_below_zero(-fabsf(x));
    float s = e * reciprocal(2.0f + e);
    float z = s * s;
    float q = 1.0f / 15.0f;
    q = fmaf(q, z, 1.0f / 13.0f);
    q = fmaf(q, z, 1.0f / 11.0f);
    q = fmaf(q, z, 1.0f / 9.0f);
    q = fmaf(q, z, 1.0f / 7.0f);
    q = fmaf(q, z, 1.0f / 5.0f);
    q = fmaf(q, z, 1.0f / 3.0f);
    float l = 2.0f * fmaf(s * z, q, s);
    return x != x ? x : fminf(x, 0.0f) - l;
}

// The derivative of ln(sigmoid(x)): sigmoid(-x).
__device__ __forceinline__ float sigmoid_of_minus(float x) {
    float e = exp_below_zero(-fabsf(x));
    float y = 2.0f * reciprocal(2.0f + 2.0f * e);
    return x != x ? x : (x > 0.0f ? e * y : y);
}

// One row of a tensor, with strides for batch, head and token.
__device__ __forceinline__ long long row_of(unsigned heads, const long long (&strides)[3]) {
    unsigned batch = blockIdx.x / heads;
    return batch * strides[0] + (blockIdx.x - batch * heads) * strides[1];
}

__device__ __forceinline__ float number(const void* values, unsigned is_f32, long long index) {
    return is_f32 ? static_cast<const float*>(values)[index] : T::widen(static_cast<const T::Bits*>(values)[index]);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS) KERNEL(gate_sums) {
    __shared__ Fixed totals[MOST_WARPS];
    wait_for_predecessor();
    Scan<Fixed> scan{totals};
    long long from = row_of(args.heads, args.gates_strides), to = row_of(args.heads, args.out_strides);
    unsigned long long* state = static_cast<unsigned long long*>(args.state);
    Fixed sum{};
    if (state) sum = {state[2ll * blockIdx.x], state[2ll * blockIdx.x + 1]};
#pragma unroll 1
    for (unsigned first = 0; first < args.tokens; first += blockDim.x * ITEMS) {
        unsigned at = first + threadIdx.x * ITEMS;
        Fixed own[ITEMS], run{};
#pragma unroll
        for (unsigned i = 0; i < ITEMS; ++i) {
            float gate = 0.0f;
            if (at + i < args.tokens) {
                gate = number(args.gates, args.gates_f32, from + (at + i) * args.gates_strides[2]);
                if (args.logits) gate = log_sigmoid(gate);
            }
            run = run + Fixed::of(gate);
            own[i] = run;
        }
        Fixed all;
        Fixed ahead = sum + scan.before(run, all);
#pragma unroll
        for (unsigned i = 0; i < ITEMS; ++i) {
            if (at + i >= args.tokens) break;
            float* out = static_cast<float*>(args.out) + to + (at + i) * args.out_strides[2];
            (ahead + own[i]).split(out[0], out[args.second]);
        }
        sum = sum + all;
        __syncthreads();
    }
    if (state && threadIdx.x == 0) state[2ll * blockIdx.x] = sum.whole, state[2ll * blockIdx.x + 1] = sum.part;
}

extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS) KERNEL(gate_sums_grad) {
    __shared__ Real totals[MOST_WARPS];
    wait_for_predecessor();
    Scan<Real> scan{totals};
    long long gates = row_of(args.heads, args.gates_strides), to = row_of(args.heads, args.out_strides);
    long long query = row_of(args.heads, args.query_strides), key = row_of(args.heads, args.key_strides);
    Real sum{};
#pragma unroll 1
    for (unsigned first = 0; first < args.tokens; first += blockDim.x * ITEMS) {
        unsigned at = first + threadIdx.x * ITEMS;
        Real own[ITEMS], run{};
#pragma unroll
        for (unsigned i = 0; i < ITEMS; ++i) {
            if (at + i < args.tokens) {
                // From the row's end.
                unsigned token = args.tokens - 1 - at - i;
                double d = static_cast<const float*>(args.query_grad)[query + token * args.query_strides[2]];
                d += static_cast<const float*>(args.key_grad)[key + token * args.key_strides[2]];
                run = run + Real{d};
            }
            own[i] = run;
        }
        Real all;
        Real ahead = sum + scan.before(run, all);
#pragma unroll
        for (unsigned i = 0; i < ITEMS; ++i) {
            if (at + i >= args.tokens) break;
            unsigned token = args.tokens - 1 - at - i;
            float d = static_cast<float>((ahead + own[i]).x);
            if (args.logits) {
                d *= sigmoid_of_minus(number(args.gates, args.gates_f32, gates + token * args.gates_strides[2]));
            }
            static_cast<float*>(args.out)[to + token * args.out_strides[2]] = d;
        }
        sum = sum + all;
        __syncthreads();
    }
}
