// The passes over one row of an assignment problem: the nearest columns, in one pass each.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/assignment_problem.hpp"
#include "cpu/double_lanes.hpp"

namespace maskformer::cpu {
namespace {

constexpr double kNothing = 0x1p-1000;  // distances below it are equal, and none is denormal

// Distances with their columns written into them, and the least.
class Nearest {
 public:
  explicit Nearest(int64_t matched) : low_bits_(2 * matched - 1) {}
  Lanes key(Lanes distance, BitLanes rank) const {
    const BitLanes bits = reinterpret_cast<BitLanes>(larger(distance, all(kNothing)));
    return reinterpret_cast<Lanes>((bits & ~low_bits_) | rank);
  }
  int64_t rank(double key) const {
    int64_t bits;
    std::memcpy(&bits, &key, sizeof(bits));
    return bits & low_bits_;
  }

 private:
  int64_t low_bits_;
};

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

// Shortens the ways by those through `row`, from whose costs `offset` is taken; returns the rank
// of the nearest column. A settled column has price -infinity.
template <bool First, typename Cost>
int64_t relax(const Problem<Cost>& p, int64_t row, double offset) {
  const Cost* cost = p.cost + row * p.stride;
  const Nearest nearest(p.matched);
  const Lanes offsets = all(offset);
  Lanes lowest = all(kInfinity);
  for (int64_t j = 0; j < p.stride; j += kLanes) {
    const Lanes through_row = load(cost + j) - offsets;
    const Lanes reach = First ? through_row : smaller(through_row, load(p.reach + j));
    store(p.reach + j, reach);
    lowest = smaller(nearest.key(reach - load(p.price + j), load(p.rank + j)), lowest);
  }
  return nearest.rank(least(lowest));
}

struct Bid {
  int64_t column;   // the cheapest
  double cheapest;  // c - v there
  double second;    // of another column; infinite without one
};

template <typename Cost>
Bid best_bid(const Problem<Cost>& p, int64_t row) {
  const Cost* cost = p.cost + row * p.stride;
  const Nearest nearest(p.matched);
  const Lanes bound = all(p.bound[row]);
  Lanes first = all(kInfinity), second = first;
  for (int64_t j = 0; j < p.stride; j += kLanes) {
    const Lanes distance = load(cost + j) - load(p.price + j) - bound;
    const Lanes key = nearest.key(distance, load(p.rank + j));
    second = smaller(larger(first, key), second);
    first = smaller(key, first);
  }
  const double lowest = least(first);
  const double other = least(first == all(lowest) ? second : first);
  const auto column = [&](double key) { return nearest.rank(key) & (p.matched - 1); };
  const auto value = [&](int64_t j) { return cost[j] - p.price[j]; };
  return {column(lowest), value(column(lowest)), other < kInfinity ? value(column(other)) : other};
}

// Asks for the costs of the row that is scanned next, while the other problem is worked on.
template <typename Cost>
void fetch_row(const Problem<Cost>& p) {
  constexpr int64_t kCacheLine = 64 / sizeof(Cost);
  const Cost* cost = p.cost + p.step.row * p.stride;
  for (int64_t j = 0; j < p.stride; j += kCacheLine) __builtin_prefetch(cost + j);
}

}  // namespace
}  // namespace maskformer::cpu
