// RoPE by the exact phase for calls of few heads a thread: the heads of a token share its angles. Formula, tensors and
// arguments: rope.cuh.
//
// threads    x: lanes of a head, y: heads, z: tokens
// blocks     x: tokens, y: heads, z: sequences
//
// Each thread rotates W pairs of HEADS heads that follow one another in one tensor, the queries' or the keys'. Each
// pair's angle is made once a token and block, by one of its threads, and read from shared memory by all. A thread asks
// for its part of q and k before it makes an angle, so that a short call waits for memory once.
//
// Bytes: every rotated element is read once and written once; in place nothing else is touched, out of place the other
// channels are copied. A rate is 8 bytes a pair, an id up to 8 bytes a maker of angles, once a block, from a cache
// after their first use.
#include "rotate/rope.cuh"

// Angles that a block makes at most.
constexpr unsigned ANGLES = 512;

// Where the angle of a pair is kept. In halves a thread of wide packs reads two quads side by side, 32 bytes from those
// of the next thread. In every other 32 pairs the quads change places, so that eight threads in a row read from all
// banks.
template <bool SWAPPED> __device__ unsigned place(unsigned pair) { return SWAPPED ? pair ^ (pair >> 3 & 4) : pair; }

// N values at a multiple of N.
template <int N> __device__ void read(const float* from, float* to) {
    if constexpr (N == 4) {
        float4 v = *reinterpret_cast<const float4*>(from);
        to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    } else {
        float2 v = *reinterpret_cast<const float2*>(from);
        to[0] = v.x, to[1] = v.y;
    }
}

// Rotates N pairs whose sides are STEP elements from those of the next pair.
template <int N, int STEP>
__device__ void turn(const float* a, const float* b, const float* cos, const float* sin, float* a_out, float* b_out) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        turn_pair(a[STEP * i], b[STEP * i], sin[i], cos[i], a_out[STEP * i], b_out[STEP * i]);
    }
}

template <int W, bool INTERLEAVED, int HEADS> __device__ void rope_shared(const RopeArgs& args) {
    constexpr int QUAD = INTERLEAVED ? W / 2 : 4;
    constexpr bool SWAPPED = !INTERLEAVED && W == 8;
    __shared__ __align__(16) float waves[2][ANGLES];

    unsigned token = blockIdx.x * blockDim.z + threadIdx.z, batch = blockIdx.z;
    bool inside = token < args.tokens;
    unsigned makers = 2 * blockDim.x * blockDim.y;
    unsigned pair = 2 * (threadIdx.y * blockDim.x + threadIdx.x);
    bool makes = inside && pair < args.pairs;

    // Everything that a load needs comes before the first one, so that they all are asked for at once. An id is, unless
    // something else must be read before it.
    bool early = args.at.kind != PositionKind::PACKED && !args.axes;
    Position position = Position::own(args.at, batch, token);
    const unsigned* id_at = RawId::at(args.at.ids, args.at.id_type, position.index);

    // The first head of this thread in its tensor.
    unsigned q_walks = (args.q_heads + HEADS - 1) / HEADS;
    unsigned walk = blockIdx.y * blockDim.y + threadIdx.y;
    bool keys = walk >= q_walks;
    unsigned head = (keys ? walk - q_walks : walk) * HEADS, heads = keys ? args.k_heads : args.q_heads;
    unsigned there = inside && head < heads ? heads - head : 0;
    unsigned channel = args.offset + threadIdx.x * W;
    const long long* strides = keys ? args.k.x_strides : args.q.x_strides;
    const T::Bits* x = static_cast<const T::Bits*>(keys ? args.k.x : args.q.x) + batch * strides[0] +
                       token * strides[1] + head * strides[2] + channel;
    long long step = strides[2];

    // Two rates of every maker, side by side.
    const unsigned long long* rates = static_cast<const unsigned long long*>(args.rates);
    ulonglong2 rate = {};
    if (makes) rate = *reinterpret_cast<const ulonglong2*>(rates + pair);
    wait_for_predecessor();
    RawId id;
    if (makes && early && args.at.ids) id.load(args.at.id_type, id_at);
    Pack<W> packs[HEADS][2];
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        if (i < there) {
            packs[i][0] = Pack<W>::load(x + i * step);
            packs[i][1] = Pack<W>::load(x + i * step + args.pairs);
        }
    }

    float* cosines = waves[0] + threadIdx.z * args.pairs;
    if (makes) {
        if (early) {
            position.step += id.value(args.at.id_type);
        } else {
            position = Position(args.at, batch, token);
            if (!args.axes) position.step = position.on(args.at, 0);
        }
#pragma unroll 1
        while (true) {
            ulonglong2 now = rate;
            unsigned to = place<SWAPPED>(pair);
            unsigned long long first = position.step, second = first;
            if (args.axes) {
                uchar2 axes = *reinterpret_cast<const uchar2*>(static_cast<const unsigned char*>(args.axes) + pair);
                first = position.on(args.at, axes.x);
                second = position.on(args.at, axes.y);
            }
            pair += makers;
            bool more = pair < args.pairs;
            if (more) rate = *reinterpret_cast<const ulonglong2*>(rates + pair);
            float signed_factor = args.factor * args.sign;
            float2 sin, cos;
            sincos_phase(first * now.x, sin.x, cos.x);
            sincos_phase(second * now.y, sin.y, cos.y);
            *reinterpret_cast<float2*>(cosines + to) = {cos.x * args.factor, cos.y * args.factor};
            *reinterpret_cast<float2*>(cosines + to + ANGLES) = {sin.x * signed_factor, sin.y * signed_factor};
            if (!more) break;
        }
    }
    __syncthreads();
    if (!there) return;

    float cos[W], sin[W];
    unsigned from = place<SWAPPED>(threadIdx.x * (INTERLEAVED ? W / 2 : W));
