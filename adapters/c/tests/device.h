/* What the C programs share: the driver's functions that a program has anyway (no CUDA header is needed), or those of the host
   in their place, if POSENC_ON_CPU is set; data, checks. */
#include "posenc.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int (*stream_synchronize)(PosencStream);
static int (*allocate)(uint64_t *, size_t);
static int (*to_device)(uint64_t, const void *, size_t);
static int (*to_host)(void *, uint64_t, size_t);

static PosencStream stream;
static PosencGpu *gpu;
/* Whether plans compute on the host. */
static int on_cpu;

static void check_at(int ok, const char *what, int line) {
    if (ok) return;
    fprintf(stderr, "line %d: %s; the last error is: %s\n", line, what, posenc_last_error());
    exit(1);
}

static void refused_at(int status, int want, const char *part, int line) {
    if (status == want && strstr(posenc_last_error(), part) != NULL) return;
    fprintf(stderr, "line %d: wanted status %d and \"%s\", got %d and \"%s\"\n", line, want, part, status,
            posenc_last_error());
    exit(1);
}

/* A truth, a call that must work, and one that must be refused with these words. */
#define CHECK(what) check_at((what) ? 1 : 0, #what, __LINE__)
/* The same plan for the stream of `gpu` once more, in place of the first. */
#define ON(Plan, on, release, plan)        \
    do {                                   \
        Plan *first_ = (plan);             \
        OK(on(first_, gpu, &(plan)));      \
        OK(release(first_));               \
    } while (0)

#define OK(call) check_at((call) == POSENC_OK, #call, __LINE__)
#define REFUSED(call, status, part) refused_at((call), status, part, __LINE__)

static uint64_t upload(const void *data, size_t bytes) {
    uint64_t address = 0;
    CHECK(allocate(&address, bytes) == 0 && to_device(address, data, bytes) == 0);
    return address;
}

/* A buffer of an array's elements on the device. */
#define BUFFER(array) ((PosencBuffer){upload(array, sizeof(array)), sizeof(array) / sizeof((array)[0])})

static void download(void *data, PosencBuffer buffer, size_t bytes) {
    CHECK(stream_synchronize(stream) == 0 && to_host(data, buffer.data, bytes) == 0);
}

/* Values of magnitude 0.5 to 2 and either sign. */
static void fill(float *x, int n, int seed) {
    for (int i = 0; i < n; ++i) {
        unsigned bits = (unsigned)(i * 7919 + seed * 104729 + 1) * 2654435761u;
        float size = 0.5f + 1.5f * (float)(bits >> 8) / 16777216.0f;
        x[i] = bits & 1 ? size : -size;
    }
}

static int near(double got, double want, double most) {
    if (fabs(got - want) <= most) return 1;
    fprintf(stderr, "got %.9g, wanted %.9g, at most %.3g apart\n", got, want, most);
    return 0;
}

/* [batch, heads, rows, entries], contiguous. */
static inline PosencNumbers rows(uint64_t batch, uint64_t heads, uint64_t rows, uint64_t entries) {
    return (PosencNumbers){batch, heads, rows, entries, 0, {heads * rows * entries, rows * entries, entries, 1}};
}

/* [entries, heads], contiguous: a table as models store it. */
static inline PosencNumbers table(uint64_t heads, uint64_t entries) {
    return (PosencNumbers){1, heads, 1, entries, 0, {0, 1, 0, heads}};
}

static int host_allocate(uint64_t *address, size_t bytes) {
    *address = (uint64_t)(uintptr_t)malloc(bytes ? bytes : 1);
    return *address == 0;
}

static int host_write(uint64_t address, const void *data, size_t bytes) {
    memcpy((void *)(uintptr_t)address, data, bytes);
    return 0;
}

static int host_read(void *data, uint64_t address, size_t bytes) {
    memcpy(data, (const void *)(uintptr_t)address, bytes);
    return 0;
}

static int host_wait(PosencStream stream_) {
    (void)stream_;
    return 0;
}

static void open_device(void) {
    if (getenv("POSENC_ON_CPU") != NULL) {
        on_cpu = 1, allocate = host_allocate, to_device = host_write, to_host = host_read, stream_synchronize = host_wait;
        OK(posenc_cpu_new(&gpu));
        return;
    }
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL), *context, *found[9];
    CHECK(driver != NULL);
    const char *names[9] = {"cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamCreate",
                            "cuStreamSynchronize", "cuMemAlloc_v2", "cuMemcpyHtoD_v2", "cuMemcpyDtoH_v2"};
    for (int i = 0; i < 9; ++i) CHECK((found[i] = dlsym(driver, names[i])) != NULL);
    int (*init)(unsigned), (*device_get)(int *, int), (*retain)(void **, int), (*set_current)(void *), device;
    int (*stream_create)(PosencStream *, unsigned);
    void *functions[9] = {&init, &device_get, &retain, &set_current, &stream_create, &stream_synchronize, &allocate,
                          &to_device, &to_host};
    for (int i = 0; i < 9; ++i) memcpy(functions[i], &found[i], sizeof found[i]);
    CHECK(init(0) == 0 && device_get(&device, 0) == 0);
    CHECK(retain(&context, device) == 0 && set_current(context) == 0 && stream_create(&stream, 1) == 0);
    OK(posenc_gpu_new(0, stream, 0, &gpu));
}
