/* Biases of terms through posenc.h, against their formulas in double: every named encoding, Swin with its mask and Inkling's
   band through the softmax, and what is refused. */
#include "device.h"

enum { BATCH = 2, HEADS = 2, TOKENS = 12, ROWS = BATCH * HEADS * TOKENS, N = ROWS * TOKENS, MOST = ROWS * 48 };

static PosencLogits logits(void) {
    return (PosencLogits){BATCH, HEADS, TOKENS, TOKENS, 0, {HEADS * TOKENS * TOKENS, TOKENS * TOKENS, TOKENS}};
}

static int batch_of(int i) { return i / (HEADS * TOKENS * TOKENS); }
static int head_of(int i) { return i / (TOKENS * TOKENS) % HEADS; }
static int query_of(int i) { return i / TOKENS % TOKENS; }
static int key_of(int i) { return i % TOKENS; }

/* What a term reads, as numbers of f32. */
static PosencTermInputs inputs_of(const float *numbers, int n, PosencNumbers shape) {
    PosencTermInputs inputs;
    memset(&inputs, 0, sizeof inputs);
    inputs.numbers = (PosencBuffer){upload(numbers, (size_t)n * sizeof(float)), (uint64_t)n};
    inputs.numbers_shape = shape;
    return inputs;
}

static PosencTerm term_of(uint32_t kind, float factor) {
    PosencTerm term;
    memset(&term, 0, sizeof term);
    term.kind = kind;
    term.factor = factor;
    return term;
}

static PosencBias *bias_of(const PosencTerm *terms, uint64_t count, uint32_t element) {
    PosencTermsSpec spec = POSENC_INIT(PosencTermsSpec);
    spec.terms = terms;
    spec.count = count;
    PosencBias *bias = NULL;
    OK(posenc_bias_terms_new(gpu, &spec, element, &bias));
    return bias;
}

static PosencBiasCall call_of(const PosencTermInputs *inputs, uint64_t count) {
    static const float zeros[N] = {0};
    PosencBiasCall call = POSENC_INIT(PosencBiasCall);
    call.x = BUFFER(zeros);
    call.shape = logits();
    call.terms = inputs;
    call.term_count = count;
    return call;
}

/* Writes the bias of these terms, and adds it, and compares both with `want`. */
static void check_terms(const PosencTerm *terms, const PosencTermInputs *inputs, uint64_t count, const double *want) {
    float got[N];
    PosencBias *bias = bias_of(terms, count, POSENC_F32);
    PosencBiasCall call = call_of(inputs, count);
    OK(posenc_bias_write(bias, &call));
    download(got, call.x, sizeof got);
    for (int i = 0; i < N; ++i) CHECK(near(got[i], want[i], 2e-6));
    OK(posenc_bias_add(bias, &call));
    download(got, call.x, sizeof got);
    for (int i = 0; i < N; ++i) CHECK(near(got[i], 2.0 * want[i], 4e-6));
    OK(posenc_bias_free(bias));
}

/* ---------------------------------------------------------------------------------------------------- named encodings */

/* The entry of a query and a key, by the encoding's own formula; -1: nothing is added. */
typedef int (*Entry)(int query, int key);

static int clamp(int n, int least, int most) { return n < least ? least : n > most ? most : n; }

