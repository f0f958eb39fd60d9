// checks_of_emulator           what this build detects, then the names of the checks
// checks_of_emulator NAME      runs one: prints nothing, or the error (exit code 1)

#include <cstdio>
#include <cstring>
#include <exception>

#include "emulation/checks/checks.hpp"

namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr const char* kDetects = "addresses";
#else
constexpr const char* kDetects = "races";
#endif

void list(const char* kind, const std::vector<Check>& checks) {
  for (const Check& check : checks) std::printf("%s %s\n", kind, check.name);
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 1) {
    std::printf("detects %s\n", kDetects);
    for (auto checks : {exchanges, memory}) list("accepted", checks());
    for (auto checks : {waits, accesses}) list("refused", checks());
    return 0;
  }
  for (auto checks : {exchanges, memory, waits, accesses}) {
    for (const Check& check : checks()) {
      if (std::strcmp(check.name, arguments[1]) != 0) continue;
      try {
        check.run();
        return 0;
      } catch (const std::exception& error) {
        std::printf("%s\n", error.what());
        return 1;
      }
    }
  }
  std::printf("%s: no such check\n", arguments[1]);
  return 2;
}
