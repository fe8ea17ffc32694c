// candle's file defines its entries itself.
#include "reduce.cu"
