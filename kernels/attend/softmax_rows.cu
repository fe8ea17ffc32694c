// The softmax of rows that stay in registers: softmax_rows.cuh. An entry is named by the threads of a row and the packs
// of eight keys that each has.
#include "attend/softmax_rows.cuh"

// Blocks of a multiprocessor: what their registers let be there at once without a spill at compute capability 9.0.
constexpr bool HALF = WIDE == KEYS;

#define ENTRY(NAME, LANES, PACKS, FULL, BLOCKS)                                                            \
    extern "C" __global__ void __launch_bounds__(LANES <= 32 ? SMALL_BLOCK : LANES, BLOCKS) KERNEL(NAME) { \
        softmax_rows<LANES, PACKS * KEYS / WIDE, FULL>(args);                                              \
    }

ENTRY(whole_32x4, 32, 4, true, 6)
ENTRY(whole_128x1, 128, 1, true, 8)
ENTRY(rows_16x8, 16, 8, false, HALF ? 4 : 3)
ENTRY(rows_32x8, 32, 8, false, HALF ? 4 : 3)
ENTRY(rows_64x8, 64, 8, false, HALF ? 8 : 6)
ENTRY(rows_128x8, 128, 8, false, HALF ? 4 : 3)
ENTRY(rows_32x4, 32, 4, false, HALF ? 6 : 5)
ENTRY(rows_128x1, 128, 1, false, 8)
ENTRY(rows_256x1, 256, 1, false, 4)