#pragma unroll
    for (int i = 0; i < W; i += QUAD) {
        // The second run of interleaved pairs lies half of them further.
        const float* at = cosines + (i == 0 ? from : INTERLEAVED ? from + args.pairs / 2 : from ^ 4);
        read<QUAD>(at, cos + i);
        read<QUAD>(at + ANGLES, sin + i);
    }

    bool moves = keys ? args.k_copied : args.q_copied;
    T::Bits* y = const_cast<T::Bits*>(x);
    long long y_step = step;
    if (moves) {
        const long long* out = keys ? args.k.y_strides : args.q.y_strides;
        y = static_cast<T::Bits*>(keys ? args.k.y : args.q.y) + batch * out[0] + token * out[1] + head * out[2] +
            channel;
        y_step = out[2];
    }
#pragma unroll
    for (int i = 0; i < HEADS; ++i) {
        if (i >= there) break;
        float a[W], b[W], a_out[W], b_out[W];
        unpack(packs[i][0], a);
        unpack(packs[i][1], b);
        if constexpr (INTERLEAVED) {
            // A run lies in one pack, so no element changes its pack.
            turn<W / 2, 2>(a, a + 1, cos, sin, a_out, a_out + 1);
            turn<W / 2, 2>(b, b + 1, cos + W / 2, sin + W / 2, b_out, b_out + 1);
        } else {
            turn<W, 1>(a, b, cos, sin, a_out, b_out);
        }
        pack(a_out).store(y + i * y_step);
        pack(b_out).store(y + i * y_step + args.pairs);
    }
    // Out of place: the channels before and after the rotated ones.
    if (!moves) return;
#pragma unroll 1
    for (unsigned c = threadIdx.x * W; c < args.copied; c += blockDim.x * W) {
        long long other = static_cast<long long>(c < args.offset ? c : c + 2 * args.pairs) - channel;
#pragma unroll 1
        for (int i = 0; i < HEADS && i < there; ++i) Pack<W>::load(x + i * step + other).store(y + i * y_step + other);
    }
}

extern "C" __global__ void __launch_bounds__(256, 5) KERNEL(rope_shared_half) { rope_shared<WIDE, false, 1>(args); }
extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(rope_shared_half_two) { rope_shared<WIDE, false, 2>(args); }
extern "C" __global__ void __launch_bounds__(256, 5) KERNEL(rope_shared_interleaved) {
    rope_shared<WIDE, true, 1>(args);
}
extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(rope_shared_interleaved_two) {
    rope_shared<WIDE, true, 2>(args);
}
