/* Rotates queries and keys through posenc.h and compares them with a rotation in double; then provokes every refusal. */
#include "device.h"

#include <stddef.h>
#include <unistd.h>

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

/* The frequency of each pair, as a plan of `spec` turns position 1: queries of one head whose pairs are (1, 0). */
static void frequencies_of(PosencRope *rope, PosencBuffer x, PosencBuffer y, const int64_t *position, int axes, double *turns) {
    float unit[DIM] = {0}, got[DIM];
    for (int i = 0; i < ROTARY / 2; ++i) unit[i] = 1.0f;
    CHECK(to_device(x.data, unit, sizeof unit) == 0);
    PosencRopeCall call = POSENC_INIT(PosencRopeCall);
    call.q.x = x;
    call.q.heads = (PosencHeads){1, 1, 1, DIM, 0, {DIM, DIM, DIM}};
    call.q.out = y;
    call.q.out_heads = call.q.heads;
    call.positions.ids = (PosencIds){upload(position, axes * sizeof *position), axes, POSENC_I64, 0};
    OK(posenc_rope_rotate(rope, &call));
    download(got, y, sizeof got);
    for (int i = 0; i < ROTARY / 2; ++i) turns[i] = atan2(got[i + ROTARY / 2], got[i]);
}

static PosencRopeSpec plain(void) {
    PosencRopeSpec spec = POSENC_INIT(PosencRopeSpec);
    spec.rotary = ROTARY;
    spec.base = 10000.0;
    spec.attention_factor = 1.0;
    return spec;
}

/* Every scaling, by the frequency that it gives to a pair. */
static void scalings(PosencBuffer x, PosencBuffer y, const float *q) {
    double short_list[ROTARY / 2], long_list[ROTARY / 2], alpha = 3.0, got[ROTARY / 2];
    for (int i = 0; i < ROTARY / 2; ++i) short_list[i] = 2.0 + i, long_list[i] = -4.0 - i;
    for (uint32_t kind = POSENC_SCALING_NONE; kind <= POSENC_SCALING_PROPORTIONAL; ++kind) {
        PosencRopeSpec spec = plain();
        spec.scaling = kind;
        spec.factor = 2.0;
        spec.low = 1.0;
        spec.high = 4.0;
        spec.original_context = 64.0;
        spec.exponent = 1.0;
        spec.extrapolation = 1.0;
        spec.length = 128;
        spec.rotated = 3;
        spec.divisors = short_list;
        spec.long_divisors = long_list;
        spec.divisor_count = ROTARY / 2;
        PosencRope *rope = NULL;
        OK(posenc_rope_new(gpu, &spec, POSENC_F32, &rope));
        ON(PosencRope, posenc_rope_on, posenc_rope_free, rope);
        const int64_t one = 1;
        frequencies_of(rope, x, y, &one, 1, got);
        OK(posenc_rope_free(rope));
        for (int i = 0; i < ROTARY / 2; ++i) {
            double theta = pow(10000.0, -2.0 * i / ROTARY), turns = 64.0 * theta / 6.283185307179586, want = theta;
            double blend = fmin(fmax((turns - 1.0) / 3.0, 0.0), 1.0);
            double from = floor(ROTARY * log(64.0 / (6.283185307179586 * 4.0)) / (2.0 * log(10000.0)));
            double to = ceil(ROTARY * log(64.0 / 6.283185307179586) / (2.0 * log(10000.0)));
            double ramp = fmin(fmax((i - fmax(from, 0.0)) / (to - fmax(from, 0.0)), 0.0), 1.0);
            switch (kind) {
            case POSENC_SCALING_LINEAR: want = theta / 2.0; break;
            case POSENC_SCALING_NTK: want = pow(10000.0 * pow(2.0, 16.0 / 14.0), -2.0 * i / ROTARY); break;
            case POSENC_SCALING_LLAMA3: want = (1.0 - blend) * theta / 2.0 + blend * theta; break;
            case POSENC_SCALING_YARN: want = theta * (1.0 - ramp) + theta / 2.0 * ramp; break;
            case POSENC_SCALING_DIVISORS: want = theta / short_list[i]; break;
            case POSENC_SCALING_NTK_MIXED: want = theta / pow(2.0, (i + 1) / 8.0); break;
            case POSENC_SCALING_NTK_DYNAMIC:
            case POSENC_SCALING_NTK_STEPPED: want = pow(10000.0 * pow(alpha, 16.0 / 14.0), -2.0 * i / ROTARY); break;
            case POSENC_SCALING_LONGROPE: want = theta / long_list[i]; break;
            case POSENC_SCALING_PROPORTIONAL: want = i < 3 ? theta / 2.0 : 0.0; break;
            default: break;
            }
            if (!near(got[i], want, 1e-6)) fprintf(stderr, "scaling %u, pair %d\n", kind, i);
            CHECK(near(got[i], want, 1e-6));
        }
    }
    PosencRopeSpec spec = plain();
    PosencRope *none = NULL;
    spec.scaling = POSENC_SCALING_LONGROPE;
    spec.original_context = 64.0;
    spec.divisors = spec.long_divisors = short_list;
    spec.divisor_count = ROTARY / 2;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &none), POSENC_VALUE, "depends on the length of the sequence");
    spec.long_divisors = NULL;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "long_divisors is null");
    spec.scaling = POSENC_SCALING_YARN;
    spec.factor = 2.0;
    spec.low = spec.high = 1.0;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "extrapolation is 0, it must be set");
    spec.extrapolation = 1.0;
    spec.ramp = 2;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "ramp is 2");
    spec.scaling = 11;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "scaling is 11");
    spec.scaling = POSENC_SCALING_NONE;
    spec.base = 1e-320;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &none), POSENC_VALUE, "the frequency of pair 0 is NaN with base 1e-320");
    spec.rotary = 1 << 22;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &none), POSENC_VALUE, "rotary is 4194304, it must be at most 65536");
    CHECK(near(posenc_yarn_mscale(40.0, 1.0), 0.1 * log(40.0) + 1.0, 1e-15));
    CHECK(near(posenc_mla_logit_scale(40.0, 1.0), pow(0.1 * log(40.0) + 1.0, 2.0), 1e-15));
    CHECK(near(posenc_longrope_attention_factor(32.0, 4096.0), sqrt(1.0 + log(32.0) / log(4096.0)), 1e-15));
    CHECK(to_device(x.data, q, Q * sizeof *q) == 0);
}

