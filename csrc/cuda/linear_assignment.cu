// linear_assignment: T targets to Q queries, least total cost, one warp per problem (more above 128
// columns).
//   in      cost [N, T, Q] float32 or float64   num_targets [N] int32 or null
//   out     query_of_target [N, T] int64   gap [N] float64   status [N] int8
//   maths   the smaller side are rows i, the larger columns j; float64 prices v, and u_i =
//           min_j (c_ij - v_j). v <= 0, and 0 where a column is not matched (as many rows as
//           columns: any v).
//           1 start    v = 0; each row takes its cheapest column if that is free
//             guess    only where over half of the rows found it taken: v from the column means
//                      instead, and once more. This breaks the condition on v; 3 repairs it
//             reduce   v_j rises to min_i (c_ij - u_i), where it may
//           2 auction  at eps = 0: rows that are left bid, at most `rows` are outbid
//           3 finish   one shortest augmenting path (Dijkstra) for each row that is left, and after
//                      a guess for each column that has a price and no row
//           4 gap      sum of c_ij - v_j - u_i over pairs, and of -v_j over unmatched columns
//   plan    a block per problem, 4 columns a thread in registers, prices and the matching in shared
//           memory. Costs in shared memory if all problems of the launch then run at the same time;
//           else they are read through L1 and L2. Above 1024 columns everything lies in the
//           workspace and blocks take one problem after another
//   argmin  doubles as two words of order-preserving integers, __reduce_min_sync
//   ties    a free column, then the lowest: the same input gives the same bits
//   bounds  at most 3 rows (rows + 6) row scans, whatever the input
//   status  kLimitReached only if rounding keeps the gap above kRelativeGap

#include <algorithm>

#include "core/arena.hpp"
#include "cuda/assignment_solver.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear_assignment.hpp"

namespace maskformer::cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int64_t kWarpColumns = int64_t{kWarp} * kColumns;
constexpr int64_t kBlockColumns = int64_t{kMostThreads} * kColumns;
constexpr int64_t kLargeBlocks = 264;  // Plan::large: two for each multiprocessor of an H200
constexpr int64_t kRegisters = 160;    // of a thread, at most
constexpr int64_t kResidentThreads = 64 * 1024 / kRegisters;  // of a multiprocessor
constexpr int64_t kReservedShared = 1024;                     // bytes that CUDA adds to each block
constexpr int64_t kMostRows = 0x7fffffff / 2;  // rows + columns of a problem fit 32 bits

// Where a block's arrays lie: bytes from the start of its shared memory, with Plan::large of its
// share of the workspace (but slots). See Arrays.
struct Layout {
  int64_t slots, price, row_of, parent, column_of, columns, costs;
  int64_t shared, workspace;  // bytes of both
};

struct Arguments {
  const void* cost;
  const int32_t* num_targets;
  int64_t* query_of_target;
  double* gap;
  int8_t* status;
  int64_t problems, targets, queries;
  std::byte* workspace;
  Layout layout;
};

template <typename Cost, Plan kPlan, bool kShared>
__device__ __forceinline__ Arrays<Cost> arrays_of(const Arguments& a) {
  std::byte* shared = dynamic_shared<std::byte>();
  std::byte* base = shared;
  if constexpr (kPlan == Plan::large) base = a.workspace + blockIdx.x * a.layout.workspace;
  return {reinterpret_cast<Nearest*>(shared + a.layout.slots),
          reinterpret_cast<double*>(base + a.layout.price),
          reinterpret_cast<int32_t*>(base + a.layout.row_of),
          reinterpret_cast<int32_t*>(base + a.layout.parent),
          reinterpret_cast<int32_t*>(base + a.layout.column_of),
          reinterpret_cast<Column*>(base + a.layout.columns),
          reinterpret_cast<Cost*>(shared + a.layout.costs)};
}

template <typename Cost, Plan kPlan, bool kShared>
__global__ void __launch_bounds__(kPlan == Plan::warp ? kWarp : kMostThreads, 1)
    assign(const Arguments a) {
  const Arrays<Cost> arrays = arrays_of<Cost, kPlan, kShared>(a);
  for (int64_t n = blockIdx.x; n < a.problems; n += gridDim.x) {
    const int64_t asked = a.num_targets == nullptr ? a.targets : a.num_targets[n];
    const int64_t count = min(max(asked, int64_t{0}), a.targets);
    const Cost* cost = static_cast<const Cost*>(a.cost) + n * a.targets * a.queries;
    Solver<Cost, kPlan, kShared> solver(arrays, cost, static_cast<int>(count),
                                        static_cast<int>(a.queries));
    solver.solve();
    int64_t* matched = a.query_of_target + n * a.targets;
    for (int64_t t = count + threadIdx.x; t < a.targets; t += blockDim.x) matched[t] = kNone;
    solver.store(matched, a.gap + n, a.status + n);
    __syncthreads();
  }
}

