// Threads over independent pieces of work.
#pragma once

#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace maskformer::cpu {

// body(index, thread) for each index in [0, count), thread in [0, threads). The body must not
// throw: an exception cannot leave the thread it rose in.
template <typename Body>
static void parallel_for(int64_t count, int threads, const Body& body) {
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t index = 0; index < count; ++index) body(index, omp_get_thread_num());
#else
  static_cast<void>(threads);
  for (int64_t index = 0; index < count; ++index) body(index, 0);
#endif
}

}  // namespace maskformer::cpu