/* Every form of axes: axis a stands at position 2 - a, and each pair shows its axis and its frequency. */
static void several_axes(PosencBuffer x, PosencBuffer y, const float *q) {
    static const struct {
        uint32_t kind, count, sizes[4];
        int axis[ROTARY / 2], rung[ROTARY / 2], ladder[ROTARY / 2];
    } forms[] = {
        {POSENC_AXES_ONE, 0, {0}, {0}, {0, 1, 2, 3, 4, 5, 6, 7}, {8, 8, 8, 8, 8, 8, 8, 8}},
        {POSENC_AXES_SECTIONS, 2, {5, 3}, {0, 0, 0, 0, 0, 1, 1, 1}, {0, 1, 2, 3, 4, 5, 6, 7}, {8, 8, 8, 8, 8, 8, 8, 8}},
        {POSENC_AXES_INTERLEAVED, 2, {5, 3}, {0, 1, 0, 1, 0, 1, 0, 0}, {0, 1, 2, 3, 4, 5, 6, 7}, {8, 8, 8, 8, 8, 8, 8, 8}},
        {POSENC_AXES_LADDERS, 2, {5, 3}, {0, 0, 0, 0, 0, 1, 1, 1}, {0, 1, 2, 3, 4, 0, 1, 2}, {5, 5, 5, 5, 5, 3, 3, 3}},
        {POSENC_AXES_HEIGHT_WIDTH_FIRST, 3, {2, 3, 3}, {1, 2, 1, 2, 1, 2, 0, 0}, {0, 1, 2, 3, 4, 5, 6, 7},
         {8, 8, 8, 8, 8, 8, 8, 8}},
        {POSENC_AXES_TABLE, 0, {0}, {1, 1, 0, 0, 1, 0, 1, 1}, {0, 1, 2, 3, 4, 5, 6, 7}, {8, 8, 8, 8, 8, 8, 8, 8}},
        {POSENC_AXES_DEALT, 2, {0}, {0, 0, 0, 0, 1, 1, 1, 1}, {0, 2, 4, 6, 1, 3, 5, 7}, {8, 8, 8, 8, 8, 8, 8, 8}},
        {POSENC_AXES_ALTERNATING, 2, {0}, {0, 1, 0, 1, 0, 1, 0, 1}, {0, 0, 1, 1, 2, 2, 3, 3}, {4, 4, 4, 4, 4, 4, 4, 4}},
    };
    const int64_t positions[3] = {2, 1, 0};
    double got[ROTARY / 2];
    PosencRope *rope = NULL;
    for (unsigned form = 0; form < sizeof forms / sizeof *forms; ++form) {
        PosencRopeSpec spec = plain();
        uint8_t table[ROTARY / 2];
        int axes = 1;
        spec.axes = forms[form].kind;
        spec.axis_count = forms[form].count;
        memcpy(spec.axis_sizes, forms[form].sizes, sizeof spec.axis_sizes);
        for (int i = 0; i < ROTARY / 2; ++i) {
            table[i] = (uint8_t)forms[form].axis[i];
            if (table[i] >= axes) axes = table[i] + 1;
        }
        spec.axis_of_pair = table;
        OK(posenc_rope_new(gpu, &spec, POSENC_F32, &rope));
        frequencies_of(rope, x, y, positions, axes, got);
        OK(posenc_rope_free(rope));
        for (int i = 0; i < ROTARY / 2; ++i) {
            double want = (2 - table[i]) * pow(10000.0, -(double)forms[form].rung[i] / forms[form].ladder[i]);
            if (!near(got[i], want, 1e-6)) fprintf(stderr, "form %u, pair %d\n", form, i);
            CHECK(near(got[i], want, 1e-6));
        }
    }
    /* Two blocks of channels, each rotated in halves of its own: pair 0 is (0, 4), pair 4 is (8, 12). */
    PosencRopeSpec spec = plain();
    spec.axes = POSENC_AXES_BLOCKS;
    spec.axis_count = 2;
    OK(posenc_rope_new(gpu, &spec, POSENC_F32, &rope));
    PosencRopeCall call = POSENC_INIT(PosencRopeCall);
    float row[DIM];
    CHECK(to_device(x.data, q, Q * sizeof *q) == 0);
    call.q.x = x;
    call.q.heads = (PosencHeads){1, 1, 1, DIM, 0, {DIM, DIM, DIM}};
    call.q.out = y;
    call.q.out_heads = call.q.heads;
    call.positions.ids = (PosencIds){upload(positions, 2 * sizeof *positions), 2, POSENC_I64, 0};
    OK(posenc_rope_rotate(rope, &call));
    download(row, y, sizeof row);
    CHECK(near(row[0], q[0] * cos(2.0) - q[4] * sin(2.0), 2e-6) && near(row[12], q[8] * sin(1.0) + q[12] * cos(1.0), 2e-6));
    OK(posenc_rope_free(rope));
    spec.axes = POSENC_AXES_HEIGHT_WIDTH_FIRST;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &rope), POSENC_ARGUMENT, "axis_count is 2, time, height and width are 3");
    spec.axes = POSENC_AXES_SECTIONS;
    spec.axis_count = 5;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &rope), POSENC_ARGUMENT, "axis_count is 5, at most 4 are allowed");
    spec.axes = 9;
    REFUSED(posenc_rope_new(gpu, &spec, POSENC_F32, &rope), POSENC_ARGUMENT, "axes is 9");
}

