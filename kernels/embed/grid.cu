// Grids:  x = x * scale + sin(phase + index along the channel's axis * rate),  or without the first term.
//
// x          [batch, tokens, dim] by strides in elements (64 bits), channels contiguous
// channels   [W, dim / W] rate and phase in units of 2^-64 turn, those of a thread's W channels below one another; a
//            cosine's phase is a quarter turn, cropping adds to it
// axes       [dim] bytes: 0 frame, 1 row, 2 column, 3 none: the channel has no rate and no phase, and its sine is 0
//
// One thread owns W channels, makes their waves once for up to `run` tokens with one index along the channels' axis,
// and walks `batches_per_thread` sequences of each. Where its channels have several axes, it makes them for every
// token.
//
// Bytes: every element is written once, and read once by `add`; 17 bytes a channel from a cache.
#include "args.cuh"
#include "common/angle.cuh"
#include "common/index.cuh"
#include "common/scalar.cuh"

template <int W> struct Axes {
    Words<W> words;

    __device__ Axes(const GridArgs& args, unsigned unit) {
        if constexpr (W == 1) {
            words.word[0] = static_cast<const unsigned char*>(args.axes)[unit];
        } else {
            words = ::words(static_cast<const typename Access<W>::Type*>(args.axes)[unit]);
        }
    }

    __device__ unsigned of(int channel) const { return words.word[channel / 4] >> channel % 4 * 8 & 0xffu; }

    __device__ bool several() const {
        bool several = false;
#pragma unroll
        for (int i = 0; i < W && W > 1; i += 4) several |= words.word[i / 4] != of(0) * 0x01010101u;
        return several;
    }
};

template <int W> __device__ void grid(const GridArgs& args) {
    unsigned slot = blockIdx.x * blockDim.y + threadIdx.y, units = args.dim / W;
    wait_for_predecessor();
    for (unsigned unit = threadIdx.x; unit < units; unit += blockDim.x) {
        Axes<W> axes(args, unit);
        bool several = axes.several();
        // Lines of `inner` tokens with one index, `apart` from token to token and `step` from line to line.
        unsigned inner = args.tokens, apart = 1, step = 0;
        if (args.run > 1 && !several) {
            if (axes.of(0) == 0) {
                inner = step = args.rows * args.columns;
            } else if (axes.of(0) == 1) {
                inner = step = args.columns;
            } else {
                inner = divide(args.tokens, args.by_columns);
                apart = args.columns;
                step = 1;
            }
        }
        unsigned parts = divide(inner - 1, args.by_run) + 1;
        unsigned line = slot < parts ? 0 : slot / parts;
        if (static_cast<unsigned long long>(line) * inner >= args.tokens) continue;
        unsigned from = (slot - line * parts) * args.run;
        unsigned count = min(args.run, inner - from);
        float wave[W];
        bool missing = true;
        for (unsigned group = blockIdx.y; group < args.groups; group += gridDim.y) {
            unsigned first = group * args.batches_per_thread;
            unsigned last = min(first + args.batches_per_thread, args.batch);
            unsigned token = line * step + from * apart;
#pragma unroll 1
            for (unsigned i = 0; i < count; ++i, token += apart) {
                T::Bits* x =
                    static_cast<T::Bits*>(args.x) + first * args.strides[0] + token * args.strides[1] + unit * W;
                // The next sequence's on its way, the first one's while waves are made.
                Pack<W> next = {};
                if (args.add) next = Pack<W>::load(x);
                if (missing) {
                    unsigned row = divide(token, args.by_columns);
                    unsigned column = token - row * args.columns;
                    unsigned frame = divide(row, args.by_rows);
                    row -= frame * args.rows;
#pragma unroll
                    for (int j = 0; j < W; ++j) {
                        ulonglong2 c = static_cast<const ulonglong2*>(args.channels)[j * units + unit];
                        unsigned axis = axes.of(j);
                        unsigned long long index = axis == 0 ? frame : axis == 1 ? row : column;
                        float cos;
                        sincos_phase(index * c.x + c.y, wave[j], cos);
                    }
                    missing = several;
                }
#pragma unroll 1
                for (unsigned batch = first; batch < last; ++batch) {
                    T::Bits* to = x;
                    x += args.strides[0];
                    if (args.add) {
                        float sum[W];
                        unpack(next, sum);
                        if (batch + 1 < last) next = Pack<W>::load(x);
#pragma unroll
                        for (int j = 0; j < W; ++j) sum[j] = fmaf(sum[j], args.scale, wave[j]);
                        pack(sum).store(to);
                    } else {
                        pack(wave).store(to);
                    }
                }
            }
        }
    }
}

// Without the 4 the compiler aims at 32 registers at compute capability 8.0 and spills two.
extern "C" __global__ void __launch_bounds__(256, 4) KERNEL(grid_wide) { grid<WIDE>(args); }
extern "C" __global__ void __launch_bounds__(256) KERNEL(grid_one) { grid<1>(args); }