static int swin(int q, int k) { return (q / 4 - k / 4 + 2) * 7 + q % 4 - k % 4 + 3; }
static int maxvit(int q, int k) { return swin(k, q); }
static int beit(int q, int k) { return q && k ? swin(q - 1, k - 1) : q ? 36 : k ? 35 : 37; }
static int levit(int q, int k) { return abs(2 * (q / 4) - k / 8) * 8 + abs(2 * (q % 4) - k % 8); }
static int decomposed_rows(int q, int k) { return (void)q, k / 4; }
static int decomposed_columns(int q, int k) { return (void)q, k % 4; }
static int shaw(int q, int k) { return clamp(k - q, -3, 2) + 3; }
static int vits(int q, int k) { return abs(q - k) > 4 ? -1 : k - q + 4; }
static int speecht5(int q, int k) { return clamp(q - k, -8, 7) + 8; }
static int gemma_audio(int q, int k) { return q - k > 3 || k - q > 1 ? -1 : 3 - (q - k); }
static int bert(int q, int k) { return q - k + 15; }
static int transformer_xl(int q, int k) { return k > q ? -1 : k - q + TOKENS - 1; }
static int xlnet(int q, int k) { return k - q + TOKENS; }
static int conformer(int q, int k) { return k - q + TOKENS - 1; }
static int inkling(int q, int k) { return q < k || q - k >= 4 ? -1 : q - k; }
static int deberta_v1(int q, int k) { return clamp(q - k + 8, 0, 15); }
/* 4 buckets, 9 positions: whole distances up to 2, one bucket up to 8. */
static int deberta(int q, int k) {
    int n = abs(q - k), bucket = n <= 2 ? n : 2 + (int)ceil(log(n / 2.0) / log(8.0 / 2.0) - 1e-9);
    return clamp((q < k ? -bucket : bucket) + 4, 0, 7);
}

/* The numbers of a named encoding, and what they add. */
static PosencTermInputs named(const PosencTerm *term, int entries, Entry entry, int seed, double *want) {
    static float numbers[MOST];
    int of_rows = term->by != POSENC_BY_TABLE, n = entries * HEADS * (of_rows ? BATCH * TOKENS : 1);
    fill(numbers, n, seed);
    for (int i = 0; i < N; ++i) {
        int at = entry(query_of(i), key_of(i)), head = head_of(i);
        int row = term->by == POSENC_BY_KEYS ? key_of(i) : query_of(i);
        if (at < 0) continue;
        int index = of_rows ? ((batch_of(i) * HEADS + head) * TOKENS + row) * entries + at : at * HEADS + head;
        want[i] += term->factor * numbers[index];
    }
    return inputs_of(numbers, n, of_rows ? rows(BATCH, HEADS, TOKENS, entries) : table(HEADS, entries));
}

static void check_named(PosencTerm term, int entries, Entry entry) {
    uint64_t of_header = 0;
    OK(posenc_term_entries(&term, &of_header));
    CHECK(of_header == (uint64_t)entries && term.factor == 1.0f);
    for (int scaled = 0; scaled < 2; ++scaled) {
        double want[N] = {0};
        if (scaled) term.factor = -0.75f;
        PosencTermInputs inputs = named(&term, entries, entry, 1 + scaled, want);
        check_terms(&term, &inputs, 1, want);
    }
}

static void every_named_encoding(void) {
    PosencTerm term, both[2];
    OK(posenc_term_swin(3, 4, &term));
    check_named(term, 35, swin);
    OK(posenc_term_beit(3, 4, &term));
    check_named(term, 38, beit);
    OK(posenc_term_maxvit(3, 4, &term));
    check_named(term, 35, maxvit);
    OK(posenc_term_levit(6, 8, 2, &term));
    check_named(term, 48, levit);
    OK(posenc_term_decomposed(3, 4, POSENC_WINDOW_ROWS, &term));
    check_named(term, 3, decomposed_rows);
    OK(posenc_term_decomposed(3, 4, POSENC_WINDOW_COLUMNS, &term));
    check_named(term, 4, decomposed_columns);
    OK(posenc_term_shaw(3, 2, &term));
    check_named(term, 6, shaw);
    OK(posenc_term_vits(4, &term));
    check_named(term, 9, vits);
    OK(posenc_term_speecht5(8, &term));
    check_named(term, 16, speecht5);
    OK(posenc_term_gemma_audio(3, 1, &term));
    check_named(term, 5, gemma_audio);
    OK(posenc_term_bert(16, &term));
    check_named(term, 31, bert);
    OK(posenc_term_transformer_xl(TOKENS, &term));
    check_named(term, 12, transformer_xl);
    OK(posenc_term_xlnet(TOKENS, TOKENS, &term));
    check_named(term, 24, xlnet);
    OK(posenc_term_conformer(TOKENS, &term));
    check_named(term, 23, conformer);
    OK(posenc_term_inkling(4, &term));
    check_named(term, 4, inkling);
    OK(posenc_term_deberta_v1(8, &term));
    check_named(term, 16, deberta_v1);
    OK(posenc_term_deberta(4, 9, &term));
    check_named(term, 8, deberta);

    /* DeBERTa's two terms: queries against positions, and keys against positions. */
    both[0] = both[1] = term;
    both[1].by = POSENC_BY_KEYS;
    double want[N] = {0};
    PosencTermInputs inputs[2] = {named(&both[0], 8, deberta, 3, want), named(&both[1], 8, deberta, 4, want)};
    check_terms(both, inputs, 2, want);
}