/* Configs of models: what is understood, and a layer's plan. */
static void models(PosencBuffer x, PosencBuffer y, const float *q) {
    PosencModel *model = NULL;
    const char *text = NULL;
    uint64_t number = 0;
    PosencLayer layer;
    OK(posenc_model_from_hf("{\"model_type\": \"smollm3\", \"num_hidden_layers\": 4, \"hidden_size\": 48, "
                            "\"num_attention_heads\": 2, \"rope_theta\": 5000, \"max_position_embeddings\": 2048}", &model));
    OK(posenc_model_name(model, &text));
    CHECK(strcmp(text, "smollm3") == 0);
    OK(posenc_model_describe(model, &text));
    CHECK(strstr(text, "smollm3, 4 layers, 2048 positions") == text);
    OK(posenc_model_layers(model, &number));
    CHECK(number == 4);
    OK(posenc_model_context(model, &number));
    CHECK(number == 2048);
    OK(posenc_model_layer(model, 3, &layer));
    CHECK(!layer.has_rope && layer.head == 24);
    OK(posenc_model_layer(model, 0, &layer));
    CHECK(layer.has_rope && layer.rotary == 24 && layer.logit_scale == 1.0);
    CHECK(layer.query_scale.kind == POSENC_QUERY_SCALE_ONE && !layer.has_dual_chunk);
    REFUSED(posenc_model_layer(model, 4, &layer), POSENC_VALUE, "layer 4 is asked for, the model has 4");
    PosencRope *rope = NULL;
    float row[DIM];
    const int64_t position = 7;
    PosencRopeCall call = POSENC_INIT(PosencRopeCall);
    call.q.x = x;
    call.q.heads = (PosencHeads){1, 1, 1, DIM, 0, {DIM, DIM, DIM}};
    call.q.out = y;
    call.q.out_heads = call.q.heads;
    call.positions.ids = (PosencIds){upload(&position, sizeof position), 1, POSENC_I64, 0};
    /* A layer without RoPE copies. */
    OK(posenc_rope_of_model(gpu, model, 3, 2048, POSENC_F32, &rope));
    OK(posenc_rope_rotate(rope, &call));
    download(row, y, sizeof row);
    CHECK(memcmp(row, q, sizeof row) == 0);
    OK(posenc_rope_free(rope));
    OK(posenc_rope_of_model(gpu, model, 0, 2048, POSENC_F32, &rope));
    OK(posenc_rope_rotate(rope, &call));
    download(row, y, sizeof row);
    CHECK(near(row[0], q[0] * cos(7.0) - q[12] * sin(7.0), 2e-6));
    OK(posenc_rope_free(rope));
    OK(posenc_model_free(model));

    REFUSED(posenc_model_from_hf(NULL, &model), POSENC_ARGUMENT, "config is null");
    REFUSED(posenc_model_from_hf("{\"model_type\": \"mine\"}", &model), POSENC_VALUE, "mine");
    OK(posenc_model_from_hf_as("{\"model_type\": \"mine\", \"num_hidden_layers\": 1, \"hidden_size\": 48, "
                               "\"num_attention_heads\": 2, \"rope_theta\": 5000}", "llama", &model));
    OK(posenc_model_free(model));
    OK(posenc_model_from_mistral("{\"dim\": 64, \"n_layers\": 2, \"head_dim\": 32, \"hidden_dim\": 128, \"n_heads\": 2, "
                                 "\"n_kv_heads\": 1, \"rope_theta\": 10000, \"norm_eps\": 1e-5, \"vocab_size\": 8}", &model));
    OK(posenc_model_free(model));

    /* The head of a GGUF file: no tensors, five keys. */
    char path[64];
    snprintf(path, sizeof path, "posenc-c-%ld.gguf", (long)getpid());
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL);
    const uint32_t version = 3, string = 8, u32 = 4, f32 = 6, layers = 2, size = 48, heads_of = 2;
    const uint64_t counts[2] = {0, 5};
    const float theta = 5000.0f;
    fwrite("GGUF", 1, 4, file);
    fwrite(&version, 4, 1, file);
    fwrite(counts, 8, 2, file);
    struct {
        const char *key;
        const uint32_t *kind;
        const void *value;
    } keys[5] = {{"general.architecture", &string, "llama"}, {"llama.block_count", &u32, &layers},
                 {"llama.embedding_length", &u32, &size}, {"llama.attention.head_count", &u32, &heads_of},
                 {"llama.rope.freq_base", &f32, &theta}};
    for (int i = 0; i < 5; ++i) {
        uint64_t length = strlen(keys[i].key), five = 5;
        fwrite(&length, 8, 1, file);
        fwrite(keys[i].key, 1, length, file);
        fwrite(keys[i].kind, 4, 1, file);
        if (i == 0) fwrite(&five, 8, 1, file);
        fwrite(keys[i].value, 1, i == 0 ? 5 : 4, file);
    }
    CHECK(fclose(file) == 0);
    OK(posenc_model_from_gguf(path, &model));
    OK(posenc_model_layer(model, 1, &layer));
    CHECK(layer.has_rope && layer.rotary == 24);
    OK(posenc_model_free(model));
    CHECK(remove(path) == 0);
    REFUSED(posenc_model_from_gguf(path, &model), POSENC_ARGUMENT, "cannot be opened");

    double factor = 0.0;
    PosencQueryScale scale = {POSENC_QUERY_SCALE_LLAMA4, 0, 0.1, 8192.0};
    OK(posenc_query_scale_at(&scale, 8191, &factor));
    CHECK(near(factor, 1.0 + 0.1 * log(2.0), 1e-15));
    scale.kind = POSENC_QUERY_SCALE_MISTRAL;
    OK(posenc_query_scale_at(&scale, 8191, &factor));
    CHECK(factor == 1.0);
    scale.kind = POSENC_QUERY_SCALE_LOG_N;
    OK(posenc_query_scale_at(&scale, 8192 * 8192 - 1, &factor));
    CHECK(near(factor, 2.0, 1e-15));
    scale.kind = 5;
    REFUSED(posenc_query_scale_at(&scale, 1, &factor), POSENC_ARGUMENT, "the kind of a query scale is 5");
    OK(posenc_model_free(NULL));
}

