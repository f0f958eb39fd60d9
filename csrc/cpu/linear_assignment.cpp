// linear_assignment: T targets to Q queries, least total cost, one thread per problem.
//   in      cost [N, T, Q] float32 or float64   num_targets [N] int32, in [0, T]
//   out     query_of_target [N, T] int64   gap [N] float64   status [N] int8
//   maths   float64 prices v, and u_i = min_j (c_ij - v_j). Fewer rows than columns: from v = 0
//   each
//           row takes its cheapest column if that is free; v <= 0, and 0 where a column is not
//           matched. As many rows as columns: v starts as the column minima of c_ij - min_j c_ij,
//           then a short auction. Each row that is left: one shortest augmenting path. gap is
//           primal minus dual value, the sum of c_ij - v_j - u_i over matched pairs and of -v_j
//           over unmatched columns
//   plan    rows are the smaller side of the problem. Its costs are copied once into the thread's
//           workspace, as they are; as float64 where some must be replaced or scaled. Columns are
//           padded to whole vectors with infinite costs
//   search  a row scan shortens the distances and finds the nearest column in one pass. It does not
//           write where a path came from: the rows of the path found are those whose scan gives
//           exactly the distance that was kept
//   ties    the lowest column, but a free one before it at the start of a path and wherever the
//           path does not get longer: the same input gives the same bits
//   bounds  at most rows (rows + 5) row scans of `columns` steps, whatever the input

#include "cpu/linear_assignment.hpp"

#include <cmath>
#include <limits>
#include <type_traits>

#include "core/linear_assignment.hpp"
#include "cpu/double_lanes.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

constexpr int64_t kNone = -1;

// One problem, and what is known of its solution. Arrays lie in the thread's workspace.
template <typename Cost>
struct Problem {
  int64_t rows;     // <= columns
  int64_t columns;  // without padding
  int64_t stride;   // with padding
  bool transposed;  // rows are queries
  double scale;     // what the costs were multiplied by
  bool replaced;    // some entry was not finite

  double* price;         // [stride] v
  double* rank;          // [stride] order among equally near columns: free ones, then the lowest
  double* distance;      // [stride] from the row where the path starts; infinite once settled
  int64_t* row_of;       // [stride]
  int64_t* column_of;    // [rows]
  Cost* cost;            // [rows, stride]
  AssignmentStep* path;  // [rows]
};

template <typename Item>
Item* take(std::byte*& cursor, int64_t count) {
  Item* items = reinterpret_cast<Item*>(cursor);
  cursor += count * static_cast<int64_t>(sizeof(Item));
  return items;
}

template <typename Cost>
Problem<Cost> lay_out(int64_t targets, int64_t queries, std::byte* cursor) {
  Problem<Cost> p{};
  p.transposed = targets > queries;
  p.rows = p.transposed ? queries : targets;
  p.columns = p.transposed ? targets : queries;
  p.stride = assignment_stride(p.columns);
  p.scale = 1.0;
  p.price = take<double>(cursor, p.stride);
  p.rank = take<double>(cursor, p.stride);
  p.distance = take<double>(cursor, p.stride);
  p.row_of = take<int64_t>(cursor, p.stride);
  p.column_of = take<int64_t>(cursor, p.stride);
  p.cost = take<Cost>(cursor, p.rows * p.stride);
  p.path = take<AssignmentStep>(cursor, p.rows);
  return p;
}

