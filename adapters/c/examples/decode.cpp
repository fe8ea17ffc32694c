// A decode step of a paged engine in C++: one token of each sequence, queries, keys and values packed in one row, as a Qwen3 layer
// treats them: keys and queries normed and rotated, keys and values into their pages, in one kernel.
//
// It runs on the CPU: `posenc::gpu::make_cpu()`. On a device, make `gpu` from its stream, and let `data` be device addresses.
#include "posenc.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

static constexpr std::uint64_t TOKENS = 3, Q_HEADS = 4, K_HEADS = 2, DIM = 16, PAGES = 4, SIZE = 8;
static constexpr std::uint64_t ROW = (Q_HEADS + 2 * K_HEADS) * DIM, CACHE = PAGES * SIZE * K_HEADS * DIM;

template <class T> static PosencBuffer buffer(std::vector<T> &values) {
    PosencBuffer buffer = PosencBuffer();
    buffer.data = reinterpret_cast<std::uintptr_t>(values.data());
    buffer.len = values.size();
    return buffer;
}

template <class T> static PosencIds ids(std::vector<T> &values) {
    PosencIds ids = PosencIds();
    ids.data = reinterpret_cast<std::uintptr_t>(values.data());
    ids.len = values.size();
    ids.element = sizeof(T) == 8 ? POSENC_I64 : POSENC_I32;
    return ids;
}

// Heads of one token each in rows of `row` channels, the first `first` channels from the start.
static PosencHeads heads(std::uint64_t heads, std::uint64_t row, std::uint64_t first) {
    return PosencHeads{1, TOKENS, heads, DIM, first, {TOKENS * row, row, DIM}};
}

static double mean_square(const float *x) {
    double sum = 0.0;
    for (std::uint64_t i = 0; i < DIM; ++i) sum += double(x[i]) * x[i];
    return sum / DIM;
}

int main() {
    const posenc::gpu gpu = posenc::gpu::make_cpu();
    const posenc::model model = posenc::model::from_hf(
        "{\"model_type\": \"qwen3\", \"head_dim\": 16, \"num_hidden_layers\": 2, \"rope_theta\": 1000000, \"rms_norm_eps\": 0.0}");
    // What the layer's weights are needed for.
    const PosencLayerPrologue layer = model.prologue(0);
    if (layer.q.weight != POSENC_NORM_WEIGHT || layer.q.over != POSENC_NORM_OVER_HEAD || layer.q.bias) return 1;
    const posenc::prologue prologue = posenc::prologue::of_model(gpu, model, 0, 40960, POSENC_F32);

    // The projection of this step, the weights of the norms, and the cache [2, pages, rows of a page, heads, dim].
    std::vector<float> qkv(TOKENS * ROW), q(TOKENS * Q_HEADS * DIM), weight(DIM, 1.0f), cache(2 * CACHE, -7.0f);
    for (std::uint64_t i = 0; i < qkv.size(); ++i) qkv[i] = float(int(i * 37 % 101) - 50) / 16.0f + 0.01f;
    // Where each sequence has got to, and the slot of its token; the last row is padding.
    std::vector<std::int32_t> positions{9, 1310, 0};
    std::vector<std::int64_t> slots{1, 2 * SIZE + 6, -1};

    PosencPrologueCall call = POSENC_INIT(PosencPrologueCall);
    call.q.x = call.k.x = call.v.x = buffer(qkv);
    call.q.heads = heads(Q_HEADS, ROW, 0);
    call.k.heads = heads(K_HEADS, ROW, Q_HEADS * DIM);
    call.v.heads = heads(K_HEADS, ROW, (Q_HEADS + K_HEADS) * DIM);
    call.q.weight = call.k.weight = buffer(weight);
    call.q.to = POSENC_TO_OUT;
    call.q.out = buffer(q);
    call.q.out_heads = heads(Q_HEADS, Q_HEADS * DIM, 0);
    call.positions.ids = ids(positions);
    call.cache.k.x = call.cache.v.x = buffer(cache);
    call.cache.k.heads = PosencHeads{PAGES, SIZE, K_HEADS, DIM, 0, {SIZE * K_HEADS * DIM, K_HEADS * DIM, DIM}};
    call.cache.v.heads = call.cache.k.heads;
    call.cache.v.heads.offset = CACHE;
    call.cache.rows = POSENC_CACHE_SLOTS;
    call.cache.slots = ids(slots);
    prologue.apply(call);

    // A normed head has a mean square of 1, before and after its rotation; values are copied, and padding is not cached.
    std::uint64_t written = 0;
    for (float x : cache) written += x != -7.0f;
    bool well = written == 2 * 2 * K_HEADS * DIM;
    for (std::uint64_t head = 0; head < TOKENS * Q_HEADS; ++head) well &= std::fabs(mean_square(&q[head * DIM]) - 1.0) < 1e-5;
    for (std::uint64_t token = 0; token < TOKENS - 1; ++token) {
        const std::uint64_t at = std::uint64_t(slots[token]) * K_HEADS * DIM, v = token * ROW + (Q_HEADS + K_HEADS) * DIM;
        for (std::uint64_t i = 0; i < K_HEADS * DIM; ++i) well &= cache[CACHE + at + i] == qkv[v + i];
        for (std::uint64_t head = 0; head < K_HEADS; ++head) well &= std::fabs(mean_square(&cache[at + head * DIM]) - 1.0) < 1e-5;
    }
    std::puts(well ? "all is well" : "something is wrong");
    return well ? 0 : 1;
}