/* Structs as an older and a newer header have them: what is missing is 0, what is over must be 0. */
static void sizes(PosencRope *rope, const PosencRopeCall *call) {
    struct {
        PosencRopeCall call;
        uint32_t later[4];
    } newer = {*call, {0}};
    const uint32_t table = (uint32_t)(offsetof(PosencRopeCall, table));
    PosencRopeCall older = *call;
    memset((char *)&older + table, 0x55, sizeof older - table);
    older.size = table;
    OK(posenc_rope_rotate(rope, &older));
    newer.call.size = sizeof newer;
    OK(posenc_rope_rotate(rope, &newer.call));
    newer.later[2] = 0x100;
    char sentence[160];
    snprintf(sentence, sizeof sentence, "call has size %u, this library knows %u bytes of it, and byte %u is not 0",
             (unsigned)sizeof newer, (unsigned)sizeof(PosencRopeCall), (unsigned)sizeof(PosencRopeCall) + 9);
    REFUSED(posenc_rope_rotate(rope, &newer.call), POSENC_ARGUMENT, sentence);
    /* A spec too: without its axes. */
    PosencRopeSpec spec = plain();
    PosencRope *shorter = NULL;
    spec.size = (uint32_t)(offsetof(PosencRopeSpec, divisors));
    spec.axes = 99;
    OK(posenc_rope_new(gpu, &spec, POSENC_F32, &shorter));
    OK(posenc_rope_free(shorter));
    /* A struct within another has its size. */
    PosencXPosSpec xpos = POSENC_INIT(PosencXPosSpec);
    xpos.rope = plain();
    xpos.rope.size -= 8;
    REFUSED(posenc_rope_xpos_new(gpu, &xpos, POSENC_F32, &shorter), POSENC_ARGUMENT, "within another struct it must have");
}