// Copies the costs [targets, queries] as they are; false if they are not fit to be computed with.
template <typename Cost>
bool load_costs(const Problem<Cost>& p, const Cost* cost) {
  using Bits = std::conditional_t<sizeof(Cost) == 4, int32_t, int64_t>;
  constexpr Cost kMost =
      std::is_same_v<Cost, float> ? std::numeric_limits<Cost>::max() : static_cast<Cost>(kHuge);
  const int64_t row_step = p.transposed ? 1 : p.columns, column_step = p.transposed ? p.rows : 1;
  Bits unfit = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    const Cost* __restrict from = cost + i * row_step;
    Cost* __restrict row = p.cost + i * p.stride;
    if (p.transposed) {
      for (int64_t j = 0; j < p.columns; ++j) row[j] = from[j * column_step];
    } else {
      for (int64_t j = 0; j < p.columns; ++j) row[j] = from[j];
    }
    for (int64_t j = 0; j < p.columns; ++j) unfit |= std::abs(row[j]) <= kMost ? 0 : 1;
    for (int64_t j = p.columns; j < p.stride; ++j) row[j] = static_cast<Cost>(kInfinity);
  }
  return unfit == 0;
}

// Copies the costs, replaces what is not finite, and scales.
template <typename Cost>
void repair_costs(Problem<double>& p, const Cost* cost) {
  double least = kInfinity, most = -kInfinity;
  for (int64_t i = 0; i < p.rows * p.columns; ++i) {
    const double value = static_cast<double>(cost[i]);
    least = smaller(is_finite(value) ? value : kInfinity, least);
    most = larger(is_finite(value) ? value : -kInfinity, most);
    p.replaced |= !is_finite(value);
  }
  p.scale = cost_scale(least, most);
  const int64_t targets = p.transposed ? p.columns : p.rows;
  const double big = replacement_cost(least * p.scale, most * p.scale, targets);
  const int64_t row_step = p.transposed ? 1 : p.columns, column_step = p.transposed ? p.rows : 1;
  for (int64_t i = 0; i < p.rows; ++i) {
    double* row = p.cost + i * p.stride;
    for (int64_t j = 0; j < p.columns; ++j) {
      const double value = static_cast<double>(cost[i * row_step + j * column_step]);
      row[j] = is_finite(value) ? value * p.scale : big;
    }
    for (int64_t j = p.columns; j < p.stride; ++j) row[j] = kInfinity;
  }
}

// u of a row: min_j (c_j - v_j).
template <typename Cost>
double row_price(const Problem<Cost>& p, int64_t row) {
  const Cost* cost = p.cost + row * p.stride;
  Lanes lowest = all(kInfinity);
  for (int64_t j = 0; j < p.stride; j += kLanes) {
    lowest = smaller(load(cost + j) - load(p.price + j), lowest);
  }
  return least(lowest);
}

// Shortens the distances by the paths that go through `row`, to whose costs minus prices -offset
// is added; returns the least of all distances. A settled column has price -infinity.
template <typename Cost>
double relax(const Problem<Cost>& p, int64_t row, double offset) {
  const Cost* cost = p.cost + row * p.stride;
  const Lanes offsets = all(offset);
  Lanes lowest = all(kInfinity);
  for (int64_t j = 0; j < p.stride; j += kLanes) {
    const Lanes through_row = load(cost + j) - load(p.price + j) - offsets;
    const Lanes distance = smaller(through_row, load(p.distance + j));
    store(p.distance + j, distance);
    lowest = smaller(distance, lowest);
  }
  return least(lowest);
}

// Among the columns at `length` the one of lowest rank.
template <typename Cost>
int64_t free_column_first(const Problem<Cost>& p, double length) {
  Lanes lowest = all(kInfinity);
  for (int64_t j = 0; j < p.stride; j += kLanes) {
    const Lanes rank = load(p.distance + j) == all(length) ? load(p.rank + j) : all(kInfinity);
    lowest = smaller(rank, lowest);
  }
  const int64_t column = static_cast<int64_t>(least(lowest));
  return column < p.stride ? column : column - p.stride;
}

template <typename Cost>
void match(const Problem<Cost>& p, int64_t row, int64_t column) {
  p.row_of[column] = row;
  p.column_of[row] = column;
  p.rank[column] = static_cast<double>(column + p.stride);
}

