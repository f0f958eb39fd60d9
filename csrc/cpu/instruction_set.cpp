#include "cpu/instruction_set.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace maskformer::cpu {
namespace {

constexpr InstructionSet kBestFirst[] = {InstructionSet::avx512, InstructionSet::avx2,
                                         InstructionSet::baseline};

bool runs_here(InstructionSet set) {
  if (set == InstructionSet::baseline) return true;
#ifdef MASKFORMER_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (set == InstructionSet::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

InstructionSet choose() {
  const char* wanted = std::getenv("MASKFORMER_FAST_INSTRUCTION_SET");
  for (const InstructionSet set : kBestFirst) {
    if (runs_here(set) && (wanted == nullptr || std::string(wanted) == name_of(set))) return set;
  }
  throw std::runtime_error(
      std::string("MASKFORMER_FAST_INSTRUCTION_SET: expected baseline, avx2 or avx512, and one "
                  "that this machine runs; got ") +
      wanted);
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace maskformer::cpu
