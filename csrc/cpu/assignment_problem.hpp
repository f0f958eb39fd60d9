// One assignment problem in a thread's workspace: layout, and how its costs get there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/linear_assignment.hpp"
#include "cpu/double_lanes.hpp"
#include "cpu/linear_assignment.hpp"

namespace maskformer::cpu {
namespace {

constexpr int64_t kNone = -1;

// What is known of a problem's solution. Arrays lie in the workspace.
template <typename Cost>
struct Problem {
  int64_t rows;     // <= columns
  int64_t columns;  // without padding
  int64_t stride;   // with padding
  int64_t matched;  // the bit of a column's rank that says so: a power of two >= stride
  bool transposed;  // rows are queries
  double scale;     // what the costs were multiplied by
  bool replaced;    // some entry was not finite

  double* price;         // [stride] v
  int64_t* rank;         // [stride] order among equally near columns: free ones, then the lowest
  double* reach;         // [stride] distance from the row where the path starts, plus price
  int64_t* row_of;       // [stride] of matched columns
  double* bound;         // [rows] <= u
  int64_t* column_of;    // [rows] the cheapest, before the row is matched
  Cost* cost;            // [rows, stride]
  AssignmentStep* path;  // [rows]

  bool bidding;         // else searching for a path
  int64_t first_bids;   // rows that have bid, but for those that were outbid since
  int64_t outbid;       // times that a row was
  int64_t last;         // step of the path that is being searched
  AssignmentStep step;  // its row and offset; the row that bids next
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
  for (p.matched = 1; p.matched < p.stride;) p.matched *= 2;
  p.scale = 1.0;
  p.price = take<double>(cursor, p.stride);
  p.rank = take<int64_t>(cursor, p.stride);
  p.reach = take<double>(cursor, p.stride);
  p.row_of = take<int64_t>(cursor, p.stride);
  p.bound = take<double>(cursor, assignment_stride(p.rows));
  p.column_of = take<int64_t>(cursor, assignment_stride(p.rows));
  p.cost = take<Cost>(cursor, p.rows * p.stride);
  p.path = take<AssignmentStep>(cursor, p.rows);
  return p;
}

constexpr float kHugeFloat32 = 0x1p120f;  // entries beyond it are computed with in float64

// Copies a row of costs [columns] as they are, padded with infinity; returns its least, and notes
// in `unfit` the lanes that held what is not fit to be computed with.
template <typename Cost>
Least<Cost> copy_row(const Cost* from, int64_t columns, Cost* row,
                     typename VectorOf<Cost>::Bits& unfit) {
  using Values = typename VectorOf<Cost>::Values;
  using Bits = typename VectorOf<Cost>::Bits;
  constexpr Cost kMost = std::is_same_v<Cost, float> ? kHugeFloat32 : static_cast<Cost>(kHuge);
  const Bits sign = reinterpret_cast<Bits>(all(static_cast<Cost>(-0.0)));
  const auto is_unfit = [&](Values value) {
    return ~(reinterpret_cast<Values>(reinterpret_cast<Bits>(value) & ~sign) <= all(kMost));
  };
  Least<Cost> least;
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    const Values value = load_unaligned(from + j);
    std::memcpy(row + j, &value, sizeof(value));
    unfit |= is_unfit(value);
    least.take(value);
  }
  for (; j < assignment_stride(columns); j += kLanes) {
    const int64_t count = columns > j ? columns - j : 0;
    const Values value = load_part(from + j, count, all(static_cast<Cost>(kInfinity)));
    std::memcpy(row + j, &value, sizeof(value));
    unfit |= is_unfit(load_part(from + j, count, Values{}));
    least.take(value);
  }
  return least;
}

// Copies the costs [targets, queries]; false if some are not fit to be computed with.
template <typename Cost>
bool load_costs(const Problem<Cost>& p, const Cost* cost) {
  typename VectorOf<Cost>::Bits unfit{};
  for (int64_t i = 0; i < p.rows; ++i) {
    const Cost* from = cost + i * (p.transposed ? 1 : p.columns);
    Cost* row = p.cost + i * p.stride;
    if (p.transposed) {
      for (int64_t j = 0; j < p.columns; ++j) row[j] = from[j * p.rows];
      from = row;
    }
    const Least<Cost> least = copy_row(from, p.columns, row, unfit);
    p.bound[i] = static_cast<double>(least.value());
    p.column_of[i] = least.index();
  }
  int64_t any = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) any |= unfit[lane];
  return any == 0;
}

// The costs [targets, queries] in float64, scaled, and what is not finite replaced.
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
  BitLanes unfit{};
  for (int64_t i = 0; i < p.rows; ++i) {
    double* row = p.cost + i * p.stride;
    for (int64_t j = 0; j < p.columns; ++j) {
      const double value = static_cast<double>(cost[i * row_step + j * column_step]);
      row[j] = is_finite(value) ? value * p.scale : big;
    }
    const Least<double> lowest = copy_row(row, p.columns, row, unfit);
    p.bound[i] = lowest.value();
    p.column_of[i] = lowest.index();
  }
}

}  // namespace
}  // namespace maskformer::cpu