/* Frequencies of two heads on one axis, in half units of the position; gradients of angles; units of real positions. */
static void mixed(void) {
    const double none[2] = {0.0, 0.0};
    const float learned[2] = {1.0f, 2.0f};
    PosencRopeSpec spec = POSENC_INIT(PosencRopeSpec);
    spec.rotary = 2;
    spec.base = 1.0;
    spec.attention_factor = 1.0;
    spec.angles = POSENC_MIXED;
    spec.mixed = none;
    spec.mixed_axes = 1;
    spec.mixed_heads = 2;
    spec.fraction_bits[0] = 1;
    PosencRope *rope = NULL;
    OK(posenc_rope_new(gpu, &spec, POSENC_F32, &rope));
    PosencSetFrequenciesCall set = POSENC_INIT(PosencSetFrequenciesCall);
    set.frequencies = BUFFER(learned);
    OK(posenc_rope_set_frequencies(rope, &set));

    const float reals[1] = {1.5f};
    int64_t units[1] = {0};
    PosencFixed *fixed = NULL, *other = NULL;
    OK(posenc_fixed_new(gpu, &fixed));
    OK(posenc_fixed_on(fixed, gpu, &other));
    OK(posenc_fixed_free(fixed));
    PosencFixedCall real = POSENC_INIT(PosencFixedCall);
    real.positions = BUFFER(reals);
    real.element = POSENC_F32;
    real.bits = 1;
    real.out = BUFFER(units);
    OK(posenc_fixed_write(other, &real));
    download(units, real.out, sizeof(units));
    CHECK(units[0] == 3);
    OK(posenc_fixed_free(other));

    const float x[4] = {1.0f, 0.0f, 1.0f, 0.0f}, dy[4] = {0.0f, 1.0f, 0.0f, 1.0f};
    float y[4];
    PosencRopeCall call = POSENC_INIT(PosencRopeCall);
    call.q.x = BUFFER(x);
    call.q.heads = (PosencHeads){1, 1, 2, 2, 0, {4, 4, 2}};
    call.positions.ids = (PosencIds){real.out.data, 1, POSENC_I64, 0};
    OK(posenc_rope_rotate(rope, &call));
    download(y, call.q.x, sizeof(y));
    CHECK(fabs(y[0] - cos(1.5)) < 1e-6 && fabs(y[3] - sin(3.0)) < 1e-6);
    OK(posenc_rope_free(rope));

    PosencRopeGrad *grad = NULL;
    OK(posenc_rope_grad_new(gpu, &spec, POSENC_F32, &grad));
    ON(PosencRopeGrad, posenc_rope_grad_on, posenc_rope_grad_free, grad);
    float out[2] = {0.0f, 0.0f};
    PosencFrequencyGradCall by_frequency = POSENC_INIT(PosencFrequencyGradCall);
    by_frequency.q.x = call.q.x;
    by_frequency.q.heads = by_frequency.q.grad_heads = call.q.heads;
    by_frequency.q.grad = BUFFER(dy);
    by_frequency.positions = call.positions;
    by_frequency.out = BUFFER(out);
    OK(posenc_rope_grad_frequencies(grad, &by_frequency));
    download(out, by_frequency.out, sizeof(out));
    /* position * (a db - b da) */
    CHECK(fabs(out[0] - 1.5 * cos(1.5)) < 1e-5 && fabs(out[1] - 1.5 * cos(3.0)) < 1e-5);
    PosencPositionGradCall by_position = POSENC_INIT(PosencPositionGradCall);
    by_position.q = by_frequency.q;
    by_position.frequencies = set.frequencies;
    by_position.out = by_frequency.out;
    OK(posenc_rope_grad_positions(grad, &by_position));
    download(out, by_position.out, sizeof(out));
    CHECK(fabs(out[0] - (cos(1.5) + 2.0 * cos(3.0))) < 1e-5);
    OK(posenc_rope_grad_free(grad));
}