/* --------------------------------------------------------------------------------------------------- terms by hand */

static void terms_by_hand(void) {
    float numbers[N], ends[2][ROWS];
    fill(numbers, N, 5);
    double want[N];

    /* A dense bias that both sequences share. */
    PosencTerm term = term_of(POSENC_TERM_WHOLE, 0.5f);
    PosencTermInputs inputs = inputs_of(numbers, N / BATCH, rows(1, HEADS, TOKENS, TOKENS));
    for (int i = 0; i < N; ++i) want[i] = 0.5 * numbers[i % (N / BATCH)];
    check_terms(&term, &inputs, 1, want);
    uint64_t entries = 9;
    OK(posenc_term_entries(&term, &entries));
    CHECK(entries == 0);

    /* A number of the query less one of the key. */
    term = term_of(POSENC_TERM_ENDPOINTS, 1.0f);
    fill(ends[0], ROWS, 6);
    fill(ends[1], ROWS, 7);
    inputs = inputs_of(ends[0], ROWS, rows(BATCH, HEADS, TOKENS, 1));
    inputs.key_numbers = BUFFER(ends[1]);
    inputs.key_numbers_shape = inputs.numbers_shape;
    for (int i = 0; i < N; ++i) want[i] = (double)ends[0][i / TOKENS] - ends[1][i / TOKENS / TOKENS * TOKENS + key_of(i)];
    check_terms(&term, &inputs, 1, want);

    /* Indices of 8, 16 and 32 bits; the last are each sequence's own and reach beyond the table. */
    enum { ENTRIES = 7, PAIRS = TOKENS * TOKENS };
    uint8_t bytes[PAIRS];
    uint16_t shorts[PAIRS];
    int32_t words[BATCH * PAIRS];
    for (int i = 0; i < BATCH * PAIRS; ++i) words[i] = i * 5 % (ENTRIES + 2) - 1;
    for (int i = 0; i < PAIRS; ++i) shorts[i] = bytes[i] = (uint8_t)(i * 3 % ENTRIES);
    PosencBuffer buffers[3] = {BUFFER(bytes), BUFFER(shorts), BUFFER(words)};
    const uint32_t types[3] = {POSENC_U8, POSENC_U16, POSENC_I32};
    term = term_of(POSENC_TERM_GIVEN, 1.0f);
    term.given = (PosencGiven){TOKENS, TOKENS, ENTRIES};
    inputs = inputs_of(numbers, ENTRIES * HEADS, table(HEADS, ENTRIES));
    for (int type = 0; type < 3; ++type) {
        inputs.indices = (PosencIds){buffers[type].data, buffers[type].len, types[type], 0};
        for (int i = 0; i < N; ++i) {
            int entry = type < 2 ? bytes[i % PAIRS] : words[batch_of(i) * PAIRS + i % PAIRS];
            want[i] = entry < 0 || entry >= ENTRIES ? 0.0 : numbers[entry * HEADS + head_of(i)];
        }
        check_terms(&term, &inputs, 1, want);
    }

    /* Distances of coordinates, by a lookup of the caller. */
    const uint16_t lookup[5] = {2, 0, 0, 1, 3};
    int32_t at[2][BATCH * TOKENS];
    for (int i = 0; i < BATCH * TOKENS; ++i) at[0][i] = i * 7 % 10, at[1][i] = i * 3 % 8;
    term = term_of(POSENC_TERM_DISTANCE, 1.0f);
    term.distances = (PosencDistances){POSENC_QUERY_MINUS_KEY, POSENC_OUTSIDE_ZERO, -2, 5, 4, lookup};
    inputs = inputs_of(numbers, 4 * HEADS, table(HEADS, 4));
    inputs.query_at = BUFFER(at[0]);
    inputs.key_at = BUFFER(at[1]);
    for (int i = 0; i < N; ++i) {
        int n = at[0][batch_of(i) * TOKENS + query_of(i)] - at[1][batch_of(i) * TOKENS + key_of(i)] + 2;
        want[i] = n < 0 || n >= 5 ? 0.0 : numbers[lookup[n] * HEADS + head_of(i)];
    }
    check_terms(&term, &inputs, 1, want);
}

