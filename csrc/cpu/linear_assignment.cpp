// linear_assignment: T targets to Q queries, least total cost, one thread per problem.
//   in      cost [N, T, Q] float32 or float64   num_targets [N] int32, in [0, T]
//   out     query_of_target [N, T] int64   gap [N] float64   status [N] int8
//   maths   greedy start, then one shortest augmenting path per row that is left; float64 prices
//           v <= 0, and u_i = min_j (c_ij - v_j). gap is primal minus dual value, the sum of
//           c_ij - v_j - u_i over matched pairs and of -v_j over unmatched columns
//   plan    rows are the smaller side of the problem. Its costs are copied once, as float64, into
//           the thread's workspace; columns are padded to whole vectors with infinite costs
//   ties    a column that ends the path, then the lowest: the same input gives the same bits
//   bounds  at most rows^2 row scans of `columns` steps, whatever the input

#include "cpu/linear_assignment.hpp"

#include <limits>

#include "core/linear_assignment.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

constexpr int64_t kNone = -1;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One problem, and what is known of its solution. Arrays lie in the thread's workspace.
struct Problem {
  int64_t rows;     // <= columns
  int64_t columns;  // without padding
  int64_t stride;   // with padding
  bool transposed;  // rows are queries
  double scale;     // what the costs were multiplied by
  bool replaced;    // some entry was not finite

  double* cost;        // [rows, stride]
  double* price;       // [stride] v
  int64_t* column_of;  // [rows]
  int64_t* row_of;     // [stride]
  double* rank;        // [stride] order among equally near columns: free ones, then the lowest

  // The search for one path.
  double* distance;          // [stride] from the row where it starts; infinite once settled
  int64_t* parent;           // [stride] the row before the column
  int64_t* settled;          // [rows] columns, in the order in which they were settled
  double* settled_price;     // [rows] their v
  double* settled_distance;  // [rows]
};

template <typename Item>
Item* take(std::byte*& cursor, int64_t count) {
  static_assert(sizeof(Item) == sizeof(double), "the workspace counts items of eight bytes");
  Item* items = reinterpret_cast<Item*>(cursor);
  cursor += count * static_cast<int64_t>(sizeof(Item));
  return items;
}

Problem lay_out(int64_t targets, int64_t queries, std::byte* cursor) {
  Problem p{};
  p.transposed = targets > queries;
  p.rows = p.transposed ? queries : targets;
  p.columns = p.transposed ? targets : queries;
  p.stride = assignment_stride(p.columns);
  p.cost = take<double>(cursor, p.rows * p.stride);
  p.price = take<double>(cursor, p.stride);
  p.column_of = take<int64_t>(cursor, p.stride);
  p.row_of = take<int64_t>(cursor, p.stride);
  p.rank = take<double>(cursor, p.stride);
  p.distance = take<double>(cursor, p.stride);
  p.parent = take<int64_t>(cursor, p.stride);
  p.settled = take<int64_t>(cursor, p.stride);
  p.settled_price = take<double>(cursor, p.stride);
  p.settled_distance = take<double>(cursor, p.stride);
  return p;
}

