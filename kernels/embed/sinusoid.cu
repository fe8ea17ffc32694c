// Sinusoid:  x = x * scale + wave(position * rate),  or without the first term.
//
// x          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous
// at         token positions: position.cuh
// rates      [pairs] turns per position in units of 2^-64
//
// One thread owns W pairs of one token: two accesses of W channels. It makes their angles once and walks
// `batches_per_thread` sequences if they share their positions. In halves the accesses are the two waves of W pairs in
// a row. Interleaved pairs are two runs of W / 2, half of the channels apart, so that threads side by side access packs
// side by side: no sector of 32 bytes is read or written in two halves.
//
// Bytes: `add` reads and writes every element once, `write` writes it once; there is no table. A rate is 8 bytes a pair
// and an id up to 8 bytes a token, from a cache after their first use.
#include "args.cuh"
#include "common/angle.cuh"
#include "common/scalar.cuh"
#include "common/position.cuh"

// The rates of W pairs, two at a time: a run begins at a multiple of two. The second half of them is `apart` further.
template <int W>
__device__ void load_rates(const unsigned long long* from, unsigned apart, unsigned long long (&rates)[W]) {
    if constexpr (W == 1) {
        rates[0] = from[0];
    } else {
#pragma unroll
        for (int i = 0; i < W; i += 2) {
            ulonglong2 two = *reinterpret_cast<const ulonglong2*>(from + i + (i < W / 2 ? 0 : apart));
            rates[i] = two.x;
            rates[i + 1] = two.y;
        }
    }
}

template <int W> struct Waves {
    float first[W], second[W];

    __device__ Waves() = default;
    __device__ Waves(const SinusoidArgs& args, long long position, unsigned pair) {
        unsigned long long rates[W];
        load_rates(static_cast<const unsigned long long*>(args.rates) + pair, args.apart, rates);
        unsigned long long row = static_cast<unsigned long long>(position) + args.offset;
        bool zero = args.padded && row == static_cast<unsigned long long>(args.padding);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            float sin, cos;
            sincos_phase(row * rates[i], sin, cos);
            first[i] = zero ? 0.0f : args.cosine_first ? cos : sin;
            second[i] = zero ? 0.0f : args.cosine_first ? sin : cos;
        }
    }
};

// W channels are scaled and gain `wave`.
template <int W> __device__ void add(Pack<W>& channels, const float (&wave)[W], float scale) {
    float x[W];
    unpack(channels, x);
#pragma unroll
    for (int i = 0; i < W; ++i) x[i] = fmaf(x[i], scale, wave[i]);
    channels = pack(x);
}

template <int W> __device__ void sinusoid(const SinusoidArgs& args) {
    unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    if (token >= args.tokens) return;
    wait_for_predecessor();
    for (unsigned group = blockIdx.y; group < args.groups; group += gridDim.y) {
        unsigned first = group * args.batches_per_thread;
        unsigned last = min(first + args.batches_per_thread, args.batch);
        T::Bits* row = static_cast<T::Bits*>(args.x) + first * args.strides[0] + token * args.strides[1];
        long long position = Position(args.at, first, token).value(args.at);
#pragma unroll 1
        for (unsigned pair = threadIdx.x * args.run; pair < args.runs; pair += blockDim.x * args.run) {
            Waves<W> waves(args, position, pair);
            unsigned a = pair << args.interleaved, b = a + args.second;
            T::Bits* x = row;
#pragma unroll 1
            for (unsigned batch = first; batch < last; ++batch, x += args.strides[0]) {
                Pack<W> a_pack = pack(waves.first), b_pack = pack(waves.second);
                if (args.add) {
                    a_pack = Pack<W>::load(x + a);
                    b_pack = Pack<W>::load(x + b);
                    if (args.interleaved) split(a_pack, b_pack);
                    add(a_pack, waves.first, args.scale);
                    add(b_pack, waves.second, args.scale);
                }
                if (args.interleaved) merge(a_pack, b_pack);
                a_pack.store(x + a);
                b_pack.store(x + b);
            }
        }
        // The last channel of an odd dim: one wave more, or a zero.
        if (args.last != LastChannel::NONE && threadIdx.x == 0) {
            Waves<1> waves;
            waves.first[0] = 0.0f;
            if (args.last == LastChannel::WAVE) waves = Waves<1>(args, position, args.pairs);
            T::Bits* x = row + args.last_channel;
#pragma unroll 1
            for (unsigned batch = first; batch < last; ++batch, x += args.strides[0]) {
                Pack<1> channel = pack(waves.first);
                if (args.add) {
                    channel = Pack<1>::load(x);
                    add(channel, waves.first, args.scale);
                }
                channel.store(x);
            }
        }
    }
}

#define BOUNDS __launch_bounds__(256, 4)

extern "C" __global__ void BOUNDS KERNEL(sinusoid_wide) { sinusoid<WIDE>(args); }
extern "C" __global__ void BOUNDS KERNEL(sinusoid_one) { sinusoid<1>(args); }