/* Attention over one key and over three, put together, and the gradient. */
static void merged(void) {
    PosencMergeSpec spec = POSENC_INIT(PosencMergeSpec);
    PosencMerge *merge = NULL;
    OK(posenc_merge_new(gpu, &spec, POSENC_F32, &merge));
    ON(PosencMerge, posenc_merge_on, posenc_merge_free, merge);
    const float a[2] = {4.0f, 0.0f}, b[2] = {0.0f, 4.0f}, one[1] = {0.0f}, three[1] = {1.0986123f}, g[2] = {1.0f, 0.0f};
    float out[2], lse[1];
    const PosencHeads heads = {1, 1, 1, 2, 0, {2, 2, 2}};
    const PosencNumbers rows = {1, 1, 1, 1, 0, {1, 1, 1, 1}};
    const PosencState other = {BUFFER(b), heads, BUFFER(three), rows};
    PosencMergeGradCall grad = POSENC_INIT(PosencMergeGradCall);
    grad.a = (PosencState){BUFFER(a), heads, BUFFER(one), rows};
    grad.b = other;
    grad.grad = (PosencState){BUFFER(g), heads, {0, 0}, rows};
    grad.a_grad = (PosencState){BUFFER(a), heads, BUFFER(one), rows};
    grad.b_grad = (PosencState){BUFFER(b), heads, BUFFER(three), rows};
    OK(posenc_merge_grad(merge, &grad));
    download(out, grad.a_grad.out, sizeof(out));
    download(lse, grad.a_grad.lse, sizeof(lse));
    CHECK(fabs(out[0] - 0.25) < 1e-6 && fabs(lse[0] - 0.75) < 1e-5);
    PosencMergeCall call = POSENC_INIT(PosencMergeCall);
    call.a = grad.a;
    call.b = other;
    OK(posenc_merge_states(merge, &call));
    download(out, call.a.out, sizeof(out));
    download(lse, call.a.lse, sizeof(lse));
    CHECK(fabs(out[0] - 1.0) < 1e-6 && fabs(out[1] - 3.0) < 1e-6 && fabs(lse[0] - 1.3862944) < 1e-6);
    OK(posenc_merge_free(merge));
}

