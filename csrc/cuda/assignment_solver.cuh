// One assignment problem, solved by one team: the steps that linear_assignment.cu lists.
#pragma once

#include "core/linear_assignment.hpp"
#include "cuda/assignment_columns.cuh"
#include "cuda/assignment_costs.cuh"
#include "cuda/assignment_team.cuh"
#include "cuda/device.cuh"

namespace maskformer::cuda {

constexpr int kDummy = -2;  // the row of zero costs, see match_the_rest
constexpr int kBisections = 32;
constexpr int kAtOnce = 4;             // rows whose minima do not wait for each other
constexpr double kTrustedGap = 1e-12;  // of sum |c|: a result from guessed prices that may stay

template <typename Cost, Plan kPlan, bool kShared>
class Solver {
 public:
  __device__ __forceinline__ Solver(const Arrays<Cost>& arrays, const Cost* cost, int targets,
                                    int queries)
      : team_(arrays.slots),
        columns_({cost, targets, queries, arrays.costs, team_}, arrays.columns),
        a_(arrays) {
    team_.synchronize();
  }

  // Guessed prices may be so large that rounding shows: then once more without.
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
    const int32_t* matched = columns_.costs.transposed ? a_.row_of : a_.column_of;
    const int targets = columns_.costs.transposed ? columns_.costs.columns : columns_.costs.rows;
    for (int t = columns_.thread(); t < targets; t += columns_.threads()) {
      query_of_target[t] = matched[t];
    }
    if (columns_.thread() != 0) return;
    *gap = slack_ / columns_.costs.scale;
    *status = assignment_status(columns_.costs.replaced, slack_, magnitude_, columns_.costs.scale);
  }

 private:
  __device__ __forceinline__ bool square() const {
    return columns_.costs.rows == columns_.costs.columns;
  }

  __device__ __forceinline__ void set_price(Column& c, int column, double price) {
    c.price = a_.price[column] = price;
  }

  // The column's price falls by `saving`, and `outbid` loses it.
  __device__ __forceinline__ void match(int row, int column, double saving = 0.0,
                                        int outbid = kNone) {
    team_.synchronize();
    columns_.each_held([&](Column& c, int j) {
      if (j != column) return;
      c.rank |= kMatched;
      set_price(c, j, c.price - saving);
    });
    if (columns_.thread() == 0) {
      a_.row_of[column] = row;
      a_.column_of[row] = column;
      if (outbid != kNone) a_.column_of[outbid] = kNone;
    }
    team_.synchronize();
  }

  // Prices 0 and cheapest columns; where most rows want the same ones, guessed prices instead.
  // Returns whether prices were guessed.
  __device__ __forceinline__ bool start(bool may_guess) {
    columns_.each_held([&](Column& c, int j) { set_price(c, j, 0.0); });
    for (bool guessed = false;; guessed = true) {
      if (guessed) guess_prices();
      const int matched = take_cheapest(guessed);
      if (guessed || !may_guess || 2 * matched >= columns_.costs.rows) return guessed;
    }
  }

  // Each row takes its cheapest column if that is free. Then v_j = min_i (c_ij - u_i), at most 0
  // with fewer rows than columns: the pairs stay tight. That changes nothing where v = 0 is both.
  __device__ __forceinline__ int take_cheapest(bool guessed) {
    const bool reduce = square() || guessed;
    columns_.each_held([&](Column& c, int j) {
      a_.row_of[j] = kNone;
      c.rank = static_cast<uint32_t>(j);
      c.distance = square() ? kInfinity : 0.0;
    });
    for (int i = columns_.thread(); i < columns_.costs.rows; i += columns_.threads())
      a_.column_of[i] = kNone;
    int matched = 0;
    for (int i = 0; i < columns_.costs.rows; ++i) {
      const Nearest found = team_.nearest(
          columns_.nearest_in_row(i, [](Column& c, int, double cost) { return cost - c.price; }));
      if ((found.rank & kMatched) == 0) {
        match(i, static_cast<int>(found.rank));
        ++matched;
      }
      if (!reduce) continue;
      columns_.each_in_row(i, [&](Column& c, int, double cost) {
        c.distance = smaller(cost - found.value, c.distance);
      });
    }
    if (reduce) columns_.each_column([&](Column& c, int j) { set_price(c, j, c.distance); });
    team_.synchronize();
    return matched;
  }

  // v_j = the column's mean; with fewer rows than columns less a value that about `rows` of the
  // means are below, and at most 0.
  __device__ __forceinline__ void guess_prices() {
    columns_.each_held([](Column& c, int) { c.distance = 0.0; });
    for (int i = 0; i < columns_.costs.rows; ++i) {
      columns_.each_in_row(i, [](Column& c, int, double cost) { c.distance += cost; });
    }
    double own_least = kInfinity, own_most = -kInfinity;
    columns_.each_column([&](Column& c, int) {
      c.distance /= columns_.costs.rows;
      own_least = smaller(c.distance, own_least);
      own_most = larger(c.distance, own_most);
    });
    double below = team_.least(own_least), above = -team_.least(-own_most);
    for (int k = 0; k < kBisections && !square(); ++k) {
      const double middle = below + (above - below) * 0.5;
      uint32_t own_count = 0;
      columns_.each_column([&](Column& c, int) { own_count += c.distance < middle ? 1u : 0u; });
      const uint32_t count = team_.sum(own_count),
                     wanted = static_cast<uint32_t>(columns_.costs.rows);
      (count > wanted ? above : below) = middle;
      if (count == wanted) break;
    }
    columns_.each_column([&](Column& c, int j) {
      set_price(c, j, square() ? c.distance : smaller(c.distance - below, 0.0));
    });
  }

