#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/stream.hpp"

namespace maskformer::cuda {

// Bytes of workspace, for problems of any number of targets up to `targets`.
int64_t linear_assignment_workspace(int64_t problems, int64_t targets, int64_t queries);

// See linear_assignment.cu. cost: double with float64, else float. Counts outside [0, targets] are
// clamped.
void linear_assignment(const void* cost, bool float64, const int32_t* num_targets,
                       int64_t* query_of_target, double* gap, int8_t* status, int64_t problems,
                       int64_t targets, int64_t queries, std::byte* workspace, Stream stream);

}  // namespace maskformer::cuda