/* What a model does with positions: layers, stretches of a sequence, patches of a tower. */
static void positions_of_models(void) {
    PosencModel *model = NULL;
    REFUSED(posenc_model_open("/no/such/model", &model), POSENC_VALUE, "cannot read /no/such/model");
    OK(posenc_model_from_hf("{\"model_type\": \"smollm3\", \"num_hidden_layers\": 4, \"hidden_size\": 48, "
                            "\"num_attention_heads\": 2, \"rope_theta\": 5000, \"max_position_embeddings\": 2048}", &model));
    PosencAdded added;
    OK(posenc_model_added(model, 0, &added));
    CHECK(added.embedding == POSENC_EMBEDDING_NONE && added.bias == POSENC_LOGIT_BIAS_NONE);
    OK(posenc_model_free(model));

    /* Two words and an image of 2 x 2 tokens. */
    PosencSpan spans[2];
    memset(spans, 0, sizeof(spans));
    spans[0].kind = POSENC_SPAN_TEXT;
    spans[0].tokens = 2;
    spans[1].kind = POSENC_SPAN_PATCHES;
    spans[1].grid[0] = 1, spans[1].grid[1] = spans[1].grid[2] = 4;
    spans[1].merge = 2;
    spans[1].temporal_merge = 1;
    spans[1].interval = 1.0;
    uint64_t tokens = 0;
    OK(posenc_span_tokens(spans, 2, &tokens));
    CHECK(tokens == 6);
    int64_t at[18], next = 0;
    OK(posenc_span_positions(spans, 2, POSENC_AFTER_LARGEST, 6, at, &next));
    /* The image begins at 2 on every axis; its last token is one down and one to the right. */
    CHECK(at[1] == 1 && at[5] == 2 && at[6 + 5] == 3 && at[12 + 5] == 3 && next == 4);

    /* Columns and rows of 2 x 2 patches from 1, and the class token behind them. */
    PosencPatchGrid grid;
    OK(posenc_model_from_hf("{\"model_type\": \"llama4_vision_model\"}", &model));
    OK(posenc_model_grid(model, &grid));
    CHECK(grid.axis_count == 2 && grid.axes[0] == POSENC_GRID_AXIS_COLUMN && grid.axes[1] == POSENC_GRID_AXIS_ROW);
    CHECK(grid.coordinate == POSENC_GRID_COORDINATE_INDEX && grid.first == 1 && grid.before == 0 && grid.after == 1);
    const uint64_t patches[3] = {1, 2, 2};
    OK(posenc_patch_tokens(&grid, patches, 1, &tokens));
    CHECK(tokens == 5);
    REFUSED(posenc_patch_positions(&grid, patches, 1, 4, at, &tokens), POSENC_ARGUMENT, "stride is 4");
    OK(posenc_patch_positions(&grid, patches, 1, 6, at, &tokens));
    CHECK(at[0] == 1 && at[1] == 2 && at[3] == 2 && at[4] == 0 && at[6] == 1 && at[6 + 2] == 2 && at[6 + 4] == 0);
    OK(posenc_model_free(model));

    /* Two windows of three frames: 0 0 0 3 4 5 and 0 1 4 0 4 10. */
    OK(posenc_timed_windows(2, 3, 7, at, &tokens));
    CHECK(tokens == 6 && at[3] == 3 && at[5] == 5 && at[7 + 2] == 4 && at[7 + 3] == 0 && at[7 + 5] == 10);
    REFUSED(posenc_timed_windows(2, 3, 5, at, &tokens), POSENC_ARGUMENT, "stride is 5");

    OK(posenc_model_from_hf("{\"model_type\": \"sapiens2\"}", &model));
    OK(posenc_model_grid(model, &grid));
    CHECK(grid.coordinate == POSENC_GRID_COORDINATE_CENTER && grid.extent == POSENC_GRID_EXTENT_OWN);
    CHECK(grid.bits == 32 && grid.before == 9);
    grid.axis_count = 4;
    REFUSED(posenc_patch_tokens(&grid, patches, 1, &tokens), POSENC_ARGUMENT, "axis_count is 4");
    OK(posenc_model_free(model));

    /* DeepSeek's keys alone: heads of the rotary part's 64 channels are rotated from channel 0, interleaved. */
    float part[64], turned[64];
    fill(part, 64, 3);
    const int64_t one[1] = {1};
    PosencRope *rope = NULL;
    OK(posenc_rope_from_hf(gpu, "{\"model_type\": \"deepseek_v3\", \"qk_rope_head_dim\": 64, \"qk_nope_head_dim\": 128}", 0,
                           2048, POSENC_F32, &rope));
    PosencRopeCall keys = POSENC_INIT(PosencRopeCall);
    keys.q.x = BUFFER(part);
    keys.q.heads = (PosencHeads){1, 1, 1, 64, 0, {64, 64, 64}};
    keys.positions.ids = (PosencIds){upload(one, sizeof one), 1, POSENC_I64, 0};
    OK(posenc_rope_rotate(rope, &keys));
    download(turned, keys.q.x, sizeof turned);
    for (int i = 0; i < 32; ++i) {
        double angle = pow(10000.0, -2.0 * i / 64), a = part[2 * i], b = part[2 * i + 1];
        CHECK(fabs(turned[2 * i] - (a * cos(angle) - b * sin(angle))) < 2e-6);
        CHECK(fabs(turned[2 * i + 1] - (a * sin(angle) + b * cos(angle))) < 2e-6);
    }
    OK(posenc_rope_free(rope));
}

