// Which instruction set the CPU kernels run with.
//
// CMake compiles every kernel source once per instruction set, with MASKFORMER_SET naming it. The
// kernels are templates of the set, so the copies live side by side in one module.
#pragma once

#include <type_traits>

namespace maskformer::cpu {

enum class InstructionSet { baseline, avx2, avx512 };

// The best set that this machine and its operating system run, or the one that the environment
// variable MASKFORMER_FAST_INSTRUCTION_SET names. Throws std::runtime_error if that cannot run.
InstructionSet instruction_set();

const char* name_of(InstructionSet set);

// call(std::integral_constant<InstructionSet, S>) with S = instruction_set().
template <typename Call>
void dispatch(const Call& call) {
  switch (instruction_set()) {
#ifdef MASKFORMER_X86
    case InstructionSet::avx512:
      return call(std::integral_constant<InstructionSet, InstructionSet::avx512>());
    case InstructionSet::avx2:
      return call(std::integral_constant<InstructionSet, InstructionSet::avx2>());
#endif
    default:
      return call(std::integral_constant<InstructionSet, InstructionSet::baseline>());
  }
}

}  // namespace maskformer::cpu
