// One assignment problem, solved by one team: the steps that linear_assignment.cu lists.
#pragma once

#include "core/linear_assignment.hpp"
#include "cuda/assignment_costs.cuh"
#include "cuda/assignment_team.cuh"
#include "cuda/device.cuh"

namespace maskformer::cuda {

// warp, block: kColumns columns a thread, in registers. large: any number, in the workspace.
enum class Plan { warp, block, large };

constexpr int kColumns = 4;
constexpr int kNone = -1;   // no row, no column
constexpr int kDummy = -2;  // the row of zero costs, see Solver::prepare_dummy
constexpr int kBisections = 32;
constexpr double kTrustedGap = 1e-12;  // of sum |c|: a result from guessed prices that may stay

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
class Solver {
 public:
  __device__ __forceinline__ Solver(const Arrays<Cost>& arrays, const Cost* cost, int targets,
                                    int queries)
      : team_(arrays.slots), costs_(cost, targets, queries, arrays.costs, team_), a_(arrays) {
    team_.synchronize();
  }

  // Prices that were guessed for the warm start may be so large that rounding shows: then once
  // more without.
  __device__ __forceinline__ void solve() {
    for (bool may_guess = true;; may_guess = false) {
      const bool guessed = start(may_guess);
      run_auction();
      match_the_rest(guessed);
      certify();
      if (!guessed || slack_ <= kTrustedGap * magnitude_) return;
    }
  }

  __device__ __forceinline__ void store(int64_t* query_of_target, double* gap, int8_t* status) {
    const int32_t* matched = costs_.transposed ? a_.row_of : a_.column_of;
    const int targets = costs_.transposed ? costs_.columns : costs_.rows;
    for (int t = thread(); t < targets; t += threads()) query_of_target[t] = matched[t];
    if (thread() != 0) return;
    *gap = slack_ / costs_.scale;
    *status = assignment_status(costs_.replaced, slack_, magnitude_, costs_.scale);
  }

 private:
  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }

  static __device__ __forceinline__ int threads() {
    return kPlan == Plan::warp ? kWarp : static_cast<int>(blockDim.x);
  }

  __device__ __forceinline__ bool square() const { return costs_.rows == costs_.columns; }