/* Numbers of bf16 for logits of bf16 are copied. */
static void numbers_of_bf16(void) {
    enum { EXTENT = 4, COUNT = ROWS * EXTENT };
    float values[COUNT];
    uint16_t halves[COUNT], got[N];
    fill(values, COUNT, 8);
    for (int i = 0; i < COUNT; ++i) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        halves[i] = (uint16_t)(bits >> 16);
    }
    PosencTerm term;
    OK(posenc_term_inkling(EXTENT, &term));
    PosencTermInputs inputs;
    memset(&inputs, 0, sizeof inputs);
    inputs.element = POSENC_BF16;
    inputs.numbers = BUFFER(halves);
    inputs.numbers_shape = rows(BATCH, HEADS, TOKENS, EXTENT);
    PosencBias *bias = bias_of(&term, 1, POSENC_BF16);
    PosencBiasCall call = call_of(&inputs, 1);
    OK(posenc_bias_write(bias, &call));
    download(got, call.x, sizeof got);
    for (int i = 0; i < N; ++i) {
        int entry = inkling(query_of(i), key_of(i));
        CHECK(got[i] == (entry < 0 ? 0 : halves[i / TOKENS * EXTENT + entry]));
    }
    OK(posenc_bias_free(bias));
}

/* ------------------------------------------------------------------------------------------------------------ softmax */

/* Four windows of 3 x 3 of an image of 6 x 6, shifted by 1 x 1. */
enum { WINDOWS = 4, SIDE = 3, CELLS = SIDE * SIDE, TABLE = (2 * SIDE - 1) * (2 * SIDE - 1) };
enum { SWIN_ROWS = WINDOWS * HEADS * CELLS, SWIN = SWIN_ROWS * CELLS };

/* Where a token comes from on one axis: before the last window, in it, or shifted around. */
static int region(int at) { return at < 3 ? 0 : at < 5 ? 1 : 2; }

static double swin_bias(const float *numbers, int i) {
    int q = i / CELLS % CELLS, k = i % CELLS, head = i / CELLS / CELLS % HEADS, window = i / CELLS / CELLS / HEADS;
    int top = window / 2 * SIDE, left = window % 2 * SIDE;
    int apart = region(top + q / SIDE) != region(top + k / SIDE) || region(left + q % SIDE) != region(left + k % SIDE);
    int entry = (q / SIDE - k / SIDE + SIDE - 1) * (2 * SIDE - 1) + q % SIDE - k % SIDE + SIDE - 1;
    return (double)numbers[entry * HEADS + head] + (apart ? -100.0 : 0.0);
}

