// linear_assignment: T targets to Q queries, least total cost, one warp per problem (more above 128
// columns).
//   in      cost [N, T, Q] float32 or float64   num_targets [N] int32
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
//           4 gap      sum of c_ij - v_j - u_i over matched pairs and of -v_j over unmatched
//           columns
//   plan    a block per problem, 4 columns a thread in registers, prices and the matching in shared
//           memory. Costs in shared memory if all problems of the launch then run at the same time;
//           else they are read through L1 and L2. Above 2048 columns everything lies in the
//           workspace and blocks take one problem after another
//   argmin  doubles as two words of order-preserving integers, __reduce_min_sync
//   ties    a free column, then the lowest: the same input gives the same bits
//   bounds  at most 3 rows (rows + 5) row scans, whatever the input
//   status  kLimitReached only if rounding keeps the gap above kRelativeGap

#include <algorithm>

#include "core/arena.hpp"
#include "cuda/assignment_solver.cuh"
#include "cuda/launch.cuh"
#include "cuda/linear_assignment.hpp"

namespace maskformer::cuda {
namespace {

constexpr int kMostThreads = 512;
constexpr int64_t kWarpColumns = int64_t{kWarp} * kColumns;
constexpr int64_t kBlockColumns = int64_t{kMostThreads} * kColumns;
constexpr int64_t kLargeBlocks = 264;      // Plan::large: two for each multiprocessor of an H200
constexpr int64_t kMostResident = 32;      // blocks of a multiprocessor
constexpr int64_t kReservedShared = 1024;  // bytes that CUDA adds to each block
constexpr int64_t kMostRows = 0x7fffffff / 2;  // rows + columns of a problem fit 32 bits

struct Arguments {
  const void* cost;
  const int32_t* num_targets;
  int64_t* query_of_target;
  double* gap;
  int8_t* status;
  int64_t problems, targets, queries;
  std::byte* workspace;
  int64_t share;  // bytes of workspace of a block
};

// The arrays of a block, for up to `targets` targets. `shared` and `workspace` count or hand out.
template <typename Cost, Plan kPlan, bool kShared>
MASKFORMER_HD Arrays<Cost> lay_out(int64_t targets, int64_t queries, int64_t warps, Arena& shared,
                                   Arena& workspace) {
  const int64_t rows = targets < queries ? targets : queries;
  const int64_t columns = targets < queries ? queries : targets;
  Arena& arena = kPlan == Plan::large ? workspace : shared;
  Arrays<Cost> a{};
  if (kPlan != Plan::warp) a.slots = shared.take<Nearest>(2 * warps);
  a.price = arena.take<double>(columns);
  a.row_of = arena.take<int32_t>(columns);
  a.parent = arena.take<int32_t>(columns);
  a.column_of = arena.take<int32_t>(rows);
  if (kPlan == Plan::large) a.columns = arena.take<Column>(columns);
  if (kShared) a.costs = shared.take<Cost>(rows * columns);
  return a;
}

template <typename Cost, Plan kPlan, bool kShared>
__global__ void __launch_bounds__(kPlan == Plan::warp ? kWarp : kMostThreads)
    assign(const Arguments a) {
  Arena shared(dynamic_shared<std::byte>()), workspace(a.workspace + blockIdx.x * a.share);
  const Arrays<Cost> arrays =
      lay_out<Cost, kPlan, kShared>(a.targets, a.queries, blockDim.x / kWarp, shared, workspace);
  for (int64_t n = blockIdx.x; n < a.problems; n += gridDim.x) {
    const int64_t count = min(max(int64_t{a.num_targets[n]}, int64_t{0}), a.targets);
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

// Bytes of shared memory, and of the workspace, of a block.
struct Bytes {
  int64_t shared, workspace;
};

template <typename Cost, Plan kPlan, bool kShared>
Bytes bytes_of(int64_t targets, int64_t queries, int64_t threads) {
  Arena shared(nullptr), workspace(nullptr);
  lay_out<Cost, kPlan, kShared>(targets, queries, threads / kWarp, shared, workspace);
  return {shared.used(), workspace.used()};
}

template <typename Cost, Plan kPlan, bool kShared>
void start(Arguments a, const Shape& shape, Stream stream) {
  const Bytes bytes = bytes_of<Cost, kPlan, kShared>(a.targets, a.queries, shape.threads);
  a.share = bytes.workspace;
  launch("linear_assignment", assign<Cost, kPlan, kShared>, blocks(shape.blocks),
         static_cast<unsigned>(shape.threads), bytes.shared, stream, a);
}

// Costs in shared memory: not if problems would wait for those that fill it.
template <typename Cost, Plan kPlan>
void choose(const Arguments& a, const Shape& shape, Stream stream) {
  const int64_t most = most_shared_bytes();
  const int64_t bytes = bytes_of<Cost, kPlan, true>(a.targets, a.queries, shape.threads).shared;
  const int64_t resident =
      std::min(kMostResident, (most + kReservedShared) / (bytes + kReservedShared));
  if (bytes <= most && a.problems <= resident * multiprocessors()) {
    start<Cost, kPlan, true>(a, shape, stream);
  } else {
    start<Cost, kPlan, false>(a, shape, stream);
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
      return start<Cost, Plan::large, false>(a, shape, stream);
  }
}

}  // namespace

int64_t linear_assignment_workspace(int64_t problems, int64_t targets, int64_t queries) {
  const Shape shape = shape_of(problems, targets, queries);
  if (shape.plan != Plan::large) return 0;
  return shape.blocks *
         bytes_of<double, Plan::large, false>(targets, queries, shape.threads).workspace;
}

void linear_assignment(const void* cost, bool float64, const int32_t* num_targets,
                       int64_t* query_of_target, double* gap, int8_t* status, int64_t problems,
                       int64_t targets, int64_t queries, std::byte* workspace, Stream stream) {
  const Shape shape = shape_of(problems, targets, queries);
  const Arguments a{cost,     num_targets, query_of_target, gap,       status,
                    problems, targets,     queries,         workspace, 0};
  if (shape.columns > kMostRows) {
    throw std::invalid_argument("linear_assignment: expected at most " + std::to_string(kMostRows) +
                                " targets and queries, got " + std::to_string(shape.columns));
  }
  float64 ? dispatch<double>(a, shape, stream) : dispatch<float>(a, shape, stream);
}

}  // namespace maskformer::cuda
