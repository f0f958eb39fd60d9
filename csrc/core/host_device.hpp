// MASKFORMER_HD marks functions that CPU and CUDA sources share.
#pragma once

#ifdef __CUDACC__
#define MASKFORMER_HD static inline __host__ __device__
#else
// static: the CPU sources are compiled once per instruction set, and the linker must not let one
// of them call the copy that was compiled for another.
#define MASKFORMER_HD static inline
#endif
