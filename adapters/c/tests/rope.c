/* Rotates queries and keys through posenc.h and compares them with a rotation in double; then provokes every refusal. */
#include "device.h"

enum { TOKENS = 5, Q_HEADS = 3, K_HEADS = 2, DIM = 24, ROTARY = 16, Q = TOKENS * Q_HEADS * DIM, K = TOKENS * K_HEADS * DIM };

/* What the header promises, in double. */
static double worst(const float *before, const float *after, int heads, const int *positions, double base) {
    double off = 0.0;
    for (int t = 0; t < TOKENS; ++t) {
        for (int h = 0; h < heads; ++h) {
            const float *x = before + (t * heads + h) * DIM;
            const float *y = after + (t * heads + h) * DIM;
            for (int i = 0; i < ROTARY / 2; ++i) {
                double angle = positions[t] * pow(base, -2.0 * i / ROTARY);
                double a = x[i], b = x[i + ROTARY / 2];
                off = fmax(off, fabs(y[i] - (a * cos(angle) - b * sin(angle))));
                off = fmax(off, fabs(y[i + ROTARY / 2] - (a * sin(angle) + b * cos(angle))));
            }
            for (int i = ROTARY; i < DIM; ++i) off = fmax(off, fabs(y[i] - x[i]));
        }
    }
    return off;
}

static PosencHeads heads(uint64_t count) {
    return (PosencHeads){1, TOKENS, count, DIM, 0, {TOKENS * count * DIM, count * DIM, DIM}};
}

