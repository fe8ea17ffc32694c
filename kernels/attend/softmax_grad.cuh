// dz = p * (dp - dot),  dot = sum over keys of p * dp
// dx = dz * scale * (1 - tanh^2),  dbias = dz * what the order of scale, softcap and bias leaves
// dsink[h] = -sum over rows of exp(sink - lse) * dot
//
// p, dp, x, dx, dbias   [batch, heads, queries, keys] by strides in elements (64 bits), keys contiguous; dx may be dp
// dots                  f32 [batch, heads, queries]
//
// `grad`: a team of threads a row, as in softmax.cu. A thread takes eight keys at a time; p and dp wait in shared
// memory between the sum and its use, as they lie in memory: 4 bytes a key, 8 in f32. Bytes: p and dp are read once, dx
// is written once, for rows that fit there (`held` chunks of 32 or 64 KiB a block: 57344 keys on an H100, 24576 in
// f32); twice the reads for longer ones. Sums are in the order of reduce.cuh. With a softcap the logits x and the bias
// are read too; what the bias is, is a type parameter, as in softmax.cuh.
#pragma once
#include "attend/law.cuh"
#include "bias/forms.cuh"
#include "common/barrier.cuh"
#include "common/keys.cuh"
#include "common/reduce.cuh"

// Eight elements of p and of dp for each pack of each thread, 16 bytes wide. A thread meets only what it wrote itself.
struct Stage {
    static constexpr int WORDS = KEYS / WIDE;
    uint4* at;

    __device__ void put(int pack_of, int tensor, const float (&x)[KEYS]) const {
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            float part[WIDE];
#pragma unroll
            for (int j = 0; j < WIDE; ++j) part[j] = x[i * WIDE + j];
            at[((pack_of * 2 + tensor) * WORDS + i) * blockDim.x] = pack(part).raw;
        }
    }

    __device__ void get(int pack_of, int tensor, float (&x)[KEYS]) const {
#pragma unroll
        for (int i = 0; i < WORDS; ++i) {
            Pack<WIDE> raw{at[((pack_of * 2 + tensor) * WORDS + i) * blockDim.x]};
            float part[WIDE];
            unpack(raw, part);
#pragma unroll
            for (int j = 0; j < WIDE; ++j) x[i * WIDE + j] = part[j];
        }
    }
};

extern __shared__ uint4 shared[];

template <class Bias, class... Terms>
__device__ __forceinline__ void softmax_grad(const SoftmaxGradArgs& args, const Terms&... terms) {
    __shared__ BlockSpace space;
    wait_for_predecessor();
    Team team(args.team.lanes_log, space);
    Place place(args.team);
    Row row(args.bias, place.row);
    // The last row's own threads may have written it already.
    if (!place.live) row.keys = 0;
    const SoftmaxLaw& law = args.law;
    const T::Bits* p_row = static_cast<const T::Bits*>(args.p) + row.offset(args.p_strides);
    const T::Bits* dp_row = static_cast<const T::Bits*>(args.dp) + row.offset(args.dp_strides);
    // Read once: the barriers between the packs would have it read again for each.
    int packs = args.team.packs;
    // uint4 of a chunk
    unsigned room = packs * 2 * Stage::WORDS * blockDim.x;
    int chunks = place.end - place.first;
    bool again = chunks > static_cast<int>(args.team.held);
    float dot = 0.0f;
#pragma unroll 1
    for (int i = 0; i < 2 * chunks; ++i) {
        // The first pass sums, the second writes.
        bool first = i < chunks;
        int slot = first ? i : i - chunks;
        Stage stage{shared + threadIdx.x + (again ? 0 : slot * room)};
        if (i == chunks && args.team.share > 1) {
            if (threadIdx.x == 0) {
                meet(static_cast<unsigned*>(args.team.counters) + place.row, args.team.share);
                const float* parts =
                    static_cast<const float*>(args.team.parts) + static_cast<long long>(place.row) * args.team.chunks;
                for (unsigned k = 0; k < args.team.chunks; ++k) dot += parts[k];
                space.row = make_float2(dot, 0.0f);
            }
            __syncthreads();
            dot = space.row.x;
        }
        PackSum sum;
#pragma unroll 1
        for (int j = 0; j < packs; ++j) {
            int at = (place.first + slot) * CHUNK + static_cast<int>(j * team.lanes + team.lane) * KEYS;
            if (at >= static_cast<int>(args.bias.keys)) break;
            float p[KEYS], dp[KEYS], dbias[KEYS];
            int there = min(KEYS, static_cast<int>(args.bias.keys) - at);
            if (first || again) {
                // Keys outside the sequence have no weight, whatever p holds there.
                bool none = at >= row.keys || at + KEYS <= row.first;
                load_keys(p_row + at, none ? 0 : there, args.team.aligned, 0.0f, p);
                load_keys(dp_row + at, none ? 0 : there, args.team.aligned, 0.0f, dp);
#pragma unroll
                for (int k = 0; k < KEYS; ++k) {
                    if (at + k < row.first || at + k >= row.keys) p[k] = 0.0f;
                }
            } else {
                stage.get(j, 0, p);
                stage.get(j, 1, dp);
            }
            if (first) {
                if (!again) {
                    stage.put(j, 0, p);
                    stage.put(j, 1, dp);
                }
                // A key without weight may hold anything in dp.
#pragma unroll
                for (int k = 0; k < KEYS; ++k) dp[k] = p[k] == 0.0f ? 0.0f : p[k] * dp[k];
                sum.add(sum_pack(dp));
                continue;
            }
            if (!place.live) break;
#pragma unroll
            for (int k = 0; k < KEYS; ++k) dbias[k] = p[k] == 0.0f ? 0.0f : p[k] * (dp[k] - dot);
            if (law.cap != 0.0f) {
                const T::Bits* logits = static_cast<const T::Bits*>(args.x) + row.offset(args.x_strides);
                float x[KEYS], bias[KEYS];
                Bias(args.bias, row, terms...).of(args.bias, row, at, there, bias);
                load_keys(logits + at, there, args.team.aligned, 0.0f, x);
                float scale = Bias::scale(law, row, terms...);
                before_softcap(law, scale, law.order == LogitOrder::SOFTCAP_THEN_BIAS, bias, x);
                softcap_gradients(law, scale, x, dbias, dp);
            } else {
                scale_gradients(Bias::scale(law, row, terms...), dbias, dp);
            }
            long long to = row.offset(args.dx_strides) + at;
            store_keys(static_cast<T::Bits*>(args.dx) + to, there, args.team.aligned, dp);
            if (args.dbias) {
                bias_gradients(law, dp, dbias);
                store_keys(static_cast<T::Bits*>(args.dbias) + to, there, args.team.aligned, dbias);
            }
        }
        if (first) {
            // Two sums use one space: every thread has read the last one.
            if (team.lanes > 32) __syncthreads();
            float part = team.sum(sum.total());
            if (args.team.share == 1) {
                dot += part;
            } else if (threadIdx.x == 0) {
                static_cast<float*>(
                    args.team.parts)[static_cast<long long>(place.row) * args.team.chunks + place.first + slot] = part;
            }
        }
    }
    if (args.dots && place.live && place.first == 0 && team.lane == 0) static_cast<float*>(args.dots)[place.row] = dot;
}