// Every row whose cheapest column is free takes it.
template <typename Cost>
void start_greedily(const Problem<Cost>& p) {
  for (int64_t i = 0; i < p.rows; ++i) {
    const Cost* cost = p.cost + i * p.stride;
    Least cheapest;
    for (int64_t j = 0; j < p.stride; j += kLanes) {
      cheapest.take(load(cost + j) - load(p.price + j));
    }
    if (p.row_of[cheapest.index()] == kNone) match(p, i, cheapest.index());
  }
}

// v_j = min_i (c_ij - min_k c_ik).
template <typename Cost>
void reduce(const Problem<Cost>& p) {
  double* lowest = p.distance;
  for (int64_t j = 0; j < p.stride; ++j) lowest[j] = kInfinity;
  for (int64_t i = 0; i < p.rows; ++i) {
    const Cost* cost = p.cost + i * p.stride;
    const Lanes u = all(row_price(p, i));
    for (int64_t j = 0; j < p.stride; j += kLanes) {
      store(lowest + j, smaller(load(cost + j) - u, load(lowest + j)));
    }
  }
  for (int64_t j = 0; j < p.columns; ++j) p.price[j] = lowest[j];
}

struct Bid {
  int64_t column;  // the cheapest
  double saving;   // over the second cheapest, >= 0; infinite without one
};

template <typename Cost>
Bid best_bid(const Problem<Cost>& p, int64_t row) {
  const Cost* cost = p.cost + row * p.stride;
  Lanes first = all(kInfinity), second = first;
  for (int64_t j = 0; j < p.stride; j += kLanes) {
    const Lanes value = load(cost + j) - load(p.price + j);
    store(p.distance + j, value);
    second = smaller(first < value ? value : first, second);
    first = smaller(value, first);
  }
  const double lowest = least(first);
  const int64_t column = index_of(lowest, p.distance, p.stride);
  first[column % kLanes] = second[column % kLanes];
  return {column, smaller(least(first), least(second)) - lowest};
}

// An auction in which a row outbids another only if it gains by it, at most `rows` times. The price
// of its column falls by what it saves there: the pair is tight, and so are the others still.
template <typename Cost>
void start_by_auction(const Problem<Cost>& p) {
  int64_t outbid = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t row = i; row != kNone;) {
      const auto [column, saving] = best_bid(p, row);
      const int64_t other = p.row_of[column];
      if (other != kNone && (saving == 0.0 || outbid == p.rows)) break;
      p.price[column] -= saving < kInfinity ? saving : 0.0;
      match(p, row, column);
      if (other != kNone) {
        p.column_of[other] = kNone;
        ++outbid;
      }
      row = other;
    }
  }
}

// Finds the shortest path from `start` to a free column; returns its last step. Each step before
// that settles a matched column, of which there are fewer than rows.
template <typename Cost>
int64_t find_path(const Problem<Cost>& p, int64_t start) {
  for (int64_t j = 0; j < p.stride; j += kLanes) store(p.distance + j, all(kInfinity));
  AssignmentStep step{start, 0.0, kNone, 0.0, -kInfinity};
  for (int64_t last = 0;; ++last) {
    const double length = relax(p, step.row, step.offset);
    const bool longer = last > 0 && length > step.distance;
    step.column = longer ? index_of(length, p.distance, p.stride) : free_column_first(p, length);
    step.distance = length;
    step.price = p.price[step.column];
    p.path[last] = step;
    step.row = p.row_of[step.column];
    if (step.row == kNone || last + 1 == p.rows) return last;
    step.offset = p.cost[step.row * p.stride + step.column] - step.price - length;
    replace(p.price, step.column, -kInfinity);
    replace(p.distance, step.column, kInfinity);
  }
}

