// Reverses what each block holds, and lacks a barrier between the store and the load.
extern "C" __global__ void reverse(int* values) {
    __shared__ int room[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    room[threadIdx.x] = values[i];
    values[i] = room[blockDim.x - 1 - threadIdx.x];
}
