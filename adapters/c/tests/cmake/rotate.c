/* Opens a device and rotates one query by a quarter turn and more. */
#include "device.h"

int main(void) {
    open_device();
    float q[4] = {1.0f, 0.0f, 0.0f, 1.0f};
    PosencRopeSpec spec = POSENC_INIT(PosencRopeSpec);
    spec.rotary = 4;
    spec.base = 10000.0;
    spec.attention_factor = 1.0;
    PosencRope *rope = NULL;
    OK(posenc_rope_new(gpu, &spec, POSENC_F32, &rope));

    const int64_t position = 2;
    PosencRopeCall call = POSENC_INIT(PosencRopeCall);
    call.q.x = BUFFER(q);
    call.q.heads = (PosencHeads){1, 1, 1, 4, 0, {4, 4, 4}};
    call.positions.ids = (PosencIds){upload(&position, sizeof position), 1, POSENC_I64, 0};
    OK(posenc_rope_rotate(rope, &call));
    download(q, call.q.x, sizeof q);
    CHECK(near(q[0], cos(2.0), 1e-6) && near(q[2], sin(2.0), 1e-6));
    CHECK(near(q[1], -sin(0.02), 1e-6) && near(q[3], cos(0.02), 1e-6));

    OK(posenc_rope_free(rope));
    OK(posenc_gpu_free(gpu));
    puts("all is well");
    return 0;
}