// Matches one more row; matched pairs stay tight.
template <typename Cost>
void augment(const Problem<Cost>& p, int64_t start) {
  const int64_t last = find_path(p, start);
  const double length = p.path[last].distance;
  for (int64_t k = 0; k < last; ++k) {
    const double change = smaller(p.path[k].distance - length, 0.0);  // 0 but for rounding
    p.price[p.path[k].column] = p.path[k].price + change;
  }
  for (int64_t k = last, from = last; from >= 0; k = --from) {
    const AssignmentStep to = p.path[k];
    const auto distance = [&](const AssignmentStep& step) {
      return p.cost[step.row * p.stride + to.column] - to.price - step.offset;
    };
    from = 0;
    while (from < k && distance(p.path[from]) != to.distance) ++from;
    match(p, p.path[from].row, to.column);
  }
}

// The certificate.
template <typename Cost>
void certify(const Problem<Cost>& p, double* gap, int8_t* status) {
  double slack = 0.0, magnitude = 0.0;
  for (int64_t j = 0; j < p.columns; ++j) slack -= p.row_of[j] == kNone ? p.price[j] : 0.0;
  for (int64_t i = 0; i < p.rows; ++i) {
    const int64_t column = p.column_of[i];
    const double cost = static_cast<double>(p.cost[i * p.stride + column]);
    slack += cost - p.price[column] - row_price(p, i);
    magnitude += larger(cost, -cost);
  }
  *gap = slack / p.scale;
  *status = assignment_status(p.replaced, slack, magnitude, p.scale);
}

template <typename Cost>
void solve(const Problem<Cost>& p, int64_t* query_of_target, double* gap, int8_t* status) {
  for (int64_t i = 0; i < p.rows; ++i) p.column_of[i] = kNone;
  for (int64_t j = 0; j < p.stride; ++j) {
    p.row_of[j] = kNone;
    p.rank[j] = static_cast<double>(j);
    p.price[j] = 0.0;
  }
  if (p.rows < p.columns) {
    start_greedily(p);
  } else {
    reduce(p);
    start_by_auction(p);
  }
  for (int64_t i = 0; i < p.rows; ++i) {
    if (p.column_of[i] == kNone) augment(p, i);
  }
  certify(p, gap, status);
  const int64_t* matched = p.transposed ? p.row_of : p.column_of;
  const int64_t targets = p.transposed ? p.columns : p.rows;
  for (int64_t t = 0; t < targets; ++t) query_of_target[t] = matched[t];
}

// One problem of [targets, queries].
template <typename Cost>
void assign(const Cost* cost, int64_t targets, int64_t queries, std::byte* workspace,
            int64_t* query_of_target, double* gap, int8_t* status) {
  const Problem<Cost> p = lay_out<Cost>(targets, queries, workspace);
  if (load_costs(p, cost)) return solve(p, query_of_target, gap, status);
  Problem<double> repaired = lay_out<double>(targets, queries, workspace);
  repair_costs(repaired, cost);
  solve(repaired, query_of_target, gap, status);
}

}  // namespace

template <InstructionSet Set, typename Cost>
void linear_assignment(const Cost* cost, const int32_t* num_targets, int64_t* query_of_target,
                       double* gap, int8_t* status, int64_t problems, int64_t targets,
                       int64_t queries, std::byte* workspace, int threads) {
  const int64_t share = linear_assignment_workspace(targets, queries);
  parallel_for(problems, threads, [=](int64_t n, int thread) {
    int64_t* matched = query_of_target + n * targets;
    for (int64_t t = num_targets[n]; t < targets; ++t) matched[t] = kNone;
    assign(cost + n * targets * queries, num_targets[n], queries, workspace + thread * share,
           matched, gap + n, status + n);
  });
}

template void linear_assignment<InstructionSet::MASKFORMER_SET>(const float*, const int32_t*,
                                                                int64_t*, double*, int8_t*, int64_t,
                                                                int64_t, int64_t, std::byte*, int);
template void linear_assignment<InstructionSet::MASKFORMER_SET>(const double*, const int32_t*,
                                                                int64_t*, double*, int8_t*, int64_t,
                                                                int64_t, int64_t, std::byte*, int);

}  // namespace maskformer::cpu
