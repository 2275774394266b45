#include "clead/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

// Whether the tile registers exist and the kernel lets this process have them.
bool tiles_granted() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTiles = 1u << 24, kTilesOfBf16 = 1u << 22;
  constexpr int kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return (d & kTiles) && (d & kTilesOfBf16) && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}

Products16 best_products() {
#if defined(__x86_64__) || defined(_M_X64)
  if (widest() == Isa::avx512 && __builtin_cpu_supports("avx512bf16"))
    return tiles_granted() ? Products16::amx : Products16::avx512_bf16;
#endif
  return Products16::none;
}

struct Choice {
  Isa isa;
  Products16 products;
};

Choice choose() {
  const Choice best{widest(), best_products()};
  const char* asked = std::getenv("CLEAD_ISA");
  if (asked == nullptr || *asked == '\0') return best;
  std::string usable;
  const auto is_asked = [&](const char* name) {
    usable += std::string(usable.empty() ? "" : ", ") + name;
    return std::string(asked) == name;
  };
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
    if (isa <= best.isa && is_asked(isa_name(isa))) return {isa, Products16::none};
  for (Products16 products : {Products16::avx512_bf16, Products16::amx})
    if (products <= best.products && is_asked(products16_name(products))) return {best.isa, products};
  throw std::runtime_error("CLEAD_ISA must be one that this machine has (" + usable + "), got '" + asked + "'");
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

Isa isa() { return choice().isa; }

Products16 products16() { return choice().products; }

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

const char* products16_name(Products16 products) {
  return products == Products16::amx ? "amx" : products == Products16::avx512_bf16 ? "avx512_bf16" : "none";
}

}  // namespace clead