  // visit(column, j) for every column of this thread, also for the padding.
  template <typename Visit>
  __device__ __forceinline__ void each_held(Visit visit) {
    if constexpr (kPlan == Plan::large) {
      for (int j = thread(); j < costs_.columns; j += threads()) visit(a_.columns[j], j);
    } else {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) visit(held_[k], thread() + k * threads());
    }
  }

  // Without the padding.
  template <typename Visit>
  __device__ __forceinline__ void each_column(Visit visit) {
    each_held([&](Column& c, int j) {
      if (j < costs_.columns) visit(c, j);
    });
  }

  // visit(column, j, cost) for every column of this thread; padding costs infinity, and the
  // dummy's other columns 0.
  template <typename Visit>
  __device__ __forceinline__ void each_in_row(int row, Visit visit) {
    if constexpr (kPlan == Plan::large) {
      each_column([&](Column& c, int j) { visit(c, j, row < 0 ? 0.0 : costs_.at(row, j)); });
    } else {
      double cost[kColumns];
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const int j = thread() + k * threads();
        cost[k] = j >= costs_.columns ? kInfinity : row < 0 ? 0.0 : costs_.read(row, j);
      }
      if (!costs_.plain) {
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          const int j = thread() + k * threads();
          if (j < costs_.columns) cost[k] = costs_.repaired(cost[k]);
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

  __device__ __forceinline__ void set_price(Column& c, int column, double price) {
    c.price = a_.price[column] = price;
  }

  // The column's price falls by `saving`, and `outbid` loses it.
  __device__ __forceinline__ void match(int row, int column, double saving = 0.0,
                                        int outbid = kNone) {
    team_.synchronize();
    each_held([&](Column& c, int j) {
      if (j != column) return;
      c.rank |= kMatched;
      set_price(c, j, c.price - saving);
    });
    if (thread() == 0) {
      a_.row_of[column] = row;
      a_.column_of[row] = column;
      if (outbid != kNone) a_.column_of[outbid] = kNone;
    }
    team_.synchronize();
  }

  // Prices 0 and cheapest columns; where most rows want the same ones, guessed prices instead.
  // Returns whether prices were guessed.
  __device__ __forceinline__ bool start(bool may_guess) {
    each_held([&](Column& c, int j) { set_price(c, j, 0.0); });
    for (bool guessed = false;; guessed = true) {
      if (guessed) guess_prices();
      const int matched = take_cheapest(guessed);
      if (guessed || !may_guess || 2 * matched >= costs_.rows) return guessed;
    }
  }

  // Each row takes its cheapest column if that is free. Then v_j = min_i (c_ij - u_i), at most 0
  // with fewer rows than columns: the pairs stay tight. That changes nothing where v = 0 is both.
  __device__ __forceinline__ int take_cheapest(bool guessed) {
    const bool reduce = square() || guessed;
    each_held([&](Column& c, int j) {
      a_.row_of[j] = kNone;
      c.rank = static_cast<uint32_t>(j);
      c.distance = square() ? kInfinity : 0.0;
    });
    for (int i = thread(); i < costs_.rows; i += threads()) a_.column_of[i] = kNone;
    int matched = 0;
    for (int i = 0; i < costs_.rows; ++i) {
      const Nearest found = team_.nearest(
          nearest_in_row(i, [](Column& c, int, double cost) { return cost - c.price; }));
      if ((found.rank & kMatched) == 0) {
        match(i, static_cast<int>(found.rank));
        ++matched;
      }
      if (!reduce) continue;
      each_in_row(i, [&](Column& c, int, double cost) {
        c.distance = smaller(cost - found.value, c.distance);
      });
    }
    if (reduce) each_column([&](Column& c, int j) { set_price(c, j, c.distance); });
    team_.synchronize();
    return matched;
  }

  // v_j = the column's mean; with fewer rows than columns less a value that about `rows` of the
  // means are below, and at most 0.
  __device__ __forceinline__ void guess_prices() {
    each_held([](Column& c, int) { c.distance = 0.0; });
    for (int i = 0; i < costs_.rows; ++i) {
      each_in_row(i, [](Column& c, int, double cost) { c.distance += cost; });
    }
    double own_least = kInfinity, own_most = -kInfinity;
    each_column([&](Column& c, int) {
      c.distance /= costs_.rows;
      own_least = smaller(c.distance, own_least);
      own_most = larger(c.distance, own_most);
    });
    double below = team_.least(own_least), above = -team_.least(-own_most);
    for (int k = 0; k < kBisections && !square(); ++k) {
      const double middle = below + (above - below) * 0.5;
      uint32_t own_count = 0;
      each_column([&](Column& c, int) { own_count += c.distance < middle ? 1u : 0u; });
      const bool too_many = team_.sum(own_count) > static_cast<uint32_t>(costs_.rows);
      (too_many ? above : below) = middle;
    }
    each_column([&](Column& c, int j) {
      set_price(c, j, square() ? c.distance : smaller(c.distance - below, 0.0));
    });
  }

  struct Bid {
    int column;     // the cheapest
    double saving;  // over the second cheapest column, >= 0; infinite without one
  };

  __device__ __forceinline__ Bid bid_of(int row) {
    const Nearest best = team_.nearest(nearest_in_row(
        row, [](Column& c, int, double cost) { return c.distance = cost - c.price; }));
    const int column = static_cast<int>(best.rank & ~kMatched);
    double own = kInfinity;
    each_column(
        [&](Column& c, int j) { own = smaller(j == column ? kInfinity : c.distance, own); });
    return {column, team_.least(own) - best.value};
  }

  // The rows that are left bid. One outbids another only if it gains by it, at most `rows` times;
  // the price of its column falls by what it saves there, so that pairs stay tight.
  __device__ __forceinline__ void run_auction() {
    int outbid = 0;
    for (int i = 0; i < costs_.rows; ++i) {
      int row = a_.column_of[i] == kNone ? i : kNone;
      while (row != kNone) {
        const Bid bid = bid_of(row);
        const int other = a_.row_of[bid.column];
        if (other != kNone && (bid.saving == 0.0 || outbid == costs_.rows)) break;
        if (other != kNone) ++outbid;
        match(row, bid.column, bid.saving < kInfinity ? bid.saving : 0.0, other);
        row = other;
      }
    }
  }

  // A shortest augmenting path for each row that is left. With guessed prices and fewer rows than
  // columns also for the dummy, a row of zero costs that stands for the rows that are missing: it
  // holds the unmatched columns whose price is dummy_price_. When it holds them all, its price
  // counts as 0. At most `rows` times: the certificate tells if that was too few.
  __device__ __forceinline__ void match_the_rest(bool guessed) {
    const bool repair = guessed && !square();
    for (int i = 0; i < (repair ? 2 : 1) * costs_.rows; ++i) {
      if (i < costs_.rows && a_.column_of[i] != kNone) continue;
      if (i == costs_.rows) dummy_price_ = highest_price();
      if (i >= costs_.rows && !left_to_repair()) break;
      augment(i < costs_.rows ? i : kDummy);
    }
    if (!repair) return;
    each_column([&](Column& c, int j) { set_price(c, j, smaller(c.price - dummy_price_, 0.0)); });
    team_.synchronize();
  }

  __device__ __forceinline__ double highest_price() {
    double own = kInfinity;
    each_column([&](Column& c, int) { own = smaller(-c.price, own); });
    return -team_.least(own);
  }

  __device__ __forceinline__ bool held_by_dummy(const Column& c) const {
    return (c.rank & kMatched) == 0 && c.price == dummy_price_;
  }

  __device__ __forceinline__ bool left_to_repair() {
    uint32_t own = 0;
    each_column(
        [&](Column& c, int) { own += (c.rank & kMatched) == 0 && !held_by_dummy(c) ? 1u : 0u; });
    return team_.sum(own) != 0;
  }

  // Matches one more row; matched pairs stay tight.
  __device__ __forceinline__ void augment(int start) {
    each_held([&](Column& c, int) {
      c.distance = kInfinity;
      const bool useless = start == kDummy && held_by_dummy(c);
      c.state = useless ? Column::excluded : Column::open;
    });
    const Nearest end = find_path(start);
    const int column = static_cast<int>(end.rank & ~kMatched);
    if (start == kDummy) dummy_price_ = -end.value;
    team_.synchronize();
    each_column([&](Column& c, int j) {
      const double change = smaller(c.distance - end.value, 0.0);  // 0 but for rounding
      if (c.state == Column::settled) set_price(c, j, c.price + change);
      if (c.state == Column::excluded) set_price(c, j, dummy_price_);
      if (j == column) c.rank |= kMatched;
    });
    team_.synchronize();
    if (thread() == 0) follow(start, column);
    team_.synchronize();
    if (start != kDummy) return;
    each_column([&](Column& c, int j) {  // one of them is no longer matched
      if (a_.row_of[j] != kNone) return;
      c.rank = static_cast<uint32_t>(j);
      c.price = a_.price[j];
    });
  }

  // The shortest path to a free column; its last column. Each step before it settles a matched
  // column, so there are at most `rows` before it.
  __device__ __forceinline__ Nearest find_path(int start) {
    double offset = 0.0;
    int row = start;
    Nearest found;
    for (int step = 0; step <= costs_.rows; ++step) {
      found = team_.nearest(nearest_in_row(row, [&](Column& c, int j, double cost) {
        const double through_row = cost - c.price - offset;
        const bool open = c.state == Column::open;
        const bool shorter = open & (through_row < c.distance);
        c.distance = shorter ? through_row : c.distance;
        if (shorter) a_.parent[j] = row;
        return open ? c.distance : kInfinity;
      }));
      if ((found.rank & kMatched) == 0) break;
      const int column = static_cast<int>(found.rank & ~kMatched);
      row = a_.row_of[column];
      offset = costs_.at(row, column) - a_.price[column] - found.value;
      each_held([&](Column& c, int j) { c.state = j == column ? Column::settled : c.state; });
    }
    return found;
  }

  // One thread: gives the columns of the path to the rows before them.
  __device__ __forceinline__ void follow(int start, int column) {
    for (int step = 0; step <= costs_.rows; ++step) {
      const int row = a_.parent[column];
      if (row == kDummy) {
        a_.row_of[column] = kNone;
        a_.price[column] = dummy_price_;
        return;
      }
      const int next = a_.column_of[row];
      a_.row_of[column] = row;
      a_.column_of[row] = column;
      if (row == start) return;
      column = next;
    }
  }

  // Slack of the duality certificate: primal minus dual value, with u computed afresh. Valid for
  // any prices: v <= 0 with fewer rows than columns.
  __device__ __forceinline__ void certify() {
    slack_ = magnitude_ = 0.0;
    for (int i = 0; i < costs_.rows; ++i) {
      double own = kInfinity;
      each_in_row(i, [&](Column& c, int, double cost) { own = smaller(cost - c.price, own); });
      const int column = a_.column_of[i];
      const double cost = costs_.at(i, column);
      slack_ += cost - a_.price[column] - team_.least(own);
      magnitude_ += larger(cost, -cost);
    }
    double own = 0.0;
    each_column([&](Column& c, int) { own -= (c.rank & kMatched) == 0 ? c.price : 0.0; });
    slack_ += team_.sum(own);
    team_.synchronize();
  }

  Team<kPlan == Plan::warp> team_;
  const Costs<Cost, kShared> costs_;
  const Arrays<Cost> a_;
  Column held_[kPlan == Plan::large ? 1 : kColumns];
  double dummy_price_ = 0.0;
  double slack_ = 0.0, magnitude_ = 0.0;
};

}  // namespace maskformer::cuda