int main(void) {
    open_device();
    CHECK(posenc_version() >= 100);

    float q[Q], k[K], got[Q];
    fill(q, Q, 1);
    fill(k, K, 2);
    const int positions[TOKENS] = {0, 1, -7, 1000, 131071};
    PosencBuffer q_x = BUFFER(q), k_x = BUFFER(k), q_y = BUFFER(q), ids = BUFFER(positions);

    PosencRopeSpec spec = POSENC_INIT(PosencRopeSpec);
    spec.rotary = ROTARY;
    spec.base = 10000.0;
    spec.attention_factor = 1.0;
    PosencRope *rope = NULL;
    OK(posenc_rope_new(gpu, &spec, POSENC_F32, &rope));

    PosencRopeCall call = POSENC_INIT(PosencRopeCall);
    call.q.x = q_x;
    call.q.heads = heads(Q_HEADS);
    call.k.x = k_x;
    call.k.heads = heads(K_HEADS);
    call.positions.ids = (PosencIds){ids.data, TOKENS, POSENC_I32, 0};

    /* In place, and back. */
    OK(posenc_rope_rotate(rope, &call));
    download(got, q_x, sizeof q);
    CHECK(worst(q, got, Q_HEADS, positions, 10000.0) < 2e-6);
    download(got, k_x, sizeof k);
    CHECK(worst(k, got, K_HEADS, positions, 10000.0) < 2e-6);
    call.inverse = 1;
    OK(posenc_rope_rotate(rope, &call));
    download(got, q_x, sizeof q);
    for (int i = 0; i < Q; ++i) CHECK(near(got[i], q[i], 2e-6));

    /* Copied, queries alone. */
    call.inverse = 0;
    CHECK(to_device(q_x.data, q, sizeof q) == 0);
    PosencRopeCall copy = call;
    copy.q.out = q_y;
    copy.q.out_heads = heads(Q_HEADS);
    memset(&copy.k, 0, sizeof copy.k);
    OK(posenc_rope_rotate(rope, &copy));
    download(got, q_y, sizeof q);
    CHECK(worst(q, got, Q_HEADS, positions, 10000.0) < 2e-6);
    download(got, q_x, sizeof q);
    CHECK(memcmp(got, q, sizeof q) == 0);

    /* Read in halves, written side by side; never in place. */
    PosencRope *moved = NULL;
    spec.pairing_out = POSENC_OTHER;
    OK(posenc_rope_new(gpu, &spec, POSENC_F32, &moved));
    OK(posenc_rope_rotate(moved, &copy));
    download(got, q_y, sizeof q);
    float halves[Q];
    memcpy(halves, got, sizeof q);
    for (int at = 0; at < Q; at += DIM) {
        for (int i = 0; i < ROTARY; ++i) halves[at + i / 2 + i % 2 * (ROTARY / 2)] = got[at + i];
    }
    CHECK(worst(q, halves, Q_HEADS, positions, 10000.0) < 2e-6);
    REFUSED(posenc_rope_rotate(moved, &call), POSENC_VALUE, "the rotation cannot be in place");
    OK(posenc_rope_free(moved));
    spec.pairing_out = 7;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &moved), POSENC_ARGUMENT, "pairing_out is 7");
    spec.pairing_out = POSENC_SAME;

    /* Packed: the queries of the first head and keys of the second, in one buffer. */
    PosencRopeCall packed = call;
    packed.packed = 1;
    packed.q.heads.heads = 1;
    packed.k = packed.q;
    packed.k.heads.offset = DIM;
    OK(posenc_rope_rotate(rope, &packed));
    download(got, q_x, sizeof q);
    float two[2 * TOKENS * DIM], from[2 * TOKENS * DIM];
    for (int t = 0; t < TOKENS; ++t) {
        memcpy(two + 2 * t * DIM, got + 3 * t * DIM, 2 * DIM * sizeof(float));
        memcpy(from + 2 * t * DIM, q + 3 * t * DIM, 2 * DIM * sizeof(float));
        CHECK(memcmp(got + (3 * t + 2) * DIM, q + (3 * t + 2) * DIM, DIM * sizeof(float)) == 0);
    }
    CHECK(worst(from, two, 2, positions, 10000.0) < 2e-6);

    /* A table that turns everything by a quarter, whatever the position. */
    float table[TOKENS * ROTARY];
    for (int i = 0; i < TOKENS * ROTARY; ++i) table[i] = i % ROTARY < ROTARY / 2 ? 0.0f : 1.0f;
    PosencRopeCall by_table = copy;
    CHECK(to_device(q_x.data, q, sizeof q) == 0);
    by_table.table.cos = BUFFER(table);
    by_table.table.rows = TOKENS;
    by_table.table.stride = ROTARY;
    OK(posenc_rope_rotate(rope, &by_table));
    download(got, q_y, sizeof q);
    for (int h = 0; h < TOKENS * Q_HEADS; ++h) {
        for (int i = 0; i < ROTARY / 2; ++i) {
            CHECK(got[h * DIM + i] == -q[h * DIM + i + ROTARY / 2]);
            CHECK(got[h * DIM + i + ROTARY / 2] == q[h * DIM + i]);
        }
    }

    /* One start, 64 bits, and the spec of a model's config. */
    const int64_t start[1] = {41};
    const int counted[TOKENS] = {41, 42, 43, 44, 45};
    PosencRope *model = NULL;
    const char *config = "{\"model_type\": \"gpt_neox\", \"num_hidden_layers\": 2, \"hidden_size\": 48, "
                         "\"num_attention_heads\": 2, \"rotary_pct\": 0.66667, \"rotary_emb_base\": 5000, "
                         "\"max_position_embeddings\": 2048}";
    OK(posenc_rope_from_hf(gpu, config, 0, 2048, POSENC_F32, &model));
    PosencRopeCall starts = copy;
    starts.positions.kind = POSENC_STARTS;
    starts.positions.ids = (PosencIds){upload(start, sizeof start), 1, POSENC_I64, 0};
    OK(posenc_rope_rotate(model, &starts));
    download(got, q_y, sizeof q);
    CHECK(worst(q, got, Q_HEADS, counted, 5000.0) < 2e-6);

    /* Frequencies of the caller: all 0, so that nothing turns. */
    const float still[ROTARY / 2] = {0};
    PosencRopeSpec given = spec;
    PosencRope *constant = NULL;
    given.angles = POSENC_GIVEN;
    given.frequencies = still;
    OK(posenc_rope_new(gpu, &given, POSENC_F32, &constant));
    OK(posenc_rope_rotate(constant, &copy));
    download(got, q_y, sizeof q);
    CHECK(memcmp(got, q, sizeof q) == 0);
    OK(posenc_rope_free(constant));
    given.frequencies = NULL;
    REFUSED(posenc_rope_new(gpu, &given, POSENC_F32, &constant), POSENC_ARGUMENT, "frequencies is null");

    /* xPos: at position p a query is the rotated one times zeta^(p / 512), a key times its inverse. */
    const int near_positions[TOKENS] = {0, 1, -7, 1000, 3000};
    PosencXPosSpec shrinking = POSENC_INIT(PosencXPosSpec);
    PosencXPos *xpos = NULL;
    shrinking.rope = spec;
    shrinking.gamma = 0.4;
    shrinking.scale_base = 512.0;
    OK(posenc_xpos_new(gpu, &shrinking, POSENC_F32, &xpos));
    PosencRopeCall scaled = call;
    CHECK(to_device(q_x.data, q, sizeof q) == 0 && to_device(k_x.data, k, sizeof k) == 0);
    CHECK(to_device(ids.data, near_positions, sizeof near_positions) == 0);
    OK(posenc_xpos_rotate(xpos, &scaled));
    float keys[K];
    download(got, q_x, sizeof q);
    download(keys, k_x, sizeof k);
    for (int t = 0; t < TOKENS; ++t) {
        for (int i = 0; i < ROTARY / 2; ++i) {
            double zeta = (2.0 * i / ROTARY + 0.4) / 1.4, factor = pow(zeta, near_positions[t] / 512.0);
            double angle = near_positions[t] * pow(10000.0, -2.0 * i / ROTARY);
            const float *x = q + t * Q_HEADS * DIM + i, *y = k + t * K_HEADS * DIM + i;
            double turned = x[0] * cos(angle) - x[ROTARY / 2] * sin(angle);
            CHECK(near(got[t * Q_HEADS * DIM + i], factor * turned, 4e-6));
            turned = y[0] * cos(angle) - y[ROTARY / 2] * sin(angle);
            CHECK(near(keys[t * K_HEADS * DIM + i] * factor, turned, 4e-6));
        }
    }
    /* Keys alone are the same keys. */
    CHECK(to_device(k_x.data, k, sizeof k) == 0);
    memset(&scaled.q, 0, sizeof scaled.q);
    OK(posenc_xpos_rotate(xpos, &scaled));
    download(got, k_x, sizeof k);
    CHECK(memcmp(got, keys, sizeof keys) == 0);
    memset(&scaled.k, 0, sizeof scaled.k);
    REFUSED(posenc_xpos_rotate(xpos, &scaled), POSENC_ARGUMENT, "q and k are null");
    scaled = by_table;
    REFUSED(posenc_xpos_rotate(xpos, &scaled), POSENC_ARGUMENT, "the call has a table");
    shrinking.gamma = -1.0;
    PosencXPos *nothing = NULL;
    REFUSED(posenc_xpos_new(gpu, &shrinking, POSENC_F32, &nothing), POSENC_VALUE, "gamma is -1");
    OK(posenc_xpos_free(xpos));
    CHECK(to_device(ids.data, positions, sizeof positions) == 0);

    /* An empty tensor of other libraries has no address. */
    PosencRopeCall empty = call;
    memset(&empty.q.x, 0, sizeof empty.q.x);
    memset(&empty.k, 0, sizeof empty.k);
    empty.q.heads.tokens = 0;
    OK(posenc_rope_rotate(rope, &empty));
    empty.q.heads.tokens = 1;
    REFUSED(posenc_rope_rotate(rope, &empty), POSENC_VALUE, "q holds 0 elements");

    /* Refusals: nothing is written, and each has its sentence. */
    REFUSED(posenc_rope_rotate(NULL, &call), POSENC_ARGUMENT, "rope is null");
    REFUSED(posenc_rope_rotate(rope, NULL), POSENC_ARGUMENT, "call is null");
    PosencRopeCall wrong = call;
    wrong.version = 9;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "call has version 9, this library knows 1");
    wrong = call;
    wrong.size -= 8;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "version 1 has");
    wrong = call;
    wrong.q.x.data = 0;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "q is null");
    wrong = call;
    wrong.q.x.data += 2;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "its elements need multiples of 4");
    wrong = call;
    wrong.q.x.len -= 1;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "q holds 359 elements, the shape needs 360");
    wrong = call;
    wrong.positions.ids.len = 4;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "positions holds 4 elements, the shape needs 5");
    wrong = call;
    wrong.positions.kind = 7;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "the kind of positions is 7");
    wrong = call;
    wrong.positions.ids.element = 7;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "the type of integers is 7");
    wrong = call;
    wrong.inverse = 2;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "inverse is 2, it must be 0 or 1");
    wrong = call;
    wrong.q.heads.heads = UINT64_MAX;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "does not fit into 63 bits");
    wrong = copy;
    wrong.q.out.data = wrong.q.x.data;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "share memory");
    PosencRope *none = NULL;
    PosencRopeSpec odd = spec;
    odd.rotary = 7;
    REFUSED(posenc_rope_new(gpu, &odd, POSENC_F32, &none), POSENC_VALUE, "rotary is 7");
    REFUSED(posenc_rope_new(gpu, &spec, 8, &none), POSENC_ARGUMENT, "element is 8");
    REFUSED(posenc_rope_new(NULL, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "gpu is null");
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, NULL), POSENC_ARGUMENT, "out is null");
    odd = spec;
    odd.scaling = POSENC_SCALING_DIVISORS;
    odd.divisor_count = 8;
    REFUSED(posenc_rope_new(gpu, &odd, POSENC_F32, &none), POSENC_ARGUMENT, "divisors is null");
    REFUSED(posenc_rope_from_hf(gpu, "{", 0, 1, POSENC_F32, &none), POSENC_VALUE, "not JSON");
    PosencGpu *other = NULL;
    REFUSED(posenc_gpu_new(99, stream, 0, &other), POSENC_DEVICE, "no CUDA device");
    CHECK(none == NULL && other == NULL);

    OK(posenc_rope_free(model));
    OK(posenc_rope_free(rope));
    OK(posenc_rope_free(NULL));
    OK(posenc_gpu_free(gpu));
    puts("all is well");
    return 0;
}