// Copies the costs [targets, queries], replaces what is not finite, and scales.
template <typename Cost>
void load(Problem& p, const Cost* cost, int64_t targets, int64_t queries) {
  double least = kInfinity, most = -kInfinity;
  for (int64_t i = 0; i < targets * queries; ++i) {
    const double value = static_cast<double>(cost[i]);
    least = smaller(is_finite(value) ? value : kInfinity, least);
    most = larger(is_finite(value) ? value : -kInfinity, most);
    p.replaced |= !is_finite(value);
  }
  p.scale = cost_scale(least, most);
  const double big = replacement_cost(least * p.scale, most * p.scale, targets);
  const int64_t row_step = p.transposed ? 1 : queries, column_step = p.transposed ? queries : 1;
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
double row_price(const double* cost, const double* price, int64_t stride) {
  double least = kInfinity;
#pragma omp simd reduction(min : least)
  for (int64_t j = 0; j < stride; ++j) least = smaller(cost[j] - price[j], least);
  return least;
}

// Shortens the distances by the paths that go through `row`, which is `length` away and has
// price u; returns the least of all distances. A settled column has price -infinity.
double relax(const Problem& p, int64_t row, double u, double length) {
  const double* __restrict cost = p.cost + row * p.stride;
  const double* __restrict price = p.price;
  double* __restrict distance = p.distance;
  int64_t* __restrict parent = p.parent;
  double least = kInfinity;
#pragma omp simd reduction(min : least)
  for (int64_t j = 0; j < p.stride; ++j) {
    const double candidate = cost[j] - price[j] - u + length;
    const bool shorter = candidate < distance[j];
    parent[j] = shorter ? row : parent[j];
    distance[j] = shorter ? candidate : distance[j];
    least = smaller(distance[j], least);
  }
  return least;
}

// The column at `length`; among several the one of lowest rank.
int64_t column_at(const Problem& p, const double* distance, double length) {
  const double* rank = p.rank;
  double lowest = kInfinity;
#pragma omp simd reduction(min : lowest)
  for (int64_t j = 0; j < p.stride; ++j) {
    lowest = smaller(distance[j] == length ? rank[j] : kInfinity, lowest);
  }
  const int64_t column = static_cast<int64_t>(lowest);
  return column < p.stride ? column : column - p.stride;
}

void match(const Problem& p, int64_t row, int64_t column) {
  p.row_of[column] = row;
  p.column_of[row] = column;
  p.rank[column] = static_cast<double>(column + p.stride);
}

// Every row whose cheapest column is free takes it: with v = 0 these pairs are tight.
void start_greedily(const Problem& p) {
  for (int64_t j = 0; j < p.stride; ++j) {
    p.price[j] = 0.0;
    p.row_of[j] = kNone;
    p.rank[j] = static_cast<double>(j);
  }
  for (int64_t i = 0; i < p.rows; ++i) {
    const double* cost = p.cost + i * p.stride;
    const int64_t column = column_at(p, cost, row_price(cost, p.price, p.stride));
    p.column_of[i] = kNone;
    if (p.row_of[column] == kNone) match(p, i, column);
  }
}

// Matches one more row along the shortest path to a free column; matched pairs stay tight.
void augment(const Problem& p, int64_t start) {
  for (int64_t j = 0; j < p.stride; ++j) p.distance[j] = kInfinity;
  int64_t row = start, settled = 0, column;
  double u = row_price(p.cost + start * p.stride, p.price, p.stride), length = 0.0;
  while (true) {
    length = relax(p, row, u, length);
    column = column_at(p, p.distance, length);
    if (p.row_of[column] == kNone) break;
    row = p.row_of[column];
    u = p.cost[row * p.stride + column] - p.price[column];
    p.settled[settled] = column;
    p.settled_price[settled] = p.price[column];
    p.settled_distance[settled++] = length;
    p.price[column] = -kInfinity;
    p.distance[column] = kInfinity;
  }
  for (int64_t s = 0; s < settled; ++s) {
    const double change = smaller(p.settled_distance[s] - length, 0.0);  // 0 but for rounding
    p.price[p.settled[s]] = p.settled_price[s] + change;
  }
  do {
    row = p.parent[column];
    const int64_t freed = p.column_of[row];
    match(p, row, column);
    column = freed;
  } while (row != start);
}

// The certificate.
void certify(const Problem& p, double* gap, int8_t* status) {
  double slack = 0.0, magnitude = 0.0;
  for (int64_t j = 0; j < p.columns; ++j) slack -= p.row_of[j] == kNone ? p.price[j] : 0.0;
  for (int64_t i = 0; i < p.rows; ++i) {
    const double* cost = p.cost + i * p.stride;
    const int64_t column = p.column_of[i];
    slack += cost[column] - p.price[column] - row_price(cost, p.price, p.stride);
    magnitude += larger(cost[column], -cost[column]);
  }
  *gap = slack / p.scale;
  *status = assignment_status(p.replaced, slack, magnitude, p.scale);
}

template <typename Cost>
void solve(const Cost* cost, int64_t targets, int64_t queries, std::byte* workspace,
           int64_t* query_of_target, double* gap, int8_t* status) {
  Problem p = lay_out(targets, queries, workspace);
  load(p, cost, targets, queries);
  start_greedily(p);
  for (int64_t i = 0; i < p.rows; ++i) {
    if (p.column_of[i] == kNone) augment(p, i);
  }
  certify(p, gap, status);
  const int64_t* matched = p.transposed ? p.row_of : p.column_of;
  for (int64_t t = 0; t < targets; ++t) query_of_target[t] = matched[t];
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
    solve(cost + n * targets * queries, num_targets[n], queries, workspace + thread * share,
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
