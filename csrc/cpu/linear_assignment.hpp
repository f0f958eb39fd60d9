#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/instruction_set.hpp"

namespace maskformer::cpu {

// One row scan of a search for a path, and the column that was nearest after it.
struct AssignmentStep {
  int64_t row;
  double offset;  // taken from the row's costs to make them distances plus prices
  int64_t column;
  double price;   // of the column, before the search
  double length;  // its distance plus its price
};

constexpr int64_t kAssignmentArrays = 4;     // of eight bytes per padded column, besides the costs
constexpr int64_t kAssignmentRowArrays = 2;  // of eight bytes per padded row, besides the path
constexpr int64_t kAssignmentsAtOnce = 2;    // that a thread works on by turns

// Rows or columns padded to whole cache lines of float64.
static inline int64_t assignment_stride(int64_t size) { return (size + 7) / 8 * 8; }

// Bytes of workspace, in whole cache lines, that one problem needs.
static inline int64_t linear_assignment_workspace(int64_t targets, int64_t queries) {
  const int64_t rows = targets < queries ? targets : queries;
  const int64_t columns = targets < queries ? queries : targets;
  const int64_t items = (rows + kAssignmentArrays) * assignment_stride(columns) +
                        kAssignmentRowArrays * assignment_stride(rows);
  const int64_t steps = rows * static_cast<int64_t>(sizeof(AssignmentStep));
  return items * static_cast<int64_t>(sizeof(double)) + (steps + 63) / 64 * 64;
}

// See linear_assignment.cpp. Cost is float or double; num_targets may be null: all of them;
// threads >= 1; workspace: 64-byte aligned, kAssignmentsAtOnce times
// linear_assignment_workspace(targets, queries) bytes for each thread.
template <InstructionSet Set, typename Cost>
void linear_assignment(const Cost* cost, const int32_t* num_targets, int64_t* query_of_target,
                       double* gap, int8_t* status, int64_t problems, int64_t targets,
                       int64_t queries, std::byte* workspace, int threads);

}  // namespace maskformer::cpu