int main(void) {
    open_device();
    mixed();
    merged();
    positions_of_models();
    CHECK(posenc_version() == POSENC_VERSION && POSENC_VERSION >= 100);

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
    if (!on_cpu) REFUSED(posenc_rope_rotate(moved, &call), POSENC_VALUE, "the rotation cannot be in place");
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
    packed.k.x.data += 4;
    REFUSED(posenc_rope_rotate(rope, &packed), POSENC_ARGUMENT, "packed queries and keys have one address");
    packed.k.x.data = 0;
    packed.k.heads.offset = DIM - 1;
    REFUSED(posenc_rope_rotate(rope, &packed), POSENC_VALUE, "may overlap in one buffer");

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
    PosencRope *xpos = NULL;
    shrinking.rope = spec;
    shrinking.gamma = 0.4;
    shrinking.scale_base = 512.0;
    OK(posenc_rope_xpos_new(gpu, &shrinking, POSENC_F32, &xpos));
    PosencRopeCall scaled = call;
    CHECK(to_device(q_x.data, q, sizeof q) == 0 && to_device(k_x.data, k, sizeof k) == 0);
    CHECK(to_device(ids.data, near_positions, sizeof near_positions) == 0);
    OK(posenc_rope_rotate(xpos, &scaled));
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
    scaled.q = scaled.k;
    scaled.xpos = POSENC_XPOS_KEY;
    REFUSED(posenc_rope_rotate(xpos, &scaled), POSENC_VALUE, "the first tensor is keys");
    memset(&scaled.k, 0, sizeof scaled.k);
    OK(posenc_rope_rotate(xpos, &scaled));
    download(got, k_x, sizeof k);
    CHECK(memcmp(got, keys, sizeof keys) == 0);
    REFUSED(posenc_rope_rotate(rope, &scaled), POSENC_VALUE, "the plan is not made of an XPos");
    scaled.xpos = 5;
    REFUSED(posenc_rope_rotate(xpos, &scaled), POSENC_ARGUMENT, "xpos is 5");
    REFUSED(posenc_rope_rotate(xpos, &by_table), POSENC_VALUE, "the rotation has a table");
    shrinking.gamma = -1.0;
    PosencRope *nothing = NULL;
    REFUSED(posenc_rope_xpos_new(gpu, &shrinking, POSENC_F32, &nothing), POSENC_VALUE, "gamma is -1");
    shrinking.rope.version = 2;
    REFUSED(posenc_rope_xpos_new(gpu, &shrinking, POSENC_F32, &nothing), POSENC_ARGUMENT, "rope has version 2");
    OK(posenc_rope_free(xpos));
    CHECK(to_device(ids.data, positions, sizeof positions) == 0);

    scalings(q_x, q_y, q);
    several_axes(q_x, q_y, q);
    models(q_x, q_y, q);

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
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT,
            "call has version 9, this library knows 1; POSENC_INIT sets version and size");
    wrong.version = 0;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "POSENC_INIT sets version and size");
    wrong = call;
    wrong.size = 4;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "call has size 4, version 1 has");
    wrong.size = UINT32_MAX;
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_ARGUMENT, "call has size 4294967295, version 1 has");
    sizes(rope, &call);
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
    wrong.q.out.data = wrong.q.x.data + sizeof(float);
    REFUSED(posenc_rope_rotate(rope, &wrong), POSENC_VALUE, "q_out");
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
