/* Every operation of the embed room through posenc.h, against its formula in double, with its gradients. */
#include "device.h"

enum { BATCH = 2, TOKENS = 6, DIM = 12, N = BATCH * TOKENS * DIM, VOCABULARY = 7, ROWS = 9 };

static PosencTokens tokens(void) {
    return (PosencTokens){BATCH, TOKENS, DIM, 0, {TOKENS * DIM, DIM}};
}

static PosencSinusoidSpec sinusoid(uint64_t dim, uint32_t pairing) {
    PosencSinusoidSpec spec = POSENC_INIT(PosencSinusoidSpec);
    spec.dim = dim;
    spec.pairing = pairing;
    spec.max_period = 10000.0;
    spec.scale = 1.0;
    return spec;
}

/* Side by side, sine first. */
static double wave(double t, int c, int dim) {
    double angle = t * pow(10000.0, -2.0 * (c / 2) / dim);
    return c % 2 ? cos(angle) : sin(angle);
}

/* In halves, sine first. */
static double half(double t, int c, int dim) {
    double angle = t * pow(10000.0, -2.0 * (c % (dim / 2)) / dim);
    return c < dim / 2 ? sin(angle) : cos(angle);
}

static void sinusoids(void) {
    float x[N], got[N];
    fill(x, N, 1);
    PosencBuffer y = BUFFER(x);
    PosencSinusoidSpec spec = sinusoid(DIM, POSENC_INTERLEAVED);
    PosencSinusoid *plan = NULL;
    OK(posenc_sinusoid_new(gpu, &spec, POSENC_F32, &plan));
    ON(PosencSinusoid, posenc_sinusoid_on, posenc_sinusoid_free, plan);
    PosencSinusoidCall call = POSENC_INIT(PosencSinusoidCall);
    call.x = y;
    call.tokens = tokens();
    call.positions.kind = POSENC_COUNTED;
    call.scale = 0.5;
    OK(posenc_sinusoid_add(plan, &call));
    download(got, y, sizeof got);
    for (int i = 0; i < N; ++i) CHECK(near(got[i], 0.5 * x[i] + wave(i / DIM % TOKENS, i % DIM, DIM), 5e-7));
    OK(posenc_sinusoid_write(plan, &call));
    download(got, y, sizeof got);
    for (int i = 0; i < N; ++i) CHECK(near(got[i], wave(i / DIM % TOKENS, i % DIM, DIM), 2e-7));

    call.scale = 0.0;
    REFUSED(posenc_sinusoid_add(plan, &call), POSENC_ARGUMENT, "scale is 0, it must be set: 1 changes nothing");
    call.scale = 0.5;
    call.x.len = 7;
    REFUSED(posenc_sinusoid_write(plan, &call), POSENC_VALUE, "holds 7 elements");
    call.x = y;
    call.tokens.dim = 11;
    REFUSED(posenc_sinusoid_add(plan, &call), POSENC_VALUE, "11");
    REFUSED(posenc_sinusoid_add(NULL, &call), POSENC_ARGUMENT, "sinusoid is null");
    PosencSinusoid *none = NULL;
    REFUSED(posenc_sinusoid_new(gpu, &spec, POSENC_F64, &none), POSENC_ARGUMENT, "element is 3, the header has no such");
    spec.odd = 9;
    REFUSED(posenc_sinusoid_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "odd is 9");
    spec.odd = POSENC_ODD_REFUSE;
    spec.dim = 11;
    REFUSED(posenc_sinusoid_new(gpu, &spec, POSENC_F32, &none), POSENC_VALUE, "dim is 11");
    spec.dim = 1 << 22;
    REFUSED(posenc_sinusoid_new(gpu, &spec, POSENC_F32, &none), POSENC_VALUE, "a sinusoid has at most 65536 channels");
    OK(posenc_sinusoid_free(plan));
}

