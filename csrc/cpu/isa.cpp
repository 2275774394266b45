#include "clead/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace clead {
namespace {

Isa widest() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
    return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose() {
  const Isa best = widest();
  const char* asked = std::getenv("CLEAD_ISA");
  if (asked == nullptr || *asked == '\0') return best;
  std::string usable;
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (isa > best) break;
    if (std::string(asked) == isa_name(isa)) return isa;
    usable += std::string(usable.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::runtime_error("CLEAD_ISA must be one that this machine has (" + usable + "), got '" + asked + "'");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

}  // namespace clead
