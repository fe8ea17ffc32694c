/* Two threads with one softmax on the per-thread default stream, another stream in each: directly, then each in a graph of its own
   that runs again and again. Blocks share the row, so that calls which shared scratch memory would mix their sums. */
/* pthread_barrier_t, RTLD_DEFAULT */
#define _GNU_SOURCE
#include "device.h"

#include <pthread.h>

enum { KEYS = 1 << 16, ROUNDS = 20 };

static PosencStream const PER_THREAD = (PosencStream)2;

static int (*begin_capture)(PosencStream, int);
static int (*end_capture)(PosencStream, void **);
static int (*instantiate)(void **, void *, unsigned long long);
static int (*launch)(void *, PosencStream);
static int (*set_current)(void *);

static void *context;
static PosencGpu *per_thread;
static PosencSoftmax *softmax;
static pthread_barrier_t both_are_ready;

static void find(const char *name, void *function) {
    void *found = dlsym(RTLD_DEFAULT, name);
    CHECK(found != NULL);
    memcpy(function, &found, sizeof found);
}

static void check_sum(PosencBuffer out) {
    static _Thread_local float p[KEYS];
    double sum = 0.0;
    CHECK(stream_synchronize(PER_THREAD) == 0 && to_host(p, out.data, sizeof p) == 0);
    for (int i = 0; i < KEYS; ++i) sum += p[i];
    CHECK(near(sum, 1.0, 1e-3));
}

static void *work(void *factor) {
    static _Thread_local float x[KEYS];
    CHECK(set_current(context) == 0);
    for (int i = 0; i < KEYS; ++i) x[i] = (float)(i % 1000) * *(float *)factor;
    PosencSoftmaxCall call = POSENC_INIT(PosencSoftmaxCall);
    call.x = BUFFER(x);
    call.out = BUFFER(x);
    call.shape = call.out_shape = (PosencLogits){1, 1, 1, KEYS, 0, {KEYS, KEYS, KEYS}};
    OK(posenc_softmax_apply(softmax, &call));
    check_sum(call.out);

    void *graph = NULL, *ready = NULL;
    /* In a mode that concerns this thread alone. */
    CHECK(begin_capture(PER_THREAD, 1) == 0);
    OK(posenc_softmax_apply(softmax, &call));
    CHECK(end_capture(PER_THREAD, &graph) == 0);
    /* What the call allocates is freed before the next launch. */
    CHECK(instantiate(&ready, graph, 1) == 0);
    pthread_barrier_wait(&both_are_ready);
    for (int round = 0; round < ROUNDS; ++round) {
        CHECK(launch(ready, PER_THREAD) == 0);
        check_sum(call.out);
    }
    return NULL;
}

int main(void) {
    open_device();
    /* Of what the programs share. */
    (void)fill, (void)refused_at, (void)download;
    int (*current)(void **);
    find("cuCtxGetCurrent", &current);
    find("cuCtxSetCurrent", &set_current);
    find("cuStreamBeginCapture_v2", &begin_capture);
    find("cuStreamEndCapture", &end_capture);
    find("cuGraphInstantiateWithFlags", &instantiate);
    find("cuGraphLaunch", &launch);
    CHECK(current(&context) == 0);
    OK(posenc_gpu_new(0, PER_THREAD, 0, &per_thread));
    PosencSoftmaxSpec spec = POSENC_INIT(PosencSoftmaxSpec);
    spec.scale = 1.0f;
    OK(posenc_softmax_new(per_thread, &spec, POSENC_F32, &softmax));

    float factors[2] = {0.01f, -0.003f};
    pthread_t threads[2];
    CHECK(pthread_barrier_init(&both_are_ready, NULL, 2) == 0);
    for (int i = 0; i < 2; ++i) CHECK(pthread_create(&threads[i], NULL, work, &factors[i]) == 0);
    for (int i = 0; i < 2; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
    OK(posenc_softmax_free(softmax));
    OK(posenc_gpu_free(per_thread));
    OK(posenc_gpu_free(gpu));
    printf("all is well\n");
    return 0;
}
