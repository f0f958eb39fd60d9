// MASKFORMER_HOST_DEVICE marks member functions that CPU and CUDA sources share, MASKFORMER_HD
// functions.
#pragma once

#ifdef __CUDACC__
#define MASKFORMER_HOST_DEVICE __host__ __device__
#else
#define MASKFORMER_HOST_DEVICE
#endif

// static: the CPU sources are compiled once per instruction set, and the linker must not let one
// of them call the copy that was compiled for another.
#define MASKFORMER_HD static inline MASKFORMER_HOST_DEVICE
