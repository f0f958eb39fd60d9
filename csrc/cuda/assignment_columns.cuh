// The columns of one assignment problem, divided among the threads of its team.
#pragma once

#include "core/linear_assignment.hpp"
#include "cuda/assignment_costs.cuh"
#include "cuda/assignment_team.cuh"
#include "cuda/device.cuh"

namespace maskformer::cuda {

// warp, block: kColumns columns a thread, in registers. large: any number, in the workspace.
enum class Plan { warp, block, large };

constexpr int kColumns = 4;
constexpr int kNone = -1;  // no row, no column

// What a thread knows of one of its columns.
struct Column {
  enum State : uint32_t { excluded, open, settled };
  double price;     // as in Arrays
  double distance;  // in a search; else a value at hand
  uint32_t rank;    // see Nearest: whether the column is matched
  uint32_t state;   // in a search
};

// Memory that the team shares. There are as many columns in it as the threads hold: those past the
// problem's are padding, with price 0 and no row.
template <typename Cost>
struct Arrays {
  Nearest* slots;      // [2, warps], but Plan::warp
  double* price;       // [columns] v
  int32_t* row_of;     // [columns]
  int32_t* parent;     // [columns] the row from which the column was reached
  int32_t* column_of;  // [rows]
  Column* columns;     // [columns], Plan::large
  Cost* costs;         // [rows, columns] without padding, where kShared
};

template <typename Cost, Plan kPlan, bool kShared>
class Columns {
 public:
  __device__ __forceinline__ Columns(const Costs<Cost, kShared>& costs_of_problem,
                                     Column* in_workspace)
      : costs(costs_of_problem), in_workspace_(in_workspace) {}

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }

  static __device__ __forceinline__ int threads() {
    return kPlan == Plan::warp ? kWarp : static_cast<int>(blockDim.x);
  }

  // visit(column, j) for every column of this thread, also for the padding.
  template <typename Visit>
  __device__ __forceinline__ void each_held(Visit visit) {
    if constexpr (kPlan == Plan::large) {
      for (int j = thread(); j < costs.columns; j += threads()) visit(in_workspace_[j], j);
    } else {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) visit(held_[k], thread() + k * threads());
    }
  }

  // Without the padding.
  template <typename Visit>
  __device__ __forceinline__ void each_column(Visit visit) {
    each_held([&](Column& c, int j) {
      if (j < costs.columns) visit(c, j);
    });
  }

  // visit(column, j, cost) for every column of this thread; padding costs infinity, and the
  // dummy's other columns 0.
  template <typename Visit>
  __device__ __forceinline__ void each_in_row(int row, Visit visit) {
    if constexpr (kPlan == Plan::large) {
      each_column([&](Column& c, int j) { visit(c, j, row < 0 ? 0.0 : costs.at(row, j)); });
    } else {
      double cost[kColumns];
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const int j = thread() + k * threads();
        cost[k] = j >= costs.columns ? kInfinity : row < 0 ? 0.0 : costs.read(row, j);
      }
      if (!costs.plain) {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          const int j = thread() + k * threads();
          if (j < costs.columns) cost[k] = costs.repaired(cost[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < kColumns; ++k) visit(held_[k], thread() + k * threads(), cost[k]);
    }
  }

  // The column of this thread with the least visit(column, j, cost), of equal ones of least rank.
  template <typename Visit>
  __device__ __forceinline__ Nearest nearest_in_row(int row, Visit visit) {
    Nearest nearest;
    if constexpr (kPlan == Plan::large) {
      each_in_row(row, [&](Column& c, int j, double cost) {
        nearest = nearer(nearest, {visit(c, j, cost), c.rank});
      });
    } else {
      static_assert(kColumns == 4, "the tree below");
      double values[kColumns];
      int k = 0;
      each_in_row(row, [&](Column& c, int j, double cost) { values[k++] = visit(c, j, cost); });
      nearest.value = smaller(smaller(values[0], values[1]), smaller(values[2], values[3]));
#pragma unroll
      for (k = 0; k < kColumns; ++k) {
        const uint32_t rank = values[k] == nearest.value ? held_[k].rank : kNoRank;
        nearest.rank = min(nearest.rank, rank);
      }
    }
    return nearest;
  }

  const Costs<Cost, kShared> costs;

 private:
  Column* in_workspace_;
  Column held_[kPlan == Plan::large ? 1 : kColumns];
};

}  // namespace maskformer::cuda