/* Swin's softmax and its gradient; a softcap of 0 is none, others limit logits and bias together. */
static void swin_softmax(double cap) {
    float x[SWIN], g[SWIN], numbers[TABLE * HEADS], out[SWIN] = {0}, dx[SWIN];
    fill(x, SWIN, 10);
    fill(g, SWIN, 11);
    fill(numbers, TABLE * HEADS, 12);

    PosencTerm terms[2] = {term_of(POSENC_TERM_WHOLE, 0.0f), term_of(POSENC_TERM_SHIFTED, -100.0f)};
    OK(posenc_term_swin(SIDE, SIDE, &terms[0]));
    terms[1].shifted = (PosencShiftedWindows){2 * SIDE, 2 * SIDE, {SIDE, SIDE}, {1, 1}};
    PosencTermInputs inputs[2] = {inputs_of(numbers, TABLE * HEADS, table(HEADS, TABLE))};
    PosencBias *bias = bias_of(terms, 2, POSENC_F32);

    PosencSoftmaxSpec spec = POSENC_INIT(PosencSoftmaxSpec);
    spec.scale = 0.5f;
    spec.softcap = (float)cap;
    spec.order = POSENC_BIAS_THEN_SOFTCAP;
    PosencSoftmax *softmax = NULL;
    OK(posenc_softmax_new(gpu, &spec, POSENC_F32, &softmax));
    PosencSoftmaxCall call = POSENC_INIT(PosencSoftmaxCall);
    call.x = BUFFER(x);
    call.shape = (PosencLogits){WINDOWS, HEADS, CELLS, CELLS, 0, {HEADS * CELLS * CELLS, CELLS * CELLS, CELLS}};
    call.out = BUFFER(out);
    call.out_shape = call.shape;
    call.inputs.bias = bias;
    call.inputs.terms = inputs;
    call.inputs.term_count = 2;
    OK(posenc_softmax_apply(softmax, &call));
    download(out, call.out, sizeof out);

    PosencSoftmaxGradCall grad = POSENC_INIT(PosencSoftmaxGradCall);
    grad.probabilities = call.out;
    grad.probabilities_shape = grad.grad_shape = grad.logits_shape = call.shape;
    grad.grad = BUFFER(g);
    grad.inputs = call.inputs;
    grad.logits = call.x;
    OK(posenc_softmax_grad(softmax, &grad));
    download(dx, grad.grad, sizeof dx);

    double truth[SWIN];
    for (int row = 0; row < SWIN_ROWS; ++row) {
        double sum = 0.0, dot = 0.0;
        for (int i = row * CELLS; i < (row + 1) * CELLS; ++i) {
            double z = 0.5 * x[i] + swin_bias(numbers, i);
            sum += truth[i] = exp(cap > 0.0 ? cap * tanh(z / cap) : z);
        }
        for (int i = row * CELLS; i < (row + 1) * CELLS; ++i) dot += (truth[i] /= sum) * g[i];
        for (int i = row * CELLS; i < (row + 1) * CELLS; ++i) {
            double z = 0.5 * x[i] + swin_bias(numbers, i), slope = cap > 0.0 ? 1.0 - pow(tanh(z / cap), 2.0) : 1.0;
            CHECK(near(out[i], truth[i], 2e-6));
            CHECK(near(dx[i], 0.5 * slope * truth[i] * (g[i] - dot), 4e-6));
        }
    }

    call.inputs.term_count = 1;
    REFUSED(posenc_softmax_apply(softmax, &call), POSENC_VALUE, "the call brings inputs of 1 terms, the bias has 2");
    call.inputs.term_count = 2;
    call.shape.batch = call.out_shape.batch = 3;
    REFUSED(posenc_softmax_apply(softmax, &call), POSENC_VALUE,
            "the call has 3 sequences, shifted windows come in images of 4");
    OK(posenc_softmax_free(softmax));
    OK(posenc_bias_free(bias));
}

/* Inkling's band of the queries' products, causal, a decode of four queries behind eight keys. */
static void inkling_softmax(void) {
    enum { QUERIES = 4, EXTENT = 4, BAND_ROWS = BATCH * HEADS * QUERIES, BAND = BAND_ROWS * TOKENS };
    float x[BAND], numbers[BAND_ROWS * EXTENT], out[BAND];
    fill(x, BAND, 13);
    fill(numbers, BAND_ROWS * EXTENT, 14);
    PosencTerm term;
    OK(posenc_term_inkling(EXTENT, &term));
    PosencTermInputs inputs = inputs_of(numbers, BAND_ROWS * EXTENT, rows(BATCH, HEADS, QUERIES, EXTENT));
    PosencBias *bias = bias_of(&term, 1, POSENC_F32);

    PosencSoftmaxSpec spec = POSENC_INIT(PosencSoftmaxSpec);
    spec.scale = 0.5f;
    spec.has_right = 1;
    PosencSoftmax *softmax = NULL;
    OK(posenc_softmax_new(gpu, &spec, POSENC_F32, &softmax));
    PosencSoftmaxCall call = POSENC_INIT(PosencSoftmaxCall);
    call.x = BUFFER(x);
    call.shape = (PosencLogits){BATCH, HEADS, QUERIES, TOKENS, 0, {HEADS * QUERIES * TOKENS, QUERIES * TOKENS, TOKENS}};
    call.inputs.bias = bias;
    call.inputs.places.queries.kind = POSENC_PLACE_BOTTOM_RIGHT;
    call.inputs.terms = &inputs;
    call.inputs.term_count = 1;
    OK(posenc_softmax_apply(softmax, &call));
    download(out, call.x, sizeof out);
    for (int row = 0; row < BAND_ROWS; ++row) {
        int query = TOKENS - QUERIES + row % QUERIES;
        double truth[TOKENS], sum = 0.0;
        for (int key = 0; key < TOKENS; ++key) {
            int entry = inkling(query, key);
            double z = 0.5 * x[row * TOKENS + key] + (entry < 0 ? 0.0 : numbers[row * EXTENT + entry]);
            sum += truth[key] = key <= query ? exp(z) : 0.0;
        }
        for (int key = 0; key < TOKENS; ++key) CHECK(near(out[row * TOKENS + key], truth[key] / sum, 2e-6));
    }
    OK(posenc_softmax_free(softmax));
    OK(posenc_bias_free(bias));
}

