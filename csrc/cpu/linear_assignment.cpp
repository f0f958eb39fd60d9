// linear_assignment: T targets to Q queries, least total cost, two problems at a time per thread.
//   in      cost [N, T, Q] float32 or float64   num_targets [N] int32, in [0, T], or none: all T
//   out     query_of_target [N, T] int64   gap [N] float64   status [N] int8
//   maths   float64 prices v, and u_i = min_j (c_ij - v_j). Fewer rows than columns: from v = 0
//           each row takes its cheapest column if that is free; v <= 0, and 0 where a column is not
//           matched. As many rows as columns: v starts as the column minima of c_ij - min_j c_ij,
//           then a short auction. Each row that is left: one shortest augmenting path. gap is
//           primal minus dual value, the sum of c_ij - v_j - u_i over matched pairs and of -v_j
//           over unmatched columns
//   plan    rows are the smaller side of the problem. Its costs are copied once into the thread's
//           workspace, as they are; as float64 where some must be replaced or scaled. Columns are
//           padded to whole vectors with infinite costs
//   search  a row scan is one pass: the column is written into the last bits of each distance (of
//           52 bits 44 are left at 100 columns), so the least of them names its column. What is
//           computed with is exact; the rows of the path found are those whose scan gives exactly
//           what was kept. A scan ends in a chain of dependent steps, during which the other
//           problem's scan runs
//   ties    a free column, then the lowest: the same input gives the same bits
//   bounds  at most rows (rows + 5) row scans of `columns` steps, whatever the input

#include "cpu/linear_assignment.hpp"

#include <algorithm>
#include <atomic>

#include "cpu/assignment_problem.hpp"
#include "cpu/assignment_scans.hpp"
#include "cpu/parallel.hpp"

