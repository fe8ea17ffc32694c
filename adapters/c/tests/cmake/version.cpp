// Begins a spec and provokes a refusal from C++.
#include "posenc.h"

#include <cstring>

int main() {
    PosencRopeSpec spec = POSENC_INIT(PosencRopeSpec);
    PosencRope *rope = nullptr;
    bool refused = posenc_rope_new(nullptr, &spec, POSENC_BF16, &rope) == POSENC_ARGUMENT;
    return refused && std::strcmp(posenc_last_error(), "gpu is null") == 0 && posenc_version() >= 100 ? 0 : 1;
}