  struct Bid {
    int column;     // the cheapest
    double saving;  // over the second cheapest column, >= 0; infinite without one
  };

  __device__ __forceinline__ Bid bid_of(int row) {
    const Nearest best = team_.nearest(columns_.nearest_in_row(
        row, [](Column& c, int, double cost) { return c.distance = cost - c.price; }));
    const int column = static_cast<int>(best.rank & ~kMatched);
    double own = kInfinity;
    columns_.each_column(
        [&](Column& c, int j) { own = smaller(j == column ? kInfinity : c.distance, own); });
    return {column, team_.least(own) - best.value};
  }

  // The rows that are left bid. One outbids another only if it gains by it, at most `rows` times;
  // the price of its column falls by what it saves there, so that pairs stay tight.
  __device__ __forceinline__ void run_auction() {
    int outbid = 0;
    for (int i = 0; i < columns_.costs.rows; ++i) {
      int row = a_.column_of[i] == kNone ? i : kNone;
      while (row != kNone) {
        const Bid bid = bid_of(row);
        const int other = a_.row_of[bid.column];
        if (other != kNone && (bid.saving == 0.0 || outbid == columns_.costs.rows)) break;
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
    for (int i = 0; i < (repair ? 2 : 1) * columns_.costs.rows; ++i) {
      if (i < columns_.costs.rows && a_.column_of[i] != kNone) continue;
      if (i == columns_.costs.rows) dummy_price_ = highest_price();
      if (i >= columns_.costs.rows && !left_to_repair()) break;
      augment(i < columns_.costs.rows ? i : kDummy);
    }
    if (!repair) return;
    columns_.each_column(
        [&](Column& c, int j) { set_price(c, j, smaller(c.price - dummy_price_, 0.0)); });
    team_.synchronize();
  }

  __device__ __forceinline__ double highest_price() {
    double own = kInfinity;
    columns_.each_column([&](Column& c, int) { own = smaller(-c.price, own); });
    return -team_.least(own);
  }

  __device__ __forceinline__ bool held_by_dummy(const Column& c) const {
    return (c.rank & kMatched) == 0 && c.price == dummy_price_;
  }

  __device__ __forceinline__ bool left_to_repair() {
    uint32_t own = 0;
    columns_.each_column(
        [&](Column& c, int) { own += (c.rank & kMatched) == 0 && !held_by_dummy(c) ? 1u : 0u; });
    return team_.sum(own) != 0;
  }

  // Matches one more row; matched pairs stay tight.
  __device__ __forceinline__ void augment(int start) {
    columns_.each_held([&](Column& c, int) {
      c.distance = kInfinity;
      const bool useless = start == kDummy && held_by_dummy(c);
      c.state = useless ? Column::excluded : Column::open;
    });
    const Nearest end = find_path(start);
    const int column = static_cast<int>(end.rank & ~kMatched);
    if (start == kDummy) dummy_price_ = -end.value;
    team_.synchronize();
    columns_.each_column([&](Column& c, int j) {
      const double change = smaller(c.distance - end.value, 0.0);  // 0 but for rounding
      if (c.state == Column::settled) set_price(c, j, c.price + change);
      if (c.state == Column::excluded) set_price(c, j, dummy_price_);
      if (j == column) c.rank |= kMatched;
    });
    team_.synchronize();
    if (columns_.thread() == 0) follow(start, column);
    team_.synchronize();
    if (start != kDummy) return;
    columns_.each_column([&](Column& c, int j) {  // one of them is no longer matched
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
    for (int step = 0; step <= columns_.costs.rows; ++step) {
      found = team_.nearest(columns_.nearest_in_row(row, [&](Column& c, int j, double cost) {
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
      offset = columns_.costs.at(row, column) - a_.price[column] - found.value;
      columns_.each_held(
          [&](Column& c, int j) { c.state = j == column ? Column::settled : c.state; });
    }
    return found;
  }

  // One thread: gives the columns of the path to the rows before them.
  __device__ __forceinline__ void follow(int start, int column) {
    for (int step = 0; step <= columns_.costs.rows; ++step) {
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
    double own_slack = 0.0, own_magnitude = 0.0;
    for (int first = 0; first < columns_.costs.rows;
         first += columns_.threads()) {  // then each thread has one
      double u = 0.0;
      for (int k = 0; k < columns_.threads() && first + k < columns_.costs.rows; k += kAtOnce) {
        double least[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          least[i] = kInfinity;
          columns_.each_in_row(
              min(first + k + i, columns_.costs.rows - 1),
              [&](Column& c, int, double cost) { least[i] = smaller(cost - c.price, least[i]); });
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          least[i] = team_.least(least[i]);
          u = k + i == columns_.thread() ? least[i] : u;
        }
      }
      if (first + columns_.thread() >= columns_.costs.rows) continue;
      const int column = a_.column_of[first + columns_.thread()];
      const double cost = columns_.costs.at(first + columns_.thread(), column);
      own_slack += cost - a_.price[column] - u;
      own_magnitude += larger(cost, -cost);
    }
    columns_.each_column(
        [&](Column& c, int) { own_slack -= (c.rank & kMatched) == 0 ? c.price : 0.0; });
    slack_ = team_.sum(own_slack);
    magnitude_ = team_.sum(own_magnitude);
    team_.synchronize();
  }

  Team<kPlan == Plan::warp> team_;
  Columns<Cost, kPlan, kShared> columns_;
  const Arrays<Cost> a_;
  double dummy_price_ = 0.0;
  double slack_ = 0.0, magnitude_ = 0.0;
};

}  // namespace maskformer::cuda