namespace maskformer::cpu {
namespace {

template <typename Cost>
void match(const Problem<Cost>& p, int64_t row, int64_t column) {
  p.row_of[column] = row;
  p.column_of[row] = column;
  p.rank[column] = column + p.matched;
}

template <typename Cost>
bool is_free(const Problem<Cost>& p, int64_t column) {
  return p.rank[column] < p.matched;
}

// Every row whose cheapest column is free takes it.
template <typename Cost>
void start_greedily(const Problem<Cost>& p) {
  for (int64_t i = 0; i < p.rows; ++i) {
    const int64_t cheapest = p.column_of[i];
    p.column_of[i] = kNone;
    if (is_free(p, cheapest)) match(p, i, cheapest);
  }
}

// v_j = min_i (c_ij - min_k c_ik), rounded down: a row's cheapest column stays at distance >= 0.
template <typename Cost>
void reduce(const Problem<Cost>& p) {
  using Values = typename VectorOf<Cost>::Values;
  Cost* lowest = reinterpret_cast<Cost*>(p.reach);
  for (int64_t i = 0; i < p.rows; ++i) {
    const Cost* cost = p.cost + i * p.stride;
    const Values u = all(static_cast<Cost>(p.bound[i]));
    for (int64_t j = 0; j < p.stride; j += kLanes) {
      Values* at = reinterpret_cast<Values*>(lowest + j);
      const Values saved = *reinterpret_cast<const Values*>(cost + j) - u;
      *at = i == 0 ? saved : smaller(saved, *at);
    }
  }
  constexpr double kDown = 1.0 - static_cast<double>(std::numeric_limits<Cost>::epsilon());
  for (int64_t j = 0; j < p.columns; ++j) p.price[j] = kDown * static_cast<double>(lowest[j]);
  for (int64_t i = 0; i < p.rows; ++i) p.column_of[i] = kNone;
}

// Prepares the search for the next row that is not matched, from `row` on; false without one.
template <typename Cost>
bool next_path(Problem<Cost>& p, int64_t row) {
  while (row < p.rows && p.column_of[row] != kNone) ++row;
  if (row == p.rows) return false;
  p.last = 0;
  p.step = {row, p.bound[row], kNone, 0.0, 0.0};
  fetch_row(p);
  return true;
}

// One bid of an auction in which a row outbids another only if it gains by it, at most `rows`
// times. The price of its column falls by what it saves there: the pair is tight, and so are the
// others still. False when all rows are matched.
template <typename Cost>
bool bid(Problem<Cost>& p) {
  const int64_t row = p.step.row;
  const Bid best = best_bid(p, row);
  const double saving = best.second < kInfinity ? larger(best.second - best.cheapest, 0.0) : 0.0;
  const bool taken = !is_free(p, best.column);
  p.bound[row] = best.cheapest;
  if (taken && (saving == 0.0 || p.outbid == p.rows)) {
    p.step.row = ++p.first_bids;
  } else {
    const int64_t other = p.row_of[best.column];
    p.bound[row] += saving;
    p.price[best.column] -= saving;
    match(p, row, best.column);
    if (taken) {
      p.column_of[other] = kNone;
      ++p.outbid;
    } else {
      ++p.first_bids;
    }
    p.step.row = taken ? other : p.first_bids;
  }
  p.bidding = p.step.row < p.rows;
  if (!p.bidding) return next_path(p, 0);
  fetch_row(p);
  return true;
}

// Matches one more row along the path that was found; matched pairs stay tight.
template <typename Cost>
void augment(const Problem<Cost>& p) {
  const double length = p.path[p.last].length - p.path[p.last].price;
  for (int64_t k = 0; k < p.last; ++k) {
    const AssignmentStep& step = p.path[k];
    const double change = step.length - step.price - length;
    p.price[step.column] = step.price + smaller(change, 0.0);  // above 0 only by rounding
  }
  for (int64_t k = p.last, from = k; from >= 0; k = --from) {
    const AssignmentStep to = p.path[k];
    const auto reach = [&](const AssignmentStep& step) {
      return p.cost[step.row * p.stride + to.column] - step.offset;
    };
    from = 0;
    while (from < k && reach(p.path[from]) != to.length) ++from;
    match(p, p.path[from].row, to.column);
  }
}

// One step of the search for a shortest path to a free column. Each but the last settles a matched
// column, of which there are fewer than rows. False when all rows are matched.
template <typename Cost>
bool search(Problem<Cost>& p) {
  AssignmentStep step = p.step;
  const int64_t rank =
      p.last == 0 ? relax<true>(p, step.row, step.offset) : relax<false>(p, step.row, step.offset);
  step.column = rank & (p.matched - 1);
  step.price = p.price[step.column];
  step.length = p.reach[step.column];
  p.path[p.last] = step;
  if (rank < p.matched || p.last + 1 == p.rows) {
    augment(p);
    return next_path(p, p.path[0].row + 1);
  }
  p.step.row = p.row_of[step.column];
  p.step.offset = p.cost[p.step.row * p.stride + step.column] - step.length;
  replace(p.price, step.column, -kInfinity);
  ++p.last;
  fetch_row(p);
  return true;
}

// One row scan and what follows from it; false when all rows are matched.
template <typename Cost>
bool advance(Problem<Cost>& p) {
  return p.bidding ? bid(p) : search(p);
}

// Minus the prices of unmatched columns, all 0 as a rule.
template <typename Cost>
double price_of_free_columns(const Problem<Cost>& p) {
  Lanes lowest = all(0.0);
  for (int64_t j = 0; j < p.stride; j += kLanes) {
    const Lanes price = load(p.rank + j) < p.matched ? load(p.price + j) : all(0.0);
    lowest = smaller(price, lowest);
  }
  double slack = 0.0;
  for (int64_t j = 0; j < p.columns && least(lowest) < 0.0; ++j) {
    slack -= is_free(p, j) ? p.price[j] : 0.0;
  }
  return slack;
}

// The certificate. A row's least cost is below its u where no price is above 0: with fewer rows
// than columns, rows that have a column for it need no scan.
template <typename Cost>
void certify(const Problem<Cost>& p, double* gap, int8_t* status) {
  const bool all_columns = p.rows == p.columns;
  double slack = all_columns ? 0.0 : price_of_free_columns(p), magnitude = 0.0;
  for (int64_t i = 0; i < p.rows; ++i) {
    const int64_t column = p.column_of[i];
    const double cost = static_cast<double>(p.cost[i * p.stride + column]);
    const double tight = cost - p.price[column];
    if (all_columns || tight != p.bound[i]) slack += tight - row_price(p, i);
    magnitude += larger(cost, -cost);
  }
  *gap = slack / p.scale;
  *status = assignment_status(p.replaced, slack, magnitude, p.scale);
}

// Where a problem's results go.
struct Results {
  int64_t* query_of_target;
  double* gap;
  int8_t* status;
};

template <typename Cost>
void finish(const Problem<Cost>& p, const Results& results) {
  certify(p, results.gap, results.status);
  if (p.transposed) {
    for (int64_t t = 0; t < p.columns; ++t) {
      results.query_of_target[t] = is_free(p, t) ? kNone : p.row_of[t];
    }
  } else {
    std::copy_n(p.column_of, p.rows, results.query_of_target);
  }
}

// Up to the first row scan; false if all rows are matched.
template <typename Cost>
bool begin(Problem<Cost>& p) {
  for (int64_t j = 0; j < p.stride; j += kLanes) {
    store(p.price + j, all(0.0));
    *reinterpret_cast<BitLanes*>(p.rank + j) = first_indices<BitLanes>() + j;
  }
  if (p.rows < p.columns) {
    start_greedily(p);
    return next_path(p, 0);
  }
  reduce(p);
  p.bidding = true;
  return true;
}

// The problems [targets, queries] of a call, and which of them are still to be taken.
template <typename Cost>
class Queue {
 public:
  Queue(const Cost* cost, const int32_t* num_targets, const Results& results, int64_t problems,
        int64_t targets, int64_t queries, int threads)
      : cost_(cost),
        num_targets_(num_targets),
        results_(results),
        problems_(problems),
        targets_(targets),
        queries_(queries),
        threads_(threads) {}