static void timesteps(void) {
    const double t[3] = {0.0, 0.25, 999.5};
    const float single[3] = {0.0f, 0.25f, 999.5f};
    float got[3 * DIM];
    PosencSinusoidSpec spec = sinusoid(DIM, POSENC_HALF);
    spec.cosine_first = 1;
    PosencTimestep *plan = NULL;
    OK(posenc_timestep_new(gpu, &spec, POSENC_F32, &plan));
    ON(PosencTimestep, posenc_timestep_on, posenc_timestep_free, plan);
    for (int type = 0; type < 2; ++type) {
        memset(got, 0, sizeof got);
        PosencTimestepCall call = POSENC_INIT(PosencTimestepCall);
        call.out = BUFFER(got);
        call.t = (PosencBuffer){type ? upload(t, sizeof t) : upload(single, sizeof single), 3};
        call.tokens = (PosencTokens){1, 3, DIM, 0, {3 * DIM, DIM}};
        call.t_element = type ? POSENC_F64 : POSENC_F32;
        OK(posenc_timestep_write(plan, &call));
        download(got, call.out, sizeof got);
        for (int i = 0; i < 3 * DIM; ++i) CHECK(near(got[i], half(t[i / DIM], (i + DIM / 2) % DIM, DIM), 1e-7));
        call.t_element = POSENC_BF16;
        REFUSED(posenc_timestep_write(plan, &call), POSENC_ARGUMENT, "t_element is 2");
        call.t_element = type ? POSENC_F64 : POSENC_F32;
        call.t.data = call.out.data + 8;
        REFUSED(posenc_timestep_write(plan, &call), POSENC_VALUE, "out is written and shares memory with t");
    }
    OK(posenc_timestep_free(plan));
}

