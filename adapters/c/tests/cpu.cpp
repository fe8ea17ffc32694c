// Plans on the CPU through posenc.hpp: rotates a query, biases and attends with ALiBi, moves a handle, catches a refusal.
#include "posenc.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

static void check(bool ok, const char *what, int line) {
    if (ok) return;
    std::fprintf(stderr, "line %d: %s\n", line, what);
    std::exit(1);
}
#define CHECK(what) check((what), #what, __LINE__)

template <class T> static PosencBuffer buffer(std::vector<T> &values) {
    PosencBuffer buffer = PosencBuffer();
    buffer.data = reinterpret_cast<std::uintptr_t>(values.data());
    buffer.len = values.size();
    return buffer;
}

static bool near(double got, double want) { return std::fabs(got - want) < 1e-6; }

int main() {
    static_assert(!std::is_copy_constructible<posenc::rope>::value, "a handle is moved alone");
    static_assert(std::is_nothrow_move_constructible<posenc::rope>::value, "and always");
    posenc::gpu cpu = posenc::gpu::make_cpu();

    PosencRopeSpec spec = POSENC_INIT(PosencRopeSpec);
    spec.rotary = 2;
    spec.base = 10000.0;
    spec.attention_factor = 1.0;
    posenc::rope made = posenc::rope::make(cpu, spec, POSENC_F32);
    posenc::rope rope = std::move(made);
    CHECK(rope && !made);
    std::vector<float> q{1.0f, 0.0f};
    PosencRopeCall call = POSENC_INIT(PosencRopeCall);
    call.q.x = buffer(q);
    call.q.heads = PosencHeads{1, 1, 1, 2, 0, {2, 2, 2}};
    std::vector<std::int64_t> ids{100000};
    call.positions.ids.data = buffer(ids).data;
    call.positions.ids.len = 1;
    call.positions.ids.element = POSENC_I64;
    rope.rotate(call);
    CHECK(near(q[0], std::cos(100000.0)) && near(q[1], std::sin(100000.0)));
    call.inverse = 1;
    rope.on(cpu).rotate(call);
    CHECK(near(q[0], 1.0) && near(q[1], 0.0));

    // bfloat16: cos(1) and sin(1), rounded once.
    std::vector<std::uint16_t> half{0x3f80, 0};
    call.inverse = 0;
    call.q.x = buffer(half);
    ids[0] = 1;
    posenc::rope::make(cpu, spec, POSENC_BF16).rotate(call);
    CHECK(half[0] == 0x3f0a && half[1] == 0x3f57);

    PosencAlibiSpec slopes = POSENC_INIT(PosencAlibiSpec);
    slopes.heads = slopes.total_heads = 1;
    slopes.max_bias = 8.0;
    slopes.scale = 1.0;
    const posenc::bias alibi = posenc::bias::make_alibi(cpu, slopes, POSENC_F32);
    PosencSoftmaxSpec attention = POSENC_INIT(PosencSoftmaxSpec);
    attention.scale = 1.0f;
    const posenc::softmax softmax = posenc::softmax::make(cpu, attention, POSENC_F32);
    std::vector<float> logits(2, 0.0f);
    PosencSoftmaxCall apply = POSENC_INIT(PosencSoftmaxCall);
    apply.x = buffer(logits);
    apply.shape = PosencLogits{1, 1, 1, 2, 0, {2, 2, 2}};
    apply.inputs.bias = alibi.get();
    apply.inputs.places.queries.kind = POSENC_PLACE_BOTTOM_RIGHT;
    softmax.apply(apply);
    CHECK(near(logits[0], 1.0 / (1.0 + std::exp(1.0 / 256.0))) && near(logits[0] + logits[1], 1.0));

    const posenc::model model = posenc::model::from_hf(
        "{\"model_type\": \"llama\", \"hidden_size\": 64, \"num_attention_heads\": 4, \"num_hidden_layers\": 2}");
    CHECK(std::string(model.name()) == "llama" && model.layers() == 2 && model.layer(1).head == 16);
    CHECK(near(posenc::yarn_mscale(1.0, 1.0), 1.0) && posenc::term_swin(2, 2).window.height == 2);

    try {
        slopes.total_heads = 0;
        posenc::bias::make_alibi(cpu, slopes, POSENC_F32);
        CHECK(!"refused");
    } catch (const posenc::error &error) {
        CHECK(error.status() == POSENC_VALUE);
        CHECK(std::strcmp(error.what(), "total_heads is 0, it must be at least 1") == 0);
    }
    std::puts("all is well");
    return 0;
}