struct Shape {
  int64_t columns;
  Plan plan;
  int64_t threads;
  int64_t blocks;
};

Shape shape_of(int64_t problems, int64_t targets, int64_t queries) {
  const int64_t columns = std::max(targets, queries);
  if (columns > kBlockColumns) {
    return {columns, Plan::large, kMostThreads, std::min(problems, kLargeBlocks)};
  }
  const Plan plan = columns > kWarpColumns ? Plan::block : Plan::warp;
  return {columns, plan, ceil_div(columns, kWarpColumns) * kWarp, std::min(problems, kMostBlocks)};
}

template <typename Item>
int64_t place(Arena& arena, int64_t count) {
  const int64_t at = arena.used();
  arena.take<Item>(count);
  return at;
}

// For up to `targets` targets; cost_bytes: of a cost in shared memory, 0: not there.
Layout lay_out(const Shape& shape, int64_t targets, int64_t queries, int64_t cost_bytes) {
  const bool large = shape.plan == Plan::large;
  const int64_t rows = std::min(targets, queries);
  const int64_t columns = large ? shape.columns : shape.threads * kColumns;
  Arena shared(nullptr), workspace(nullptr);
  Arena& arena = large ? workspace : shared;
  Layout layout{};
  layout.slots = place<Nearest>(shared, shape.plan == Plan::warp ? 0 : 2 * shape.threads / kWarp);
  layout.price = place<double>(arena, columns);
  layout.row_of = place<int32_t>(arena, columns);
  layout.parent = place<int32_t>(arena, columns);
  layout.column_of = place<int32_t>(arena, rows);
  layout.columns = place<Column>(arena, large ? columns : 0);
  layout.costs = place<std::byte>(shared, rows * shape.columns * cost_bytes);
  layout.shared = shared.used();
  layout.workspace = workspace.used();
  return layout;
}

template <typename Cost, Plan kPlan, bool kShared>
void start(Arguments a, const Layout& layout, const Shape& shape, Stream stream) {
  a.layout = layout;
  launch("linear_assignment", assign<Cost, kPlan, kShared>, blocks(shape.blocks),
         static_cast<unsigned>(shape.threads), layout.shared, stream, a);
}

// Costs in shared memory: not if problems would wait for those that fill it.
template <typename Cost, Plan kPlan>
void choose(const Arguments& a, const Shape& shape, Stream stream) {
  const Layout with_costs = lay_out(shape, a.targets, a.queries, sizeof(Cost));
  const int64_t most = most_shared_bytes();
  const int64_t resident =
      std::min(kResidentThreads / shape.threads,
               (most + kReservedShared) / (with_costs.shared + kReservedShared));
  if (with_costs.shared <= most && a.problems <= resident * multiprocessors()) {
    start<Cost, kPlan, true>(a, with_costs, shape, stream);
  } else {
    start<Cost, kPlan, false>(a, lay_out(shape, a.targets, a.queries, 0), shape, stream);
  }
}

template <typename Cost>
void dispatch(const Arguments& a, const Shape& shape, Stream stream) {
  switch (shape.plan) {
    case Plan::warp:
      return choose<Cost, Plan::warp>(a, shape, stream);
    case Plan::block:
      return choose<Cost, Plan::block>(a, shape, stream);
    case Plan::large:
      return start<Cost, Plan::large, false>(a, lay_out(shape, a.targets, a.queries, 0), shape,
                                             stream);
  }
}

}  // namespace

int64_t linear_assignment_workspace(int64_t problems, int64_t targets, int64_t queries) {
  const Shape shape = shape_of(problems, targets, queries);
  return shape.blocks * lay_out(shape, targets, queries, 0).workspace;
}

void linear_assignment(const void* cost, bool float64, const int32_t* num_targets,
                       int64_t* query_of_target, double* gap, int8_t* status, int64_t problems,
                       int64_t targets, int64_t queries, std::byte* workspace, Stream stream) {
  const Shape shape = shape_of(problems, targets, queries);
  const Arguments a{cost,     num_targets, query_of_target, gap,       status,
                    problems, targets,     queries,         workspace, {}};
  if (shape.columns > kMostRows) {
    throw std::invalid_argument("linear_assignment: expected at most " + std::to_string(kMostRows) +
                                " targets and queries, got " + std::to_string(shape.columns));
  }
  float64 ? dispatch<double>(a, shape, stream) : dispatch<float>(a, shape, stream);
}

}  // namespace maskformer::cuda