static void grids(void) {
    /* 2 x 3 tokens: a half of the channels for the column, then one for the row, as MAE has it. */
    PosencAxis axes[2] = {{POSENC_ALONG_COLUMNS, 0, sinusoid(DIM / 2, POSENC_HALF)},
                          {POSENC_ALONG_ROWS, 0, sinusoid(DIM / 2, POSENC_HALF)}};
    PosencGridSpec spec = POSENC_INIT(PosencGridSpec);
    spec.axis_count = 2;
    spec.axes = axes;
    PosencGrid *plan = NULL;
    OK(posenc_grid_new(gpu, &spec, POSENC_F32, &plan));
    ON(PosencGrid, posenc_grid_on, posenc_grid_free, plan);
    float x[N], got[N];
    fill(x, N, 2);
    PosencGridCall call = POSENC_INIT(PosencGridCall);
    call.x = BUFFER(x);
    call.tokens = tokens();
    call.frames = 1;
    call.rows = 2;
    call.columns = 3;
    call.scale = 2.0;
    OK(posenc_grid_add(plan, &call));
    download(got, call.x, sizeof got);
    for (int i = 0; i < N; ++i) {
        int token = i / DIM % TOKENS, c = i % DIM;
        double want = half(c < DIM / 2 ? token % 3 : token / 3, c % (DIM / 2), DIM / 2);
        CHECK(near(got[i], 2.0 * x[i] + want, 1e-6));
    }
    OK(posenc_grid_write(plan, &call));
    download(got, call.x, sizeof got);
    CHECK(near(got[4 * DIM], sin(1.0), 2e-7) && near(got[5 * DIM + 11], cos(pow(10000.0, -2.0 / 3)), 2e-7));

    /* Counted over a mask: the first column of the first image is padding. */
    uint8_t mask[BATCH * TOKENS] = {0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    PosencGridMaskedCall masked = POSENC_INIT(PosencGridMaskedCall);
    masked.out = call.x;
    masked.mask = BUFFER(mask);
    masked.tokens = tokens();
    masked.rows = 2;
    masked.columns = 3;
    OK(posenc_grid_write_masked(plan, &masked));
    download(got, call.x, sizeof got);
    CHECK(near(got[1 * DIM], sin(1.0), 1e-6) && near(got[2 * DIM], sin(2.0), 1e-6));
    CHECK(near(got[TOKENS * DIM + 2 * DIM], sin(3.0), 1e-6) && near(got[TOKENS * DIM + 5 * DIM + 6], sin(2.0), 1e-6));

    call.columns = 4;
    REFUSED(posenc_grid_write(plan, &call), POSENC_VALUE, "8");
    PosencGrid *none = NULL;
    axes[1].sinusoid.version = 3;
    REFUSED(posenc_grid_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "an axis's sinusoid has version 3");
    axes[1].along = 5;
    REFUSED(posenc_grid_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "along is 5");
    spec.axes = NULL;
    REFUSED(posenc_grid_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "axes is null");
    OK(posenc_grid_free(plan));
}

static void learned(void) {
    /* Layer norm over token, position (from row 2 on) and type: BART's offset and BERT's norm. */
    float token[VOCABULARY * DIM], position[ROWS * DIM], types[2 * DIM], gain[DIM], bias[DIM], got[N], v[N], y[N];
    fill(token, VOCABULARY * DIM, 3);
    fill(position, ROWS * DIM, 4);
    fill(types, 2 * DIM, 5);
    fill(gain, DIM, 6);
    fill(bias, DIM, 7);
    const int64_t ids[BATCH * TOKENS] = {3, 1, 4, 1, 5, 6, 2, 6, 5, 3, 5, 0};
    const int32_t kinds[BATCH * TOKENS] = {0, 0, 1, 1, 0, 1, 1, 0, 1, 0, 0, 1};
    double sigma[BATCH * TOKENS], truth[N];
    for (int i = 0; i < BATCH * TOKENS; ++i) {
        double mean = 0.0, square = 0.0;
        for (int c = 0; c < DIM; ++c) {
            v[i * DIM + c] = 1.5f * token[ids[i] * DIM + c] + position[(i % TOKENS + 2) * DIM + c] + types[kinds[i] * DIM + c];
            mean += v[i * DIM + c] / DIM;
        }
        for (int c = 0; c < DIM; ++c) square += (v[i * DIM + c] - mean) * (v[i * DIM + c] - mean) / DIM;
        sigma[i] = sqrt(square + 1e-5);
        for (int c = 0; c < DIM; ++c) truth[i * DIM + c] = (v[i * DIM + c] - mean) / sigma[i];
    }
    PosencLearnedSpec spec = POSENC_INIT(PosencLearnedSpec);
    spec.dim = DIM;
    spec.scale = 1.5;
    spec.first = 2;
    spec.norm = POSENC_NORM_LAYER;
    spec.eps = 1e-5;
    PosencLearned *plan = NULL;
    PosencErrorFlag *flag = NULL;
    OK(posenc_learned_new(gpu, &spec, POSENC_F32, &plan));
    ON(PosencLearned, posenc_learned_on, posenc_learned_free, plan);
    OK(posenc_error_flag_new(gpu, &flag));
    memset(y, 0, sizeof y);
    PosencLearnedCall call = POSENC_INIT(PosencLearnedCall);
    call.x = BUFFER(y);
    call.tokens = tokens();
    call.tables = (PosencTables){BUFFER(token), BUFFER(position), BUFFER(types), BUFFER(gain), BUFFER(bias)};
    call.lookup.ids = (PosencIds){upload(ids, sizeof ids), BATCH * TOKENS, POSENC_I64, 0};
    call.lookup.types = (PosencIds){upload(kinds, sizeof kinds), BATCH * TOKENS, POSENC_I32, 0};
    call.lookup.positions.kind = POSENC_COUNTED;
    call.flag = flag;
    OK(posenc_learned_gather(plan, &call));
    OK(posenc_error_flag_check(flag));
    download(got, call.x, sizeof got);
    for (int i = 0; i < N; ++i) CHECK(near(got[i], truth[i] * gain[i % DIM] + bias[i % DIM], 1e-5));

    /* The rows that positions read. */
    int64_t rows[BATCH * TOKENS] = {0};
    PosencRowsCall rows_call = POSENC_INIT(PosencRowsCall);
    rows_call.rows = BUFFER(rows);
    rows_call.batch = BATCH;
    rows_call.tokens = TOKENS;
    rows_call.lookup = call.lookup;
    OK(posenc_learned_rows(plan, &rows_call));
    download(rows, rows_call.rows, sizeof rows);
    for (int i = 0; i < BATCH * TOKENS; ++i) CHECK(rows[i] == i % TOKENS + 2);

    /* An id outside its table raises the flag, which is then down again. */
    PosencLearnedCall outside = call;
    outside.tables.token.len = 5 * DIM;
    if (on_cpu) {
        REFUSED(posenc_learned_gather(plan, &outside), POSENC_VALUE, "ids[4] is 5, the token table has 5 rows");
    } else {
        OK(posenc_learned_gather(plan, &outside));
        REFUSED(posenc_error_flag_check(flag), POSENC_VALUE, "token 4: its id lies outside the token table of 5 rows");
    }
    OK(posenc_error_flag_check(flag));
    outside.tables.token.len = DIM + 1;
    REFUSED(posenc_learned_gather(plan, &outside), POSENC_VALUE, "its rows hold 12");
    outside = call;
    outside.lookup.ids.data = 0;
    REFUSED(posenc_learned_gather(plan, &outside), POSENC_VALUE, "ids are missing");
    outside.lookup.positions.kind = 9;
    REFUSED(posenc_learned_gather(plan, &outside), POSENC_ARGUMENT, "the kind of positions is 9");
    REFUSED(posenc_error_flag_check(NULL), POSENC_ARGUMENT, "flag is null");

    /* Gradients: of the sum, of gain and bias, of the counted table, of the token table. */
    float g[N], zeros[N] = {0}, gain_grad[DIM] = {0}, bias_grad[DIM] = {0};
    fill(g, N, 8);
    PosencLearnedGrad *grad = NULL;
    PosencTokens shape = tokens();
    OK(posenc_learned_grad_new(gpu, &spec, &shape, POSENC_F32, &grad));
    ON(PosencLearnedGrad, posenc_learned_grad_on, posenc_learned_grad_free, grad);
    PosencNormGradCall norm = POSENC_INIT(PosencNormGradCall);
    norm.sum = BUFFER(zeros);
    norm.gain = BUFFER(gain_grad);
    norm.bias = BUFFER(bias_grad);
    norm.grad = BUFFER(g);
    norm.sum_tokens = norm.grad_tokens = shape;
    norm.tables = call.tables;
    norm.lookup = call.lookup;
    norm.flag = flag;
    OK(posenc_learned_grad_norm(grad, &norm));
    OK(posenc_error_flag_check(flag));
    float sum[N];
    download(sum, norm.sum, sizeof sum);
    for (int i = 0; i < BATCH * TOKENS; ++i) {
        double mean = 0.0, dot = 0.0;
        for (int c = 0; c < DIM; ++c) {
            double gg = g[i * DIM + c] * gain[c];
            mean += gg / DIM;
            dot += gg * truth[i * DIM + c] / DIM;
        }
        for (int c = 0; c < DIM; ++c) {
            double want = (g[i * DIM + c] * gain[c] - mean - truth[i * DIM + c] * dot) / sigma[i];
            CHECK(near(sum[i * DIM + c], want, 1e-5));
        }
    }
    download(gain_grad, norm.gain, sizeof gain_grad);
    download(bias_grad, norm.bias, sizeof bias_grad);
    for (int c = 0; c < DIM; ++c) {
        double want_gain = 0.0, want_bias = 0.0;
        for (int i = 0; i < BATCH * TOKENS; ++i) {
            want_gain += g[i * DIM + c] * truth[i * DIM + c];
            want_bias += g[i * DIM + c];
        }
        CHECK(near(gain_grad[c], want_gain, 1e-4) && near(bias_grad[c], want_bias, 1e-5));
    }
    float position_grad[ROWS * DIM] = {0}, token_grad[VOCABULARY * DIM] = {0};
    PosencTableGradCall table = POSENC_INIT(PosencTableGradCall);
    table.table = BUFFER(position_grad);
    table.rows = ROWS;
    table.grad = norm.grad;
    table.tokens = shape;
    table.first = 2;
    table.scale = 1.0;
    OK(posenc_learned_grad_counted(grad, &table));
    download(position_grad, table.table, sizeof position_grad);
    for (int i = 0; i < TOKENS * DIM; ++i) CHECK(near(position_grad[2 * DIM + i], g[i] + g[TOKENS * DIM + i], 1e-6));
    uint32_t order[BATCH * TOKENS] = {0};
    PosencOrderCall order_call = POSENC_INIT(PosencOrderCall);
    order_call.order = BUFFER(order);
    order_call.ids = call.lookup.ids;
    order_call.count = BATCH * TOKENS;
    OK(posenc_learned_grad_order(grad, &order_call));
    if (!on_cpu) {
        order_call.count = 2000;
        order_call.order.len = order_call.ids.len = 2000;
        REFUSED(posenc_learned_grad_order(grad, &order_call), POSENC_VALUE, "scratch memory");
    }
    download(order, order_call.order, sizeof order);
    CHECK(order[0] == 11 && order[1] == 1 && order[2] == 3 && order[11] == 7);
    table.table = BUFFER(token_grad);
    table.rows = VOCABULARY;
    table.ids = call.lookup.ids;
    table.order = order_call.order;
    table.scale = 1.5;
    table.has_skipped = 1;
    table.skipped = 5;
    OK(posenc_learned_grad_table(grad, &table));
    download(token_grad, table.table, sizeof token_grad);
    for (int row = 0; row < VOCABULARY; ++row) {
        for (int c = 0; c < DIM; ++c) {
            double want = 0.0;
            for (int i = 0; i < BATCH * TOKENS; ++i) want += ids[i] == row && row != 5 ? 1.5 * g[i * DIM + c] : 0.0;
            CHECK(near(token_grad[row * DIM + c], want, 1e-5));
        }
    }
    table.first = 4;
    table.has_skipped = 0;
    REFUSED(posenc_learned_grad_counted(grad, &table), POSENC_VALUE, "the last token reads row 9, the table has 7 rows");
    table.accumulate = 3;
    REFUSED(posenc_learned_grad_table(grad, &table), POSENC_ARGUMENT, "accumulate is 3");
    OK(posenc_learned_grad_free(grad));
    OK(posenc_learned_free(plan));
    OK(posenc_error_flag_free(flag));
}

static void resampled(void) {
    /* Bilinear from 1 x 2 to 1 x 4 behind one class token: 0, 1/4, 3/4, 1. */
    float table[3 * DIM], out[5 * DIM] = {0}, back[3 * DIM] = {0};
    fill(table, 3 * DIM, 9);
    PosencResampleSpec spec = POSENC_INIT(PosencResampleSpec);
    spec.from[0] = spec.to[0] = 1;
    spec.from[1] = 2;
    spec.to[1] = 4;
    spec.prefix = 1;
    spec.filter = POSENC_BILINEAR;
    PosencResample *plan = NULL;
    OK(posenc_resample_new(gpu, &spec, POSENC_F32, &plan));
    ON(PosencResample, posenc_resample_on, posenc_resample_free, plan);
    PosencResampleCall call = POSENC_INIT(PosencResampleCall);
    call.table = BUFFER(table);
    call.resampled = BUFFER(out);
    call.table_tokens = (PosencTokens){1, 3, DIM, 0, {3 * DIM, DIM}};
    call.resampled_tokens = (PosencTokens){1, 5, DIM, 0, {5 * DIM, DIM}};
    OK(posenc_resample_write(plan, &call));
    download(out, call.resampled, sizeof out);
    const double weight[4] = {0.0, 0.25, 0.75, 1.0};
    for (int c = 0; c < DIM; ++c) {
        CHECK(out[c] == table[c]);
        for (int i = 0; i < 4; ++i) {
            double want = (1.0 - weight[i]) * table[DIM + c] + weight[i] * table[2 * DIM + c];
            CHECK(near(out[(i + 1) * DIM + c], want, 1e-6));
        }
    }
    call.table = BUFFER(back);
    OK(posenc_resample_grad(plan, &call));
    download(back, call.table, sizeof back);
    for (int c = 0; c < DIM; ++c) {
        double want = 0.0;
        for (int i = 0; i < 4; ++i) want += weight[i] * out[(i + 1) * DIM + c];
        CHECK(near(back[2 * DIM + c], want, 2e-6));
    }
    call.table_tokens = (PosencTokens){1, 3, 6, 0, {18, 6}};
    REFUSED(posenc_resample_write(plan, &call), POSENC_VALUE, "table has 6 channels and out 12, they must be equal");
    PosencResample *none = NULL;
    spec.filter = 4;
    REFUSED(posenc_resample_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "filter is 4");
    spec.filter = POSENC_BICUBIC;
    spec.weighting = 2;
    REFUSED(posenc_resample_new(gpu, &spec, POSENC_F32, &none), POSENC_ARGUMENT, "weighting is 2");
    OK(posenc_resample_free(plan));
    /* From corner to corner of 1 x 2: 0, 1/3, 2/3, 1. */
    spec.filter = POSENC_BILINEAR;
    spec.weighting = POSENC_WEIGHTING_EXACT;
    spec.align_corners = 1;
    OK(posenc_resample_new(gpu, &spec, POSENC_F32, &plan));
    call.table = BUFFER(table);
    call.resampled = BUFFER(out);
    call.table_tokens = (PosencTokens){1, 3, DIM, 0, {3 * DIM, DIM}};
    OK(posenc_resample_write(plan, &call));
    download(out, call.resampled, sizeof out);
    for (int c = 0; c < DIM; ++c) {
        for (int i = 0; i < 4; ++i) {
            double want = (3 - i) / 3.0 * table[DIM + c] + i / 3.0 * table[2 * DIM + c];
            CHECK(near(out[(i + 1) * DIM + c], want, 1e-6));
        }
    }
    OK(posenc_resample_free(plan));
    spec.antialias = 1;
    REFUSED(posenc_resample_new(gpu, &spec, POSENC_F32, &none), POSENC_VALUE, "align_corners and antialias are both given");
}

int main(void) {
    open_device();
    sinusoids();
    timesteps();
    grids();
    learned();
    resampled();
    OK(posenc_gpu_free(gpu));
    puts("all is well");
    return 0;
}