  // Problems [first, last), fewer the fewer are left; none when first == last.
  void take(int64_t& first, int64_t& last) {
    first = next_.load(std::memory_order_relaxed);
    do {
      const int64_t left = problems_ - first;
      last = first + std::min(left, std::max<int64_t>(left / (4 * threads_), 1));
    } while (!next_.compare_exchange_weak(first, last, std::memory_order_relaxed));
  }

  Results results(int64_t n) const {
    return {results_.query_of_target + n * targets_, results_.gap + n, results_.status + n};
  }

  // Begins problem n; false if it is finished.
  bool begin(int64_t n, std::byte* workspace, Problem<Cost>& p) const {
    const int64_t targets = num_targets_ == nullptr ? targets_ : num_targets_[n];
    const Cost* cost = cost_ + n * targets_ * queries_;
    for (int64_t t = targets; t < targets_; ++t) results(n).query_of_target[t] = kNone;
    p = lay_out<Cost>(targets, queries_, workspace);
    if (load_costs(p, cost)) {
      if (cpu::begin(p)) return true;
      finish(p, results(n));
      return false;
    }
    Problem<double> repaired = lay_out<double>(targets, queries_, workspace);
    repair_costs(repaired, cost);
    for (bool more = cpu::begin(repaired); more;) more = advance(repaired);
    finish(repaired, results(n));
    return false;
  }

 private:
  const Cost* cost_;
  const int32_t* num_targets_;
  Results results_;
  int64_t problems_, targets_, queries_;
  int threads_;
  std::atomic<int64_t> next_{0};
};

// One thread's share of the queue: two problems by turns.
template <typename Cost>
void work(Queue<Cost>& queue, std::byte* workspace, int64_t share, bool by_turns) {
  Problem<Cost> one{}, two{};
  int64_t next = 0, end = 0, number_of_one = 0, number_of_two = 0;
  const auto begin = [&](Problem<Cost>& p, int64_t& number, std::byte* space) {
    for (;;) {
      if (next == end) queue.take(next, end);
      if (next == end) return false;
      number = next++;
      if (queue.begin(number, space, p)) return true;
    }
  };
  bool more_of_one = begin(one, number_of_one, workspace);
  bool more_of_two = by_turns && begin(two, number_of_two, workspace + share);
  while (more_of_one || more_of_two) {
    if (more_of_one && !advance(one)) {
      finish(one, queue.results(number_of_one));
      more_of_one = begin(one, number_of_one, workspace);
    }
    if (more_of_two && !advance(two)) {
      finish(two, queue.results(number_of_two));
      more_of_two = begin(two, number_of_two, workspace + share);
    }
  }
}

}  // namespace

template <InstructionSet Set, typename Cost>
void linear_assignment(const Cost* cost, const int32_t* num_targets, int64_t* query_of_target,
                       double* gap, int8_t* status, int64_t problems, int64_t targets,
                       int64_t queries, std::byte* workspace, int threads) {
  const int64_t share = linear_assignment_workspace(targets, queries);
  const bool by_turns = problems >= kAssignmentsAtOnce * threads;
  Queue<Cost> queue(cost, num_targets, {query_of_target, gap, status}, problems, targets, queries,
                    threads);
  parallel_for(threads, threads, [&](int64_t, int thread) {
    work(queue, workspace + thread * kAssignmentsAtOnce * share, share, by_turns);
  });
}

template void linear_assignment<InstructionSet::MASKFORMER_SET>(const float*, const int32_t*,
                                                                int64_t*, double*, int8_t*, int64_t,
                                                                int64_t, int64_t, std::byte*, int);
template void linear_assignment<InstructionSet::MASKFORMER_SET>(const double*, const int32_t*,
                                                                int64_t*, double*, int8_t*, int64_t,
                                                                int64_t, int64_t, std::byte*, int);

}  // namespace maskformer::cpu