/* ----------------------------------------------------------------------------------------------------------- refusals */

static void refused_terms(void) {
    PosencTerm term, terms[5];
    REFUSED(posenc_term_swin(0, 7, &term), POSENC_VALUE, "a window is 0 x 7 tokens with stride 1");
    REFUSED(posenc_term_deberta(7, 512, &term), POSENC_VALUE, "DeBERTa has 7 buckets and 512 positions");
    REFUSED(posenc_term_shaw((uint64_t)1 << 63, 0, &term), POSENC_VALUE, "there must be at least 1 and all within 2^30");
    REFUSED(posenc_term_conformer((uint64_t)1 << 63, &term), POSENC_VALUE, "there must be at least 1 and all within 2^30");
    REFUSED(posenc_term_decomposed(3, 4, 3, &term), POSENC_ARGUMENT, "axes is 3");
    REFUSED(posenc_term_inkling(4, NULL), POSENC_ARGUMENT, "out is null");

    PosencTermsSpec spec = POSENC_INIT(PosencTermsSpec);
    PosencBias *bias = NULL;
#define REFUSED_TERM(status, part) REFUSED(posenc_bias_terms_new(gpu, &spec, POSENC_F32, &bias), status, part)
    REFUSED_TERM(POSENC_VALUE, "a bias has 0 terms, there must be 1 to 4");
    spec.count = 5;
    REFUSED_TERM(POSENC_ARGUMENT, "terms is null");
    for (int i = 0; i < 5; ++i) OK(posenc_term_inkling(4, &terms[i]));
    spec.terms = terms;
    REFUSED_TERM(POSENC_VALUE, "a bias has 5 terms, there must be 1 to 4");
    spec.count = 1;
    terms[0].factor = 0.0f;
    REFUSED_TERM(POSENC_ARGUMENT, "factor is 0, it must be set: 1 changes nothing");
    terms[0] = term_of(POSENC_TERM_SHIFTED, 0.0f);
    REFUSED_TERM(POSENC_ARGUMENT, "factor is 0, it must be set: the mask of shifted windows is -100 or -inf");
    terms[0] = term_of(POSENC_TERM_WHOLE, -INFINITY);
    REFUSED_TERM(POSENC_VALUE, "the factor of a term is -inf, it must be finite");
    terms[0] = term_of(7, 1.0f);
    REFUSED_TERM(POSENC_ARGUMENT, "the kind of a term is 7");
    terms[0] = term_of(POSENC_TERM_ENDPOINTS, 1.0f);
    terms[0].by = POSENC_BY_KEYS;
    REFUSED_TERM(POSENC_VALUE, "has no rows of Keys");
    terms[0].by = 3;
    REFUSED_TERM(POSENC_ARGUMENT, "by is 3");
    OK(posenc_term_shaw(1, 1, &terms[0]));
    terms[0].distances.entries = 7;
    REFUSED_TERM(POSENC_VALUE, "a term has 3 distances and 7 entries: without a lookup both must be equal");
    const uint16_t lookup[3] = {0, 7, 1};
    terms[0].distances.lookup = lookup;
    REFUSED_TERM(POSENC_VALUE, "the lookup of a term names entry 7 of 7");
    REFUSED(posenc_term_entries(NULL, &spec.count), POSENC_ARGUMENT, "term is null");
}

