// Kernels that the emulator must run to the right result, or refuse.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

struct Check {
  const char* name;
  void (*run)();  // throws std::runtime_error where the result is wrong, or the launch was refused
};

std::vector<Check> exchanges();  // accepted
std::vector<Check> memory();     // accepted
std::vector<Check> waits();      // refused: who does not come
std::vector<Check> accesses();   // refused: races and bounds

template <typename A, typename B>
void expect_equal(const char* what, int64_t index, A got, B expected) {
  if (got == static_cast<A>(expected)) return;
  throw std::runtime_error(std::string(what) + "[" + std::to_string(index) + "]: expected " +
                           std::to_string(expected) + ", got " + std::to_string(got));
}