static void refused_calls(void) {
    float numbers[ROWS * 4];
    fill(numbers, ROWS * 4, 15);
    PosencTerm term;
    OK(posenc_term_inkling(4, &term));
    PosencBias *bias = bias_of(&term, 1, POSENC_F32);
    const PosencTermInputs good = inputs_of(numbers, ROWS * 4, rows(BATCH, HEADS, TOKENS, 4));
    PosencTermInputs inputs[5] = {good, good, good, good, good};
    PosencBiasCall call = call_of(NULL, 0);
    REFUSED(posenc_bias_write(bias, &call), POSENC_VALUE, "the call brings inputs of 0 terms, the bias has 1");
    call.term_count = 1;
    REFUSED(posenc_bias_write(bias, &call), POSENC_ARGUMENT, "terms is null");
    call.terms = inputs;
    call.term_count = 5;
    REFUSED(posenc_bias_write(bias, &call), POSENC_ARGUMENT, "the call brings inputs of 5 terms, a bias has at most 4");
    call.term_count = 1;
    OK(posenc_bias_write(bias, &call));
#define REFUSED_INPUTS(status, part) REFUSED(posenc_bias_write(bias, &call), status, part), inputs[0] = good
    inputs[0].element = 9;
    REFUSED_INPUTS(POSENC_ARGUMENT, "element is 9");
    inputs[0].element = POSENC_F16;
    if (!on_cpu) REFUSED_INPUTS(POSENC_VALUE, "the numbers of a term are f16");
    inputs[0] = good;
    inputs[0].numbers.data = 0;
    REFUSED_INPUTS(POSENC_ARGUMENT, "numbers is null");
    memset(&inputs[0], 0, sizeof inputs[0]);
    REFUSED_INPUTS(POSENC_VALUE, "a term by distance needs numbers, there are none");
    inputs[0].numbers.len -= 1;
    REFUSED_INPUTS(POSENC_VALUE, "the numbers of a term");
    inputs[0].numbers_shape.entries = 3;
    REFUSED_INPUTS(POSENC_VALUE, "the numbers of a term are [2, 2, 12, 3], they must be [2 or 1, 2 or 1, 12, 4]");
    inputs[0].indices = (PosencIds){good.numbers.data, 9, POSENC_I64, 0};
    REFUSED_INPUTS(POSENC_ARGUMENT, "the type of indices is 1");
    inputs[0].indices = (PosencIds){good.numbers.data, 9, POSENC_U8, 0};
    REFUSED_INPUTS(POSENC_VALUE, "a term by distance reads no indices");
    inputs[0].key_at = (PosencBuffer){good.numbers.data, 1};
    REFUSED_INPUTS(POSENC_VALUE, "key_at");
    OK(posenc_bias_free(bias));

    /* A window has as many positions as tokens, and a bias that is no sum of terms reads none. */
    OK(posenc_term_swin(3, 3, &term));
    bias = bias_of(&term, 1, POSENC_F32);
    REFUSED(posenc_bias_write(bias, &call), POSENC_VALUE, "a term by coordinates has 9");
    OK(posenc_bias_free(bias));
    PosencAlibiSpec alibi = POSENC_INIT(PosencAlibiSpec);
    alibi.total_heads = alibi.heads = HEADS;
    alibi.max_bias = 8.0;
    alibi.scale = 1.0;
    OK(posenc_bias_alibi_new(gpu, &alibi, POSENC_F32, &bias));
    REFUSED(posenc_bias_write(bias, &call), POSENC_VALUE, "the call brings inputs of terms, the bias has none");
    OK(posenc_bias_free(bias));
}

int main(void) {
    open_device();
    every_named_encoding();
    terms_by_hand();
    numbers_of_bf16();
    swin_softmax(0.0);
    swin_softmax(4.0);
    inkling_softmax();
    refused_terms();
    refused_calls();
    OK(posenc_gpu_free(gpu));
    puts("all is well");
    return 0;
}
